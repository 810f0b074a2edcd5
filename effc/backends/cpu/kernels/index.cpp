// Reading by index: gather, take, advanced indexing, masked_select, nonzero, and the small ops around data-dependent
// sizes.
#include "move.hpp"

using namespace effc;

// torch.gather. in: x and index (i64/i32) of one rank, any strides; out: dense, of the index's shape. attr: dim.
EFFC_EXPORT int32_t effc_gather(const effc_call* call) {
  const effc_tensor &x = call->in[0], &index = call->in[1], &out = call->out[0];
  const int dim = (int)call->attr[0], last = x.rank - 1;
  const int64_t n = index.shape[last], total = numel(index);
  IndexGuard guard(x.shape[dim]);
  if (total == 0) return 0;
  if (guard.size == 0) {
    guard.bad = load_int(index, 0), guard.failed = 1;
    return guard.status(call, "gather", dim);
  }
  Walk<2> walk;  // the index, x without the gathered dim
  for (int i = 0; i < last; ++i) walk.add(index.shape[i], {index.strides[i], i == dim ? 0 : x.strides[i]});
  const int64_t ds = x.strides[dim], step = dim == last ? 0 : x.strides[last], istep = index.strides[last];
  by_size(elem_size(x.dtype), [&](auto z) {
    using T = decltype(z);
    const T* src = (const T*)x.data;
    T* dst = (T*)out.data;
    pfor(call, total / n, grain_for(n, 4096), [&](int64_t b, int64_t e, int32_t) {
      Walk<2> w = walk;
      w.seek(b);
      for (int64_t r = b; r < e; ++r, w.next()) {
        const T* line = src + w.offset[1];
        T* to = dst + r * n;
        if (index.dtype != EFFC_I64) {
          for (int64_t c = 0; c < n; ++c) to[c] = line[c * step + guard(load_int(index, w.offset[0] + c * istep)) * ds];
          continue;
        }
        const int64_t* ip = (const int64_t*)index.data + w.offset[0];
        for (int64_t c0 = 0; c0 < n; c0 += 512) {  // in two loops that the compiler vectorises: check, then load
          const int64_t c1 = c0 + 512 < n ? c0 + 512 : n;
          bool bad = false;
          for (int64_t c = c0; c < c1; ++c) {
            const int64_t v = ip[c * istep];
            bad |= (v < -guard.size) | (v >= guard.size);
          }
          if (bad) {
            for (int64_t c = c0; c < c1; ++c) guard(ip[c * istep]);
            continue;
          }
          for (int64_t c = c0; c < c1; ++c) {
            const int64_t v = ip[c * istep];
            to[c] = line[c * step + (v < 0 ? v + guard.size : v) * ds];
          }
        }
      }
    });
  });
  return guard.status(call, "gather", dim);
}

// numpy.take along one dim. in: x and index, dense; out: dense x.shape[:dim] + index.shape + x.shape[dim+1:]. attr:
// dim.
EFFC_EXPORT int32_t effc_take(const effc_call* call) {
  const effc_tensor &x = call->in[0], &index = call->in[1], &out = call->out[0];
  const int dim = (int)call->attr[0];
  const int64_t m = numel(index), n = x.shape[dim], outer = span(x, 0, dim);
  const int64_t row = span(x, dim + 1, x.rank) * elem_size(x.dtype);
  if (m * outer * row == 0) {
    IndexGuard guard(n);
    for (int64_t i = 0; i < m; ++i) guard(load_int(index, i));
    return guard.status(call, "take", dim);
  }
  IndexGuard guard(n);
  if (n == 0) {
    guard.bad = load_int(index, 0), guard.failed = 1;
    return guard.status(call, "take", dim);
  }
  const char* src = (const char*)x.data;
  char* dst = (char*)out.data;
  pfor(call, m, 16384, [&](int64_t b, int64_t e, int32_t) {
    for (int64_t j = b; j < e; ++j) guard(load_int(index, j));
  });
  if (guard.failed) return guard.status(call, "take", dim);
  auto elements = [&](auto z) {
    using T = decltype(z);
    pfor(call, outer * m, 8192, [&](int64_t b, int64_t e, int32_t) {
      while (b < e) {  // one line of the result at a time
        const int64_t o = b / m, j0 = b % m, j1 = e - b < m - j0 ? j0 + (e - b) : m;
        const T* from = (const T*)src + o * n;
        T* to = (T*)dst + o * m;
        if (index.dtype == EFFC_I64) {
          const int64_t* ip = (const int64_t*)index.data;
          for (int64_t j = j0; j < j1; ++j) to[j] = from[ip[j] < 0 ? ip[j] + n : ip[j]];
        } else {
          for (int64_t j = j0; j < j1; ++j) {
            const int64_t v = load_int(index, j);
            to[j] = from[v < 0 ? v + n : v];
          }
        }
        b += j1 - j0;
      }
    });
  };
  if (row == 1 || row == 2 || row == 4 || row == 8 || row == 16) {
    by_size((int)row, elements);
  } else {
    pfor(call, outer * m, grain_for(row), [&](int64_t b, int64_t e, int32_t) {
      int64_t o = b / m, j = b % m;
      for (int64_t r = b; r < e; ++r) {
        const int64_t v = load_int(index, j);
        memcpy(dst + r * row, src + (o * n + (v < 0 ? v + n : v)) * row, (size_t)row);
        if (++j == m) j = 0, ++o;
      }
    });
  }
  return 0;
}

// Advanced indexing. in: x any strides, k index tensors that broadcast together; out: dense. attrs: the k indexed dims,
// increasing. scratch: 8 bytes per element of the broadcast index.
EFFC_EXPORT int32_t effc_index(const effc_call* call) {
  const effc_tensor &x = call->in[0], &out = call->out[0];
  const int k = call->n_in - 1;
  const int64_t* dims = call->attr;
  bool indexed[EFFC_MAX_RANK] = {};
  for (int j = 0; j < k; ++j) indexed[dims[j]] = true;
  const int place = dims[k - 1] - dims[0] == k - 1 ? (int)dims[0] : 0, common = out.rank - (x.rank - k);
  const int64_t* shape = out.shape + place;  // of the broadcast index
  int64_t m = 1;
  for (int i = 0; i < common; ++i) m *= shape[i];
  int64_t* table = (int64_t*)call->scratch;
  for (int j = 0; j < k; ++j) {
    IndexGuard guard(x.shape[dims[j]]);
    const int64_t stride = x.strides[dims[j]];
    each_index(call, call->in[1 + j], common, shape, [&](int64_t at, int64_t i) {
      const int64_t offset = guard(i) * stride;
      table[at] = j ? table[at] + offset : offset;
    });
    if (guard.status(call, "index", (int)dims[j])) return 1;
  }
  if (numel(out) == 0) return 0;
  // The other dims: those before `place` in the result lie outside, the rest inside (merged where x allows it).
  Walk<1> pre;
  int64_t n[EFFC_MAX_RANK], s[EFFC_MAX_RANK];
  int rank = 0, seen = 0;
  for (int i = 0; i < x.rank; ++i) {
    if (indexed[i]) continue;
    if (seen++ < place) {
      pre.add(x.shape[i], {x.strides[i]});
    } else if (x.shape[i] != 1) {
      if (rank && s[rank - 1] == x.strides[i] * x.shape[i])
        n[rank - 1] *= x.shape[i], s[rank - 1] = x.strides[i];
      else
        n[rank] = x.shape[i], s[rank] = x.strides[i], ++rank;
    }
  }
  if (rank == 0) n[0] = 1, s[0] = 1, rank = 1;
  Walk<1> post;
  for (int i = 0; i < rank - 1; ++i) post.add(n[i], {s[i]});
  const int64_t line = n[rank - 1], step = s[rank - 1], lines = post.count();
  by_size(elem_size(x.dtype), [&](auto z) {
    using T = decltype(z);
    const T* src = (const T*)x.data;
    T* dst = (T*)out.data;
    pfor(call, pre.count() * m, grain_for(line * lines, 8192), [&](int64_t b, int64_t e, int32_t) {
      Walk<1> w = pre, v = post;
      w.seek(b / m);
      for (int64_t r = b, i = b % m; r < e; ++r) {
        const T* from = src + w.offset[0] + table[i];
        T* to = dst + r * lines * line;
        if (line * lines == 1) {
          to[0] = from[0];
        } else if (lines == 1 && step == 1) {
          memcpy(to, from, (size_t)line * sizeof(T));
        } else {
          v.seek(0);
          for (int64_t l = 0; l < lines; ++l, v.next(), to += line)
            for (int64_t c = 0; c < line; ++c) to[c] = from[v.offset[0] + c * step];
        }
        if (++i == m) i = 0, w.next();
      }
    });
  });
  return 0;
}

namespace {

constexpr int64_t kBlock = 1 << 15;  // elements counted per task by the ops that compress

/* counts[i] = number of elements that `hit` finds in block i; then turned into starts. Returns the total. */
template <class Hit>
int64_t block_starts(const effc_call* call, int64_t n, int64_t* counts, Hit hit) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  pfor(call, blocks, 1, [&](int64_t b, int64_t e, int32_t) {
    for (int64_t k = b; k < e; ++k) {
      const int64_t end = (k + 1) * kBlock < n ? (k + 1) * kBlock : n;
      int64_t c = 0;
      for (int64_t i = k * kBlock; i < end; ++i) c += hit(i);
      counts[k] = c;
    }
  });
  int64_t total = 0;
  for (int64_t k = 0; k < blocks; ++k) {
    int64_t c = counts[k];
    counts[k] = total;
    total += c;
  }
  return total;
}

}  // namespace

// in: x, mask (bool), dense and of one shape; out: [count]. attr: the size (-1: dyn, see sized_out). scratch: 8 bytes
// per 32768 elements, rounded up.
EFFC_EXPORT int32_t effc_masked_select(const effc_call* call) {
  const effc_tensor &x = call->in[0], &mask = call->in[1];
  const uint8_t* m = (const uint8_t*)mask.data;
  const int64_t n = numel(mask);
  int64_t* starts = (int64_t*)call->scratch;
  const int64_t total = block_starts(call, n, starts, [=](int64_t i) { return (int64_t)(m[i] != 0); });
  if (sized_out(call, 0, 1, &total, total, call->attr[0])) return 1;
  by_size(elem_size(x.dtype), [&](auto z) {
    using T = decltype(z);
    const T* src = (const T*)x.data;
    T* dst = (T*)call->out[0].data;
    pfor(call, (n + kBlock - 1) / kBlock, 1, [&](int64_t b, int64_t e, int32_t) {
      for (int64_t k = b; k < e; ++k) {
        const int64_t end = (k + 1) * kBlock < n ? (k + 1) * kBlock : n;
        int64_t at = starts[k];
        for (int64_t i = k * kBlock; i < end; ++i)
          if (m[i]) dst[at++] = src[i];
      }
    });
  });
  return 0;
}

namespace {

/* Is the element other than zero? `lo` and `hi` mask the sign bits away, so that -0.0 is zero. */
template <class T>
EFFC_INLINE int64_t is_nonzero(T v, uint64_t lo, uint64_t) {
  return ((uint64_t)v & lo) != 0;
}
EFFC_INLINE int64_t is_nonzero(bytes16 v, uint64_t lo, uint64_t hi) { return ((v.lo & lo) | (v.hi & hi)) != 0; }

uint64_t magnitude_bits(int32_t dtype) {
  switch (dtype) {
    case EFFC_F8E4M3:
    case EFFC_F8E5M2:
      return 0x7f;
    case EFFC_F16:
    case EFFC_BF16:
      return 0x7fff;
    case EFFC_F32:
      return 0x7fffffff;
    case EFFC_C32:
      return 0x7fff7fff;
    case EFFC_C64:
      return 0x7fffffff7fffffff;
    case EFFC_F64:
    case EFFC_C128:
      return 0x7fffffffffffffff;
    default:
      return ~0ull;
  }
}

}  // namespace

// in: x dense; out: i64 [count, rank], row-major order. attr: the count (-1: dyn). scratch: 8 bytes per 32768 elements,
// rounded up.
EFFC_EXPORT int32_t effc_nonzero(const effc_call* call) {
  const effc_tensor& x = call->in[0];
  const int64_t n = numel(x);
  const int rank = x.rank;
  const uint64_t bits = magnitude_bits(x.dtype);
  int64_t* starts = (int64_t*)call->scratch;
  int32_t status = 0;
  by_size(elem_size(x.dtype), [&](auto z) {
    using T = decltype(z);
    const T* src = (const T*)x.data;
    const int64_t shape[2] = {block_starts(call, n, starts, [=](int64_t i) { return is_nonzero(src[i], bits, bits); }),
                              rank};
    status = sized_out(call, 0, 2, shape, shape[0], call->attr[0]);
    if (status) return;
    int64_t* dst = (int64_t*)call->out[0].data;
    pfor(call, (n + kBlock - 1) / kBlock, 1, [&](int64_t b, int64_t e, int32_t) {
      for (int64_t k = b; k < e; ++k) {
        const int64_t end = (k + 1) * kBlock < n ? (k + 1) * kBlock : n;
        int64_t* to = dst + starts[k] * rank;
        for (int64_t i = k * kBlock; i < end; ++i) {
          if (!is_nonzero(src[i], bits, bits)) continue;
          int64_t p = i;
          for (int d = rank - 1; d > 0; --d) to[d] = p % x.shape[d], p /= x.shape[d];
          if (rank) to[0] = p;
          to += rank;
        }
      }
    });
  });
  return status;
}

// in: one integer or bool; out: i64 0-d, the same value; binds it.
EFFC_EXPORT int32_t effc_item(const effc_call* call) {
  const int64_t v = load_int(call->in[0], 0);
  call->api->bind_symbol(call, 0, v);
  *(int64_t*)call->out[0].data = v;
  return 0;
}

// in: repeats (i64/i32) dense [n]; out: i64 [sum], index i repeats[i] times. attr: the size (-1: dyn).
EFFC_EXPORT int32_t effc_repeat_interleave(const effc_call* call) {
  const effc_tensor& repeats = call->in[0];
  const int64_t n = numel(repeats);
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = load_int(repeats, i);
    if (r < 0) {
      call->api->fail(call, "repeat_interleave: repeat count %lld is negative", (long long)r);
      return 1;
    }
    total += r;
  }
  if (sized_out(call, 0, 1, &total, total, call->attr[0])) return 1;
  int64_t* to = (int64_t*)call->out[0].data;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t r = load_int(repeats, i); r > 0; --r) *to++ = i;
  return 0;
}
