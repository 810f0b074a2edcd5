// Software twins of x86 instructions that most machines lack, after Intel's Software Developer's Manual and Intrinsics
// Guide: included before a kernel (g++ -include), they make its very source run anywhere. EFFC_TWIN_VNNI512,
// EFFC_TWIN_VNNI256, EFFC_TWIN_AMX (of bytes), EFFC_TWIN_BF16 or EFFC_TWIN_AMX_BF16 says which feature the kernel shall
// believe in. A wrong use of AMX (a tile beyond its
// configured size, an unconfigured one, sizes that do not fit) aborts, as the processor would fault.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace twin {
// VPDPBUSD: each 32-bit lane gets four products of an unsigned and a signed byte added, without saturation.
template <class V>
inline V dpbusd(V acc, V a, V b) {
  uint32_t c[sizeof(V) / 4];
  uint8_t x[sizeof(V)];
  int8_t y[sizeof(V)];
  memcpy(c, &acc, sizeof(V)), memcpy(x, &a, sizeof(V)), memcpy(y, &b, sizeof(V));
  for (unsigned i = 0; i < sizeof(V); ++i) c[i / 4] += (uint32_t)((int32_t)x[i] * y[i]);
  memcpy(&acc, c, sizeof(V));
  return acc;
}
// Denormals are zeros, whatever the thread's modes are.
inline float flush(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0, x) : x; }
inline float bf16_at(const void* p, int i) {
  uint16_t half;
  memcpy(&half, (const char*)p + 2 * i, 2);
  const uint32_t bits = (uint32_t)half << 16;
  float x;
  memcpy(&x, &bits, 4);
  return flush(x);
}
// One FMA, rounded to nearest, denormals flushed in and out.
inline float fma_flushed(float acc, float x, float y) { return flush(__builtin_fmaf(x, y, flush(acc))); }
// VDPBF16PS: each 32-bit lane gets the product of the second elements added, then that of the first ones.
template <class V, class P>
inline V dpbf16(V acc, P a, P b) {
  static_assert(sizeof(V) == sizeof(P), "");
  float c[sizeof(V) / 4];
  memcpy(c, &acc, sizeof(V));
  for (unsigned i = 0; i < sizeof(V) / 4; ++i) {
    c[i] = fma_flushed(c[i], bf16_at(&a, 2 * i + 1), bf16_at(&b, 2 * i + 1));
    c[i] = fma_flushed(c[i], bf16_at(&a, 2 * i), bf16_at(&b, 2 * i));
  }
  memcpy(&acc, c, sizeof(V));
  return acc;
}
struct V512 {
  uint8_t bytes[64];
};
inline V512 load(const void* p) {
  V512 v;
  memcpy(&v, p, 64);
  return v;
}
inline void store(void* p, const V512& v) { memcpy(p, &v, 64); }
inline V512 set1(int32_t x) {
  V512 v;
  for (int i = 0; i < 16; ++i) memcpy(v.bytes + 4 * i, &x, 4);
  return v;
}

[[noreturn]] inline void fault(const char* what) {
  fprintf(stderr, "AMX twin: %s\n", what);
  abort();
}
// The state of a thread: palette 1 has 8 tiles of at most 16 rows by 64 bytes.
struct Amx {
  bool configured = false;
  uint16_t bytes[8];
  uint8_t rows[8];
  uint8_t data[8][16][64];
};
inline Amx& amx() {
  static thread_local Amx state;
  return state;
}
// LDTILECFG: 64 bytes; palette at 0, start_row at 1, bytes of a row at 16 (16 bits each), rows at 48. Clears all tiles.
inline void loadconfig(const void* config) {
  const uint8_t* p = (const uint8_t*)config;
  Amx& s = amx();
  if (p[0] != 1 || p[1] != 0) fault("palette or start row");
  for (int i = 2; i < 16; ++i)
    if (p[i]) fault("reserved bytes");
  for (int i = 0; i < 16; ++i) {
    uint16_t bytes;
    memcpy(&bytes, p + 16 + 2 * i, 2);
    const uint8_t rows = p[48 + i];
    if (i >= 8 && (bytes || rows)) fault("tiles that palette 1 lacks");
    if (i >= 8) continue;
    if (bytes > 64 || rows > 16 || (bytes == 0) != (rows == 0)) fault("a tile's size");
    s.bytes[i] = bytes, s.rows[i] = rows;
  }
  memset(s.data, 0, sizeof s.data);
  s.configured = true;
}
inline void release() { amx().configured = false; }
inline void check(int t) {
  if (t < 0 || t > 7 || !amx().configured || !amx().rows[t]) fault("an unconfigured tile");
}
inline void tile_loadd(int t, const void* base, int64_t stride) {
  check(t);
  for (int r = 0; r < amx().rows[t]; ++r) memcpy(amx().data[t][r], (const char*)base + r * stride, amx().bytes[t]);
}
inline void tile_stored(int t, void* base, int64_t stride) {
  check(t);
  for (int r = 0; r < amx().rows[t]; ++r) memcpy((char*)base + r * stride, amx().data[t][r], amx().bytes[t]);
}
// TDPBUSD dst, a, b: dst[m][n] += sum over k, i < 4 of a[m][4 k + i] (unsigned) * b[k][4 n + i] (signed).
inline void tile_dpbusd(int d, int a, int b) {
  check(d), check(a), check(b);
  Amx& s = amx();
  if (d == a || d == b || a == b) fault("the same tile twice");
  if (s.bytes[d] % 4 || s.bytes[a] % 4 || s.rows[a] != s.rows[d] || s.bytes[b] != s.bytes[d] || s.rows[b] != s.bytes[a] / 4)
    fault("sizes of a product");
  for (int m = 0; m < s.rows[d]; ++m)
    for (int n = 0; n < s.bytes[d] / 4; ++n) {
      uint32_t c;
      memcpy(&c, s.data[d][m] + 4 * n, 4);
      for (int k = 0; k < s.bytes[a]; ++k) c += (uint32_t)((int32_t)s.data[a][m][k] * (int8_t)s.data[b][k / 4][4 * n + k % 4]);
      memcpy(s.data[d][m] + 4 * n, &c, 4);
    }
}
// TDPBF16PS dst, a, b: first and second elements of the pairs are summed apart, by FMAs, then together, then to dst.
inline void tile_dpbf16ps(int d, int a, int b) {
  check(d), check(a), check(b);
  Amx& s = amx();
  if (d == a || d == b || a == b) fault("the same tile twice");
  if (s.bytes[d] % 4 || s.bytes[a] % 4 || s.rows[a] != s.rows[d] || s.bytes[b] != s.bytes[d] || s.rows[b] != s.bytes[a] / 4)
    fault("sizes of a product");
  for (int m = 0; m < s.rows[d]; ++m)
    for (int n = 0; n < s.bytes[d] / 4; ++n) {
      float sum[2] = {0, 0}, c;
      for (int k = 0; k < s.bytes[a] / 4; ++k)
        for (int i = 0; i < 2; ++i) sum[i] = fma_flushed(sum[i], bf16_at(s.data[a][m], 2 * k + i), bf16_at(s.data[b][k], 2 * n + i));
      memcpy(&c, s.data[d][m] + 4 * n, 4);
      c = flush(flush(c) + flush(sum[0] + sum[1]));
      memcpy(s.data[d][m] + 4 * n, &c, 4);
    }
}
}  // namespace twin

#if defined(EFFC_TWIN_VNNI512)
#define __AVX512VNNI__ 1
#define __m512i twin::V512
#define _mm512_loadu_si512 twin::load
#define _mm512_storeu_si512 twin::store
#define _mm512_set1_epi32 twin::set1
#define _mm512_dpbusd_epi32 twin::dpbusd<twin::V512>
#elif defined(EFFC_TWIN_VNNI256)
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 twin::dpbusd<__m256i>
#elif defined(EFFC_TWIN_AMX)
#define __AMX_INT8__ 1
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#define _tile_loadconfig twin::loadconfig
#define _tile_release twin::release
#define _tile_loadd twin::tile_loadd
#define _tile_stored twin::tile_stored
#define _tile_dpbusd twin::tile_dpbusd
#elif defined(EFFC_TWIN_BF16)
#define __AVX512BF16__ 1
#define _mm512_dpbf16_ps twin::dpbf16
#elif defined(EFFC_TWIN_AMX_BF16)
#define __AMX_BF16__ 1
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig twin::loadconfig
#define _tile_release twin::release
#define _tile_loadd twin::tile_loadd
#define _tile_stored twin::tile_stored
#define _tile_dpbf16ps twin::tile_dpbf16ps
#endif
