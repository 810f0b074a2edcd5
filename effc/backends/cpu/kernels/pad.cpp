/* Padding of any rank and order (constant, reflect, replicate, circular; negative amounts crop), and fold (col2im).
 *
 * Dims are walked in the result's memory order; a row is a run along the innermost one. Its middle, where input and output
 * run side by side, is a plain copy. */
#include <string.h>

#include "effc_kernel.h"
#include "types.hpp"

namespace {
using namespace effc;

EFFC_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
EFFC_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

struct b16 {
  uint64_t w[2];
};

enum Mode { kConstant = 0, kReflect = 1, kReplicate = 2, kCircular = 3 };

struct PadDim {
  int64_t in, out, lo, xs, ys;
};

struct Pad {
  PadDim d[EFFC_MAX_RANK];
  int rank;
  Mode mode;
  const char* x;
  char* y;
  uint64_t fill[2];
};

/* The input index that output index o shows, or -1. */
EFFC_INLINE int64_t source(const PadDim& d, Mode mode, int64_t o) {
  int64_t i = o - d.lo;
  if (i >= 0 && i < d.in) return i;
  switch (mode) {
    case kReplicate: return i < 0 ? 0 : d.in - 1;
    case kCircular: return (i % d.in + d.in) % d.in;
    case kReflect: {
      if (d.in == 1) return 0;
      int64_t period = 2 * (d.in - 1), r = (i % period + period) % period;
      return r < d.in ? r : period - r;
    }
    default: return -1;
  }
}

template <class T>
void pad_rows(void* arg, int64_t begin, int64_t end, int32_t) {
  const Pad& p = *(const Pad*)arg;
  const PadDim& last = p.d[p.rank - 1];
  T fill;
  memcpy(&fill, p.fill, sizeof(T));
  int64_t at[EFFC_MAX_RANK], rest = begin;
  for (int d = p.rank - 2; d >= 0; --d) at[d] = rest % p.d[d].out, rest /= p.d[d].out;
  /* the middle: output indices whose input index is inside without folding */
  const int64_t m0 = max64(0, min64(last.lo, last.out)), m1 = max64(m0, min64(last.out, last.in + last.lo));
  for (int64_t r = begin; r < end; ++r) {
    int64_t xo = 0, yo = 0;
    bool inside = true;
    for (int d = 0; d < p.rank - 1; ++d) {
      int64_t i = source(p.d[d], p.mode, at[d]);
      inside = inside && i >= 0;
      xo += i * p.d[d].xs, yo += at[d] * p.d[d].ys;
    }
    T* y = (T*)p.y + yo;
    if (!inside) {
      for (int64_t o = 0; o < last.out; ++o) y[o * last.ys] = fill;
    } else {
      const T* x = (const T*)p.x + xo;
      for (int64_t o = 0; o < m0; ++o) {
        int64_t i = source(last, p.mode, o);
        y[o * last.ys] = i < 0 ? fill : x[i * last.xs];
      }
      const T* q = x + (m0 - last.lo) * last.xs;
      if (last.xs == 1 && last.ys == 1)
        for (int64_t o = m0; o < m1; ++o) y[o] = q[o - m0];
      else
        for (int64_t o = m0; o < m1; ++o) y[o * last.ys] = q[(o - m0) * last.xs];
      for (int64_t o = m1; o < last.out; ++o) {
        int64_t i = source(last, p.mode, o);
        y[o * last.ys] = i < 0 ? fill : x[i * last.xs];
      }
    }
    for (int d = p.rank - 2; d >= 0; --d) {
      if (++at[d] < p.d[d].out) break;
      at[d] = 0;
    }
  }
}

}  // namespace

/* in: x; out: y; attributes: mode, the fill element's 16 bytes as two integers, then the low amount of each dim. */
extern "C" __attribute__((visibility("default"))) int32_t effc_pad(const effc_call* call) {
  const effc_tensor &x = call->in[0], &y = call->out[0];
  if (call->n_attr != 3 + x.rank) {
    call->api->fail(call, "pad: wrong number of attributes");
    return 1;
  }
  Pad p;
  p.mode = (Mode)call->attr[0], p.x = (const char*)x.data, p.y = (char*)y.data;
  p.fill[0] = (uint64_t)call->attr[1], p.fill[1] = (uint64_t)call->attr[2];
  p.rank = 0;
  int64_t total = 1;
  for (int d = 0; d < x.rank; ++d) {
    total *= y.shape[d];
    if (y.shape[d] == 1 && x.shape[d] == 1 && call->attr[3 + d] == 0) continue;
    PadDim e = {x.shape[d], y.shape[d], call->attr[3 + d], x.strides[d], y.strides[d]};
    int at = p.rank++;
    for (; at > 0 && p.d[at - 1].ys < e.ys; --at) p.d[at] = p.d[at - 1];
    p.d[at] = e;
  }
  if (total == 0) return 0;
  for (int d = 0; d < p.rank; ++d)
    if (p.d[d].in <= 0 && p.mode != kConstant) {
      call->api->fail(call, "pad: an empty dim can only be padded with a constant");
      return 1;
    }
  /* Unpadded neighbours that are contiguous in both are one dim. */
  for (int d = p.rank - 2; d >= 0; --d) {
    PadDim &a = p.d[d], &b = p.d[d + 1];
    if (b.lo == 0 && b.in == b.out && a.lo == 0 && a.in == a.out && a.xs == b.xs * b.in && a.ys == b.ys * b.out) {
      b.in *= a.in, b.out *= a.out;
      for (int e = d; e + 1 < p.rank; ++e) p.d[e] = p.d[e + 1];
      --p.rank;
    }
  }
  if (p.rank == 0) p.rank = 1, p.d[0] = PadDim{1, 1, 0, 1, 1};
  int64_t rows = total / p.d[p.rank - 1].out, grain = max64(1, 16384 / max64(1, p.d[p.rank - 1].out));
  effc_task_fn fn = nullptr;
  switch (effc_dtype_size(x.dtype)) {
    case 1: fn = pad_rows<uint8_t>; break;
    case 2: fn = pad_rows<uint16_t>; break;
    case 4: fn = pad_rows<uint32_t>; break;
    case 8: fn = pad_rows<uint64_t>; break;
    default: fn = pad_rows<b16>; break;
  }
  call->api->parallel_for(call->run, rows, grain, fn, &p);
  return 0;
}

/* ---- col2im ---- */

namespace {
struct Fold {
  const effc_call* call;
  const int64_t* a; /* kernel, stride, low padding, dilation, counts of windows: 2 each */
};

template <class A>
EFFC_INLINE A plus(A a, A b) {
  return (A)(a + b);
}
EFFC_INLINE cf32 plus(cf32 a, cf32 b) { return cf32{a.re + b.re, a.im + b.im}; }
EFFC_INLINE cf64 plus(cf64 a, cf64 b) { return cf64{a.re + b.re, a.im + b.im}; }

/* Items: (image, channel, row). Each output gathers its windows in a fixed order. */
template <class T>
void fold_rows(void* arg, int64_t begin, int64_t end, int32_t) {
  typedef compute_t<T> A;
  const Fold& f = *(const Fold*)arg;
  const int64_t *k = f.a, *s = f.a + 2, *lo = f.a + 4, *dil = f.a + 6, *count = f.a + 8;
  const effc_tensor &x = f.call->in[0], &y = f.call->out[0];
  const int64_t channels = y.shape[1], height = y.shape[2], width = y.shape[3];
  for (int64_t item = begin; item < end; ++item) {
    int64_t h = item % height, c = item / height % channels, n = item / (height * channels);
    T* q = (T*)y.data + n * y.strides[0] + c * y.strides[1] + h * y.strides[2];
    for (int64_t w = 0; w < width; ++w) {
      A sum = A{};
      for (int64_t i = 0; i < k[0]; ++i) {
        int64_t r = h + lo[0] - i * dil[0];
        if (r < 0 || r % s[0] || r / s[0] >= count[0]) continue;
        for (int64_t j = 0; j < k[1]; ++j) {
          int64_t t = w + lo[1] - j * dil[1];
          if (t < 0 || t % s[1] || t / s[1] >= count[1]) continue;
          const T* p = (const T*)x.data + n * x.strides[0] + ((c * k[0] + i) * k[1] + j) * x.strides[1] +
                       (r / s[0] * count[1] + t / s[1]) * x.strides[2];
          sum = plus(sum, to_compute(*p));
        }
      }
      q[w * y.strides[3]] = convert<T>(sum);
    }
  }
}
}  // namespace

/* in: x [N, C * kh * kw, L]; out: y [N, C, H, W]; attributes: see Fold. */
extern "C" __attribute__((visibility("default"))) int32_t effc_col2im(const effc_call* call) {
  const effc_tensor& y = call->out[0];
  Fold f = {call, call->attr};
  effc_task_fn fn = nullptr;
  switch (call->in[0].dtype) {
    case EFFC_U8:
    case EFFC_I8: fn = fold_rows<uint8_t>; break;
    case EFFC_U16:
    case EFFC_I16: fn = fold_rows<uint16_t>; break;
    case EFFC_U32:
    case EFFC_I32: fn = fold_rows<uint32_t>; break;
    case EFFC_U64:
    case EFFC_I64: fn = fold_rows<uint64_t>; break;
    case EFFC_F16: fn = fold_rows<f16>; break;
    case EFFC_BF16: fn = fold_rows<bf16>; break;
    case EFFC_F32: fn = fold_rows<float>; break;
    case EFFC_F64: fn = fold_rows<double>; break;
    case EFFC_C64: fn = fold_rows<cf32>; break;
    case EFFC_C128: fn = fold_rows<cf64>; break;
    default: call->api->fail(call, "col2im: no kernel for dtype %d", call->in[0].dtype); return 1;
  }
  if (call->n_attr != 10) {
    call->api->fail(call, "col2im: wrong number of attributes");
    return 1;
  }
  int64_t lines = y.shape[0] * y.shape[1] * y.shape[2];
  if (lines * y.shape[3] == 0) return 0;
  call->api->parallel_for(call->run, lines, max64(1, 4096 / max64(1, y.shape[3])), fn, &f);
  return 0;
}
