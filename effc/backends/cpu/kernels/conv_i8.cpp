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

  void rows(int64_t b, int64_t, int64_t group, int64_t m0, int64_t m1, int64_t k0, int64_t k1, uint8_t* dst) const {
    const int64_t height = a[kSize + 1], width = a[kSize + 2];
    for (int64_t m = m0; m < m1; ++m, dst += kLda) {
      const int64_t od = m / (height * width), oh = m / width % height, ow = m % width;
      const int64_t d0 = od * a[kStride] - a[kPad], h0 = oh * a[kStride + 1] - a[kPad + 1],
                    w0 = ow * a[kStride + 2] - a[kPad + 2];
      const uint8_t* image = x + b * stride[0] + group * cg;
      uint8_t* to = dst;
      for (int64_t k = k0; k < k1;) {
        const int64_t segment = k / run, off = k % run, n = min(run - off, k1 - k);
        const int64_t kw = whole_rows ? 1 : a[kKernel + 2]; /* segments of a row of taps */
        const int64_t d = d0 + segment / kw / a[kKernel + 1] * a[kDilation],
                      h = h0 + segment / kw % a[kKernel + 1] * a[kDilation + 1],
                      w = w0 + segment % kw * a[kDilation + 2];
        /* Bytes [lo, hi) of the segment are inside the image. */
        int64_t lo = 0, hi = 0;
        if (d >= 0 && d < shape[2] && h >= 0 && h < shape[3]) {
          if (whole_rows)
            lo = min(run, max(0, -w) * cg), hi = max(lo, min(run, (shape[4] - w) * cg));
          else if (w >= 0 && w < shape[4])
            hi = run;
        }
        lo = min(max(lo, off), off + n), hi = max(lo, min(hi, off + n));
        memset(to, fill, lo - off);
        if (hi > lo)
          copy_bytes(to + (lo - off), image + d * stride[2] + h * stride[3] + w * stride[4] + lo, hi - lo, flip);
        memset(to + (hi - off), fill, off + n - hi);
        to += n, k += n;
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
