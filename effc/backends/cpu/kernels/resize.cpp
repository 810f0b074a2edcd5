/* Interpolation along spatial dims, and sampling at given points (grid_sample).
 *
 * resize is separable: per dim a table of taps (input index, weight) for every output index. An output row first combines the
 * input rows that it needs into a line buffer, then filters along the line; both loops run over channels too when those are
 * innermost. Positions and weights are computed in f32 (f64 for f64), as PyTorch does, see effc/ir/ops/resize.py for the formulas.
 */
#include <math.h>
#include <string.h>

#include "conv.hpp"

namespace {
using namespace effc;
using conv::align64;
using conv::inside;
using conv::max64;
using conv::min64;
using conv::spatial_view;

enum Coords { kHalfPixel, kPytorchHalfPixel, kAsymmetric, kAlignCorners, kHalfPixelSymmetric, kCropAndResize };
enum Nearest { kFloor, kRoundPreferFloor, kRoundPreferCeil, kCeil, kExact };
enum ResizeAttr { kTaps0 = 0, kMode = 3, kCoords = 4, kAntialias = 5, kNearest = 6, kExclude = 7, kDims = 8, kResizeAttrs = 9 };
enum ResizeFattr { kScale0 = 0, kRoi0 = 3, kCubicA = 9, kExtrapolation = 10, kResizeFattrs = 11 };

template <class A>
struct Table {
  int64_t taps;   /* room per output index */
  int64_t* first; /* index of tap j: index[o * taps + j] */
  A* weight;
  int32_t* count;
  uint8_t* outside;
};

template <class A>
EFFC_INLINE A cubic_weight(A t, A a) {
  t = t < 0 ? -t : t;
  if (t <= 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a;
  return 0;
}
template <class A>
EFFC_INLINE A linear_weight(A t) {
  t = t < 0 ? -t : t;
  return t < 1 ? 1 - t : A(0);
}
template <class A>
EFFC_INLINE A floor_of(A x) {
  return sizeof(A) == 8 ? (A)floor((double)x) : (A)floorf((float)x);
}
template <class A>
EFFC_INLINE A ceil_of(A x) {
  return sizeof(A) == 8 ? (A)ceil((double)x) : (A)ceilf((float)x);
}

/* The table of dim d; false when a tap count would exceed its room. */
template <class A>
bool fill_table(const effc_call* call, int d, int64_t n, int64_t out, Table<A>& t) {
  const int64_t* a = call->attr;
  const double* f = call->fattr;
  const int mode = (int)a[kMode], coords = (int)a[kCoords];
  const bool antialias = a[kAntialias] != 0, exclude = a[kExclude] != 0;
  const A cubic_a = (A)(antialias && f[kCubicA] == -0.75 ? -0.5 : f[kCubicA]);
  A ratio = f[kScale0 + d] > 0 ? (A)(1.0 / f[kScale0 + d]) : (A)n / (A)max64(out, 1);
  if (coords == kAlignCorners) ratio = out > 1 ? (A)(n - 1) / (A)(out - 1) : (A)0;
  const A start = (A)f[kRoi0 + 2 * d], end = (A)f[kRoi0 + 2 * d + 1];
  for (int64_t o = 0; o < out; ++o) {
    A p = ratio * ((A)o + (A)0.5) - (A)0.5;
    if (coords == kAlignCorners || coords == kAsymmetric) p = ratio * (A)o;
    if (coords == kPytorchHalfPixel && out <= 1) p = 0;
    if (coords == kHalfPixelSymmetric) p = (A)n / (A)2 * ((A)1 - (A)out / ((A)n / ratio)) + p;
    if (coords == kCropAndResize)
      p = out > 1 ? start * (A)(n - 1) + (A)o * ((end - start) * (A)(n - 1) / (A)(out - 1)) : (A)0.5 * (start + end) * (A)(n - 1);
    t.outside[o] = coords == kCropAndResize && (p < 0 || p > (A)(n - 1));
    int64_t* index = t.first + o * t.taps;
    A* w = t.weight + o * t.taps;
    if (mode == 0) {
      A r;
      switch ((int)a[kNearest]) {
        case kFloor: r = floor_of(p); break;
        case kCeil: r = ceil_of(p); break;
        case kRoundPreferFloor: r = ceil_of(p - (A)0.5); break;
        case kRoundPreferCeil: r = floor_of(p + (A)0.5); break;
        default: r = floor_of(((A)o + (A)0.5) * ratio); break;
      }
      index[0] = max64(0, min64(n - 1, (int64_t)r)), w[0] = 1, t.count[o] = 1;
      continue;
    }
    const int taps = mode == 1 ? 2 : 4;
    if (antialias) {
      const A stretch = ratio > 1 ? ratio : (A)1, support = (A)(taps / 2) * stretch, center = ratio * ((A)o + (A)0.5);
      const int64_t lo = max64((int64_t)(center - support + (A)0.5), 0), hi = min64((int64_t)(center + support + (A)0.5), n);
      if (hi - lo > t.taps) return false;
      A total = 0;
      int count = 0;
      for (int64_t j = lo; j < hi; ++j, ++count) {
        const A x = ((A)j - center + (A)0.5) * ((A)1 / stretch);
        index[count] = j, w[count] = mode == 1 ? linear_weight(x) : cubic_weight(x, cubic_a);
        total += w[count];
      }
      if (total != 0)
        for (int j = 0; j < count; ++j) w[j] /= total;
      t.count[o] = count;
      continue;
    }
    if (mode == 1) p = p < 0 ? (A)0 : p > (A)(n - 1) ? (A)(n - 1) : p;
    A base = floor_of(p);
    if (mode == 2 && !exclude && base > (A)(n - 1)) base = (A)(n - 1);
    A frac = p - base;
    frac = frac < 0 ? (A)0 : frac > 1 ? (A)1 : frac;
    /* A whole position needs one tap: a neighbour of weight zero must not bring in its NaN. */
    A total = 0;
    int count = 0;
    for (int k = 0; k < taps; ++k) {
      const int64_t i = (int64_t)base + k - (taps / 2 - 1);
      const A distance = frac - (A)(k - (taps / 2 - 1));
      A x = mode == 1 ? linear_weight(distance) : cubic_weight(distance, cubic_a);
      if (exclude && !inside(i, n)) x = 0;
      if (x == 0) continue;
      index[count] = max64(0, min64(n - 1, i)), w[count] = x, total += x, ++count;
    }
    if (exclude && total != 0)
      for (int j = 0; j < count; ++j) w[j] /= total;
    t.count[o] = count;
  }
  return true;
}

template <class A>
struct Resize {
  const effc_call* call;
  Table<A> t[3];
  int64_t xs[5], in[5], ys[5], out[5];
  bool channels;
};

/* Items: (image, d, h) lines with all channels, or (image, channel, d, h) lines. */
template <class S, class A>
void resize_lines(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Resize<A>& r = *(const Resize<A>*)arg;
  A* line = (A*)(r.call->thread_scratch + worker * r.call->thread_scratch_bytes);
  const int64_t channels = r.channels ? r.in[1] : 1, width = r.in[4];
  const S extra = convert<S>((A)r.call->fattr[kExtrapolation]);
  for (int64_t item = begin; item < end; ++item) {
    int64_t c = 0, rest = item;
    if (!r.channels) {
      int64_t per = r.out[2] * r.out[3];
      c = item / per % r.in[1], rest = item / (per * r.in[1]) * per + item % per;
    }
    const int64_t oh = rest % r.out[3], od = rest / r.out[3] % r.out[2], n = rest / (r.out[2] * r.out[3]);
    const S* x = (const S*)r.call->in[0].data + n * r.xs[0] + c * r.xs[1];
    S* y = (S*)r.call->out[0].data + n * r.ys[0] + c * r.ys[1] + od * r.ys[2] + oh * r.ys[3];
    const bool beyond = r.t[0].outside[od] || r.t[1].outside[oh];
    const int64_t nd = beyond ? 0 : r.t[0].count[od], nh = r.t[1].count[oh];
    bool first = true;
    for (int64_t i = 0; i < nd; ++i)
      for (int64_t j = 0; j < nh; ++j) {
        const A w = r.t[0].weight[od * r.t[0].taps + i] * r.t[1].weight[oh * r.t[1].taps + j];
        const S* row = x + r.t[0].first[od * r.t[0].taps + i] * r.xs[2] + r.t[1].first[oh * r.t[1].taps + j] * r.xs[3];
        if ((r.channels && r.xs[4] == channels) || (!r.channels && r.xs[4] == 1)) {
          if (first)
            for (int64_t k = 0; k < width * channels; ++k) line[k] = w * (A)to_compute(row[k]);
          else
            for (int64_t k = 0; k < width * channels; ++k) line[k] += w * (A)to_compute(row[k]);
        } else {
          for (int64_t k = 0; k < width; ++k) {
            A* q = line + k * channels;
            const S* p = row + k * r.xs[4];
            if (first)
              for (int64_t ch = 0; ch < channels; ++ch) q[ch] = w * (A)to_compute(p[ch]);
            else
              for (int64_t ch = 0; ch < channels; ++ch) q[ch] += w * (A)to_compute(p[ch]);
          }
        }
        first = false;
      }
    for (int64_t o = 0; o < r.out[4]; ++o) {
      S* q = y + o * r.ys[4];
      if (beyond || r.t[2].outside[o]) {
        for (int64_t ch = 0; ch < channels; ++ch) q[ch] = extra;
        continue;
      }
      const int64_t* index = r.t[2].first + o * r.t[2].taps;
      const A* w = r.t[2].weight + o * r.t[2].taps;
      const int count = r.t[2].count[o];
      if (channels == 1) {
        A sum = 0;
        for (int k = 0; k < count; ++k) sum += w[k] * line[index[k]];
        *q = convert<S>(sum);
        continue;
      }
      for (int64_t c0 = 0; c0 < channels; c0 += 64) {
        const int64_t cn = min64(64, channels - c0);
        A sum[64] = {};
        for (int k = 0; k < count; ++k) {
          const A* l = line + index[k] * channels + c0;
          for (int64_t ch = 0; ch < cn; ++ch) sum[ch] += w[k] * l[ch];
        }
        for (int64_t ch = 0; ch < cn; ++ch) q[c0 + ch] = convert<S>(sum[ch]);
      }
    }
  }
}

struct b16 {
  uint64_t w[2];
};

/* Nearest: elements are copied, whatever they are. */
template <class S, class A>
void nearest_lines(void* arg, int64_t begin, int64_t end, int32_t) {
  const Resize<A>& r = *(const Resize<A>*)arg;
  const int64_t channels = r.channels ? r.in[1] : 1;
  for (int64_t item = begin; item < end; ++item) {
    int64_t c = 0, rest = item;
    if (!r.channels) {
      int64_t per = r.out[2] * r.out[3];
      c = item / per % r.in[1], rest = item / (per * r.in[1]) * per + item % per;
    }
    const int64_t oh = rest % r.out[3], od = rest / r.out[3] % r.out[2], n = rest / (r.out[2] * r.out[3]);
    const S* x = (const S*)r.call->in[0].data + n * r.xs[0] + c * r.xs[1] + r.t[0].first[od] * r.xs[2] + r.t[1].first[oh] * r.xs[3];
    S* y = (S*)r.call->out[0].data + n * r.ys[0] + c * r.ys[1] + od * r.ys[2] + oh * r.ys[3];
    if (channels == 1) {
      for (int64_t o = 0; o < r.out[4]; ++o) y[o * r.ys[4]] = x[r.t[2].first[o] * r.xs[4]];
    } else {
      for (int64_t o = 0; o < r.out[4]; ++o) {
        const S* p = x + r.t[2].first[o] * r.xs[4];
        for (int64_t ch = 0; ch < channels; ++ch) y[o * r.ys[4] + ch] = p[ch];
      }
    }
  }
}

template <class A>
int32_t run_resize(const effc_call* call) {
  Resize<A> r;
  r.call = call;
  spatial_view(call->in[0], r.in, r.xs);
  spatial_view(call->out[0], r.out, r.ys);
  for (int i = 0; i < 5; ++i)
    if (r.out[i] == 0) return 0;
  char* s = (char*)call->scratch;
  for (int d = 0; d < 3; ++d) {
    if (r.in[2 + d] == 0) {
      call->api->fail(call, "resize: the input is empty along spatial dim %d", d);
      return 1;
    }
    Table<A>& t = r.t[d];
    const int64_t out = r.out[2 + d];
    t.taps = call->attr[kTaps0 + d];
    t.first = (int64_t*)s, s += align64(out * t.taps * 8);
    t.weight = (A*)s, s += align64(out * t.taps * (int64_t)sizeof(A));
    t.count = (int32_t*)s, s += align64(out * 4);
    t.outside = (uint8_t*)s, s += align64(out);
    if (d < 3 - call->attr[kDims]) { /* a dim that x does not have */
      for (int64_t o = 0; o < out; ++o) t.first[o * t.taps] = 0, t.weight[o * t.taps] = 1, t.count[o] = 1, t.outside[o] = 0;
    } else if (!fill_table<A>(call, d, r.in[2 + d], out, t)) {
      call->api->fail(call, "resize: more taps than planned along spatial dim %d", d);
      return 1;
    }
  }
  r.channels = r.xs[1] == 1 && r.ys[1] == 1 && r.in[1] > 1;
  int64_t lines = r.out[0] * r.out[2] * r.out[3] * (r.channels ? 1 : r.in[1]);
  int64_t grain = max64(1, 8192 / max64(1, r.out[4] * (r.channels ? r.in[1] : 1)));
  effc_task_fn fn = nullptr;
  if (call->attr[kMode] == 0 && call->attr[kCoords] != kCropAndResize) {
    switch (effc_dtype_size(call->in[0].dtype)) {
      case 1: fn = nearest_lines<uint8_t, A>; break;
      case 2: fn = nearest_lines<uint16_t, A>; break;
      case 4: fn = nearest_lines<uint32_t, A>; break;
      case 8: fn = nearest_lines<uint64_t, A>; break;
      default: fn = nearest_lines<b16, A>; break;
    }
  } else if constexpr (sizeof(A) == 8) {
    fn = resize_lines<double, A>;
  } else {
    switch (call->in[0].dtype) {
      case EFFC_F32: fn = resize_lines<float, A>; break;
      case EFFC_F16: fn = resize_lines<f16, A>; break;
      case EFFC_BF16: fn = resize_lines<bf16, A>; break;
      default: call->api->fail(call, "resize: no kernel for dtype %d", call->in[0].dtype); return 1;
    }
  }
  call->api->parallel_for(call->run, lines, grain, fn, &r);
  return 0;
}

/* ---- grid_sample ---- */

enum SampleMode { kBilinear = 0, kNearestPoint = 1, kBicubic = 2 };
enum Border { kZeros = 0, kBorder = 1, kReflection = 2 };

struct Sampler {
  const effc_call* call;
  int64_t xs[5], in[5], ys[5], out[5], gs[5];
  int64_t last; /* stride of the grid's last dim */
  int nd, mode, border;
  bool align, pixels;
};

template <class A>
EFFC_INLINE A fold(A p, int64_t n, int border, bool align) {
  if (border == kReflection) {
    const A low2 = align ? (A)0 : (A)-1, high2 = align ? (A)(2 * (n - 1)) : (A)(2 * n - 1);
    if (low2 == high2) {
      p = 0;
    } else {
      const A low = low2 / 2, span = (high2 - low2) / 2;
      A q = p - low;
      q = q < 0 ? -q : q;
      const A flips = floor_of(q / span), extra = q - flips * span;
      p = fmod(flips, (A)2) == 0 ? extra + low : span - extra + low;
    }
  }
  if (border != kZeros) {
    if (!(p > 0)) p = 0; /* NaN too */
    if (p > (A)(n - 1)) p = (A)(n - 1);
  }
  return p;
}

/* floor as an integer; positions far outside (and NaN) become -2, which no tap reaches from. */
template <class A>
EFFC_INLINE int64_t whole(A p, int64_t n) {
  return p >= (A)-2 && p <= (A)(n + 2) ? (int64_t)p : -8;
}

template <class S>
void sample_lines(void* arg, int64_t begin, int64_t end, int32_t) {
  typedef compute_t<S> A;
  const Sampler& v = *(const Sampler*)arg;
  const int first_dim = 3 - v.nd;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t oh = item % v.out[3], od = item / v.out[3] % v.out[2], n = item / (v.out[2] * v.out[3]);
    const S* x = (const S*)v.call->in[0].data + n * v.xs[0];
    const S* grid = (const S*)v.call->in[1].data + n * v.gs[0] + od * v.gs[2] + oh * v.gs[3];
    S* y = (S*)v.call->out[0].data + n * v.ys[0] + od * v.ys[2] + oh * v.ys[3];
    for (int64_t o = 0; o < v.out[4]; ++o, grid += v.gs[4], y += v.ys[4]) {
      /* Up to four taps per dim: offsets and weights; a tap outside has weight and offset 0 and is left out. */
      int count[3] = {1, 1, 1};
      int64_t offset[3][4] = {};
      A weight[3][4] = {{1}, {1}, {1}};
      for (int d = first_dim; d < 3; ++d) {
        const int64_t size = v.in[2 + d];
        const A g = to_compute(grid[(2 - d) * v.last]);
        const A p = v.pixels ? g : v.align ? (g + 1) / 2 * (A)(size - 1) : ((g + 1) * (A)size - 1) / 2;
        count[d] = 0;
        if (v.mode == kNearestPoint) {
          A q = fold(p, size, v.border, v.align);
          q = sizeof(A) == 8 ? (A)rint((double)q) : (A)rintf((float)q);
          const int64_t i = whole(q, size);
          if (inside(i, size)) offset[d][count[d]] = i * v.xs[2 + d], weight[d][count[d]++] = 1;
        } else if (v.mode == kBilinear) {
          const A q = fold(p, size, v.border, v.align), base = floor_of(q);
          const int64_t i = whole(base, size);
          for (int k = 0; k < 2; ++k) {
            if (!inside(i + k, size)) continue;
            offset[d][count[d]] = (i + k) * v.xs[2 + d];
            weight[d][count[d]++] = k ? q - base : base + 1 - q;
          }
        } else {
          const A base = floor_of(p), t = p - base;
          for (int k = -1; k < 3; ++k) {
            const A q = fold(base + (A)k, size, v.border, v.align);
            const int64_t i = whole(q, size);
            if (!inside(i, size) || q != q) continue;
            offset[d][count[d]] = i * v.xs[2 + d];
            weight[d][count[d]++] = cubic_weight<A>(t - (A)k, (A)-0.75);
          }
        }
      }
      for (int64_t c0 = 0; c0 < v.in[1]; c0 += 64) {
        const int64_t cn = min64(64, v.in[1] - c0);
        A sum[64] = {};
        for (int i = 0; i < count[0]; ++i)
          for (int j = 0; j < count[1]; ++j)
            for (int k = 0; k < count[2]; ++k) {
              const A w = weight[0][i] * weight[1][j] * weight[2][k];
              const S* p = x + offset[0][i] + offset[1][j] + offset[2][k] + c0 * v.xs[1];
              if (v.xs[1] == 1)
                for (int64_t c = 0; c < cn; ++c) sum[c] += w * to_compute(p[c]);
              else
                for (int64_t c = 0; c < cn; ++c) sum[c] += w * to_compute(p[c * v.xs[1]]);
            }
        for (int64_t c = 0; c < cn; ++c) y[(c0 + c) * v.ys[1]] = convert<S>(sum[c]);
      }
    }
  }
}
}  // namespace

/* in: x [N, C, *S]; out: y [N, C, *O]. Attributes: room for taps per dim, mode, coords, antialias, nearest, exclude_outside,
 * number of spatial dims; floats: scales (0: none), roi pairs, cubic a, extrapolation. */
extern "C" __attribute__((visibility("default"))) int32_t effc_resize(const effc_call* call) {
  if (call->n_attr != kResizeAttrs || call->n_fattr != kResizeFattrs) {
    call->api->fail(call, "resize: wrong number of attributes");
    return 1;
  }
  return call->in[0].dtype == EFFC_F64 ? run_resize<double>(call) : run_resize<float>(call);
}

/* in: x [N, C, *S], grid [N, *O, nd]; out: y [N, C, *O]. Attributes: mode, border, align_corners, pixels. */
extern "C" __attribute__((visibility("default"))) int32_t effc_grid_sample(const effc_call* call) {
  if (call->n_attr != 4) {
    call->api->fail(call, "grid_sample: wrong number of attributes");
    return 1;
  }
  Sampler v;
  memset(&v, 0, sizeof v);
  v.call = call, v.mode = (int)call->attr[0], v.border = (int)call->attr[1], v.align = call->attr[2] != 0, v.pixels = call->attr[3] != 0;
  spatial_view(call->in[0], v.in, v.xs);
  spatial_view(call->out[0], v.out, v.ys);
  v.nd = call->in[0].rank - 2;
  const effc_tensor& g = call->in[1];
  v.gs[0] = g.strides[0];
  for (int d = 0; d < v.nd; ++d) v.gs[5 - v.nd + d] = g.strides[1 + d];
  v.last = g.strides[g.rank - 1];
  for (int i = 0; i < 5; ++i)
    if (v.out[i] == 0) return 0;
  effc_task_fn fn = nullptr;
  switch (call->in[0].dtype) {
    case EFFC_F32: fn = sample_lines<float>; break;
    case EFFC_F64: fn = sample_lines<double>; break;
    case EFFC_F16: fn = sample_lines<f16>; break;
    case EFFC_BF16: fn = sample_lines<bf16>; break;
    default: call->api->fail(call, "grid_sample: no kernel for dtype %d", call->in[0].dtype); return 1;
  }
  int64_t lines = v.out[0] * v.out[2] * v.out[3];
  call->api->parallel_for(call->run, lines, max64(1, 2048 / max64(1, v.out[4] * v.in[1])), fn, &v);
  return 0;
}
