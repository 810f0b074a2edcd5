/* Right-hand sides that are computed, laid out in scratch as packing/int8.py lays out constants: signed bytes in panels, and
 * sums of columns. Where the products' instruction saturates, all panels are of magnitudes, which any weights may be. */
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
    w.h.has_zeros = zero != 0, w.one_zero = true;
    w.panels = ceil_div(w.h.n, kNR), w.steps = ceil_div(w.h.k, kAlign) * kAlign;
    char *p = (char*)call->scratch, *end = p + call->scratch_bytes;
    const int64_t panels = d0 * d1 * w.panels;
    auto take = [&](int64_t bytes) {
      char* at = p;
      p += ceil_div(bytes, 64) * 64;
      return at;
    };
    w.sums = (const int32_t*)take(panels * kNR * 4), w.zeros = (const int32_t*)take(panels * kNR * 4);
    w.data = (const int8_t*)take(panels * w.steps * kNR);
    w.form = (const uint8_t*)take(panels), w.shifts = (const int32_t*)take(panels * kNR * 4);
    return p <= end;
  }

  void panel(int64_t batch, int64_t p) const {
    const uint8_t flip = b.dtype == EFFC_U8 ? 0x80 : 0;
    const int64_t at = batch * w.panels + p, k = w.h.k, n = min(kNR, w.h.n - p * kNR);
    const int64_t row = b.strides[2], col = b.strides[3];
    const uint8_t* src = (const uint8_t*)b.data + batch / d1 * b.strides[0] * (d0 > 1) + batch % d1 * b.strides[1] * (d1 > 1) +
                         p * kNR * col;
    int8_t* dst = (int8_t*)w.data + at * w.steps * kNR;
    const __m256i flips = _mm256_set1_epi8((char)flip), one = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    __m256i sum[2] = {}, less[2] = {}; /* of the columns, and of the magnitudes of what is negative */
    for (int64_t g = 0; g < w.steps / kGroup; ++g) {
      int8_t* block = dst + g * kGroup * kNR;
      const int64_t left = k - g * kGroup;
      const uint8_t* s = src + g * kGroup * row;
      __m256i vectors[2]; /* made in registers: a vector that is loaded after stores of its parts waits for them */
      if (left >= kGroup && n == kNR && col == 1) {
        __m128i r[kGroup];
        for (int i = 0; i < kGroup; ++i) r[i] = _mm_loadu_si128((const __m128i*)(s + i * row));
        const __m128i low0 = _mm_unpacklo_epi8(r[0], r[1]), high0 = _mm_unpackhi_epi8(r[0], r[1]);
        const __m128i low1 = _mm_unpacklo_epi8(r[2], r[3]), high1 = _mm_unpackhi_epi8(r[2], r[3]);
        vectors[0] = _mm256_set_m128i(_mm_unpackhi_epi16(low0, low1), _mm_unpacklo_epi16(low0, low1));
        vectors[1] = _mm256_set_m128i(_mm_unpackhi_epi16(high0, high1), _mm_unpacklo_epi16(high0, high1));
      } else if (left >= kGroup && n == kNR && row == 1) {
        auto at = [&](int64_t j) { return four(s + j * col); };
        vectors[0] = _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
        vectors[1] = _mm256_setr_epi32(at(8), at(9), at(10), at(11), at(12), at(13), at(14), at(15));
      } else {
        uint8_t edge[kGroup * kNR];
        memset(edge, flip, sizeof edge);
        for (int j = 0; j < n; ++j)
          for (int i = 0; i < kGroup && i < left; ++i) edge[j * kGroup + i] = s[i * row + j * col];
        memcpy(vectors, edge, sizeof vectors);
      }
      for (int v = 0; v < 2; ++v) {
        const __m256i x = _mm256_xor_si256(vectors[v], flips);
        _mm256_storeu_si256((__m256i*)(block + v * 32), x);
        const __m256i negative = _mm256_abs_epi8(_mm256_min_epi8(x, _mm256_setzero_si256()));
        sum[v] = _mm256_add_epi32(sum[v], _mm256_madd_epi16(_mm256_maddubs_epi16(one, x), ones));
        less[v] = _mm256_add_epi32(less[v], _mm256_madd_epi16(_mm256_maddubs_epi16(negative, one), ones));
      }
    }
    uint32_t sums[kNR], below[kNR];
    memcpy(sums, sum, sizeof sums), memcpy(below, less, sizeof below);
    for (int j = 0; j < kNR; ++j) {
      ((int32_t*)w.sums)[at * kNR + j] = (int32_t)(sums[j] - (uint32_t)k * (uint32_t)zero);
      ((int32_t*)w.zeros)[at * kNR + j] = zero;
      ((int32_t*)w.shifts)[at * kNR + j] = (int32_t)(128u * sums[j] + below[j]);
    }
    if (kSplit) ((uint8_t*)w.form)[at] = kMagnitudes;
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
