/* Right-hand sides that are computed, laid out in scratch as packing/int8.py lays out constants: signed bytes in panels, sums
 * of columns, and where the products' instruction saturates, pairs of weights that could as sums of two that cannot, or, where
 * those are many, panels in pairs of steps. */
#ifndef EFFC_PACK_I8_HPP
#define EFFC_PACK_I8_HPP
#include "gemm_i8.hpp"

namespace effc {
namespace i8 {

/* B of any strides; batches of stride 0 are packed once. */
struct Packer {
  const effc_call* call;
  const effc_tensor& b; /* (b0, b1, K, N) u8 or i8 */
  int32_t zero;         /* of the signed bytes */
  Weights w;
  int64_t d0 = 1, d1 = 1; /* batches that differ */

  int64_t slot0() const { return d0 > 1 ? d1 : 0; }
  int64_t slot1() const { return d1 > 1 ? 1 : 0; }

  /* False if scratch is too small; lower/quantized.py mirrors the sizes. */
  bool place() {
    d0 = b.shape[0] > 1 && b.strides[0] != 0 ? b.shape[0] : 1, d1 = b.shape[1] > 1 && b.strides[1] != 0 ? b.shape[1] : 1;
    w.h = Weights::Header{};
    w.h.groups = 1, w.h.k = (int32_t)b.shape[2], w.h.n = (int32_t)b.shape[3];
    w.h.has_zeros = zero != 0;
    w.panels = ceil_div(w.h.n, kNR), w.steps = ceil_div(w.h.k, kAlign) * kAlign;
    char *p = (char*)call->scratch, *end = p + call->scratch_bytes;
    const int64_t panels = d0 * d1 * w.panels, blocks = panels * 2 * (w.steps / kGroup);
    auto take = [&](int64_t bytes) {
      char* at = p;
      p += ceil_div(bytes, 64) * 64;
      return at;
    };
    w.sums = (const int32_t*)take(panels * kNR * 4), w.zeros = (const int32_t*)take(panels * kNR * 4);
    w.data = (const int8_t*)take(panels * w.steps * kNR);
    w.form = (const uint8_t*)take(panels);
    w.starts = (const uint32_t*)take(panels * 2 * 4), w.ends = (const uint32_t*)take(panels * 2 * 4);
    w.where = (const uint32_t*)take(kSplit ? blocks * 4 : 0), w.extra = (const int8_t*)take(kSplit ? blocks * 32 : 0);
    return p <= end;
  }

  /* Whether a pair's products with unsigned bytes may not fit in 16 bits. */
  static bool unsafe(int x, int y) {
    const int up = (x > 0 ? x : 0) + (y > 0 ? y : 0), down = (x < 0 ? x : 0) + (y < 0 ? y : 0);
    return (up > 128) | (down < -128);
  }
  /* Whether a block of 4 steps by 8 columns has a pair that must be split. */
  static bool unsafe(const int8_t* block) {
    int any = 0;
    for (int i = 0; i < 16; ++i) any |= unsafe(block[2 * i], block[2 * i + 1]);
    return any;
  }
  /* Splits the pairs of a block that need it into w and `second`. */
  static void halve(int8_t* block, int8_t* second) {
    for (int i = 0; i < 16; ++i) {
      const int x = block[2 * i], y = block[2 * i + 1];
      const bool bad = unsafe(x, y);
      const int hx = bad ? x >> 1 : x, hy = bad ? y >> 1 : y;
      block[2 * i] = (int8_t)hx, block[2 * i + 1] = (int8_t)hy;
      second[2 * i] = (int8_t)(x - hx), second[2 * i + 1] = (int8_t)(y - hy);
    }
  }
  /* A group of a panel from [16][4] to [2][16][2]. */
  static void pair(int8_t* group) {
    int16_t from[2 * kNR], to[2 * kNR];
    memcpy(from, group, sizeof from);
    for (int j = 0; j < kNR; ++j) to[j] = from[2 * j], to[kNR + j] = from[2 * j + 1];
    memcpy(group, to, sizeof to);
  }

  void panel(int64_t batch, int64_t p) const {
    const uint8_t flip = b.dtype == EFFC_U8 ? 0x80 : 0;
    const int64_t at = batch * w.panels + p, k = w.h.k, n = min(kNR, w.h.n - p * kNR);
    const int64_t row = b.strides[2], col = b.strides[3];
    const uint8_t* src = (const uint8_t*)b.data + batch / d1 * b.strides[0] * (d0 > 1) + batch % d1 * b.strides[1] * (d1 > 1) +
                         p * kNR * col;
    int8_t* dst = (int8_t*)w.data + at * w.steps * kNR;
    int32_t sums[kNR] = {};
    for (int64_t g = 0; g < w.steps / kGroup; ++g) {
      int8_t* block = dst + g * kGroup * kNR;
      const int64_t left = k - g * kGroup;
      if (left >= kGroup && n == kNR && col == 1) {
        const uint8_t* s = src + g * kGroup * row;
        for (int j = 0; j < kNR; ++j)
          for (int i = 0; i < kGroup; ++i) block[j * kGroup + i] = (int8_t)(s[i * row + j] ^ flip);
      } else if (left >= kGroup && n == kNR && row == 1) {
        for (int j = 0; j < kNR; ++j) {
          uint32_t x;
          memcpy(&x, src + g * kGroup + j * col, 4);
          x ^= flip * 0x01010101u;
          memcpy(block + j * kGroup, &x, 4);
        }
      } else {
        memset(block, 0, kGroup * kNR);
        for (int j = 0; j < n; ++j)
          for (int i = 0; i < kGroup && i < left; ++i)
            block[j * kGroup + i] = (int8_t)(src[(g * kGroup + i) * row + j * col] ^ flip);
      }
      for (int j = 0; j < kNR; ++j) {
        int32_t s = 0;
        for (int i = 0; i < kGroup; ++i) s += block[j * kGroup + i];
        sums[j] += s;
      }
    }
    for (int j = 0; j < kNR; ++j) {
      ((int32_t*)w.sums)[at * kNR + j] = (int32_t)((uint32_t)sums[j] - (uint32_t)k * (uint32_t)zero);
      ((int32_t*)w.zeros)[at * kNR + j] = zero;
    }
    if (!kSplit) return;
    const int64_t groups = w.steps / kGroup;
    int64_t halves = 0;
    for (int64_t i = 0; i < groups * 2; ++i) halves += unsafe(dst + i * 32);
    const bool wide = (double)halves > kWideShare * (double)(2 * ceil_div(k, kGroup));
    ((uint8_t*)w.form)[at] = wide ? kWide : kPairs;
    for (int64_t g = 0; wide && g < groups; ++g) pair(dst + g * kGroup * kNR);
    for (int v = 0; v < 2; ++v) {
      uint32_t used = (uint32_t)((at * 2 + v) * groups);
      ((uint32_t*)w.starts)[at * 2 + v] = used;
      for (int64_t g = 0; !wide && g < groups; ++g) {
        int8_t* block = dst + g * kGroup * kNR + v * 32;
        if (!unsafe(block)) continue;
        halve(block, (int8_t*)w.extra + (int64_t)used * 32);
        ((uint32_t*)w.where)[used] = (uint32_t)g;
        ++used;
      }
      ((uint32_t*)w.ends)[at * 2 + v] = used;
    }
  }

  void run() const {
    call->api->parallel_for(
        call->run, d0 * d1 * w.panels, max(1, 16384 / max(1, w.steps * kNR)),
        [](void* arg, int64_t begin, int64_t end, int32_t) {
          const Packer& p = *(const Packer*)arg;
          for (int64_t i = begin; i < end; ++i) p.panel(i / p.w.panels, i % p.w.panels);
        },
        (void*)this);
  }
};

}  // namespace i8
}  // namespace effc
#endif
