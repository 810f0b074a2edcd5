// Writing by index: scatter with its reductions, index_put, masked_scatter.
//
// Destinations are split among tasks so that all writes to one element happen in one task, in the order of the indices:
// results do not depend on threads. Indices are checked before anything is written, so a failed call leaves an operand
// that shares its storage with the result as it was. Integer sums and products wrap, so one unsigned type of each size
// serves.
#include "move.hpp"

using namespace effc;

namespace {

enum Reduce { kNone = 0, kSum, kProd, kMax, kMin, kMean };

template <class C>
EFFC_INLINE C add(C a, C b) {
  return (C)(a + b);
}
EFFC_INLINE cf32 add(cf32 a, cf32 b) { return cf32{a.re + b.re, a.im + b.im}; }
EFFC_INLINE cf64 add(cf64 a, cf64 b) { return cf64{a.re + b.re, a.im + b.im}; }
template <class C>
EFFC_INLINE C mul(C a, C b) {
  return (C)(a * b);
}
EFFC_INLINE uint16_t mul(uint16_t a, uint16_t b) { return (uint16_t)((uint32_t)a * b); }
EFFC_INLINE cf32 mul(cf32 a, cf32 b) { return cf32{a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
EFFC_INLINE cf64 mul(cf64 a, cf64 b) { return cf64{a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

/* dst after `src` arrives; extrema propagate NaN. */
template <Reduce R, class T>
EFFC_INLINE T combine(T dst, T src) {
  if constexpr (R == kNone) {
    return src;
  } else {
    const auto a = to_compute(dst), b = to_compute(src);
    if constexpr (R == kSum)
      return convert<T>(add(a, b));
    else if constexpr (R == kProd)
      return convert<T>(mul(a, b));
    else if constexpr (R == kMax)
      return (b > a) | (b != b) ? src : dst;
    else
      return (b < a) | (b != b) ? src : dst;
  }
}

template <Reduce R, class T>
T identity() {
  if constexpr (R == kProd) {
    return convert<T>(1);
  } else if constexpr (R == kMax || R == kMin) {
    using C = compute_t<T>;
    if constexpr ((C)0.5 != (C)0) {
      return convert<T>((C)(R == kMax ? -__builtin_inf() : __builtin_inf()));
    } else {
      constexpr bool has_sign = (T)-1 < (T)1;
      constexpr T top = (T)(has_sign ? (T)((~(uint64_t)0) >> (65 - 8 * sizeof(T))) : (T) ~(T)0);
      return R == kMax ? (has_sign ? (T)(-top - 1) : (T)0) : top;
    }
  } else {
    return T{};
  }
}

template <Reduce R>
using Kind = std::integral_constant<Reduce, R>;

/* One index per element: where element c of a row goes. */
struct RowIndex {
  const effc_tensor* index;
  int64_t at, step, size, out_step, col_step;

  EFFC_INLINE int64_t place(const RowIndex& r, int64_t i, int64_t c) {
    return (i < 0 ? i + r.size : i) * r.out_step + c * r.col_step;
  }
  EFFC_INLINE int64_t to(const RowIndex& r, int64_t c) { return place(r, load_int(*r.index, r.at + c * r.step), c); }
};

/* The loops of one reduction on one element type; the kernels below are written once around them. Elements count from
 * c0 to c1; sd and ss are strides in elements. */
struct Loops {
  void (*row)(void* d, const void* s, int64_t sd, int64_t ss, int64_t c0, int64_t c1);
  void (*elements)(void* d, const void* s, int64_t ss, const RowIndex& to, int64_t c0, int64_t c1);
  void (*clear)(void* d, int64_t at);  // one element to the identity
};

template <class T, Reduce R>
struct Loop {
  static void row(void* d0, const void* s0, int64_t sd, int64_t ss, int64_t c0, int64_t c1) {
    T* __restrict d = (T*)d0;
    const T* __restrict s = (const T*)s0;
    if (sd == 1 && ss == 1)
      for (int64_t c = c0; c < c1; ++c) d[c] = combine<R>(d[c], s[c]);
    else
      for (int64_t c = c0; c < c1; ++c) d[c * sd] = combine<R>(d[c * sd], s[c * ss]);
  }
  static void elements(void* d0, const void* s0, int64_t ss, const RowIndex& to, int64_t c0, int64_t c1) {
    T* d = (T*)d0;
    const T* s = (const T*)s0;
    if (to.index->dtype == EFFC_I64) {
      const int64_t* ip = (const int64_t*)to.index->data + to.at;
      for (int64_t c = c0; c < c1; ++c) {
        const int64_t at = RowIndex::place(to, ip[c * to.step], c);
        d[at] = combine<R>(d[at], s[c * ss]);
      }
      return;
    }
    for (int64_t c = c0; c < c1; ++c) {
      const int64_t at = RowIndex::to(to, c);
      d[at] = combine<R>(d[at], s[c * ss]);
    }
  }
  static void clear(void* d, int64_t at) { ((T*)d)[at] = identity<R, T>(); }
};

/* The loops for a dtype and reduction; `row` is null where the pair is not supported. */
Loops loops_for(int32_t dtype, int reduce) {
  Loops found = {nullptr, nullptr, nullptr};
  auto use = [&](auto z, auto kind) {
    using L = Loop<decltype(z), decltype(kind)::value>;
    found = Loops{L::row, L::elements, L::clear};
  };
  const bool integer = dtype >= EFFC_U8 && dtype <= EFFC_I64;
  auto sum_or_prod = [&](auto z) { reduce == kProd ? use(z, Kind<kProd>{}) : use(z, Kind<kSum>{}); };
  auto max_or_min = [&](auto z) { reduce == kMax ? use(z, Kind<kMax>{}) : use(z, Kind<kMin>{}); };
  if (reduce == kNone) {
    by_size(elem_size(dtype), [&](auto z) { use(z, Kind<kNone>{}); });
  } else if (dtype == EFFC_BOOL) {  // sum and max are "or", prod and min are "and"
    if (reduce == kSum || reduce == kMax)
      use(uint8_t{}, Kind<kMax>{});
    else if (reduce != kMean)
      use(uint8_t{}, Kind<kMin>{});
  } else if (reduce == kMax || reduce == kMin) {
    if (dtype == EFFC_F16)
      max_or_min(f16{});
    else if (dtype == EFFC_BF16)
      max_or_min(bf16{});
    else
      by_dtype<kInt | kFloat>(dtype, max_or_min);
  } else if (integer) {
    switch (elem_size(dtype)) {
      case 1:
        sum_or_prod(uint8_t{});
        break;
      case 2:
        sum_or_prod(uint16_t{});
        break;
      case 4:
        sum_or_prod(uint32_t{});
        break;
      default:
        sum_or_prod(uint64_t{});
    }
  } else if (dtype == EFFC_F16) {
    sum_or_prod(f16{});
  } else if (dtype == EFFC_BF16) {
    sum_or_prod(bf16{});
  } else {
    by_dtype<kFloat | kComplex>(dtype, sum_or_prod);
  }
  return found;
}

/* Are all indices in range? Dims that only repeat (stride 0) are looked at once. */
int32_t check_indices(const effc_call* call, const effc_tensor& index, int64_t size, const char* what, int dim) {
  IndexGuard guard(size);
  if (numel(index) == 0) return 0;
  int64_t shape[EFFC_MAX_RANK];
  for (int i = 0; i < index.rank; ++i) shape[i] = index.strides[i] == 0 ? 1 : index.shape[i];
  each_index(call, index, index.rank, shape, [&](int64_t, int64_t i) { guard(i); });
  return guard.status(call, what, dim);
}

/* Divides the sums by how many values went into them. */
template <class T>
void divide(const effc_call* call, T* out, const int32_t* count, int64_t n, int self) {
  pfor(call, n, 16384, [=](int64_t b, int64_t e, int32_t) {
    for (int64_t i = b; i < e; ++i) {
      const int64_t c = count[i] + self;
      if (c <= 1) continue;
      if constexpr ((compute_t<T>)0.5 != (compute_t<T>)0) {
        out[i] = convert<T>((compute_t<T>)(to_compute(out[i]) / (compute_t<T>)c));
      } else {  // floors
        const T q = (T)(out[i] / (T)c);
        out[i] = (T)-1 < (T)1 && (T)(q * (T)c) > out[i] ? (T)(q - 1) : q;
      }
    }
  });
}

}  // namespace

// in: x dense; index (i64/i32) and src any strides, of x's rank; out: dense, may be x's storage. attrs: dim, reduce
// (none sum prod amax amin mean), include_self. scratch: with mean, 4 bytes per element of out.
EFFC_EXPORT int32_t effc_scatter(const effc_call* call) {
  const effc_tensor &x = call->in[0], &index = call->in[1], &src = call->in[2], &out = call->out[0];
  const int dim = (int)call->attr[0], reduce = (int)call->attr[1], last = out.rank - 1;
  const bool self = call->attr[2] != 0 || reduce == kNone;
  const Loops loops = loops_for(out.dtype, reduce);
  const int64_t z = elem_size(out.dtype);
  if (!loops.row) return bad_dtype(call, "scatter", out.dtype);
  if (check_indices(call, index, out.shape[dim], "scatter", dim)) return 1;
  const int64_t total = numel(out);
  copy_bytes(call, out.data, x.data, total * z);
  int32_t* count = reduce == kMean ? (int32_t*)call->scratch : nullptr;
  if (count) memset(count, 0, (size_t)total * 4);
  if (numel(index) == 0) return 0;
  Walk<3> walk;  // index, src, out over the dims that are neither dim nor last
  for (int i = 0; i < last; ++i)
    if (i != dim) walk.add(index.shape[i], {index.strides[i], src.strides[i], out.strides[i]});
  // Along the last dim a line is one row whose elements all have their own index; else dim j is walked row by row.
  const bool along = dim == last;
  const int64_t size = out.shape[dim], out_j = out.strides[dim];
  const int64_t n = along ? 1 : index.shape[dim], cols = index.shape[last];
  const int64_t in_j = index.strides[dim], src_j = src.strides[dim], in_c = index.strides[last],
                src_c = src.strides[last];
  const int64_t width = along || walk.count() >= 16 ? cols : cols <= 64 ? cols : cols / 16 < 64 ? 64 : cols / 16;
  const int64_t parts = (cols + width - 1) / width;
  char* dst = (char*)out.data;
  const char* from = (const char*)src.data;
  pfor(call, walk.count() * parts, grain_for(n * width, 16384), [&](int64_t b, int64_t e, int32_t) {
    Walk<3> w = walk;
    for (int64_t item = b; item < e; ++item) {
      w.seek(item / parts);
      const int64_t c0 = item % parts * width, c1 = c0 + width < cols ? c0 + width : cols;
      char* d = dst + w.offset[2] * z;
      int32_t* counts = count ? count + w.offset[2] : nullptr;
      RowIndex to{&index, 0, in_c, size, out_j, along ? 0 : 1};
      for (int pass = self ? 1 : 0; pass < 2; ++pass)
        for (int64_t j = 0; j < n; ++j) {
          to.at = w.offset[0] + j * in_j;
          if (pass == 0) {
            for (int64_t c = c0; c < c1; ++c) loops.clear(d, RowIndex::to(to, c));
            continue;
          }
          const char* s = from + (w.offset[1] + j * src_j) * z;
          if (in_c == 0 && !along)  // one index for the row
            loops.row(d + RowIndex::to(to, 0) * z, s, 1, src_c, c0, c1);
          else
            loops.elements(d, s, src_c, to, c0, c1);
          if (counts)
            for (int64_t c = c0; c < c1; ++c) ++counts[RowIndex::to(to, c)];
        }
    }
  });
  if (count) {
    auto run = [&](auto z) { divide(call, (decltype(z)*)out.data, count, total, (int)self); };
    if (out.dtype == EFFC_F16)
      run(f16{});
    else if (out.dtype == EFFC_BF16)
      run(bf16{});
    else if (!by_dtype<kInt | kFloat>(out.dtype, run))
      return bad_dtype(call, "scatter mean", out.dtype);
  }
  return 0;
}

// in: x dense; values any strides, broadcast to what indexing x would give; k index tensors that broadcast together;
// out: dense, may be x's storage. attrs: accumulate, then the k indexed dims, increasing, then the rank of the
// broadcast index and its shape. scratch: 8 bytes per element of the broadcast index.
EFFC_EXPORT int32_t effc_index_put(const effc_call* call) {
  const effc_tensor &x = call->in[0], &values = call->in[1], &out = call->out[0];
  const int k = call->n_in - 2;
  const bool accumulate = call->attr[0] != 0;
  const int64_t *dims = call->attr + 1, *shape = dims + k + 1;
  const int common = (int)dims[k], rest = out.rank - k, result = rest + common;
  const int place = dims[k - 1] - dims[0] == k - 1 ? (int)dims[0] : 0;
  const Loops loops = loops_for(out.dtype, accumulate ? kSum : kNone);
  const int64_t z = elem_size(out.dtype);
  if (!loops.row) return bad_dtype(call, "index_put", out.dtype);
  for (int j = 0; j < k; ++j)
    if (check_indices(call, call->in[2 + j], out.shape[dims[j]], "index_put", (int)dims[j])) return 1;
  copy_bytes(call, out.data, x.data, numel(out) * z);
  bool indexed[EFFC_MAX_RANK] = {};
  for (int j = 0; j < k; ++j) indexed[dims[j]] = true;
  auto value_stride = [&](int i) {  // of result dim i
    const int own = i - (result - values.rank);
    return own < 0 || values.shape[own] == 1 ? (int64_t)0 : values.strides[own];
  };
  int64_t m = 1;
  Walk<1> value_walk;
  for (int i = 0; i < common; ++i) m *= shape[i], value_walk.add(shape[i], {value_stride(place + i)});
  Walk<2> pre;  // out, values
  int64_t n[EFFC_MAX_RANK], so[EFFC_MAX_RANK], sv[EFFC_MAX_RANK];
  int rank = 0, seen = 0;
  for (int i = 0; i < out.rank; ++i) {
    if (indexed[i]) continue;
    const int at = seen++;
    if (at < place) {
      pre.add(out.shape[i], {out.strides[i], value_stride(at)});
    } else if (out.shape[i] != 1) {
      const int64_t o = out.strides[i], v = value_stride(at + common);
      if (rank && so[rank - 1] == o * out.shape[i] && sv[rank - 1] == v * out.shape[i])
        n[rank - 1] *= out.shape[i], so[rank - 1] = o, sv[rank - 1] = v;
      else
        n[rank] = out.shape[i], so[rank] = o, sv[rank] = v, ++rank;
    }
  }
  if (rank == 0) n[0] = 1, so[0] = 1, sv[0] = 1, rank = 1;
  Walk<2> post;
  for (int i = 0; i < rank - 1; ++i) post.add(n[i], {so[i], sv[i]});
  if (m * pre.count() * post.count() * n[rank - 1] == 0) return 0;
  int64_t* table = (int64_t*)call->scratch;  // offset in out of each index
  for (int j = 0; j < k; ++j) {
    const int64_t size = out.shape[dims[j]], stride = out.strides[dims[j]];
    each_index(call, call->in[2 + j], common, shape, [=](int64_t at, int64_t i) {
      const int64_t offset = (i < 0 ? i + size : i) * stride;
      table[at] = j ? table[at] + offset : offset;
    });
  }
  int64_t value_step = 0;  // of values along the index, where one stride describes it
  bool even = true;
  int64_t inside = 1;
  for (int i = common - 1; i >= 0; --i) {
    if (shape[i] == 1) continue;
    const int64_t v = value_stride(place + i);
    if (inside == 1)
      value_step = v;
    else
      even = even && v == value_step * inside;
    inside *= shape[i];
  }
  const effc_tensor flat = {table, EFFC_I64, 1, &m, nullptr};
  const int64_t line = n[rank - 1], step_o = so[rank - 1], step_v = sv[rank - 1], lines = post.count();
  const int64_t width = pre.count() * lines >= 16 ? line : line <= 256 ? line : line / 16 < 256 ? 256 : line / 16;
  const int64_t parts = (line + width - 1) / width;
  pfor(call, pre.count() * lines * parts, grain_for(m * width, 16384), [&](int64_t b, int64_t e, int32_t) {
    Walk<2> p = pre, q = post;
    Walk<1> v = value_walk;
    for (int64_t item = b; item < e; ++item) {
      p.seek(item / parts / lines), q.seek(item / parts % lines), v.seek(0);
      const int64_t c0 = item % parts * width, c1 = c0 + width < line ? c0 + width : line;
      char* dst = (char*)out.data + (p.offset[0] + q.offset[0]) * z;
      const char* src = (const char*)values.data + (p.offset[1] + q.offset[1]) * z;
      if (line == 1 && even) {
        loops.elements(dst, src, value_step, RowIndex{&flat, 0, 1, 0, 1, 0}, 0, m);
        continue;
      }
      for (int64_t i = 0; i < m; ++i, v.next())
        loops.row(dst + table[i] * z, src + v.offset[0] * z, step_o, step_v, c0, c1);
    }
  });
  return 0;
}

// in: x, mask (bool), source, all dense; out: dense, may be x's storage. scratch: 8 bytes per 32768 elements, rounded
// up.
EFFC_EXPORT int32_t effc_masked_scatter(const effc_call* call) {
  constexpr int64_t kBlock = 1 << 15;
  const effc_tensor &x = call->in[0], &mask = call->in[1], &source = call->in[2], &out = call->out[0];
  const uint8_t* m = (const uint8_t*)mask.data;
  const int64_t n = numel(out), blocks = (n + kBlock - 1) / kBlock;
  int64_t* starts = (int64_t*)call->scratch;
  pfor(call, blocks, 1, [&](int64_t b, int64_t e, int32_t) {
    for (int64_t k = b; k < e; ++k) {
      const int64_t end = (k + 1) * kBlock < n ? (k + 1) * kBlock : n;
      int64_t c = 0;
      for (int64_t i = k * kBlock; i < end; ++i) c += m[i] != 0;
      starts[k] = c;
    }
  });
  int64_t total = 0;
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t c = starts[k];
    starts[k] = total;
    total += c;
  }
  if (total > numel(source)) {
    call->api->fail(call, "masked_scatter: the mask selects %lld elements, the source has %lld", (long long)total,
                    (long long)numel(source));
    return 1;
  }
  by_size(elem_size(out.dtype), [&](auto z) {
    using T = decltype(z);
    const T *a = (const T*)x.data, *s = (const T*)source.data;
    T* dst = (T*)out.data;
    pfor(call, blocks, 1, [&](int64_t b, int64_t e, int32_t) {
      for (int64_t k = b; k < e; ++k) {
        const int64_t end = (k + 1) * kBlock < n ? (k + 1) * kBlock : n;
        int64_t at = starts[k];
        for (int64_t i = k * kBlock; i < end; ++i) dst[i] = m[i] ? s[at++] : a[i];
      }
    });
  });
  return 0;
}
