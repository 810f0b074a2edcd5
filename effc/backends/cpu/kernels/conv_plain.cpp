/* Convolution of integers (modulo 2^bits) and complex numbers: simple loops over the same attributes as conv.hpp.
 * Weights are reordered to [group][tap][channel][output channel], so that the innermost loop runs over output channels.
 * No epilogue. */
#include "conv.hpp"

namespace {
using namespace effc;
using namespace effc::conv;

EFFC_INLINE cf32 madd(cf32 acc, cf32 a, cf32 b) {
  return cf32{acc.re + (a.re * b.re - a.im * b.im), acc.im + (a.re * b.im + a.im * b.re)};
}
EFFC_INLINE cf64 madd(cf64 acc, cf64 a, cf64 b) {
  return cf64{acc.re + (a.re * b.re - a.im * b.im), acc.im + (a.re * b.im + a.im * b.re)};
}
template <class T>
EFFC_INLINE T madd(T acc, T a, T b) {
  return (T)(acc + (T)((uint64_t)a * (uint64_t)b));
}

template <class S>
struct Plain {
  const effc_call* call;
  const int64_t* a;
  int64_t xs[5], shape[5], cg, og, pixels;
  compute_t<S>* w;
};

/* Index of the input position that tap position k reaches from output position o, or -1. */
template <class S>
EFFC_INLINE int64_t position(const Plain<S>& v, int d, int64_t o, int64_t k) {
  const int64_t* a = v.a;
  int64_t i;
  if (a[kTransposed]) {
    i = o + a[kPad + d] - k * a[kDilation + d];
    if (i < 0 || i % a[kStride + d] != 0) return -1;
    i /= a[kStride + d];
  } else {
    i = o * a[kStride + d] - a[kPad + d] + k * a[kDilation + d];
  }
  return inside(i, v.shape[2 + d]) ? i : -1;
}

/* Items: output pixels of all images. */
template <class S>
void plain_rows(void* arg, int64_t begin, int64_t end, int32_t worker) {
  typedef compute_t<S> A;
  const Plain<S>& v = *(const Plain<S>*)arg;
  const int64_t *a = v.a, *sp = a + kSpatial;
  A* acc = (A*)(v.call->thread_scratch + worker * v.call->thread_scratch_bytes);
  const effc_tensor &x = v.call->in[0], &out = v.call->out[0];
  for (int64_t r = begin; r < end; ++r) {
    int64_t b = r / v.pixels, m = r % v.pixels;
    int64_t od = m / (sp[1] * sp[2]), oh = m / sp[2] % sp[1], ow = m % sp[2];
    for (int64_t g = 0; g < a[kGroups]; ++g) {
      for (int64_t n = 0; n < v.og; ++n) acc[n] = A{};
      const A* w = v.w + g * a[kKernel] * a[kKernel + 1] * a[kKernel + 2] * v.cg * v.og;
      for (int64_t kd = 0; kd < a[kKernel]; ++kd)
        for (int64_t kh = 0; kh < a[kKernel + 1]; ++kh)
          for (int64_t kw = 0; kw < a[kKernel + 2]; ++kw, w += v.cg * v.og) {
            int64_t d = position(v, 0, od, kd), h = position(v, 1, oh, kh), i = position(v, 2, ow, kw);
            if (d < 0 || h < 0 || i < 0) continue;
            const S* p = (const S*)x.data + b * v.xs[0] + g * v.cg * v.xs[1] + d * v.xs[2] + h * v.xs[3] + i * v.xs[4];
            for (int64_t c = 0; c < v.cg; ++c) {
              const A value = to_compute(p[c * v.xs[1]]);
              const A* wc = w + c * v.og;
              for (int64_t n = 0; n < v.og; ++n) acc[n] = madd(acc[n], value, wc[n]);
            }
          }
      S* q = (S*)out.data + b * out.strides[0] + m * out.strides[2] + g * v.og * out.strides[3];
      for (int64_t n = 0; n < v.og; ++n) q[n * out.strides[3]] = convert<S>(acc[n]);
    }
  }
}

template <class S>
void run_plain(const effc_call* call) {
  typedef compute_t<S> A;
  Plain<S> v;
  v.call = call, v.a = call->attr;
  const int64_t* a = v.a;
  spatial_view(call->in[0], v.shape, v.xs);
  v.cg = v.shape[1] / a[kGroups], v.og = a[kOut] / a[kGroups];
  v.pixels = a[kSpatial] * a[kSpatial + 1] * a[kSpatial + 2];
  v.w = (A*)call->scratch;
  int64_t ws[5], st[5];
  spatial_view(call->in[1], ws, st);
  A* q = v.w;
  for (int64_t g = 0; g < a[kGroups]; ++g)
    for (int64_t t = 0; t < ws[2] * ws[3] * ws[4]; ++t)
      for (int64_t c = 0; c < v.cg; ++c)
        for (int64_t n = 0; n < v.og; ++n) {
          int64_t first = a[kTransposed] ? g * v.cg + c : g * v.og + n, second = a[kTransposed] ? n : c;
          *q++ = to_compute(((const S*)call->in[1].data)[first * st[0] + second * st[1] + t / (ws[3] * ws[4]) * st[2] +
                                                          t / ws[4] % ws[3] * st[3] + t % ws[4] * st[4]]);
        }
  int64_t rows = v.shape[0] * v.pixels, work = a[kOut] * v.cg * ws[2] * ws[3] * ws[4];
  call->api->parallel_for(call->run, rows, max64(1, 65536 / max64(1, work)), plain_rows<S>, &v);
}
}  // namespace

extern "C" __attribute__((visibility("default"))) int32_t effc_conv_plain(const effc_call* call) {
  if (call->n_attr < kAttrs || call->n_own != 2 || call->attr[kPacked] || call->epilogue) {
    call->api->fail(call, "conv: integer and complex convolutions take plain weights and no epilogue");
    return 1;
  }
  switch (call->in[0].dtype) {
    case EFFC_U8:
    case EFFC_I8: run_plain<uint8_t>(call); return 0;
    case EFFC_U16:
    case EFFC_I16: run_plain<uint16_t>(call); return 0;
    case EFFC_U32:
    case EFFC_I32: run_plain<uint32_t>(call); return 0;
    case EFFC_U64:
    case EFFC_I64: run_plain<uint64_t>(call); return 0;
    case EFFC_C32: run_plain<cf16>(call); return 0;
    case EFFC_C64: run_plain<cf32>(call); return 0;
    case EFFC_C128: run_plain<cf64>(call); return 0;
    default: call->api->fail(call, "conv: no kernel for dtype %d", call->in[0].dtype); return 1;
  }
}
