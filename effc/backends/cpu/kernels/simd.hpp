/* Vector types of EFFC_VLEN bytes, written with compiler vector extensions so that one source serves every width. */
#ifndef EFFC_SIMD_HPP
#define EFFC_SIMD_HPP
#include <stdint.h>
#include <string.h>

#include "types.hpp"

#ifndef EFFC_VLEN
#error "EFFC_VLEN (vector width in bytes) must be defined"
#endif
#ifndef EFFC_EXPORT
#define EFFC_EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define EFFC_UNROLL_ALL _Pragma("GCC unroll 64")
#if defined(__AVX512F__)
#define EFFC_HARDWARE_VLEN 64
#else
#define EFFC_HARDWARE_VLEN 32
#endif

namespace effc {

template <class T, int BYTES = EFFC_VLEN>
struct VecOf {
  typedef T type __attribute__((vector_size(BYTES)));
  typedef T loose __attribute__((vector_size(BYTES), aligned(1), may_alias)); /* any alignment, any pointee */
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int lanes = EFFC_VLEN / (int)sizeof(T);

template <class T>
EFFC_INLINE Vec<T> load(const T* p) {
  return *(const typename VecOf<T>::loose*)p;
}
template <class T>
EFFC_INLINE void store(T* p, Vec<T> v) {
  *(typename VecOf<T>::loose*)p = v;
}
/* x - 0 is x for every x, -0 and NaN included (x + 0 is not), so this is a plain broadcast. */
template <class T>
EFFC_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

/* acc += a * b. Fused for floats, with the accumulator in place: GCC 12 left to itself rotates the accumulators of a block
 * through registers and spills one of them when a loop over them is unrolled. */
template <class V>
EFFC_INLINE void multiply_add(V& acc, V a, V b) {
#if defined(__FMA__)
  if constexpr (__is_same(decltype(acc[0] + 0), float) && sizeof(V) >= 16 && sizeof(V) <= EFFC_HARDWARE_VLEN) {
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "vm"(b));
    return;
  } else if constexpr (__is_same(decltype(acc[0] + 0), double) && sizeof(V) >= 16 && sizeof(V) <= EFFC_HARDWARE_VLEN) {
    __asm__("vfmadd231pd %2, %1, %0" : "+v"(acc) : "v"(a), "vm"(b));
    return;
  }
#endif
  acc += a * b;
}

/* a > b ? a : b, so b where one is NaN. One instruction, which GCC 12 does not always find. */
template <class V>
EFFC_INLINE V larger(V a, V b) {
#if defined(__AVX__)
  if constexpr (__is_same(decltype(a[0] + 0), float) && sizeof(V) >= 16 && sizeof(V) <= EFFC_HARDWARE_VLEN) {
    V r;
    __asm__("vmaxps %2, %1, %0" : "=v"(r) : "v"(a), "vm"(b));
    return r;
  } else if constexpr (__is_same(decltype(a[0] + 0), double) && sizeof(V) >= 16 && sizeof(V) <= EFFC_HARDWARE_VLEN) {
    V r;
    __asm__("vmaxpd %2, %1, %0" : "=v"(r) : "v"(a), "vm"(b));
    return r;
  }
#endif
  return a > b ? a : b;
}

/* lanes<compute type> elements, short floats widened. */
template <class T>
EFFC_INLINE Vec<T> load_wide(const T* p) {
  return load(p);
}
EFFC_INLINE VecOf<uint32_t>::type load_half_bits(const void* p) {
  return __builtin_convertvector(*(const VecOf<uint16_t, EFFC_VLEN / 2>::loose*)p, VecOf<uint32_t>::type);
}
EFFC_INLINE Vec<float> load_wide(const bf16* p) { return (Vec<float>)(load_half_bits(p) << 16); }
EFFC_INLINE Vec<float> load_wide(const f16* p) {
#if defined(__F16C__) && EFFC_VLEN <= EFFC_HARDWARE_VLEN
  Vec<float> r;
  __asm__("vcvtph2ps %1, %0" : "=v"(r) : "vm"(*(const VecOf<uint16_t, EFFC_VLEN / 2>::loose*)p));
  return r;
#else /* to_f32 of types.hpp, lane by lane */
  typedef VecOf<uint32_t>::type U;
  U bits = load_half_bits(p), mag = (bits & 0x7fffu) << 13;
  U scaled = (U)((Vec<float>)mag * 0x1p112f), special = (U)(mag >= 0x0f800000u);
  return (Vec<float>)((special & (mag | 0x7f800000u)) | (~special & scaled) | ((bits & 0x8000u) << 16));
#endif
}

/* lanes<float> elements as float16, rounded to nearest, ties to even. NaN keeps the first bits of its payload. */
EFFC_INLINE void store_narrow(f16* p, Vec<float> v) {
#if defined(__F16C__) && EFFC_VLEN <= EFFC_HARDWARE_VLEN
  VecOf<uint16_t, EFFC_VLEN / 2>::type r;
  __asm__("vcvtps2ph $0, %1, %0" : "=v"(r) : "v"(v));
  *(VecOf<uint16_t, EFFC_VLEN / 2>::loose*)p = r;
#else
  for (int i = 0; i < lanes<float>; ++i) p[i] = from_f32<f16>(v[i]);
#endif
}

/* Sum of the lanes, halves folded onto each other. */
template <class T>
EFFC_INLINE T sum_lanes(Vec<T> v) {
  T t[lanes<T>];
  memcpy(t, &v, sizeof v);
  EFFC_UNROLL_ALL
  for (int w = lanes<T> / 2; w >= 1; w /= 2)
    for (int i = 0; i < w; ++i) t[i] += t[i + w];
  return t[0];
}

template <int BYTES>
struct IntOf {
  typedef int32_t type;
};
template <>
struct IntOf<8> {
  typedef int64_t type;
};
template <int N>
struct Int {
  static constexpr int value = N;
};

/* Writes the transpose of a square block of lanes<T> rows, given by row(i), to dst: log2(lanes) rounds of swapping
 * off-diagonal blocks. */
template <class T, class F>
EFFC_INLINE void transpose_block(const F& row, T* dst, int64_t ldd) {
  constexpr int L = lanes<T>;
  typedef typename VecOf<T>::type V;
  V r[L];
  EFFC_UNROLL_ALL
  for (int i = 0; i < L; ++i) r[i] = row(i);
  auto round = [&](auto width) __attribute__((always_inline)) {
    constexpr int w = decltype(width)::value;
    typename VecOf<typename IntOf<sizeof(T)>::type>::type low, high;
    for (int j = 0; j < L; ++j) {
      low[j] = (j & w) ? L + j - w : j;
      high[j] = (j & w) ? L + j : j + w;
    }
    EFFC_UNROLL_ALL
    for (int i = 0; i < L; ++i)
      if (!(i & w)) {
        V a = r[i], b = r[i + w];
        r[i] = __builtin_shuffle(a, b, low);
        r[i + w] = __builtin_shuffle(a, b, high);
      }
  };
  round(Int<1>{});
  if constexpr (L > 2) round(Int<2>{});
  if constexpr (L > 4) round(Int<4>{});
  if constexpr (L > 8) round(Int<8>{});
  static_assert(L <= 16 && sizeof(T) >= 4, "element too small for this transpose");
  EFFC_UNROLL_ALL
  for (int i = 0; i < L; ++i) store(dst + i * ldd, r[i]);
}

/* e^x, relative error below 1.5 units in the last place for results that are normal numbers, 0 below. NaN stays NaN.
 * 2^n e^r with |r| <= ln 2 / 2, e^r by its Taylor series (float: 7 terms, double: 13; truncation is below 1e-8 and 1e-17). */
EFFC_INLINE Vec<float> exp_vec(Vec<float> x) {
  typedef Vec<float> V;
  typedef VecOf<int32_t>::type I;
  const V magic = splat(0x1.8p23f);
  const V t = x * 0x1.715476p+0f + magic, n = t - magic;
  V r = x - n * 0x1.62e4p-1f;
  r = r - n * 0x1.7f7d1cp-20f;
  V p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const V scale = (V)(((I)t << 23) + 0x3f800000);
  const I keep = ~(I)(x < -87.3f);
  return (V)((I)(p * scale) & keep);
}
EFFC_INLINE Vec<double> exp_vec(Vec<double> x) {
  typedef Vec<double> V;
  typedef VecOf<int64_t>::type I;
  const V magic = splat(0x1.8p52);
  const V t = x * 0x1.71547652b82fep+0 + magic, n = t - magic;
  V r = x - n * 0x1.62e42fefa3800p-1;
  r = r - n * 0x1.ef35793c76730p-45;
  V p = splat(1.0 / 6227020800.0);
  constexpr double c[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                          1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0, 1.0};
  EFFC_UNROLL_ALL
  for (double a : c) p = p * r + a;
  const V scale = (V)(((I)t << 52) + 0x3ff0000000000000);
  const I keep = ~(I)(x < -708.0);
  return (V)((I)(p * scale) & keep);
}

/* 2^x for x up to 127: relative error below 1.7e-7 (float) and 4e-16 (double), 0 where the result is below the normal numbers,
 * NaN for NaN. With n + r = x, |r| <= 1/2, 2^r is a minimax polynomial with p(0) = 1. The magic number rounds x to n and leaves
 * n + bias in the lowest bits, one shift away from 2^n; r is exact. M vectors step by step: one alone would wait for itself. */
template <class T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr float least = -127, magic = 0x1.8p23f + 127;
  static constexpr int mantissa = 23;
  static constexpr float c[] = {0x1.5bba18p-10f, 0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f};
};
template <>
struct Exp2<double> {
  static constexpr double least = -1023, magic = 0x1.8p52 + 1023;
  static constexpr int mantissa = 52;
  static constexpr double c[] = {0x1.e7aa1c12faa3cp-32, 0x1.e620fb67ac6ddp-28, 0x1.b5267882d5309p-24, 0x1.62bfc3c1d2153p-20,
                                 0x1.ffcbfba7bc9a1p-17, 0x1.43091310bf66dp-13, 0x1.5d87fe78cf260p-10, 0x1.3b2ab6fb9f413p-7,
                                 0x1.c6b08d7049fd1p-5,  0x1.ebfbdff82c5adp-3,  0x1.62e42fefa39efp-1,  1.0};
};
template <class V, int M>
EFFC_INLINE void exp2_vecs(V (&x)[M]) {
  typedef decltype(x[0][0] + 0) T;
  typedef Exp2<T> E;
  typedef typename VecOf<typename IntOf<sizeof(T)>::type, sizeof(V)>::type I;
  V p[M];
  I t[M];
  EFFC_UNROLL_ALL
  for (int i = 0; i < M; ++i) x[i] = larger(splat(E::least), x[i]);
  EFFC_UNROLL_ALL
  for (int i = 0; i < M; ++i) {
    const V sum = x[i] + E::magic;
    x[i] -= sum - E::magic;
    t[i] = (I)sum << E::mantissa;
    p[i] = splat(E::c[0]);
  }
  EFFC_UNROLL_ALL
  for (size_t j = 1; j < sizeof(E::c) / sizeof(T); ++j)
    EFFC_UNROLL_ALL
    for (int i = 0; i < M; ++i) p[i] = p[i] * x[i] + E::c[j];
  EFFC_UNROLL_ALL
  for (int i = 0; i < M; ++i) x[i] = p[i] * (V)t[i];
}
template <class V>
EFFC_INLINE V exp2_vec(V x) {
  V y[1] = {x};
  exp2_vecs(y);
  return y[0];
}

/* 1 / (1 + 2^-x) of M vectors, step by step; NaN for NaN. */
template <class V, int M>
EFFC_INLINE void logistic_vecs(V (&x)[M]) {
  typedef decltype(x[0][0] + 0) T;
  EFFC_UNROLL_ALL
  for (int i = 0; i < M; ++i) x[i] = V{} - larger(splat((T)-126), x[i]);
  exp2_vecs(x);
  EFFC_UNROLL_ALL
  for (int i = 0; i < M; ++i) x[i] = 1 / (1 + x[i]);
}
/* Logistic function and tanh of vectors: f is logistic_vecs of what the first function of a pair gives, and the second takes it.
 * Absolute error below 2 units in the last place of 1. */
template <class V>
EFFC_INLINE V tanh_argument(V x) { return x * (decltype(x[0] + 0))-2.8853900817779268; }
template <class V>
EFFC_INLINE V tanh_of(V f) { return 1 - 2 * f; }
template <class V>
EFFC_INLINE V sigmoid_argument(V x) { return x * (decltype(x[0] + 0))1.4426950408889634; }
template <class V>
EFFC_INLINE V tanh_vec(V x) {
  V f[1] = {tanh_argument(x)};
  logistic_vecs(f);
  return tanh_of(f[0]);
}

}  // namespace effc
#endif
