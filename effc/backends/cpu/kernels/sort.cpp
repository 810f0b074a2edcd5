// Sorting and selection along one dim: sort, topk, kthvalue, median, mode.
//
// Each line becomes items (key, index) in a worker's scratch. Where equal elements leave the choice of indices open,
// the order is that of PyTorch on the CPU, which uses the standard library's unstable algorithms on the values alone:
// std::sort for an unstable sort and the mode, std::partial_sort or std::nth_element for topk, Hoare's selection with a
// median of three for kthvalue. The median takes the index that a stable sort would give.
#include "sortkeys.hpp"

using namespace effc;

namespace {

/* The lines along one dim: a walk over the other dims with the offset into x; results are dense. */
struct Lines {
  Walk<1> walk;
  int64_t n, step, inner;
  Lines(const effc_tensor& x, int dim) : n(x.shape[dim]), step(x.strides[dim]), inner(span(x, dim + 1, x.rank)) {
    for (int i = 0; i < x.rank; ++i)
      if (i != dim) walk.add(x.shape[i], {x.strides[i]});
  }
};

/* Runs f(line number, offset in x, items, spare) for every line, with `items` loaded; the worker's scratch holds 2n
 * items. */
template <class F>
void each_line(const effc_call* call, const effc_tensor& x, int dim, bool descending, F&& f) {
  const Lines lines(x, dim);
  with_items(x.dtype, [&](auto z) {
    using Item = decltype(z);
    pfor(call, lines.walk.count(), grain_for(lines.n * 8, 16384), [&](int64_t b, int64_t e, int32_t worker) {
      Item* items = (Item*)(call->thread_scratch + worker * call->thread_scratch_bytes);
      Walk<1> w = lines.walk;
      w.seek(b);
      for (int64_t r = b; r < e; ++r, w.next()) {
        load_items(x, w.offset[0], lines.step, lines.n, descending, items);
        f(r, w.offset[0], items, items + lines.n);
      }
    });
  });
}

/* Writes the first m items of a line: values from x, indices. */
template <class Item>
void store_line(const effc_tensor& x, int64_t offset, int64_t step, const Item* items, int64_t m,
                const effc_tensor& values, const effc_tensor& indices, int64_t at, int64_t out_step) {
  int64_t* ip = (int64_t*)indices.data + at;
  for (int64_t i = 0; i < m; ++i) ip[i * out_step] = (int64_t)items[i].index;
  by_size(elem_size(x.dtype), [&](auto z) {
    using T = decltype(z);
    const T* src = (const T*)x.data + offset;
    T* dst = (T*)values.data + at;
    for (int64_t i = 0; i < m; ++i) dst[i * out_step] = src[(int64_t)items[i].index * step];
  });
}

/* Puts the item of rank k (from 0) at place k by comparisons of keys alone: Hoare's selection, pivot the median of
 * three. */
template <class Item>
void select_unstable(Item* v, int64_t n, int64_t k) {
  int64_t left = 0, right = n - 1;
  while (left < right) {
    if (right - left == 1) {
      if (v[left].key > v[right].key) std::swap(v[left], v[right]);
      return;
    }
    std::swap(v[left + (right - left) / 2], v[left + 1]);
    if (v[left + 1].key > v[right].key) std::swap(v[left + 1], v[right]);
    if (v[left].key > v[right].key) std::swap(v[left], v[right]);
    if (v[left + 1].key > v[left].key) std::swap(v[left + 1], v[left]);
    const auto pivot = v[left].key;
    int64_t i = left + 1, j = right;
    for (;;) {
      do ++i;
      while (v[i].key < pivot);
      do --j;
      while (v[j].key > pivot);
      if (j < i) break;
      std::swap(v[i], v[j]);
    }
    std::swap(v[left], v[j]);
    if (j <= k) left = i;
    if (j >= k) right = j - 1;
  }
}

constexpr int64_t kFew = 8;

/* The k smallest items in order, by insertion; false if equal keys were met among them, when the order is not settled.
 */
template <class Item>
bool select_few(const Item* items, int64_t n, int64_t k, Item* best) {
  bool ties = false;
  for (int64_t i = 0; i < n; ++i) {
    const Item v = items[i];
    int64_t at = i < k ? i : k;
    if (i >= k) {
      if (v.key > best[k - 1].key) continue;
      if (v.key == best[k - 1].key) {
        ties = true;
        continue;
      }
      at = k - 1;
    }
    for (; at > 0 && best[at - 1].key > v.key; --at) best[at] = best[at - 1];
    ties |= at > 0 && best[at - 1].key == v.key;
    best[at] = v;
  }
  return !ties;
}

}  // namespace

// in: x any strides; out: values, indices (i64), dense. attrs: dim, descending, stable. thread_scratch: 2n items (8
// bytes, 16 for 8-byte elements).
EFFC_EXPORT int32_t effc_sort(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const int dim = (int)call->attr[0];
  const bool descending = call->attr[1] != 0, stable = call->attr[2] != 0;
  const Lines lines(x, dim);
  const int64_t n = lines.n, inner = lines.inner;
  if (n == 0) return 0;
  each_line(call, x, dim, descending, [&](int64_t r, int64_t offset, auto* items, auto* spare) {
    sort_stable(items, spare, n);
    if (!stable && n > 16) {
      bool ties = false;
      for (int64_t i = 1; i < n; ++i) ties |= items[i].key == items[i - 1].key;
      if (ties) {
        load_items(x, offset, lines.step, n, descending, items);
        std::sort(items, items + n, ByKey{});
      }
    }
    store_line(x, offset, lines.step, items, n, call->out[0], call->out[1], r / inner * n * inner + r % inner, inner);
  });
  return 0;
}

// in: x any strides; out: values, indices (i64), dense. attrs: k, dim, largest, sorted. thread_scratch as for sort.
EFFC_EXPORT int32_t effc_topk(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const int64_t k = call->attr[0];
  const int dim = (int)call->attr[1];
  const bool sorted = call->attr[3] != 0;
  const Lines lines(x, dim);
  const int64_t n = lines.n, inner = lines.inner;
  if (k > n || k < 0) {
    call->api->fail(call, "topk: k=%lld does not fit size %lld of dim %d", (long long)k, (long long)n, dim);
    return 1;
  }
  if (k == 0) return 0;
  each_line(call, x, dim, call->attr[2] != 0, [&](int64_t r, int64_t offset, auto* items, auto*) {
    using Item = std::remove_reference_t<decltype(*items)>;
    Item best[kFew + 1];
    if (k <= kFew && (sorted || k <= n / 64) && select_few(items, n, k, best)) {
      store_line(x, offset, lines.step, best, k, call->out[0], call->out[1], r / inner * k * inner + r % inner, inner);
      return;
    }
    if (k <= n / 64) {
      std::partial_sort(items, items + k, items + n, ByKey{});
    } else {
      std::nth_element(items, items + (k - 1), items + n, ByKey{});
      if (sorted) std::sort(items, items + (k - 1), ByKey{});
    }
    store_line(x, offset, lines.step, items, k, call->out[0], call->out[1], r / inner * k * inner + r % inner, inner);
  });
  return 0;
}

// in: x any strides; out: value, index (i64), dense, one per line. attrs: dim, k (from 1). thread_scratch as for sort.
EFFC_EXPORT int32_t effc_kthvalue(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const int dim = (int)call->attr[0];
  const int64_t k = call->attr[1];
  const Lines lines(x, dim);
  if (k < 1 || k > lines.n) {
    call->api->fail(call, "kthvalue: k=%lld does not fit size %lld of dim %d", (long long)k, (long long)lines.n, dim);
    return 1;
  }
  each_line(call, x, dim, false, [&](int64_t r, int64_t offset, auto* items, auto*) {
    select_unstable(items, lines.n, k - 1);
    store_line(x, offset, lines.step, items + (k - 1), 1, call->out[0], call->out[1], r, 1);
  });
  return 0;
}

// in: x any strides; out: value, index (i64), dense, one per line. attrs: dim, ignore_nan. thread_scratch as for sort.
EFFC_EXPORT int32_t effc_median(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const int dim = (int)call->attr[0];
  const bool ignore = call->attr[1] != 0, floats = is_float(x.dtype);
  const Lines lines(x, dim);
  const int64_t n = lines.n;
  if (n == 0 && lines.walk.count() > 0) {
    call->api->fail(call, "median: dim %d has size 0", dim);
    return 1;
  }
  each_line(call, x, dim, false, [&](int64_t r, int64_t offset, auto* items, auto*) {
    using Item = std::remove_reference_t<decltype(*items)>;
    int64_t nans = 0, first = -1;
    if (floats)
      for (int64_t i = n - 1; i >= 0; --i)
        if (items[i].key == kNanKey<Item>) first = i, ++nans;
    int64_t at = first;
    if (nans == 0 || ignore) {
      at = (nans == n ? 0 : n - nans - 1) / 2;
      std::nth_element(items, items + at, items + n, ByKeyAndIndex{});
    }
    store_line(x, offset, lines.step, items + at, 1, call->out[0], call->out[1], r, 1);
  });
  return 0;
}

// in: x any strides; out: value, index (i64), dense, one per line. attr: dim. thread_scratch as for sort.
EFFC_EXPORT int32_t effc_mode(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const int dim = (int)call->attr[0];
  const bool floats = is_float(x.dtype);
  const Lines lines(x, dim);
  const int64_t n = lines.n;
  if (n == 0 && lines.walk.count() > 0) {
    call->api->fail(call, "mode: dim %d has size 0", dim);
    return 1;
  }
  each_line(call, x, dim, false, [&](int64_t r, int64_t offset, auto* items, auto*) {
    using Item = std::remove_reference_t<decltype(*items)>;
    std::sort(items, items + n, ByKey{});
    int64_t best = 0, longest = 0, run = 0;
    for (int64_t i = 0; i < n; ++i) {
      ++run;
      if (i + 1 < n && items[i].key == items[i + 1].key && !(floats && items[i].key == kNanKey<Item>)) continue;
      if (run > longest) longest = run, best = i;
      run = 0;
    }
    store_line(x, offset, lines.step, items + best, 1, call->out[0], call->out[1], r, 1);
  });
  return 0;
}
