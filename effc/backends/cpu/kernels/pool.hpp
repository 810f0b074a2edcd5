/* Max and average pooling, plain and adaptive, 1 to 3 spatial dims, any strides.
 *
 * Two ways to use vectors: over channels when those are innermost in x and the result, else over the pixels of an output
 * row (for every tap, the output columns it is valid for form one range). Adaptive windows differ from pixel to pixel; without
 * innermost channels they run one output at a time.
 * Max is as in PyTorch: NaN wins, the index is the first maximum's (the last NaN's), counted over the image's spatial dims.
 * Sums are formed per row of the window and then added, in f32 for short floats, in i64 for integers.
 */
#ifndef EFFC_POOL_HPP
#define EFFC_POOL_HPP
#include <string.h>

#include "conv.hpp"

namespace effc {
namespace pool {
using conv::align64;
using conv::max64;
using conv::min64;
using conv::spatial_view;

enum PoolAttr {
  kIsMax = 0,
  kAdaptive = 1,
  kCountPad = 2, /* average over the padding too */
  kDivisor = 3,  /* 0: the number of elements */
  kKernel = 4,
  kStride = 7,
  kPadLo = 10,
  kPadHi = 13,
  kDilation = 16,
  kSpatial = 19,
  kPoolAttrs = 22
};
constexpr int64_t kLanes = 64; /* channels or pixels that one inner loop covers */
constexpr int64_t kAhead = 24; /* pixels of the input */

/* The taps of one output position along one dim: first, first + dil, ... (n of them, all inside); `full` counts those a
 * divisor counts when padding is included. */
struct Window {
  int64_t first, n, full;
};

struct Pool {
  const effc_call* call;
  const int64_t* a;
  int64_t xs[5], in[5], os[5], is[5], lines;
  bool channels, wide;
  const effc_tensor* indices;
};

EFFC_INLINE Window window(const Pool& p, int d, int64_t o) {
  const int64_t* a = p.a;
  const int64_t n = p.in[2 + d];
  if (a[kAdaptive]) {
    int64_t out = a[kSpatial + d], first = o * n / out, last = ((o + 1) * n + out - 1) / out;
    return Window{first, last - first, last - first};
  }
  const int64_t dil = a[kDilation + d], start = o * a[kStride + d] - a[kPadLo + d];
  int64_t skip = start < 0 ? (-start + dil - 1) / dil : 0;
  int64_t stop = min64(a[kKernel + d], max64(0, (n - start + dil - 1) / dil));
  Window w;
  w.first = start + skip * dil, w.n = max64(0, stop - skip);
  w.full = min64(start + a[kKernel + d], n + a[kPadHi + d]) - start;
  return w;
}

template <class A>
EFFC_INLINE A lowest() {
  if constexpr ((A)0.5 != (A)0)
    return -(A)__builtin_inf();
  else if constexpr ((A)-1 > (A)0)
    return (A)0;
  else
    return (A)((A)1 << (sizeof(A) * 8 - 1));
}

template <class A>
EFFC_INLINE bool beats(A v, A acc) {
  if constexpr ((A)0.5 != (A)0)
    return (v > acc) | (v != v);
  else
    return v > acc;
}

/* What a window's sum is divided by. That of an empty window is 0 and stays it. */
EFFC_INLINE int64_t divisor(const Pool& p, const Window& d, const Window& h, const Window& w) {
  if (d.n == 0 || h.n == 0 || w.n == 0) return 1;
  if (p.a[kDivisor]) return p.a[kDivisor];
  return p.a[kCountPad] ? d.full * h.full * w.full : d.n * h.n * w.n;
}

template <class A>
EFFC_INLINE A divide(A sum, int64_t n) {
  if constexpr ((A)0.5 == (A)0)
    return n ? (A)(sum / (A)n) : (A)0;
  else
    return sum / (A)n;
}

/* The type of accumulators for storage type S. */
template <class S, bool Max>
struct Acc {
  typedef compute_t<S> type;
};
template <>
struct Acc<uint8_t, false> { typedef int64_t type; };
template <>
struct Acc<int8_t, false> { typedef int64_t type; };
template <>
struct Acc<int16_t, false> { typedef int64_t type; };
template <>
struct Acc<int32_t, false> { typedef int64_t type; };

/* Channels [c0, c1) of one output pixel, c1 - c0 <= kLanes, channels innermost. */
template <class S, bool Max, bool Index>
EFFC_INLINE void pixel_channels(const Pool& p, const S* x, S* y, int64_t* index, int64_t count, const Window& d, const Window& h,
                                const Window& w) {
  typedef typename Acc<S, Max>::type A;
  const int64_t* a = p.a;
  A acc[kLanes];
  int64_t at[kLanes];
  for (int64_t c = 0; c < count; ++c) acc[c] = Max ? lowest<A>() : A(0);
  if (Index)
    for (int64_t c = 0; c < count; ++c) at[c] = (d.first * p.in[3] + h.first) * p.in[4] + w.first;
  for (int64_t i = 0; i < d.n; ++i)
    for (int64_t j = 0; j < h.n; ++j) {
      const int64_t id = d.first + i * a[kDilation], ih = h.first + j * a[kDilation + 1];
      const S* line = x + id * p.xs[2] + ih * p.xs[3] + w.first * p.xs[4];
      const int64_t step = a[kDilation + 2] * p.xs[4];
      if constexpr (Max) {
        for (int64_t k = 0; k < w.n; ++k, line += step) {
          if (Index) {
            const int64_t flat = (id * p.in[3] + ih) * p.in[4] + w.first + k * a[kDilation + 2];
            for (int64_t c = 0; c < count; ++c) {
              A v = to_compute(line[c]);
              bool better = beats(v, acc[c]);
              acc[c] = better ? v : acc[c];
              at[c] = better ? flat : at[c];
            }
          } else {
            /* Asked for: few channels would be unrolled before they are seen to be vectors, with a branch for each. */
            _Pragma("omp simd") for (int64_t c = 0; c < count; ++c) {
              A v = to_compute(line[c]);
              acc[c] = beats(v, acc[c]) ? v : acc[c];
            }
          }
        }
      } else {
        A row[kLanes];
        for (int64_t c = 0; c < count; ++c) row[c] = A(0);
        for (int64_t k = 0; k < w.n; ++k, line += step)
          for (int64_t c = 0; c < count; ++c) row[c] += (A)to_compute(line[c]);
        for (int64_t c = 0; c < count; ++c) acc[c] += row[c];
      }
    }
  const int64_t by = Max ? 1 : divisor(p, d, h, w);
  for (int64_t c = 0; c < count; ++c) y[c] = convert<S>(Max ? acc[c] : divide(acc[c], by));
  if (Index)
    for (int64_t c = 0; c < count; ++c) index[c] = at[c];
}

/* One output at a time. */
template <class S, bool Max, bool Index>
void pixel_single(const Pool& p, const S* x, S* y, int64_t* index, const Window& d, const Window& h, const Window& w) {
  typedef typename Acc<S, Max>::type A;
  const int64_t* a = p.a;
  A acc = Max ? lowest<A>() : A(0);
  int64_t at = (d.first * p.in[3] + h.first) * p.in[4] + w.first;
  for (int64_t i = 0; i < d.n; ++i)
    for (int64_t j = 0; j < h.n; ++j) {
      const int64_t id = d.first + i * a[kDilation], ih = h.first + j * a[kDilation + 1];
      const S* line = x + id * p.xs[2] + ih * p.xs[3] + w.first * p.xs[4];
      const int64_t step = a[kDilation + 2] * p.xs[4];
      if constexpr (Max) {
        for (int64_t k = 0; k < w.n; ++k) {
          A v = to_compute(line[k * step]);
          if (beats(v, acc)) {
            acc = v;
            at = (id * p.in[3] + ih) * p.in[4] + w.first + k * a[kDilation + 2];
          }
        }
      } else {
        A lane[16] = {};
        int64_t k = 0;
        if (step == 1)
          for (; k + 16 <= w.n; k += 16)
            for (int l = 0; l < 16; ++l) lane[l] += (A)to_compute(line[k + l]);
        for (; k < w.n; ++k) lane[k % 16] += (A)to_compute(line[k * step]);
        A row = A(0);
        for (int l = 0; l < 16; ++l) row += lane[l];
        acc += row;
      }
    }
  *y = convert<S>(Max ? acc : divide(acc, divisor(p, d, h, w)));
  if (Index) *index = at;
}

/* Output columns [o0, o1) of a row, o1 - o0 <= kLanes, plain windows, any strides. Stride: 0 for one not known here. */
template <class S, bool Max, bool Index, int Stride, bool Dense>
void row_pixels(const Pool& p, const S* x, S* y, int64_t* index, int64_t o0, int64_t o1, const Window& d, const Window& h) {
  typedef typename Acc<S, Max>::type A;
  const int64_t* a = p.a;
  const int64_t stride = Stride ? Stride : a[kStride + 2], sw = Dense ? 1 : p.xs[4], width = p.in[4];
  A acc[kLanes];
  int64_t at[kLanes];
  for (int64_t o = o0; o < o1; ++o) acc[o - o0] = Max ? lowest<A>() : A(0);
  if (Index)
    for (int64_t o = o0; o < o1; ++o) at[o - o0] = (d.first * p.in[3] + h.first) * width + window(p, 2, o).first;
  for (int64_t i = 0; i < d.n; ++i)
    for (int64_t j = 0; j < h.n; ++j) {
      const int64_t id = d.first + i * a[kDilation], ih = h.first + j * a[kDilation + 1];
      const S* line = x + id * p.xs[2] + ih * p.xs[3];
      for (int64_t k = 0; k < a[kKernel + 2]; ++k) {
        /* columns with 0 <= o * stride + shift < width */
        const int64_t shift = k * a[kDilation + 2] - a[kPadLo + 2];
        int64_t b = max64(o0, shift < 0 ? (-shift + stride - 1) / stride : 0);
        int64_t e = min64(o1, width - shift <= 0 ? 0 : (width - shift + stride - 1) / stride);
        if (b >= e) continue;
        const S* q = line + (b * stride + shift) * sw;
        A* t = acc + (b - o0);
        const int64_t n = e - b;
        if constexpr (Index) {
          const int64_t flat = (id * p.in[3] + ih) * width + b * stride + shift;
          for (int64_t o = 0; o < n; ++o) {
            A v = to_compute(q[o * stride * sw]);
            bool better = beats(v, t[o]);
            t[o] = better ? v : t[o];
            at[b - o0 + o] = better ? flat + o * stride : at[b - o0 + o];
          }
        } else if constexpr (Max) {
          for (int64_t o = 0; o < n; ++o) {
            A v = to_compute(q[o * stride * sw]);
            t[o] = beats(v, t[o]) ? v : t[o];
          }
        } else {
          for (int64_t o = 0; o < n; ++o) t[o] += (A)to_compute(q[o * stride * sw]);
        }
      }
    }
  for (int64_t o = o0; o < o1; ++o)
    y[o * p.os[4]] = convert<S>(Max ? acc[o - o0] : divide(acc[o - o0], divisor(p, d, h, window(p, 2, o))));
  if (Index)
    for (int64_t o = o0; o < o1; ++o) index[o * p.is[4]] = at[o - o0];
}

/* Items: (image, d, h) lines by blocks of channels, or (image, channel, d, h) lines. */
template <class S, bool Max, bool Index>
void pool_lines(void* arg, int64_t begin, int64_t end, int32_t) {
  const Pool& p = *(const Pool*)arg;
  const int64_t *a = p.a, *sp = a + kSpatial;
  const effc_tensor& out = p.call->out[0];
  const S* x0 = (const S*)p.call->in[0].data;
  S* y0 = (S*)out.data;
  int64_t* i0 = Index ? (int64_t*)p.indices->data : nullptr;
  const int64_t channels = p.in[1], blocks = (channels + kLanes - 1) / kLanes;
  for (int64_t item = begin; item < end; ++item) {
    int64_t c, rest;
    if (p.channels) {
      c = item % blocks * kLanes, rest = item / blocks;
    } else {
      int64_t per = sp[0] * sp[1];
      c = item / per % channels, rest = item / (per * channels) * per + item % per;
    }
    int64_t oh = rest % sp[1], od = rest / sp[1] % sp[0], b = rest / (sp[0] * sp[1]);
    const Window d = window(p, 0, od), h = window(p, 1, oh);
    const S* x = x0 + b * p.xs[0] + c * p.xs[1];
    S* y = y0 + b * p.os[0] + c * p.os[1] + od * p.os[2] + oh * p.os[3];
    int64_t* index = Index ? i0 + b * p.is[0] + c * p.is[1] + od * p.is[2] + oh * p.is[3] : nullptr;
    if (p.channels) {
      const int64_t n = min64(kLanes, channels - c);
      const int64_t steps = sp[2] > 1 ? min64(a[kStride + 2], kAhead) : 0; /* pixels to fetch ahead for each of the result */
      for (int64_t o = 0; o < sp[2]; ++o) {
        const Window u = window(p, 2, o);
        /* Channels of a part of a wider tensor are short pieces, which the CPU does not fetch ahead by itself. */
        if (u.n > 0)
          for (int64_t i = 0; i < d.n; ++i)
            for (int64_t j = 0; j < h.n; ++j) {
              const S* far = x + (d.first + i * a[kDilation]) * p.xs[2] + (h.first + j * a[kDilation + 1]) * p.xs[3] +
                             min64(u.first + kAhead, p.in[4] - 1) * p.xs[4];
              for (int64_t k = 0; k < steps; ++k)
                for (int64_t at = 0; at < n * (int64_t)sizeof(S); at += 64) __builtin_prefetch((const char*)(far + k * p.xs[4]) + at);
            }
        auto block = [&](int64_t from, int64_t count) __attribute__((always_inline)) {
          int64_t* io = Index ? index + o * p.is[4] + from : nullptr;
          pixel_channels<S, Max, Index>(p, x + from, y + o * p.os[4] + from, io, count, d, h, u);
        };
        /* Numbers that the compiler knows keep the accumulators in registers; averages have two of each. */
        if (Max && n == kLanes) {
          block(0, kLanes);
          continue;
        }
        int64_t from = 0;
        while (n - from >= 32) block(from, 32), from += 32;
        if (n - from >= 16) block(from, 16), from += 16;
        if (n - from >= 8) block(from, 8), from += 8;
        /* What is left once more with those before, to the same values, rather than one by one. */
        if (n > from && n >= 8)
          block(n - 8, 8);
        else if (n > from)
          block(from, n - from);
      }
    } else if (a[kAdaptive] || a[kKernel + 2] > 4 * sp[2]) {
      for (int64_t o = 0; o < sp[2]; ++o)
        pixel_single<S, Max, Index>(p, x, y + o * p.os[4], Index ? index + o * p.is[4] : nullptr, d, h, window(p, 2, o));
    } else {
      for (int64_t o = 0; o < sp[2]; o += kLanes) {
        int64_t e = min64(o + kLanes, sp[2]);
        if (a[kStride + 2] == 1 && p.xs[4] == 1)
          row_pixels<S, Max, Index, 1, true>(p, x, y, index, o, e, d, h);
        else if (a[kStride + 2] == 2 && p.xs[4] == 1)
          row_pixels<S, Max, Index, 2, true>(p, x, y, index, o, e, d, h);
        else
          row_pixels<S, Max, Index, 0, false>(p, x, y, index, o, e, d, h);
      }
    }
  }
}

template <class S>
void run_pool(Pool& p, int64_t items, int64_t grain) {
  effc_task_fn fn;
  if (!p.a[kIsMax])
    fn = pool_lines<S, false, false>;
  else if (p.indices)
    fn = pool_lines<S, true, true>;
  else
    fn = pool_lines<S, true, false>;
  p.call->api->parallel_for(p.call->run, items, grain, fn, &p);
}
/* in: x [N, C, *S] of storage type S; out: result [N, C, *O], for max optionally indices (i64), both with the same strides' order. */
template <class S>
int32_t pool_kernel(const effc_call* call) {
  if (call->n_attr < kPoolAttrs || call->n_in != 1 || call->n_out < 1) {
    call->api->fail(call, "pool: wrong number of operands or attributes");
    return 1;
  }
  Pool p;
  memset(&p, 0, sizeof p);
  p.call = call, p.a = call->attr;
  int64_t shape[5];
  spatial_view(call->in[0], p.in, p.xs);
  spatial_view(call->out[0], shape, p.os);
  for (int i = 0; i < 5; ++i)
    if (shape[i] == 0) return 0;
  if (call->n_out > 1) p.indices = &call->out[1], spatial_view(call->out[1], shape, p.is);
  p.channels = p.xs[1] == 1 && p.os[1] == 1 && (!p.indices || p.is[1] == 1) && p.in[1] > 1;
  const int64_t* sp = call->attr + kSpatial;
  int64_t lines = shape[0] * sp[0] * sp[1];
  int64_t items = p.channels ? lines * ((p.in[1] + kLanes - 1) / kLanes) : lines * p.in[1];
  int64_t taps = call->attr[kAdaptive] ? (p.in[2] * p.in[3] * p.in[4]) / (sp[0] * sp[1] * sp[2]) + 1
                                       : call->attr[kKernel] * call->attr[kKernel + 1] * call->attr[kKernel + 2];
  /* A share worth waking a thread for: some 15 us. Averages, which add twice, do half as many taps in that. */
  const int64_t share = call->attr[kIsMax] ? 131072 : 65536;
  int64_t grain = max64(1, share / max64(1, taps * sp[2] * (p.channels ? kLanes : 1)));
  run_pool<S>(p, items, grain);
  return 0;
}

}  // namespace pool
}  // namespace effc
#endif
