/* Matrix products of bytes with zero points (gemm_i8.hpp). */
#include "pack_i8.hpp"

using namespace effc;
using namespace effc::i8;

namespace {
struct Rows {
  const effc_tensor &a, &z;
  uint8_t flip;

  void rows(int64_t b0, int64_t b1, int64_t, int64_t m0, int64_t m1, int64_t k0, int64_t k1, uint8_t* dst) const {
    const uint8_t* p = (const uint8_t*)a.data + b0 * a.strides[0] + b1 * a.strides[1];
    const int64_t row = a.strides[2], col = a.strides[3];
    if (col == 1 || k1 - k0 == 1) {
      for (int64_t m = m0; m < m1; ++m) copy_bytes(dst + (m - m0) * kLda, p + m * row + k0 * col, k1 - k0, flip);
      return;
    }
    for (int64_t m = m0; m < m1; ++m)
      for (int64_t k = k0; k < k1; ++k) dst[(m - m0) * kLda + k - k0] = p[m * row + k * col] ^ flip;
  }
  InPlace in_place(int64_t b0, int64_t b1, int64_t, int64_t m0) const {
    const uint8_t* p = (const uint8_t*)a.data + b0 * a.strides[0] + b1 * a.strides[1] + m0 * a.strides[2];
    return {a.strides[3] == 1 && !flip ? p : nullptr, a.strides[2]};
  }
  bool one_zero() const { return z.strides[2] == 0 || z.shape[2] == 1; }
  int32_t zero(int64_t b0, int64_t b1, int64_t m) const {
    return (uint8_t)(((const uint8_t*)z.data)[b0 * z.strides[0] + b1 * z.strides[1] + m * z.strides[2]] ^ flip);
  }
};
}  // namespace

/* in: a (b0, b1, M, K) u8 or i8 of any strides, the packed b, za (b0, b1, M, 1) of a's type; out: i32 (b0, b1, M, N), or the
 * epilogue's results. attrs: K, N. */
EFFC_EXPORT int32_t effc_qmatmul(const effc_call* call) {
  if (call->n_own != 3 || call->n_attr < 2) return bad(call, "three operands and two attributes expected");
  const effc_tensor &a = call->in[0], &z = call->in[2], &out = call->out[0];
  if (a.rank != 4 || z.rank != 4 || out.rank != 4 || !is_byte(a) || z.dtype != a.dtype) return bad(call, "wrong operands");
  Weights w;
  if (const char* what = w.open(call->in[1])) return bad(call, what);
  if (w.h.k != call->attr[0] || w.h.n != call->attr[1] || w.h.groups != 1 || a.shape[3] != w.h.k)
    return bad(call, "sizes differ from the packed operand's");
  const Rows loader{a, z, flip_of(a)};
  Driver<Rows> d{call, loader, w, a.shape[0], a.shape[1], a.shape[2], out};
  return d.run();
}

/* The same with a computed b: (b0, b1, K, N) u8 or i8 of any strides, and its zero point, one element of b's type. */
EFFC_EXPORT int32_t effc_qmatmul_any(const effc_call* call) {
  if (call->n_own != 4) return bad(call, "four operands expected");
  const effc_tensor &a = call->in[0], &b = call->in[1], &z = call->in[2], &zb = call->in[3], &out = call->out[0];
  if (a.rank != 4 || b.rank != 4 || z.rank != 4 || out.rank != 4 || !is_byte(a) || z.dtype != a.dtype || !is_byte(b) ||
      zb.dtype != b.dtype)
    return bad(call, "wrong operands");
  if (a.shape[3] != b.shape[2] || b.shape[2] > INT32_MAX || b.shape[3] > INT32_MAX) return bad(call, "sizes do not fit");
  if (a.shape[0] == 0 || a.shape[1] == 0 || a.shape[2] == 0 || b.shape[3] == 0) return 0;
  const uint8_t zero = *(const uint8_t*)zb.data;
  Packer packer{call, b, b.dtype == EFFC_U8 ? (int32_t)zero - 128 : (int32_t)(int8_t)zero, {}};
  if (!packer.place()) return bad(call, "scratch is too small");
  packer.run();
  const Rows loader{a, z, flip_of(a)};
  Driver<Rows> d{call, loader, packer.w, a.shape[0], a.shape[1], a.shape[2], out, packer.slot0(), packer.slot1()};
  return d.run();
}
