/* One scalar function per elementwise IR op, in effc::op under the op's own name; the generated loops call them.
 *
 * Operands have one compute type (types.hpp): float, double, the integers, bool, cf32, cf64. The short floats are converted
 * to float by the caller. Semantics are those of PyTorch's CPU kernels: integers wrap, integer division by zero yields 0
 * (PyTorch raises; the caller checks where that is wanted), NaN propagates through maximum and minimum, comparisons and
 * predicates return bool. Float functions that models use hot are branch-free (math_float.hpp); the rest call libm, and the
 * double functions do too. Special functions (Bessel, zeta, ...) are in math_special.hpp.
 */
#ifndef EFFC_MATH_HPP
#define EFFC_MATH_HPP
#include "math_float.hpp"

extern "C" double lgamma_r(double, int*); /* lgamma writes the global signgam: not safe between threads */

namespace effc {
namespace op {

template <class T>
constexpr bool is_float = __is_same(T, float) || __is_same(T, double);
template <class T>
constexpr bool is_bool = __is_same(T, bool);
template <class T>
constexpr bool is_cplx = is_complex<T>::value;
template <class T>
constexpr bool is_int = !is_float<T> && !is_bool<T> && !is_cplx<T>;
template <class T>
constexpr bool is_signed_int = is_int<T> && (T)-1 < (T)0;

/* An unsigned type in which T's arithmetic wraps without overflow. */
template <bool Wide>
struct wrap_of {
  using type = uint32_t;
};
template <>
struct wrap_of<true> {
  using type = uint64_t;
};
template <class T>
using wrap_t = typename wrap_of<(sizeof(T) > 4)>::type;

template <bool B>
struct only_if {};
template <>
struct only_if<true> {
  using type = int;
};
#define EFFC_FOR(cond) typename only_if<(cond)>::type = 0

/* Float functions that exist for float (a hand-written or libm float version) and double (libm). */
#define EFFC_UNARY_F(name, f32_expr, f64_expr)         \
  EFFC_INLINE float name(float x) { return f32_expr; } \
  EFFC_INLINE double name(double x) { return f64_expr; }

EFFC_UNARY_F(exp, fm::exp(x), __builtin_exp(x))
EFFC_UNARY_F(exp2, fm::exp2(x), __builtin_exp2(x))
EFFC_UNARY_F(expm1, fm::expm1(x), __builtin_expm1(x))
EFFC_UNARY_F(log, fm::log(x), __builtin_log(x))
EFFC_UNARY_F(log1p, fm::log1p(x), __builtin_log1p(x))
EFFC_UNARY_F(log2, fm::log2(x), __builtin_log2(x))
EFFC_UNARY_F(log10, fm::log10(x), __builtin_log10(x))
EFFC_UNARY_F(sqrt, __builtin_sqrtf(x), __builtin_sqrt(x))
EFFC_UNARY_F(rsqrt, 1.0f / __builtin_sqrtf(x), 1.0 / __builtin_sqrt(x))
EFFC_UNARY_F(reciprocal, 1.0f / x, 1.0 / x)
EFFC_UNARY_F(sin, fm::sin(x), __builtin_sin(x))
EFFC_UNARY_F(cos, fm::cos(x), __builtin_cos(x))
EFFC_UNARY_F(tan, fm::tan(x), __builtin_tan(x))
EFFC_UNARY_F(asin, __builtin_asinf(x), __builtin_asin(x))
EFFC_UNARY_F(acos, __builtin_acosf(x), __builtin_acos(x))
EFFC_UNARY_F(atan, __builtin_atanf(x), __builtin_atan(x))
EFFC_UNARY_F(sinh, __builtin_sinhf(x), __builtin_sinh(x))
EFFC_UNARY_F(cosh, __builtin_coshf(x), __builtin_cosh(x))
EFFC_UNARY_F(tanh, fm::tanh(x), __builtin_tanh(x))
EFFC_UNARY_F(asinh, __builtin_asinhf(x), __builtin_asinh(x))
EFFC_UNARY_F(acosh, __builtin_acoshf(x), __builtin_acosh(x))
EFFC_UNARY_F(atanh, __builtin_atanhf(x), __builtin_atanh(x))
EFFC_UNARY_F(erf, fm::erf(x), __builtin_erf(x))
EFFC_UNARY_F(erfc, (float)__builtin_erfc((double)x), __builtin_erfc(x))

EFFC_INLINE double lgamma(double x) {
  int sign;
  return lgamma_r(x, &sign);
}
EFFC_INLINE float lgamma(float x) { return (float)lgamma((double)x); }

/* ---- rounding; integers are their own floor ---- */

#define EFFC_ROUNDING(name, f32, f64)                  \
  EFFC_INLINE float name(float x) { return f32(x); }   \
  EFFC_INLINE double name(double x) { return f64(x); } \
  template <class T, EFFC_FOR(is_int<T>)>              \
  EFFC_INLINE T name(T x) {                            \
    return x;                                          \
  }
EFFC_ROUNDING(ceil, __builtin_ceilf, __builtin_ceil)
EFFC_ROUNDING(floor, __builtin_floorf, __builtin_floor)
EFFC_ROUNDING(trunc, __builtin_truncf, __builtin_trunc)
EFFC_ROUNDING(round, __builtin_nearbyintf, __builtin_nearbyint) /* ties to even */

/* ---- complex helpers ---- */

template <class C, class R>
EFFC_INLINE C make_complex(R re, R im) {
  C z;
  z.re = re;
  z.im = im;
  return z;
}
EFFC_INLINE _Complex float c99(cf32 z) {
  _Complex float r;
  __real__ r = z.re;
  __imag__ r = z.im;
  return r;
}
EFFC_INLINE _Complex double c99(cf64 z) {
  _Complex double r;
  __real__ r = z.re;
  __imag__ r = z.im;
  return r;
}
EFFC_INLINE cf32 from_c99(_Complex float z) { return cf32{__real__ z, __imag__ z}; }
EFFC_INLINE cf64 from_c99(_Complex double z) { return cf64{__real__ z, __imag__ z}; }

#define EFFC_UNARY_C(name, fn)                                                          \
  EFFC_INLINE cf32 name(cf32 z) { return from_c99((_Complex float)fn##f(c99(z))); } \
  EFFC_INLINE cf64 name(cf64 z) { return from_c99((_Complex double)fn(c99(z))); }
EFFC_UNARY_C(exp, __builtin_cexp)
EFFC_UNARY_C(log, __builtin_clog)
EFFC_UNARY_C(sqrt, __builtin_csqrt)
EFFC_UNARY_C(sin, __builtin_csin)
EFFC_UNARY_C(cos, __builtin_ccos)
EFFC_UNARY_C(tan, __builtin_ctan)
EFFC_UNARY_C(sinh, __builtin_csinh)
EFFC_UNARY_C(cosh, __builtin_ccosh)
EFFC_UNARY_C(tanh, __builtin_ctanh)
EFFC_UNARY_C(asin, __builtin_casin)
EFFC_UNARY_C(acos, __builtin_cacos)
EFFC_UNARY_C(atan, __builtin_catan)
EFFC_UNARY_C(asinh, __builtin_casinh)
EFFC_UNARY_C(acosh, __builtin_cacosh)
EFFC_UNARY_C(atanh, __builtin_catanh)

/* ---- parts of a complex number; reals are their own real part ---- */

template <class T>
EFFC_INLINE T conj(T x) {
  if constexpr (is_cplx<T>)
    return T{x.re, -x.im};
  else
    return x;
}
template <class T>
EFFC_INLINE real_t<T> real(T x) {
  if constexpr (is_cplx<T>)
    return x.re;
  else
    return x;
}
template <class T>
EFFC_INLINE real_t<T> imag(T x) {
  if constexpr (is_cplx<T>)
    return x.im;
  else
    return (T)0;
}
EFFC_INLINE cf32 complex(float re, float im) { return cf32{re, im}; }
EFFC_INLINE cf64 complex(double re, double im) { return cf64{re, im}; }

/* ---- sign and magnitude ---- */

template <class T>
EFFC_INLINE real_t<T> abs(T x) {
  if constexpr (__is_same(T, float))
    return __builtin_fabsf(x);
  else if constexpr (__is_same(T, double))
    return __builtin_fabs(x);
  else if constexpr (__is_same(T, cf32))
    return fm::hypot(x.re, x.im);
  else if constexpr (__is_same(T, cf64))
    return __builtin_hypot(x.re, x.im);
  else if constexpr (is_signed_int<T>)
    return x < 0 ? (T)((wrap_t<T>)0 - (wrap_t<T>)x) : x;
  else
    return x;
}
template <class T>
EFFC_INLINE T neg(T x) {
  if constexpr (is_cplx<T>)
    return T{-x.re, -x.im};
  else if constexpr (is_int<T>)
    return (T)((wrap_t<T>)0 - (wrap_t<T>)x);
  else
    return (T)-x;
}
/* -1, 0 or 1; NaN gives 0. */
template <class T>
EFFC_INLINE T sign(T x) {
  if constexpr (is_bool<T>)
    return x;
  else
    return (T)((T)(x > (T)0) - (T)(x < (T)0));
}
template <class T>
EFFC_INLINE T sgn(T x) {
  if constexpr (is_cplx<T>) {
    auto a = abs(x);
    return a == 0 ? T{0, 0} : T{x.re / a, x.im / a};
  } else {
    return sign(x);
  }
}
template <class T>
EFFC_INLINE bool signbit(T x) {
  if constexpr (__is_same(T, float))
    return (bitcast<uint32_t>(x) >> 31) != 0;
  else if constexpr (__is_same(T, double))
    return (bitcast<uint64_t>(x) >> 63) != 0;
  else
    return x < (T)0;
}
EFFC_INLINE float copysign(float x, float y) { return __builtin_copysignf(x, y); }
EFFC_INLINE double copysign(double x, double y) { return __builtin_copysign(x, y); }
EFFC_INLINE float nextafter(float x, float y) { return __builtin_nextafterf(x, y); }
EFFC_INLINE double nextafter(double x, double y) { return __builtin_nextafter(x, y); }
EFFC_INLINE float atan2(float y, float x) { return __builtin_atan2f(y, x); }
EFFC_INLINE double atan2(double y, double x) { return __builtin_atan2(y, x); }
EFFC_INLINE float hypot(float x, float y) { return fm::hypot(x, y); }
EFFC_INLINE double hypot(double x, double y) { return __builtin_hypot(x, y); }
/* The argument of z; for reals 0, pi, or NaN. */
template <class T>
EFFC_INLINE real_t<T> angle(T x) {
  if constexpr (is_cplx<T>) {
    return atan2(x.im, x.re);
  } else {
    T y = x < (T)0 ? (T)3.14159265358979323846 : (T)0;
    return x != x ? x : y;
  }
}

/* ---- predicates ---- */

template <class T>
EFFC_INLINE bool isnan(T x) {
  if constexpr (is_cplx<T>)
    return (x.re != x.re) | (x.im != x.im);
  else
    return x != x;
}
template <class T>
EFFC_INLINE bool isinf(T x) {
  if constexpr (is_cplx<T>)
    return isinf(x.re) | isinf(x.im);
  else if constexpr (is_float<T>)
    return abs(x) == (T)__builtin_inf();
  else
    return false;
}
template <class T>
EFFC_INLINE bool isfinite(T x) {
  if constexpr (is_cplx<T>)
    return isfinite(x.re) & isfinite(x.im);
  else if constexpr (is_float<T>)
    return abs(x) < (T)__builtin_inf();
  else
    return true;
}
template <class T>
EFFC_INLINE bool truth(T x) {
  if constexpr (is_cplx<T>)
    return (x.re != 0) | (x.im != 0);
  else
    return x != (T)0;
}
template <class T>
EFFC_INLINE bool logical_not(T x) {
  return !truth(x);
}
template <class T>
EFFC_INLINE bool logical_and(T x, T y) {
  return truth(x) & truth(y);
}
template <class T>
EFFC_INLINE bool logical_or(T x, T y) {
  return truth(x) | truth(y);
}
template <class T>
EFFC_INLINE bool logical_xor(T x, T y) {
  return truth(x) != truth(y);
}
template <class T>
EFFC_INLINE bool eq(T x, T y) {
  if constexpr (is_cplx<T>)
    return (x.re == y.re) & (x.im == y.im);
  else
    return x == y;
}
template <class T>
EFFC_INLINE bool ne(T x, T y) {
  return !eq(x, y);
}
template <class T>
EFFC_INLINE bool lt(T x, T y) {
  return x < y;
}
template <class T>
EFFC_INLINE bool le(T x, T y) {
  return x <= y;
}
template <class T>
EFFC_INLINE bool gt(T x, T y) {
  return x > y;
}
template <class T>
EFFC_INLINE bool ge(T x, T y) {
  return x >= y;
}

/* ---- bits ---- */

template <class T>
EFFC_INLINE T bitwise_not(T x) {
  if constexpr (is_bool<T>)
    return !x;
  else
    return (T)~x;
}
template <class T>
EFFC_INLINE T bitwise_and(T x, T y) {
  return (T)(x & y);
}
template <class T>
EFFC_INLINE T bitwise_or(T x, T y) {
  return (T)(x | y);
}
template <class T>
EFFC_INLINE T bitwise_xor(T x, T y) {
  return (T)(x ^ y);
}
/* Shifts by a count outside [0, bits) yield 0 to the left and the sign (0 for unsigned) to the right. */
template <class T>
EFFC_INLINE T shl(T x, T n) {
  constexpr int bits = 8 * (int)sizeof(T);
  using W = wrap_t<T>;
  bool inside = (n >= (T)0) & ((W)n < (W)bits);
  return inside ? (T)((W)x << (inside ? (W)n : 0)) : (T)0;
}
template <class T>
EFFC_INLINE T shr(T x, T n) {
  constexpr int bits = 8 * (int)sizeof(T);
  using W = wrap_t<T>;
  bool inside = (n >= (T)0) & ((W)n < (W)bits);
  if constexpr (is_signed_int<T>)
    return (T)(x >> (inside ? (int)n : bits - 1));
  else
    return inside ? (T)((W)x >> (inside ? (W)n : 0)) : (T)0;
}

/* ---- arithmetic ---- */

template <class T>
EFFC_INLINE T add(T x, T y) {
  if constexpr (is_cplx<T>)
    return T{x.re + y.re, x.im + y.im};
  else if constexpr (is_bool<T>)
    return x | y;
  else if constexpr (is_int<T>)
    return (T)((wrap_t<T>)x + (wrap_t<T>)y);
  else
    return x + y;
}
template <class T>
EFFC_INLINE T sub(T x, T y) {
  if constexpr (is_cplx<T>)
    return T{x.re - y.re, x.im - y.im};
  else if constexpr (is_bool<T>)
    return x ^ y;
  else if constexpr (is_int<T>)
    return (T)((wrap_t<T>)x - (wrap_t<T>)y);
  else
    return x - y;
}
template <class T>
EFFC_INLINE T mul(T x, T y) {
  if constexpr (is_cplx<T>)
    return T{x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
  else if constexpr (is_bool<T>)
    return x & y;
  else if constexpr (is_int<T>)
    return (T)((wrap_t<T>)x * (wrap_t<T>)y);
  else
    return x * y;
}
/* Quotient rounded toward zero. */
template <class T>
EFFC_INLINE T trunc_div(T x, T y) {
  if constexpr (is_float<T>) {
    return trunc(x / y);
  } else if constexpr (is_bool<T>) {
    return x & y;
  } else {
    if (y == (T)0) return (T)0;
    if constexpr (is_signed_int<T>) {
      if (y == (T)-1) return neg(x);
    }
    return (T)(x / y);
  }
}
/* True division; integers (which frontends convert first) truncate. Complex: Smith's algorithm. */
template <class T>
EFFC_INLINE T div(T x, T y) {
  if constexpr (is_cplx<T>) {
    bool by_re = abs(y.re) >= abs(y.im);
    auto big = by_re ? y.re : y.im, small = by_re ? y.im : y.re;
    auto ratio = small / big, scale = 1 / (big + small * ratio);
    auto p = by_re ? x.re : x.im, q = by_re ? x.im : x.re;
    auto re = (p + q * ratio) * scale;
    auto im = (by_re ? q - p * ratio : p * ratio - q) * scale;
    bool zero = (y.re == 0) & (y.im == 0);
    auto m = abs(big);
    return zero ? T{x.re / m, x.im / m} : T{re, im};
  } else if constexpr (is_float<T>) {
    return x / y;
  } else {
    return trunc_div(x, y);
  }
}
EFFC_INLINE float fmod(float x, float y) { return __builtin_fmodf(x, y); }
EFFC_INLINE double fmod(double x, double y) { return __builtin_fmod(x, y); }
template <class T, EFFC_FOR(is_int<T> || is_bool<T>)>
EFFC_INLINE T fmod(T x, T y) {
  if (y == (T)0) return (T)0;
  if constexpr (is_signed_int<T>) {
    if (y == (T)-1) return (T)0;
  }
  return (T)(x % y);
}
/* The remainder that takes the divisor's sign, as Python's %. */
template <class T>
EFFC_INLINE T remainder(T x, T y) {
  T r = fmod(x, y);
  if constexpr (is_float<T> || is_signed_int<T>)
    return (r != (T)0) & ((r < (T)0) != (y < (T)0)) ? (T)(r + y) : r;
  else
    return r;
}
/* Quotient rounded down, as Python's //. */
template <class T>
EFFC_INLINE T floor_div(T x, T y) {
  if constexpr (is_float<T>) {
    if (y == (T)0) return x / y;
    T r = fmod(x, y);
    T q = (x - r) / y;
    q = (r != (T)0) & ((r < (T)0) != (y < (T)0)) ? q - (T)1 : q;
    if (q == (T)0) return copysign((T)0, x / y);
    T f = floor(q);
    return q - f > (T)0.5 ? f + (T)1 : f;
  } else {
    T q = trunc_div(x, y);
    if constexpr (is_signed_int<T>) {
      bool inexact = fmod(x, y) != (T)0;
      return inexact & ((x < (T)0) != (y < (T)0)) ? (T)(q - 1) : q;
    }
    return q;
  }
}
template <class T>
EFFC_INLINE T maximum(T x, T y) {
  T m = x > y ? x : y;
  return x != x ? x : m;
}
template <class T>
EFFC_INLINE T minimum(T x, T y) {
  T m = x < y ? x : y;
  return x != x ? x : m;
}
/* maximum(x, c) and minimum(x, c) where c is not NaN: one instruction of x86, whose second operand is what it gives for
 * NaN. Of two zeros they give x. The compiler must not know c, or it takes the loop apart by cases: see opaque. */
template <class T>
EFFC_INLINE T at_least(T x, T c) {
  return x < c ? c : x;
}
template <class T>
EFFC_INLINE T at_most(T x, T c) {
  return c < x ? c : x;
}
/* x, which the compiler takes for a variable. Outside of loops: it keeps the compiler from vectorising what it is in. */
template <class T>
EFFC_INLINE T opaque(T x) {
  __asm__("" : "+x"(x));
  return x;
}
/* x / c in two products, for a c of which division.py has proven that they give the quotient. */
struct Quotient {
  float inverse, rest; /* 1 / c is their sum */

  inline __attribute__((always_inline)) float operator()(float x) const { return fm::fma(x, inverse, x * rest); }
};
/* x / 2 * (1 + erf(x / sqrt 2)) = x (1/2 + e), with e = x (1/8 + P(x^2) / Q(x^2)): a minimax rational function, error 1.1e-8 on
 * |x| <= limit. The eighth keeps the quotient, and with it its roundings, small where e is not. Coefficients are rounded so that e is
 * 1/2 at the limit exactly, and that errors are at most those with erf: 1.13e-7 |x|, 1.64 ulp for x > 0 (with erf 1.20e-7, 1.66). */
struct Gelu {
  static constexpr float kLimit = 5.53125f;
  float limit; /* kLimit, which the compiler must not know: see at_most */

  inline __attribute__((always_inline)) float operator()(float x) const {
    const float c = at_least(at_most(x, limit), -limit), z = c * c;
    const float p = fm::poly(z, 0.273942292f, 0.00185115426f, 0.00110206776f, -6.94159971e-05f, -2.57470651e-06f,
                             -1.26675445e-07f);
    const float q = fm::poly(z, 1.0f, 0.24947454f, 0.0281669479f, 0.00183447846f, 7.04862978e-05f, 1.19787467e-06f);
    const float y = fm::fma(x, fm::fma(c, 0.125f, c * p / q), 0.5f * x);
    return bitcast<float>(bitcast<uint32_t>(y) | (bitcast<uint32_t>(x) & 0x80000000u)); /* -0, where it was a difference */
  }
};
/* 1 / (1 + e^-x) as k / (k + p 2^n k), where e^-x = p 2^n and k = 2^-32: 2^n k is a normal float wherever the result is neither
 * 0 nor 1, and what is denormal is rounded once. The number that rounds -x / ln 2 to n leaves the exponent of 2^n k in its low bits.
 * Errors: 1.50 ulp for x > 0, 2.46 for x < 0 where the result is normal; NaN, 0 and 1 at the ends are exact. */
struct Sigmoid {
  static constexpr float kLow = -110.0f, kHigh = 30.0f; /* beyond them it is 0 and 1 */
  float low = kLow, high = kHigh; /* in a loop the compiler must not know them: see at_most */

  inline __attribute__((always_inline)) float operator()(float x) const {
    constexpr float k = 0x1p-32f, whole = fm::round_magic + (127.0f - 32.0f);
    const float c = at_most(at_least(x, low), high);
    const float t = fm::fma(c, -1.44269504f, whole), n = t - whole;
    const float r = fm::fma(n, fm::ln2_lo, fm::fma(n, fm::ln2_hi, c)); /* e^-r, error 3e-9 */
    const float p = fm::poly(r, 1.0f, -1.0f, 0.50000000953305179f, -0.16666518680664738f, 0.041666205340577432f,
                             -0.0083689084226338181f, 0.0013950521840886121f);
    return k / fm::fma(p, bitcast<float>(bitcast<uint32_t>(t) << 23), k);
  }
};
EFFC_INLINE float sigmoid(float x) { return Sigmoid{}(x); }
EFFC_INLINE double sigmoid(double x) { return 1.0 / (1.0 + __builtin_exp(-x)); }
/* x / scale as the nearest whole number, ties to even, for x in [low, high], and as a byte (bytes.py, which has compared
 * the two products with a division). NaN is `low`. */
struct Bytes {
  float low, high, inverse, rest; /* inverse + rest = 1 / scale */
  int32_t zero;
  static constexpr float kWhole = 12582912.0f; /* 1.5 * 2^23: floats around it are whole, and have it in their low bits */

  inline __attribute__((always_inline)) float whole(float x) const {
    const float from = x > low ? x : low, in = from < high ? from : high;
    return __builtin_fmaf(in, inverse, in * rest) + kWhole;
  }
  inline __attribute__((always_inline)) float steps(float x) const { return whole(x) - kWhole; }
  template <class T>
  inline __attribute__((always_inline)) T byte(float x) const {
    return (T)(bitcast<int32_t>(whole(x)) + zero);
  }
};
/* The same where `low` is not byte 0: NaN is `nan`. */
struct BytesNan {
  float low, high, inverse, rest, nan;
  int32_t zero;

  inline __attribute__((always_inline)) Bytes bytes() const { return Bytes{low, high, inverse, rest, zero}; }
  inline __attribute__((always_inline)) float steps(float x) const { return bytes().steps(x == x ? x : nan); }
  template <class T>
  inline __attribute__((always_inline)) T byte(float x) const {
    return bytes().byte<T>(x == x ? x : nan);
  }
};
template <class T>
EFFC_INLINE T fmax(T x, T y) {
  T m = x > y ? x : y;
  return y != y ? x : m;
}
template <class T>
EFFC_INLINE T fmin(T x, T y) {
  T m = x < y ? x : y;
  return y != y ? x : m;
}
EFFC_INLINE float pow(float x, float y) { return fm::pow(x, y); }
EFFC_INLINE double pow(double x, double y) { return __builtin_pow(x, y); }
EFFC_INLINE cf32 pow(cf32 x, cf32 y) { return from_c99((_Complex float)__builtin_cpowf(c99(x), c99(y))); }
EFFC_INLINE cf64 pow(cf64 x, cf64 y) { return from_c99((_Complex double)__builtin_cpow(c99(x), c99(y))); }
/* Integer power, wrapping. A negative exponent yields 0 but for the bases 1 and -1. */
template <class T, EFFC_FOR(is_int<T> || is_bool<T>)>
EFFC_INLINE T pow(T x, T n) {
  using W = wrap_t<T>;
  if constexpr (is_signed_int<T>) {
    if (n < (T)0) return x == (T)1 ? (T)1 : (x == (T)-1 ? (T)((n & 1) ? -1 : 1) : (T)0);
  }
  W r = 1, b = (W)x, e = (W)n;
  for (; e != 0; e >>= 1, b *= b) r = (e & 1u) ? r * b : r;
  return (T)r;
}

/* ---- fused and ternary ---- */

template <class T>
EFFC_INLINE T where(bool c, T x, T y) {
  if constexpr (is_cplx<T>)
    return T{c ? x.re : y.re, c ? x.im : y.im};
  else
    return c ? x : y;
}
template <class T>
EFFC_INLINE T clamp(T x, T lo, T hi) {
  return minimum(maximum(x, lo), hi);
}
EFFC_INLINE float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
EFFC_INLINE double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
template <class T, EFFC_FOR(!is_float<T>)>
EFFC_INLINE T fma(T x, T y, T z) {
  return add(mul(x, y), z);
}
/* x + w (y - x), evaluated from the nearer end. For complex w, near is by |w|. */
template <class T>
EFFC_INLINE T lerp(T x, T y, T w) {
  if constexpr (is_cplx<T>) {
    T d = sub(y, x);
    bool near = abs(w) < (real_t<T>)0.5;
    return where(near, add(x, mul(w, d)), sub(y, mul(d, sub(T{1, 0}, w))));
  } else {
    T d = y - x;
    if constexpr (is_float<T>) /* fused, as PyTorch's vector code: the products may leave the range where the sums do not */
      return abs(w) < (T)0.5 ? fma(w, d, x) : fma(-d, (T)1 - w, y);
    else
      return x + w * d;
  }
}
template <class T>
EFFC_INLINE T xlogy(T x, T y) {
  T r = x == (T)0 ? (T)0 : x * log(y);
  return y != y ? y : r;
}
template <class T>
EFFC_INLINE T xlog1py(T x, T y) {
  T r = x == (T)0 ? (T)0 : x * log1p(y);
  return y != y ? y : r;
}
template <class T>
EFFC_INLINE T logaddexp(T x, T y) {
  T m = maximum(x, y);
  T r = m + log1p(exp(-abs(x - y)));
  return isinf(x) & (x == y) ? x : r;
}
template <class T>
EFFC_INLINE T logaddexp2(T x, T y) {
  T m = maximum(x, y);
  T r = m + log1p(exp2(-abs(x - y))) * (T)1.44269504088896340736;
  return isinf(x) & (x == y) ? x : r;
}
template <class T>
EFFC_INLINE T heaviside(T x, T at_zero) {
  return x == (T)0 ? at_zero : (T)(x > (T)0);
}
/* x * 2^n with n a number of x's type, as torch.ldexp. */
template <class T>
EFFC_INLINE T ldexp(T x, T n) {
  return x * exp2(n);
}
template <class T>
EFFC_INLINE T gcd(T x, T y) {
  T a = abs(x), b = abs(y);
  while (a != (T)0) {
    T r = fmod(b, a);
    b = a;
    a = r;
  }
  return b; /* negative where the most negative integer takes part, as in PyTorch */
}
template <class T>
EFFC_INLINE T lcm(T x, T y) {
  T g = gcd(x, y);
  return g == (T)0 ? (T)0 : abs(mul(trunc_div(x, g), y));
}

/* ---- complex functions that C99 lacks ---- */

template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C reciprocal(C z) {
  return div(C{1, 0}, z);
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C rsqrt(C z) {
  return reciprocal(sqrt(z));
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C sigmoid(C z) {
  return reciprocal(add(C{1, 0}, exp(neg(z))));
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C scale_complex(C z, double s) {
  return C{(real_t<C>)(z.re * s), (real_t<C>)(z.im * s)};
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C log2(C z) {
  return scale_complex(log(z), 1.44269504088896340736);
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C log10(C z) {
  return scale_complex(log(z), 0.43429448190325182765);
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C exp2(C z) {
  return exp(scale_complex(z, 0.69314718055994530942));
}
/* e^z - 1 = (expm1(x) cos y - 2 sin^2(y/2)) + i e^x sin y */
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C expm1(C z) {
  auto s = sin(z.im / 2);
  return C{expm1(z.re) * cos(z.im) - 2 * s * s, exp(z.re) * sin(z.im)};
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C log1p(C z) {
  using R = real_t<C>;
  R theta = atan2(z.im, z.re + (R)1);
  if (abs(z) < (R)0.5) {
    R r = z.re * ((R)2 + z.re) + z.im * z.im;
    return C{r == 0 ? z.re : (R)0.5 * log1p(r), theta};
  }
  return C{log(hypot(z.re + (R)1, z.im)), theta};
}
template <class C, EFFC_FOR(is_cplx<C>)>
EFFC_INLINE C xlogy(C x, C y) {
  return isnan(y) ? y : (truth(x) ? mul(x, log(y)) : C{0, 0});
}

#undef EFFC_ROUNDING
#undef EFFC_UNARY_C

}  // namespace op
}  // namespace effc

#include "math_special.hpp"
#endif
