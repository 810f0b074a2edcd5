/* Products of bfloat16 by the instructions for pairs, for the driver of gemm.hpp: a step of the reduction is a pair, 32 bits
 * of A and of B as it is of a float, and the accumulators are float32. One of these is compiled, by the target's flags:
 *
 *   AMX-BF16     tdpbf16ps on tiles of 16 rows, 16 pairs and 16 columns; 1 x 4 tiles of accumulators
 *   AVX512-BF16  vdpbf16ps on 64 bytes: a pair of 16 columns; the micro-kernel of float32 with another multiplication
 *
 * Both round each of a pair's two sums to nearest, ties to even, take denormal operands as zero and write zero for denormal
 * results (Intel, Software Developer's Manual, VDPBF16PS and TDPBF16PS), whatever the thread's modes are: what is lost is
 * below 2^-126 a term, and a product of bfloat16 is exact in float32. A reduction of odd length gets a zero.
 *
 * Intrinsics, because no compiler finds these instructions in loops; tests/null/test_bf16.py builds this very text with
 * functions that do what the manual says, and runs it on any machine. */
#ifndef EFFC_DOT_BF16_HPP
#define EFFC_DOT_BF16_HPP
#include "gemm.hpp"

#if defined(__AMX_BF16__) || (defined(__AVX512BF16__) && EFFC_VLEN >= 64)
#define EFFC_BF16_DOT 1
#include <immintrin.h>

namespace effc {
namespace gemm {

/* The sum of a pair's products, one at a time. */
EFFC_INLINE float dot_pair(uint32_t a, uint32_t b) {
  return bitcast<float>(a << 16) * bitcast<float>(b << 16) +
         bitcast<float>(a & 0xffff0000u) * bitcast<float>(b & 0xffff0000u);
}

template <>
struct Product<bf16_dot> {
  EFFC_INLINE float one(float a, bf16_dot b) { return dot_pair(bitcast<uint32_t>(a), b.bits); }
  EFFC_INLINE void add(Vec<float>& acc, Vec<float> a, Vec<float> b) {
#if defined(__AVX512BF16__)
    acc = (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else /* AMX without AVX512-BF16: dot products alone come here */
    const auto x = (VecOf<uint32_t>::type)a, y = (VecOf<uint32_t>::type)b;
    multiply_add(acc, (Vec<float>)(x << 16), (Vec<float>)(y << 16));
    multiply_add(acc, (Vec<float>)(x & 0xffff0000u), (Vec<float>)(y & 0xffff0000u));
#endif
  }
};

#if defined(__AMX_BF16__)
constexpr int kDotMR = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};
/* Accumulators 0 to 3: rows x 16. A in 4: rows x pairs. B in 5, 6: pairs x 16. */
EFFC_INLINE void configure(int rows, int pairs) {
  TileConfig c;
  for (int i = 0; i < 4; ++i) c.rows[i] = (uint8_t)rows, c.bytes[i] = 64;
  c.rows[4] = (uint8_t)rows, c.bytes[4] = (uint16_t)(4 * pairs);
  c.rows[5] = c.rows[6] = (uint8_t)pairs, c.bytes[5] = c.bytes[6] = 64;
  _tile_loadconfig(&c);
}
/* The state is the thread's: given back after a task. */
inline void release_tiles() { _tile_release(); }

/* c[rows][16 NV] (+)= a[rows][n pairs] b[n pairs][16 NV], in blocks of `pairs`, which divides n. */
template <int NV>
EFFC_INLINE void tiles(int rows, int pairs, int64_t n, const char* a, int64_t lda, const float* b, int64_t ldb, float* c,
                       int64_t ldc, bool accumulate) {
  configure(rows, pairs); /* this makes zeros of all tiles */
  if (accumulate) {
    _tile_loadd(0, c, ldc * 4);
    if (NV > 1) _tile_loadd(1, c + 16, ldc * 4);
    if (NV > 2) _tile_loadd(2, c + 32, ldc * 4);
    if (NV > 3) _tile_loadd(3, c + 48, ldc * 4);
  }
  for (int64_t k = 0; k < n; k += pairs, a += 4 * pairs, b += pairs * ldb) {
    _tile_loadd(4, a, lda);
    _tile_loadd(5, b, ldb * 4);
    _tile_dpbf16ps(0, 4, 5);
    if (NV > 1) {
      _tile_loadd(6, b + 16, ldb * 4);
      _tile_dpbf16ps(1, 4, 6);
    }
    if (NV > 2) {
      _tile_loadd(5, b + 32, ldb * 4);
      _tile_dpbf16ps(2, 4, 5);
    }
    if (NV > 3) {
      _tile_loadd(6, b + 48, ldb * 4);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  _tile_stored(0, c, ldc * 4);
  if (NV > 1) _tile_stored(1, c + 16, ldc * 4);
  if (NV > 2) _tile_stored(2, c + 32, ldc * 4);
  if (NV > 3) _tile_stored(3, c + 48, ldc * 4);
}

/* As micro() of gemm.hpp, for one panel after another. What a row has beyond blocks of 16 pairs is a shorter block, for
 * which the tiles have to change their size. */
template <int R, int NV>
void micro_tiles(const Tile* t) {
  static_assert(lanes<float> == 16, "panels are made of tiles");
  const int64_t panels = NV > kNV ? NV / kNV : t->in_turn, stride = NV > kNV ? 4 * t->panel_stride : t->turn_bytes;
  for (int64_t p = 0; p < panels; ++p) {
    constexpr int V = NV < kNV ? NV : kNV;
    const int64_t whole = t->k / 16 * 16;
    const char* a = (const char*)t->a;
    const float* b = (const float*)((const char*)t->b + p * stride);
    float* c = (float*)t->c + p * kNR<float>;
    if (whole || !t->k) tiles<V>(R, 16, whole, a, t->lda, b, t->ldb, c, t->ldc, t->accumulate);
    if (t->k > whole)
      tiles<V>(R, (int)(t->k - whole), t->k - whole, a + 4 * whole, t->lda, b + whole * t->ldb, t->ldb, c, t->ldc,
               t->accumulate || whole);
  }
}

template <int R>
constexpr void fill_tiles(Table& t) {
  if constexpr (R > 0) {
    t.fn[R - 1][0] = micro_tiles<R, 1>;
    t.fn[R - 1][1] = micro_tiles<R, 2>;
    t.fn[R - 1][2] = micro_tiles<R, 3>;
    t.fn[R - 1][3] = micro_tiles<R, 4>;
    t.fn[R - 1][kNV] = micro_tiles<R, kNV * panels_at_once(R)>;
    fill_tiles<R - 1>(t);
  }
}
constexpr Table dot_table() {
  Table t{};
  fill_tiles<kDotMR>(t);
  return t;
}
#else
constexpr int kDotMR = kMR;
constexpr void (*release_tiles)() = nullptr;
constexpr Table dot_table() { return make_table<float, bf16_dot>(); }
#endif

/* ---- operands as matrices of pairs ---- */

EFFC_INLINE uint32_t pair_of(bf16 low, bf16 high) { return low.bits | (uint32_t)high.bits << 16; }

/* Whether a matrix, whose k is along `k_stride`, can be read as one of pairs; if so, it becomes one. */
inline bool as_pairs(Matrix& x, int64_t inner, int64_t& k_stride, int64_t& other) {
  if (k_stride != 1 || inner % 2 || (x.batch0 | x.batch1 | other) % 2 || (uintptr_t)x.data % 4) return false;
  x.batch0 /= 2, x.batch1 /= 2, other /= 2;
  return true;
}

struct Pairs {
  static void load_a(const Matrix& a, int64_t inner, int64_t m0, int64_t m1, int64_t k0, int64_t k1, float* dst, int64_t ld) {
    const int64_t whole = min(k1, inner / 2);
    for (int64_t m = m0; m < m1; ++m, dst += ld) {
      const bf16* row = (const bf16*)a.data + m * a.row;
      uint32_t* d = (uint32_t*)dst;
      for (int64_t k = k0; k < whole; ++k) d[k - k0] = pair_of(row[2 * k * a.col], row[(2 * k + 1) * a.col]);
      if (whole < k1) d[whole - k0] = row[2 * whole * a.col].bits;
    }
  }
  static void load_b(const Matrix& b, int64_t inner, int64_t k0, int64_t k1, int64_t n0, int64_t n, float* dst) {
    constexpr int NR = kNR<float>;
    for (int64_t k = k0; k < k1; ++k, dst += NR) {
      const bf16* low = (const bf16*)b.data + 2 * k * b.row + n0 * b.col;
      const bool two = 2 * k + 1 < inner;
      const bf16* high = two ? low + b.row : low;
      const uint32_t mask = two ? 0xffffffffu : 0xffffu;
      uint32_t* d = (uint32_t*)dst;
      if (b.col == 1)
        for (int64_t j = 0; j < n; ++j) d[j] = pair_of(low[j], high[j]) & mask;
      else
        for (int64_t j = 0; j < n; ++j) d[j] = pair_of(low[j * b.col], high[j * b.col]) & mask;
      for (int64_t j = n; j < NR; ++j) d[j] = 0;
    }
  }
};

/* Format::adapt. */
inline void take_pairs(Format<float>& f, Matrix& a, Matrix* b, int64_t inner) {
  typedef Real<float, float> Words; /* pairs are moved as floats are */
  f.a_direct = as_pairs(a, inner, a.col, a.row);
  f.a_size = f.a_direct ? 4 : 2;
  f.load_a = f.a_direct ? Words::load_a : Pairs::load_a;
  const bool words = b && as_pairs(*b, inner, b->row, b->col);
  f.b_size = words ? 4 : 2;
  f.load_b = words ? Words::load_b : Pairs::load_b;
  f.dot = words ? dot<float, bf16_dot> : nullptr;
}
inline Format<float> dot_format(const Table* table) {
  Format<float> f = Real<float, bf16>::format<bf16>(table, table, sizeof(bf16_dot));
  f.step = 2, f.mr = kDotMR, f.done = release_tiles, f.adapt = take_pairs;
  return f;
}

}  // namespace gemm
}  // namespace effc
#endif
#endif
