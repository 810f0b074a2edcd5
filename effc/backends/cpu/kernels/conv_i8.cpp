/* Convolutions of bytes with zero points: rows are output pixels, columns output channels, steps (tap, channel) of the
 * windows, which are copied where they are needed (gemm_i8.hpp). */
#include "gemm_i8.hpp"

using namespace effc;
using namespace effc::i8;

namespace {
enum { kGroups, kOut, kKernel, kStride = kKernel + 3, kPad = kStride + 3, kDilation = kPad + 3, kSize = kDilation + 3,
       kAttrs = kSize + 3 };

struct Windows {
  const uint8_t* x;
  int64_t shape[5], stride[5]; /* N, C, three spatial dims; the channels' stride is 1 */
  const int64_t* a;
  int64_t cg, run; /* channels of a group; bytes of a window that lie side by side: a tap's channels, or a row of taps */
  bool whole_rows;
  uint8_t flip, fill;

  int32_t zero(int64_t, int64_t, int64_t) const { return fill; }
  bool one_zero() const { return true; }
  /* Windows of one tap without steps or padding are pixels, where rows of pixels follow each other. */
  InPlace in_place(int64_t b, int64_t, int64_t group, int64_t m0) const {
    bool plain = !flip && stride[3] == shape[4] * stride[4] && (shape[2] == 1 || stride[2] == shape[3] * stride[3]);
    for (int d = 0; d < 3; ++d)
      plain &= a[kKernel + d] == 1 && a[kPad + d] == 0 && (a[kStride + d] == 1 || shape[2 + d] == 1) &&
               a[kSize + d] == shape[2 + d];
    return {plain ? x + b * stride[0] + group * cg + m0 * stride[4] : nullptr, stride[4]};
  }

  /* Bytes of a window that lie side by side: where its tap is in the window, the bytes [off, off + n) of it, where they are in
   * memory from the window's origin, and where they go. */
  struct Piece {
    int64_t d, h, w, off, n, from, to;
  };
  static constexpr int kPieces = 64;

  void rows(int64_t b, int64_t, int64_t group, int64_t m0, int64_t m1, int64_t k0, int64_t k1, uint8_t* dst) const {
    Piece pieces[kPieces];
    const int64_t kw = whole_rows ? 1 : a[kKernel + 2], start = k0;
    int64_t segment = k0 / run, off = k0 % run;
    int64_t at[3] = {segment / kw / a[kKernel + 1], segment / kw % a[kKernel + 1], segment % kw};
    while (k0 < k1) { /* as many pieces as the list holds, for all rows; then the next ones */
      int count = 0;
      for (; k0 < k1 && count < kPieces; ++count) {
        Piece& p = pieces[count];
        p.d = at[0] * a[kDilation], p.h = at[1] * a[kDilation + 1], p.w = at[2] * a[kDilation + 2];
        p.off = off, p.n = min(run - off, k1 - k0), p.to = k0 - start;
        p.from = p.d * stride[2] + p.h * stride[3] + p.w * stride[4] + off;
        k0 += p.n, off = 0;
        if (++at[2] == kw) {
          at[2] = 0;
          if (++at[1] == a[kKernel + 1]) at[1] = 0, ++at[0];
        }
      }
      gather(b, group, m0, m1, pieces, count, dst);
    }
  }

  void gather(int64_t b, int64_t group, int64_t m0, int64_t m1, const Piece* pieces, int count, uint8_t* dst) const {
    const int64_t height = a[kSize + 1], width = a[kSize + 2];
    const int64_t reach[3] = {(a[kKernel] - 1) * a[kDilation], (a[kKernel + 1] - 1) * a[kDilation + 1],
                              (a[kKernel + 2] - 1) * a[kDilation + 2]};
    const uint8_t* image = x + b * stride[0] + group * cg;
    int64_t ow = m0 % width, oh = m0 / width % height, od = m0 / (height * width);
    for (int64_t m = m0; m < m1; ++m, dst += kLda) {
      const int64_t d0 = od * a[kStride] - a[kPad], h0 = oh * a[kStride + 1] - a[kPad + 1],
                    w0 = ow * a[kStride + 2] - a[kPad + 2];
      const uint8_t* origin = image + d0 * stride[2] + h0 * stride[3] + w0 * stride[4];
      const bool inside = d0 >= 0 && d0 + reach[0] < shape[2] && h0 >= 0 && h0 + reach[1] < shape[3] && w0 >= 0 &&
                          w0 + reach[2] < shape[4];
      if (inside) {
        for (int i = 0; i < count; ++i) copy_bytes(dst + pieces[i].to, origin + pieces[i].from, pieces[i].n, flip);
      } else {
        for (int i = 0; i < count; ++i) {
          const Piece& p = pieces[i];
          const int64_t d = d0 + p.d, h = h0 + p.h, w = w0 + p.w;
          /* Bytes [lo, hi) of the tap, or of the row of taps, are inside the image. */
          int64_t lo = 0, hi = 0;
          if (d >= 0 && d < shape[2] && h >= 0 && h < shape[3]) {
            if (whole_rows)
              lo = min(run, max(0, -w) * cg), hi = max(lo, min(run, (shape[4] - w) * cg));
            else if (w >= 0 && w < shape[4])
              hi = run;
          }
          lo = min(max(lo, p.off), p.off + p.n), hi = max(lo, min(hi, p.off + p.n));
          memset(dst + p.to, fill, lo - p.off);
          if (hi > lo) copy_bytes(dst + p.to + (lo - p.off), origin + p.from + (lo - p.off), hi - lo, flip);
          memset(dst + p.to + (hi - p.off), fill, p.off + p.n - hi);
        }
      }
      if (++ow == width) {
        ow = 0;
        if (++oh == height) oh = 0, ++od;
      }
    }
  }
};
}  // namespace

/* in: x [N, C, *S] u8 or i8 with its channels innermost, the packed weights (a group's steps are [tap][channel]), za of x's
 * type, one element; out: i32 (N, 1, pixels, O), or the epilogue's results. attrs: groups, O, kernel, stride, padding before,
 * dilation, output size: three each. */
EFFC_EXPORT int32_t effc_qconv(const effc_call* call) {
  if (call->n_own != 3 || call->n_attr < kAttrs) return bad(call, "three operands and more attributes expected");
  const effc_tensor &x = call->in[0], &z = call->in[2], &out = call->out[0];
  const int64_t* a = call->attr;
  if (x.rank < 3 || x.rank > 5 || !is_byte(x) || z.dtype != x.dtype) return bad(call, "wrong operands");
  Weights w;
  if (const char* what = w.open(call->in[1])) return bad(call, what);
  Windows v;
  v.x = (const uint8_t*)x.data, v.a = a;
  for (int d = 0; d < 5; ++d) {
    const int from = d < 2 ? d : d - (5 - x.rank);
    const bool absent = d >= 2 && from < 2;
    v.shape[d] = absent ? 1 : x.shape[from];
    v.stride[d] = absent ? 0 : x.strides[from];
  }
  const int64_t taps = a[kKernel] * a[kKernel + 1] * a[kKernel + 2];
  v.cg = v.shape[1] / a[kGroups];
  if (w.h.k != taps * v.cg || w.h.groups != a[kGroups] || w.h.n * a[kGroups] != a[kOut] ||
      (v.shape[1] > 1 && v.stride[1] != 1))
    return bad(call, "sizes differ from the packed operand's");
  v.whole_rows = a[kDilation + 2] == 1 && a[kGroups] == 1 && (v.stride[4] == v.cg || a[kKernel + 2] == 1);
  v.run = max(1, v.whole_rows ? a[kKernel + 2] * v.cg : v.cg);
  v.flip = flip_of(x);
  v.fill = (uint8_t)(*(const uint8_t*)z.data ^ v.flip);
  Driver<Windows> d{call, v, w, v.shape[0], 1, a[kSize] * a[kSize + 1] * a[kSize + 2], out};
  return d.run();
}
