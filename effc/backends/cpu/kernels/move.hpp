/* What kernels that move, index, sort and accumulate share: tasks, sizes, index loads, dispatch by size and by dtype.
 */
#ifndef EFFC_MOVE_HPP
#define EFFC_MOVE_HPP
#include <string.h>

#include <type_traits>

#include "effc_kernel.h"
#include "types.hpp"

#define EFFC_EXPORT extern "C" __attribute__((visibility("default")))

namespace effc {
namespace {

/* parallel_for over a callable f(begin, end, worker); small ranges run on the calling thread. */
template <class F>
inline void pfor(const effc_call* call, int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  if (n <= grain) {
    f((int64_t)0, n, (int32_t)0);
    return;
  }
  using Fn = std::remove_reference_t<F>;
  call->api->parallel_for(
      call->run, n, grain,
      [](void* arg, int64_t begin, int64_t end, int32_t worker) { (*(Fn*)arg)(begin, end, worker); }, (void*)&f);
}

/* Items per chunk so that a chunk handles about `budget` units when an item costs `cost`. */
inline int64_t grain_for(int64_t cost, int64_t budget = 32768) {
  return cost >= budget ? 1 : budget / (cost > 0 ? cost : 1);
}

inline int64_t numel(const effc_tensor& t) {
  int64_t n = 1;
  for (int i = 0; i < t.rank; ++i) n *= t.shape[i];
  return n;
}

/* Product of the sizes of dims [a, b). */
inline int64_t span(const effc_tensor& t, int a, int b) {
  int64_t n = 1;
  for (int i = a; i < b; ++i) n *= t.shape[i];
  return n;
}

inline bool absent(const effc_tensor& t) { return t.rank < 0; }

inline int elem_size(int32_t dtype) { return effc_dtype_size(dtype); }

struct bytes16 {
  uint64_t lo, hi;
};

/* Loads and stores of any alignment and aliasing. */
template <class T>
EFFC_INLINE T peek(const void* p) {
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
EFFC_INLINE void poke(void* p, T v) {
  memcpy(p, &v, sizeof v);
}

/* f(T{}) with an unsigned type of this size (1, 2, 4, 8 or 16 bytes). */
template <class F>
inline void by_size(int size, F&& f) {
  switch (size) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    case 8:
      return f(uint64_t{});
    default:
      return f(bytes16{});
  }
}

/* kStorage: types that are only held and converted. */
enum : unsigned {
  kBool = 1,
  kInt = 2,
  kFloat = 4,
  kShort = 8,
  kComplex = 16,
  kStorage = 32,
  kReal = kBool | kInt | kFloat | kShort
};

/* f(T{}) with the storage type of a dtype, if it is in the classes of `Which`; false otherwise. */
template <unsigned Which, class F>
inline bool by_dtype(int32_t dtype, F&& f) {
  if constexpr ((Which & kBool) != 0) {
    if (dtype == EFFC_BOOL) return f(bool{}), true;
  }
  if constexpr ((Which & kInt) != 0) {
    switch (dtype) {
      case EFFC_U8:
        return f(uint8_t{}), true;
      case EFFC_I8:
        return f(int8_t{}), true;
      case EFFC_U16:
        return f(uint16_t{}), true;
      case EFFC_I16:
        return f(int16_t{}), true;
      case EFFC_U32:
        return f(uint32_t{}), true;
      case EFFC_I32:
        return f(int32_t{}), true;
      case EFFC_U64:
        return f(uint64_t{}), true;
      case EFFC_I64:
        return f(int64_t{}), true;
    }
  }
  if constexpr ((Which & kFloat) != 0) {
    if (dtype == EFFC_F32) return f(float{}), true;
    if (dtype == EFFC_F64) return f(double{}), true;
  }
  if constexpr ((Which & kShort) != 0) {
    if (dtype == EFFC_F16) return f(f16{}), true;
    if (dtype == EFFC_BF16) return f(bf16{}), true;
    if (dtype == EFFC_F8E4M3) return f(f8e4m3{}), true;
    if (dtype == EFFC_F8E5M2) return f(f8e5m2{}), true;
  }
  if constexpr ((Which & kComplex) != 0) {
    if (dtype == EFFC_C64) return f(cf32{}), true;
    if (dtype == EFFC_C128) return f(cf64{}), true;
  }
  if constexpr ((Which & kStorage) != 0) {
    switch (dtype) {
      case EFFC_I4:
        return f(int4{}), true;
      case EFFC_U4:
        return f(uint4{}), true;
      case EFFC_I2:
        return f(int2{}), true;
      case EFFC_U2:
        return f(uint2{}), true;
      case EFFC_F4E2M1:
        return f(f4e2m1{}), true;
      case EFFC_F8E4M3FNUZ:
        return f(f8e4m3fnuz{}), true;
      case EFFC_F8E5M2FNUZ:
        return f(f8e5m2fnuz{}), true;
      case EFFC_F8E8M0:
        return f(f8e8m0{}), true;
    }
  }
  return false;
}

/* A kernel's refusal of a dtype that lowering should not have let through. */
inline int32_t bad_dtype(const effc_call* call, const char* what, int32_t dtype) {
  call->api->fail(call, "%s: no kernel for dtype code %d", what, (int)dtype);
  return 1;
}

/* Element `at` of an integer tensor. */
EFFC_INLINE int64_t load_int(const effc_tensor& t, int64_t at) {
  switch (t.dtype) {
    case EFFC_I64:
    case EFFC_U64:
      return ((const int64_t*)t.data)[at];
    case EFFC_I32:
      return ((const int32_t*)t.data)[at];
    case EFFC_U32:
      return ((const uint32_t*)t.data)[at];
    case EFFC_I16:
      return ((const int16_t*)t.data)[at];
    case EFFC_U16:
      return ((const uint16_t*)t.data)[at];
    case EFFC_I8:
      return ((const int8_t*)t.data)[at];
    default:
      return ((const uint8_t*)t.data)[at];
  }
}

/* Walks the positions of a box in row-major order, keeping offsets into N strided operands. */
template <int N>
struct Walk {
  int rank = 0;
  int64_t shape[EFFC_MAX_RANK], at[EFFC_MAX_RANK], stride[N][EFFC_MAX_RANK], offset[N];

  Walk() {
    for (int k = 0; k < N; ++k) offset[k] = 0;
  }
  void add(int64_t n, const int64_t (&s)[N]) {
    shape[rank] = n;
    at[rank] = 0;
    for (int k = 0; k < N; ++k) stride[k][rank] = s[k];
    ++rank;
  }
  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  /* To linear position p. */
  void seek(int64_t p) {
    for (int k = 0; k < N; ++k) offset[k] = 0;
    for (int i = rank - 1; i >= 0; --i) {
      at[i] = p % shape[i];
      p /= shape[i];
      for (int k = 0; k < N; ++k) offset[k] += at[i] * stride[k][i];
    }
  }
  EFFC_INLINE void next_of(Walk& w) {
    for (int i = w.rank - 1; i >= 0; --i) {
      for (int k = 0; k < N; ++k) w.offset[k] += w.stride[k][i];
      if (++w.at[i] < w.shape[i]) return;
      for (int k = 0; k < N; ++k) w.offset[k] -= w.stride[k][i] * w.shape[i];
      w.at[i] = 0;
    }
  }
  void next() { next_of(*this); }
};

/* Storage for output i whose size `total` only the data tells. `want` < 0: the output is dyn, is allocated in this
 * shape, and the call's symbol bound (with bind); else it is there already, for a size of `want`. 0, or 1 after
 * reporting an error. */
inline int32_t sized_out(const effc_call* call, int i, int rank, const int64_t* shape, int64_t total, int64_t want,
                         bool bind = true) {
  if (want < 0) {
    if (call->api->alloc_out(call, i, rank, shape)) return 1;
    if (bind) call->api->bind_symbol(call, 0, total);
    return 0;
  }
  if (want == total) return 0;
  call->api->fail(call, "the data give a size of %lld where %lld was promised", (long long)total, (long long)want);
  return 1;
}

/* Checks indices of a dim: wraps negative ones and remembers one that is out of range (which then reads as 0). */
struct IndexGuard {
  int64_t size;
  int64_t bad = 0;
  int32_t failed = 0;

  explicit IndexGuard(int64_t n) : size(n) {}
  EFFC_INLINE int64_t wrap(IndexGuard& g, int64_t i) {
    int64_t at = i + (i < 0 ? g.size : 0);
    if (__builtin_expect((uint64_t)at >= (uint64_t)g.size, 0)) {
      __atomic_store_n(&g.bad, i, __ATOMIC_RELAXED);
      __atomic_store_n(&g.failed, 1, __ATOMIC_RELAXED);
      return 0;
    }
    return at;
  }
  int64_t operator()(int64_t i) { return wrap(*this, i); }
  /* 0, or 1 after reporting the bad index. */
  int32_t status(const effc_call* call, const char* what, int dim) const {
    if (!failed) return 0;
    call->api->fail(call, "%s: index %lld is out of range for dim %d of size %lld", what, (long long)bad, dim,
                    (long long)size);
    return 1;
  }
};

/* f(i, index) for every element i, in row-major order, of an index tensor seen in `shape` (it broadcasts), in parallel.
 */
template <class F>
inline void each_index(const effc_call* call, const effc_tensor& index, int rank, const int64_t* shape, F&& f) {
  Walk<1> walk;  // all dims but the last
  int64_t n = 1, step = 0;
  for (int i = 0; i < rank; ++i) {
    const int own = i - (rank - index.rank);
    const int64_t stride = own < 0 || index.shape[own] == 1 ? 0 : index.strides[own];
    if (i < rank - 1)
      walk.add(shape[i], {stride});
    else
      n = shape[i], step = stride;
  }
  const int64_t lines = walk.count();
  if (n == 0 || lines == 0) return;
  constexpr int64_t kPart = 4096;
  const int64_t parts = (n + kPart - 1) / kPart;
  pfor(call, lines * parts, grain_for(n < kPart ? n : kPart, 16384), [&](int64_t b, int64_t e, int32_t) {
    Walk<1> w = walk;
    w.seek(b / parts);
    for (int64_t t = b; t < e; ++t) {
      const int64_t c0 = t % parts * kPart, c1 = c0 + kPart < n ? c0 + kPart : n, at = t / parts * n;
      if (index.dtype == EFFC_I64) {
        const int64_t* p = (const int64_t*)index.data + w.offset[0];
        for (int64_t c = c0; c < c1; ++c) f(at + c, p[c * step]);
      } else {
        for (int64_t c = c0; c < c1; ++c) f(at + c, load_int(index, w.offset[0] + c * step));
      }
      if ((t + 1) % parts == 0) w.next();
    }
  });
}

/* memcpy of n bytes, in parallel where that pays. */
inline void copy_bytes(const effc_call* call, void* dst, const void* src, int64_t n) {
  if (dst == src || n <= 0) return;
  pfor(call, n, 1 << 18,
       [&](int64_t b, int64_t e, int32_t) { memcpy((char*)dst + b, (const char*)src + b, (size_t)(e - b)); });
}

}  // namespace
}  // namespace effc
#endif
