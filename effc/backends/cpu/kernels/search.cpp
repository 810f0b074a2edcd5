// Binary search, counting, histograms, and sums of table rows.
#include <math.h>

#include "move.hpp"

using namespace effc;

namespace {

/* First i in [0, n) for which !(seq[i] >= v), or !(seq[i] > v) with Right, no longer holds (torch's comparisons: a NaN
 * value lands behind everything). */
template <class T, bool Right>
EFFC_INLINE int64_t bound(const T* seq, const int64_t* sorter, int64_t n, T value) {
  const auto v = to_compute(value);
  auto before = [&](int64_t i) {
    const auto m = to_compute(seq[sorter ? sorter[i] : i]);
    return !(Right ? m > v : m >= v);
  };
  int64_t lo = 0;
  while (n > 1) {  // without branches on the data: those would be mispredicted every other time
    const int64_t half = n / 2;
    lo += before(lo + half - 1) ? half : 0;
    n -= half;
  }
  return lo + (n == 1 && before(lo) ? 1 : 0);
}

}  // namespace

// in: sorted [.., n] (or [n]), values, sorter? (i64), all dense; out: i64 or i32, dense. attr: right.
EFFC_EXPORT int32_t effc_searchsorted(const effc_call* call) {
  const effc_tensor &seq = call->in[0], &values = call->in[1], &sorter = call->in[2], &out = call->out[0];
  const bool right = call->attr[0] != 0, narrow = out.dtype == EFFC_I32;
  const int64_t n = seq.shape[seq.rank - 1], m = seq.rank == 1 ? numel(values) : values.shape[values.rank - 1];
  int64_t bad = -1;
  if (!absent(sorter))
    for (int64_t i = 0, k = numel(sorter); i < k; ++i) {
      const int64_t at = ((const int64_t*)sorter.data)[i];
      if (at < 0 || at >= n) bad = at;
    }
  if (bad != -1) {
    call->api->fail(call, "searchsorted: sorter index %lld is out of range for size %lld", (long long)bad,
                    (long long)n);
    return 1;
  }
  auto run = [&](auto z) {
    using T = decltype(z);
    pfor(call, numel(values), 512, [&](int64_t b, int64_t e, int32_t) {
      for (int64_t i = b; i < e; ++i) {
        const int64_t line = seq.rank == 1 ? 0 : i / m * n;
        const T* s = (const T*)seq.data + line;
        const int64_t* p = absent(sorter) ? nullptr : (const int64_t*)sorter.data + line;
        const T v = ((const T*)values.data)[i];
        const int64_t at = right ? bound<T, true>(s, p, n, v) : bound<T, false>(s, p, n, v);
        if (narrow)
          ((int32_t*)out.data)[i] = (int32_t)at;
        else
          ((int64_t*)out.data)[i] = at;
      }
    });
  };
  return by_dtype<kReal>(seq.dtype, run) ? 0 : bad_dtype(call, "searchsorted", seq.dtype);
}

// in: x 1-d integer, weights? f32/f64, dense; out: [max(minlength, max(x)+1)]. attrs: minlength, the size (-1: dyn).
EFFC_EXPORT int32_t effc_bincount(const effc_call* call) {
  const effc_tensor &x = call->in[0], &weights = call->in[1];
  const int64_t n = numel(x);
  int64_t size = call->attr[0];
  for (int64_t i = 0; i < n; ++i) {
    const int64_t v = load_int(x, i);
    if (v < 0) {
      call->api->fail(call, "bincount: value %lld is negative", (long long)v);
      return 1;
    }
    size = v >= size ? v + 1 : size;
  }
  if (sized_out(call, 0, 1, &size, size, call->attr[1])) return 1;
  void* out = call->out[0].data;
  memset(out, 0, (size_t)size * (size_t)elem_size(call->out[0].dtype));
  if (absent(weights))
    for (int64_t i = 0; i < n; ++i) ++((int64_t*)out)[load_int(x, i)];
  else if (weights.dtype == EFFC_F32)
    for (int64_t i = 0; i < n; ++i) ((float*)out)[load_int(x, i)] += ((const float*)weights.data)[i];
  else
    for (int64_t i = 0; i < n; ++i) ((double*)out)[load_int(x, i)] += ((const double*)weights.data)[i];
  return 0;
}

// in: x dense f32/f64; out: counts [bins] of x's dtype. fattrs: lo, hi (equal: the data's range).
EFFC_EXPORT int32_t effc_histc(const effc_call* call) {
  const effc_tensor &x = call->in[0], &out = call->out[0];
  const int64_t n = numel(x), bins = out.shape[0];
  int32_t status = 0;
  auto run = [&](auto z) {
    using T = decltype(z);
    const T* src = (const T*)x.data;
    T* dst = (T*)out.data;
    T lo = (T)call->fattr[0], hi = (T)call->fattr[1];
    if (lo == hi && n > 0) {
      lo = hi = src[0];
      bool nan = src[0] != src[0];
      for (int64_t i = 1; i < n; ++i) {
        lo = src[i] < lo ? src[i] : lo, hi = src[i] > hi ? src[i] : hi;
        nan |= src[i] != src[i];
      }
      if (nan || isinf(lo) || isinf(hi)) {
        call->api->fail(call, "histc: the data's range is not finite");
        status = 1;
        return;
      }
    }
    if (lo == hi) lo -= 1, hi += 1;
    for (int64_t i = 0; i < bins; ++i) dst[i] = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!(src[i] >= lo && src[i] <= hi)) continue;
      const int64_t at = (int64_t)((src[i] - lo) * (T)bins / (hi - lo));
      dst[at < bins ? at : bins - 1] += 1;
    }
  };
  return by_dtype<kFloat>(x.dtype, run) ? status : bad_dtype(call, "histc", x.dtype);
}

// in: points [n, d], weights? [n], d edge sequences, all dense f32 or f64; out: dense [edges-1 ...].
EFFC_EXPORT int32_t effc_histogram(const effc_call* call) {
  const effc_tensor &x = call->in[0], &weights = call->in[1], &out = call->out[0];
  const int64_t n = x.shape[0];
  const int d = call->n_in - 2;
  auto run = [&](auto z) {
    using T = decltype(z);
    T* dst = (T*)out.data;
    memset(dst, 0, (size_t)numel(out) * sizeof(T));
    for (int64_t i = 0; i < n; ++i) {
      int64_t cell = 0;
      bool inside = true;
      for (int k = 0; k < d && inside; ++k) {
        const effc_tensor& edges = call->in[2 + k];
        const int64_t m = edges.shape[0];
        const T v = ((const T*)x.data)[i * d + k], *e = (const T*)edges.data;
        inside = m > 1 && v >= e[0] && v <= e[m - 1];
        if (!inside) break;
        int64_t at = bound<T, true>(e, nullptr, m, v) - 1;
        at = at == m - 1 ? m - 2 : at;
        cell = cell * (m - 1) + at;
      }
      if (inside) dst[cell] += absent(weights) ? (T)1 : ((const T*)weights.data)[i];
    }
  };
  return by_dtype<kFloat>(x.dtype, run) ? 0 : bad_dtype(call, "histogram", x.dtype);
}

// in: table [v, d], indices [n], offsets [b], scales? [n], all dense; out: [bags, d]. attrs: mode (0 sum, 1 mean, 2
// max), include_last_offset, padding_idx (-1: none).
EFFC_EXPORT int32_t effc_embedding_bag(const effc_call* call) {
  const effc_tensor &table = call->in[0], &indices = call->in[1], &offsets = call->in[2], &scales = call->in[3],
                    &out = call->out[0];
  const int64_t mode = call->attr[0], pad = call->attr[2], bags = out.shape[0], width = out.shape[1],
                n = numel(indices);
  const bool closed = call->attr[1] != 0;
  for (int64_t i = 0, before = 0; i < numel(offsets); ++i) {
    const int64_t at = load_int(offsets, i);
    if (at < before || at > n) {
      call->api->fail(call, "embedding_bag: offset %lld is not in [%lld, %lld]", (long long)at, (long long)before,
                      (long long)n);
      return 1;
    }
    before = at;
  }
  IndexGuard guard(table.shape[0]);
  for (int64_t i = 0; i < n; ++i) guard(load_int(indices, i));
  if (guard.status(call, "embedding_bag", 0)) return 1;
  auto run = [&](auto z) {
    using T = decltype(z);
    using C = compute_t<T>;
    constexpr int64_t kWidth = 256;
    pfor(call, bags, 1 + (4096 / (width + 1)), [&](int64_t b, int64_t e, int32_t) {
      C acc[kWidth];
      for (int64_t bag = b; bag < e; ++bag) {
        const int64_t begin = load_int(offsets, bag), end = bag + 1 < bags || closed ? load_int(offsets, bag + 1) : n;
        for (int64_t c0 = 0; c0 < width; c0 += kWidth) {
          const int64_t w = width - c0 < kWidth ? width - c0 : kWidth;
          int64_t used = 0;
          for (int64_t c = 0; c < w; ++c) acc[c] = 0;
          for (int64_t i = begin; i < end; ++i) {
            const int64_t at = load_int(indices, i), row = at < 0 ? at + table.shape[0] : at;
            if (row == pad) continue;
            const T* src = (const T*)table.data + row * width + c0;
            if (mode == 2) {
              for (int64_t c = 0; c < w; ++c) {
                const C v = to_compute(src[c]);
                acc[c] = used == 0 || v > acc[c] || v != v ? v : acc[c];
              }
            } else {
              const C s = absent(scales) ? (C)1 : to_compute(((const T*)scales.data)[i]);
              for (int64_t c = 0; c < w; ++c) acc[c] += s * to_compute(src[c]);
            }
            ++used;
          }
          T* to = (T*)out.data + bag * width + c0;
          const C count = mode == 1 && used > 0 ? (C)used : (C)1;
          for (int64_t c = 0; c < w; ++c) to[c] = convert<T>((C)(acc[c] / count));
        }
      }
    });
  };
  const bool ok = by_dtype<kFloat>(table.dtype, run) || (table.dtype == EFFC_F16 && (run(f16{}), true)) ||
                  (table.dtype == EFFC_BF16 && (run(bf16{}), true));
  return ok ? 0 : bad_dtype(call, "embedding_bag", table.dtype);
}
