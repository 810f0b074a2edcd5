// Data movement: copies between any strides, concatenation, scatters into views, fill, iota and triangles.
//
// A copy is reduced to a canonical box: unit dims dropped, destination strides positive and descending, adjacent dims
// merged, short contiguous rows widened to one larger element. Then one of three loops runs: rows of memcpy, a blocked
// transpose when source and destination are contiguous in different dims, or a strided loop.
#include "move.hpp"

using namespace effc;

namespace {

struct Box {
  int rank = 0, size = 1;  // element size in bytes
  const char* src = nullptr;
  char* dst = nullptr;
  int64_t n[EFFC_MAX_RANK], s[EFFC_MAX_RANK], d[EFFC_MAX_RANK];  // strides in bytes
  bool empty = false;
};

Box canonical(const char* src, char* dst, int size, int rank, const int64_t* shape, const int64_t* s,
              const int64_t* d) {
  Box b;
  b.size = size, b.src = src, b.dst = dst;
  for (int i = 0; i < rank; ++i) {
    if (shape[i] == 0) b.empty = true;
    if (shape[i] == 1) continue;
    int64_t n = shape[i], ss = s[i] * size, dd = d[i] * size;
    if (dd < 0) b.src += (n - 1) * ss, b.dst += (n - 1) * dd, ss = -ss, dd = -dd;
    int at = b.rank++;  // insertion by destination stride, largest first
    while (at > 0 && (b.d[at - 1] < dd)) {
      b.n[at] = b.n[at - 1], b.s[at] = b.s[at - 1], b.d[at] = b.d[at - 1];
      --at;
    }
    b.n[at] = n, b.s[at] = ss, b.d[at] = dd;
  }
  int out = 0;
  for (int i = 1; i < b.rank; ++i) {
    if (b.d[out] == b.d[i] * b.n[i] && b.s[out] == b.s[i] * b.n[i])
      b.n[out] *= b.n[i], b.s[out] = b.s[i], b.d[out] = b.d[i];
    else {
      ++out;
      b.n[out] = b.n[i], b.s[out] = b.s[i], b.d[out] = b.d[i];
    }
  }
  if (b.rank) b.rank = out + 1;
  if (b.rank > 1 && b.s[b.rank - 1] == b.size && b.d[b.rank - 1] == b.size) {
    int64_t row = b.n[b.rank - 1] * b.size;
    if (row == 2 || row == 4 || row == 8 || row == 16) b.size = (int)row, --b.rank;
  }
  return b;
}

typedef uint8_t v16 __attribute__((vector_size(16)));
typedef uint8_t v32 __attribute__((vector_size(32)));

/* Interleaves the low (or high) halves of two vectors of elements of Size bytes. */
template <int Size, bool High>
EFFC_INLINE v16 zip(v16 a, v16 b) {
  v16 m;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    int e = i / Size, w = i % Size;
    m[i] = (uint8_t)(((e & 1) ? 16 : 0) + (High ? 8 : 0) + (e / 2) * Size + w);
  }
  return __builtin_shuffle(a, b, m);
}

/* N x N transpose, N = 16 / sizeof(T), by log2(N) rounds of perfect shuffles. */
template <class T>
EFFC_INLINE void transpose_block(const char* src, int64_t src_row, char* dst, int64_t dst_row) {
  constexpr int N = 16 / (int)sizeof(T);
  v16 a[N], b[N]; /* in registers, once every loop here is unrolled */
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) a[i] = peek<v16>(src + i * src_row);
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i)
      b[2 * i] = zip<sizeof(T), false>(a[i], a[i + N / 2]), b[2 * i + 1] = zip<sizeof(T), true>(a[i], a[i + N / 2]);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) poke(dst + i * dst_row, a[i]);
}

/* dst[j*dst_row + i] = src[i*src_row + j] for a rows x cols plane (rows i, cols j). */
template <class T>
void transpose_tile(const char* src, int64_t src_row, char* dst, int64_t dst_row, int64_t rows, int64_t cols) {
  constexpr int64_t N = 16 / (int64_t)sizeof(T);
  int64_t r = rows / N * N, c = cols / N * N;
  for (int64_t j = 0; j < c; j += N)
    for (int64_t i = 0; i < r; i += N)
      transpose_block<T>(src + i * src_row + j * (int64_t)sizeof(T), src_row,
                         dst + j * dst_row + i * (int64_t)sizeof(T), dst_row);
  for (int64_t j = 0; j < cols; ++j)
    for (int64_t i = j < c ? r : 0; i < rows; ++i)
      poke(dst + j * dst_row + i * (int64_t)sizeof(T), peek<T>(src + i * src_row + j * (int64_t)sizeof(T)));
}

/* The walk over all dims of the box but those two (or one). */
Walk<2> outer_walk(const Box& b, int skip1, int skip2) {
  Walk<2> w;
  for (int i = 0; i < b.rank; ++i)
    if (i != skip1 && i != skip2) w.add(b.n[i], {b.s[i], b.d[i]});
  return w;
}

/* Destination contiguous in dim `a`, source in dim `c`. */
template <class T>
void run_transpose(const effc_call* call, const Box& b, int a, int c) {
  constexpr int64_t kEdge = 128 / (int64_t)sizeof(T) < 16 ? 16 : 128 / (int64_t)sizeof(T);
  const Walk<2> walk = outer_walk(b, a, c);
  const int64_t ta = (b.n[a] + kEdge - 1) / kEdge, tc = (b.n[c] + kEdge - 1) / kEdge;
  pfor(call, walk.count() * ta * tc, grain_for(kEdge * kEdge * (int64_t)sizeof(T), 1 << 16),
       [&](int64_t begin, int64_t end, int32_t) {
         Walk<2> w = walk;
         for (int64_t t = begin; t < end; ++t) {
           int64_t i = t % ta * kEdge, j = t / ta % tc * kEdge;
           if (t == begin || t % (ta * tc) == 0) w.seek(t / (ta * tc));
           transpose_tile<T>(b.src + w.offset[0] + i * b.s[a] + j * (int64_t)sizeof(T), b.s[a],
                             b.dst + w.offset[1] + i * (int64_t)sizeof(T) + j * b.d[c], b.d[c],
                             b.n[a] - i < kEdge ? b.n[a] - i : kEdge, b.n[c] - j < kEdge ? b.n[c] - j : kEdge);
         }
       });
}

template <class T>
void copy_line(const char* src, int64_t s, char* dst, int64_t d, int64_t n) {
  constexpr int64_t z = sizeof(T);
  if (d == z && s == 0) {
    T v = peek<T>(src);
    if (n * z >= 32) { /* whole vectors, the last one over what is there already */
      char some[32];
#pragma GCC unroll 32
      for (int64_t i = 0; i < 32 / z; ++i) poke(some + i * z, v);
      const v32 all = peek<v32>(some);
      for (int64_t at = 0; at < n * z - 32; at += 32) poke(dst + at, all);
      poke(dst + n * z - 32, all);
      return;
    }
    for (int64_t i = 0; i < n; ++i) poke(dst + i * z, v);
  } else if (d == z && s == -z) {
    for (int64_t i = 0; i < n; ++i) poke(dst + i * z, peek<T>(src - i * z));
  } else if (d == z && s == 2 * z) {
    for (int64_t i = 0; i < n; ++i) poke(dst + i * z, peek<T>(src + i * (2 * z)));
  } else if (d == z) {
    for (int64_t i = 0; i < n; ++i) poke(dst + i * z, peek<T>(src + i * s));
  } else {
    for (int64_t i = 0; i < n; ++i) poke(dst + i * d, peek<T>(src + i * s));
  }
}

template <class T>
void run_strided(const effc_call* call, const Box& b) {
  constexpr int64_t kChunk = 16384;
  const int a = b.rank - 1;
  const Walk<2> walk = outer_walk(b, a, a);
  const int64_t n = b.n[a], parts = (n + kChunk - 1) / kChunk;
  pfor(call, walk.count() * parts, grain_for((n < kChunk ? n : kChunk) * (int64_t)sizeof(T)),
       [&](int64_t begin, int64_t end, int32_t) {
         Walk<2> w = walk;
         w.seek(begin / parts);
         for (int64_t t = begin; t < end; ++t) {
           int64_t i = t % parts * kChunk;
           copy_line<T>(b.src + w.offset[0] + i * b.s[a], b.s[a], b.dst + w.offset[1] + i * b.d[a], b.d[a],
                        n - i < kChunk ? n - i : kChunk);
           if ((t + 1) % parts == 0) w.next();
         }
       });
}

void run_rows(const effc_call* call, const Box& b) {
  constexpr int64_t kChunk = 1 << 16;
  const int a = b.rank - 1;
  const Walk<2> walk = outer_walk(b, a, a);
  const int64_t n = b.n[a] * b.size, parts = (n + kChunk - 1) / kChunk;
  pfor(call, walk.count() * parts, grain_for(n < kChunk ? n : kChunk, 1 << 17),
       [&](int64_t begin, int64_t end, int32_t) {
         Walk<2> w = walk;
         w.seek(begin / parts);
         for (int64_t t = begin; t < end; ++t) {
           int64_t i = t % parts * kChunk;
           memcpy(b.dst + w.offset[1] + i, b.src + w.offset[0] + i, (size_t)(n - i < kChunk ? n - i : kChunk));
           if ((t + 1) % parts == 0) w.next();
         }
       });
}

void copy_box(const effc_call* call, const char* src, char* dst, int size, int rank, const int64_t* shape,
              const int64_t* s, const int64_t* d) {
  Box b = canonical(src, dst, size, rank, shape, s, d);
  if (b.empty) return;
  if (b.rank == 0) {
    memcpy(b.dst, b.src, (size_t)b.size);
    return;
  }
  const int a = b.rank - 1;
  if (b.s[a] == b.size && b.d[a] == b.size) {
    run_rows(call, b);
    return;
  }
  if (b.d[a] == b.size && b.size < 16 && b.n[a] >= 4) {
    for (int c = 0; c < a; ++c)
      if (b.s[c] == b.size && b.n[c] >= 4) {
        switch (b.size) {
          case 1:
            return run_transpose<uint8_t>(call, b, a, c);
          case 2:
            return run_transpose<uint16_t>(call, b, a, c);
          case 4:
            return run_transpose<uint32_t>(call, b, a, c);
          default:
            return run_transpose<uint64_t>(call, b, a, c);
        }
      }
  }
  by_size(b.size, [&](auto z) { run_strided<decltype(z)>(call, b); });
}

void copy_tensor(const effc_call* call, const effc_tensor& src, const effc_tensor& dst) {
  copy_box(call, (const char*)src.data, (char*)dst.data, elem_size(dst.dtype), dst.rank, dst.shape, src.strides,
           dst.strides);
}

}  // namespace

// in: x any strides; out: same shape and dtype, any strides without overlap.
EFFC_EXPORT int32_t effc_copy(const effc_call* call) {
  copy_tensor(call, call->in[0], call->out[0]);
  return 0;
}

// in: xs any strides; out: joined along attr 0.
EFFC_EXPORT int32_t effc_concat(const effc_call* call) {
  const effc_tensor& out = call->out[0];
  const int dim = (int)call->attr[0], size = elem_size(out.dtype);
  int64_t at = 0;
  for (int k = 0; k < call->n_in; ++k) {
    const effc_tensor& x = call->in[k];
    copy_box(call, (const char*)x.data, (char*)out.data + at * out.strides[dim] * size, size, x.rank, x.shape,
             x.strides, out.strides);
    at += x.shape[dim];
  }
  if (at != out.shape[dim]) {
    call->api->fail(call, "concat: operands have %lld in dim %d, the result has %lld", (long long)at, dim,
                    (long long)out.shape[dim]);
    return 1;
  }
  return 0;
}

// in: base dense, src any strides; out: base (dense, may alias it) with src written over the view that attrs describe:
// offset, then one stride per dim of src, in elements of out.
EFFC_EXPORT int32_t effc_copy_into(const effc_call* call) {
  const effc_tensor &base = call->in[0], &src = call->in[1], &out = call->out[0];
  const int size = elem_size(out.dtype);
  copy_bytes(call, out.data, base.data, numel(out) * size);
  int64_t low = call->attr[0], high = low;
  for (int i = 0; i < src.rank; ++i) {
    if (src.shape[i] == 0) return 0;
    int64_t reach = (src.shape[i] - 1) * call->attr[1 + i];
    (reach < 0 ? low : high) += reach;
  }
  if (low < 0 || high >= numel(out)) {
    call->api->fail(call, "elements %lld..%lld are outside a tensor of %lld", (long long)low, (long long)high,
                    (long long)numel(out));
    return 1;
  }
  copy_box(call, (const char*)src.data, (char*)out.data + call->attr[0] * size, size, src.rank, src.shape, src.strides,
           call->attr + 1);
  return 0;
}

// out: filled with the integer attr 0, converted to its dtype. Dense.
EFFC_EXPORT int32_t effc_fill_int(const effc_call* call) {
  const effc_tensor& out = call->out[0];
  const int64_t n = numel(out);
  auto run = [&](auto z) {
    using T = decltype(z);
    const T v = convert<T>(call->attr[0]);
    T* p = (T*)out.data;
    pfor(call, n, 1 << 16, [=](int64_t b, int64_t e, int32_t) {
      for (int64_t i = b; i < e; ++i) p[i] = v;
    });
  };
  return by_dtype<kReal | kComplex | kStorage>(out.dtype, run) ? 0 : bad_dtype(call, "fill", out.dtype);
}

// out: dense, start + i*step along dim. attrs: dim, start, step, real; with real != 0 fattrs start, step count instead.
EFFC_EXPORT int32_t effc_iota(const effc_call* call) {
  const effc_tensor& out = call->out[0];
  const int dim = (int)call->attr[0];
  const int64_t first = call->attr[1], step = call->attr[2], n = out.shape[dim], inner = span(out, dim + 1, out.rank);
  const bool real = call->attr[3] != 0;
  const double ffirst = real ? call->fattr[0] : (double)first, fstep = real ? call->fattr[1] : (double)step;
  auto run = [&](auto z) {
    using T = decltype(z);
    T* p = (T*)out.data;
    constexpr bool floating = !((compute_t<T>)0.5 == (compute_t<T>)0);
    pfor(call, span(out, 0, dim) * n, grain_for(inner, 1 << 14), [=](int64_t b, int64_t e, int32_t) {
      for (int64_t r = b; r < e; ++r) {
        const int64_t i = r % n;
        const T v = floating || real ? convert<T>(ffirst + (double)i * fstep)
                                     : convert<T>((int64_t)((uint64_t)first + (uint64_t)i * (uint64_t)step));
        for (int64_t j = 0; j < inner; ++j) p[r * inner + j] = v;
      }
    });
  };
  return by_dtype<kInt | kFloat | kShort>(out.dtype, run) ? 0 : bad_dtype(call, "iota", out.dtype);
}

// in: x dense [.., rows, cols]; out: dense; attrs: upper, diagonal. May run in place.
EFFC_EXPORT int32_t effc_triangle(const effc_call* call) {
  const effc_tensor &x = call->in[0], &out = call->out[0];
  const bool upper = call->attr[0] != 0;
  const int64_t k = call->attr[1], cols = out.shape[out.rank - 1], rows = out.shape[out.rank - 2],
                size = elem_size(out.dtype);
  const char* src = (const char*)x.data;
  char* dst = (char*)out.data;
  if (cols == 0) return 0;
  pfor(call, numel(out) / cols, grain_for(cols * size), [=](int64_t b, int64_t e, int32_t) {
    for (int64_t r = b; r < e; ++r) {
      int64_t edge = r % rows + k + (upper ? 0 : 1);  // first column kept (upper) or dropped (lower)
      edge = (edge < 0 ? 0 : edge > cols ? cols : edge) * size;
      const int64_t at = r * cols * size, from = upper ? edge : 0, to = upper ? cols * size : edge;
      if (src != dst) memcpy(dst + at + from, src + at + from, (size_t)(to - from));
      if (upper)
        memset(dst + at, 0, (size_t)edge);
      else
        memset(dst + at + edge, 0, (size_t)(cols * size - edge));
    }
  });
  return 0;
}
