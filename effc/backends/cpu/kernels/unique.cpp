// Distinct elements and distinct slices.
#include "sortkeys.hpp"

using namespace effc;

// in: x dense; out: values [u], inverse (i64, x's shape), counts (i64) [u]. attrs: sort (else only runs of neighbours
// are merged), u (-1: values and counts are dyn). scratch: 2 items per element, 64 bytes aligned. NaNs are all
// distinct.
EFFC_EXPORT int32_t effc_unique(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const bool sort = call->attr[0] != 0, floats = is_float(x.dtype);
  const int64_t n = numel(x);
  int32_t status = 0;
  with_items(x.dtype, [&](auto z) {
    using Item = decltype(z);
    Item* items = (Item*)call->scratch;
    load_items(x, 0, 1, n, false, items);
    if (sort) sort_stable(items, items + n, n);
    auto starts = [&](int64_t i) {
      return i == 0 || items[i].key != items[i - 1].key || (floats && items[i].key == kNanKey<Item>);
    };
    int64_t u = 0;
    for (int64_t i = 0; i < n; ++i) u += starts(i);
    status = sized_out(call, 0, 1, &u, u, call->attr[1]) || sized_out(call, 2, 1, &u, u, call->attr[1], false);
    if (status) return;
    int64_t *inverse = (int64_t*)call->out[1].data, *counts = (int64_t*)call->out[2].data;
    by_size(elem_size(x.dtype), [&](auto y) {
      using T = decltype(y);
      const T* src = (const T*)x.data;
      T* values = (T*)call->out[0].data;
      int64_t k = -1;
      for (int64_t i = 0; i < n; ++i) {
        if (starts(i)) {
          values[++k] = src[items[i].index];
          counts[k] = 0;
        }
        ++counts[k];
        inverse[items[i].index] = k;
      }
    });
  });
  return status;
}

// in: x dense; out: values with u slices along dim, inverse (i64) [n], counts (i64) [u]. attrs: dim, sort (in
// lexicographic order; else only neighbours are merged), u (-1: values and counts are dyn). scratch: 8 bytes per slice.
EFFC_EXPORT int32_t effc_unique_dim(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const int dim = (int)call->attr[0];
  const bool sort = call->attr[1] != 0;
  const int64_t n = x.shape[dim], outer = span(x, 0, dim), inner = span(x, dim + 1, x.rank);
  int64_t* order = (int64_t*)call->scratch;
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  int64_t u = 0;
  int32_t status = 0;
  const bool ok = by_dtype<kReal>(x.dtype, [&](auto z) {
    using T = decltype(z);
    const T* src = (const T*)x.data;
    auto compare = [=](int64_t a, int64_t b) {  // -1, 0, 1; a NaN differs from everything
      for (int64_t o = 0; o < outer; ++o)
        for (int64_t i = 0; i < inner; ++i) {
          const T p = src[(o * n + a) * inner + i], q = src[(o * n + b) * inner + i];
          const uint64_t c = key_of(p), d = key_of(q);
          if (c != d) return c < d ? -1 : 1;
          if (!(to_compute(p) == to_compute(q))) return a < b ? -1 : 1;
        }
      return 0;
    };
    if (sort)
      std::sort(order, order + n, [=](int64_t a, int64_t b) {
        const int c = compare(a, b);
        return c != 0 ? c < 0 : a < b;
      });
    auto starts = [&](int64_t i) { return i == 0 || compare(order[i - 1], order[i]) != 0; };
    for (int64_t i = 0; i < n; ++i) u += starts(i);
    int64_t shape[EFFC_MAX_RANK];
    for (int i = 0; i < x.rank; ++i) shape[i] = i == dim ? u : x.shape[i];
    status = sized_out(call, 0, x.rank, shape, u, call->attr[2]) || sized_out(call, 2, 1, &u, u, call->attr[2], false);
    if (status) return;
    T* values = (T*)call->out[0].data;
    int64_t *inverse = (int64_t*)call->out[1].data, *counts = (int64_t*)call->out[2].data;
    int64_t k = -1;
    for (int64_t i = 0; i < n; ++i) {
      if (starts(i)) {
        ++k;
        counts[k] = 0;
        for (int64_t o = 0; o < outer; ++o)
          memcpy(values + (o * u + k) * inner, src + (o * n + order[i]) * inner, (size_t)inner * sizeof(T));
      }
      ++counts[k];
      inverse[order[i]] = k;
    }
  });
  return ok ? status : bad_dtype(call, "unique_dim", x.dtype);
}
