/* Elementary functions of float as branch-free code that the compiler vectorises inside a plain loop (AVX2, AVX-512).
 *
 * Method throughout: reduce the argument, evaluate a polynomial, rebuild. Polynomials are weighted minimax fits (relative
 * error noted beside each, all well below half an ulp of float = 6e-8); reductions follow the usual literature (Cody and
 * Waite 1980; Muller, Elementary Functions, 2016). Errors are at most 2 ulp, at +-inf, NaN, zeros and denormals too;
 * tests/null/test_math.py measures them. Selections are written as ?: on values, never as branches, and conditions are
 * combined with & and |, because a branch would stop the vectoriser.
 */
#ifndef EFFC_MATH_FLOAT_HPP
#define EFFC_MATH_FLOAT_HPP
#include "types.hpp"

namespace effc {
namespace fm {

constexpr float inf_f = __builtin_inff();
constexpr float nan_f = __builtin_nanf("");
constexpr float round_magic = 12582912.0f;           /* 1.5 * 2^23: adding it rounds to an integer, ties to even */
constexpr double round_magic_d = 6755399441055744.0; /* 1.5 * 2^52 */

EFFC_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
EFFC_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
EFFC_INLINE float fabs(float x) { return __builtin_fabsf(x); }

/* c[0] + c[1] x + ..., by Horner. */
template <class T>
EFFC_INLINE T poly(T, T c0) {
  return c0;
}
template <class T, class... C>
EFFC_INLINE T poly(T x, T c0, C... rest) {
  return fma(poly(x, rest...), x, c0);
}

/* p * 2^n in two exact-until-denormal steps; n in [-250, 250]. */
EFFC_INLINE float scale2(float p, int32_t n) {
  int32_t a = n >> 1, b = n - a;
  return p * bitcast<float>((uint32_t)(a + 127) << 23) * bitcast<float>((uint32_t)(b + 127) << 23);
}
/* The integer in t = x + round_magic; any bits for NaN. */
EFFC_INLINE int32_t magic_int(float t) { return (int32_t)(bitcast<uint32_t>(t) - bitcast<uint32_t>(round_magic)); }
/* Confines the integer so that a NaN's garbage stays defined. */
EFFC_INLINE int32_t confine(int32_t n) {
  n = n < -250 ? -250 : n;
  return n > 250 ? 250 : n;
}

constexpr float ln2_hi = 0.693359375f; /* 9 bits: products with exponents are exact */
constexpr float ln2_lo = -2.12194440e-4f;

/* x = n ln2 + r, |r| <= ln2/2. Returns r, n as float in *nf. */
EFFC_INLINE float reduce_exp(float x, float* nf, int32_t* ni) {
  float t = fma(x, 1.44269504f, round_magic);
  float n = t - round_magic;
  *nf = n;
  *ni = confine(magic_int(t));
  return fma(n, -ln2_lo, fma(n, -ln2_hi, x));
}
/* (e^r - 1 - r) / r^2 on |r| <= ln2/2; error 5e-11 relative to e^r. */
EFFC_INLINE float exp_tail(float r) {
  return poly(r, 0.50000000781369813f, 0.16666666856124909f, 0.041666269272231826f, 0.0083332653439980066f,
              0.0013946117053311553f, 0.00019917871431409043f);
}

EFFC_INLINE float exp(float x) {
  float t = fma(x, 1.44269504f, round_magic);
  float n = t - round_magic;
  float r = fma(n, -ln2_lo, fma(n, -ln2_hi, x));
  /* (e^r - 1 - r) / r^2, error 3e-9 relative to e^r */
  float q = poly(r, 0.50000000953305179f, 0.16666518680664738f, 0.041666205340577432f, 0.0083689084226338181f,
                 0.0013950521840886121f);
  float p = fma(r, fma(r, q, 1.0f), 1.0f);
  /* 2^n = 2^(n -+ 64) 2^(+-64), because n runs from -150 to 128; t's low bits hold n. */
  uint32_t down = (uint32_t)((int32_t)bitcast<uint32_t>(x) >> 31) & (128u << 23);
  float near = bitcast<float>((bitcast<uint32_t>(t) << 23) + (((127u - 64u) << 23) + down));
  float far = bitcast<float>(((127u + 64u) << 23) - down);
  /* Outside the range everything above is garbage and is replaced here. Clamping x first would cost more: the compiler
   * follows the clamp's branches through all of the code. */
  float y = p * near * far;
  y = x > 89.0f ? inf_f : y;
  return x < -104.0f ? 0.0f : y;
}

EFFC_INLINE float exp2(float x) {
  float c = x < -151.0f ? -151.0f : x;
  c = c > 129.0f ? 129.0f : c;
  float t = c + round_magic;
  float r = c - (t - round_magic);
  float q = poly(r, 0.69314718054150781f, 0.24022651078140744f, 0.055504109631514455f, 0.0096180365410720222f,
                 0.0013333430275045042f, 0.0001546723779551684f, 1.5315071809298608e-05f);
  return scale2(fma(r, q, 1.0f), confine(magic_int(t)));
}

EFFC_INLINE float expm1(float x) {
  float c = x < -30.0f ? -30.0f : x;
  c = c > 89.0f ? 89.0f : c;
  float n;
  int32_t ni;
  float r = reduce_exp(c, &n, &ni);
  float p = fma(r * r, exp_tail(r), r); /* e^r - 1 */
  /* 2^n p + (2^n - 1), halved so that 2^128 is not formed. */
  float h = bitcast<float>((uint32_t)((ni < -126 ? -126 : (ni > 128 ? 128 : ni)) + 126) << 23);
  float y = 2.0f * fma(h, p, h - 0.5f);
  y = n == 0.0f ? p : y;
  return x == 0.0f ? x : y;
}

/* ln(1 + f) = f - f^2/2 + f^3 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1]; this is P, error 6e-9 relative to the result. */
EFFC_INLINE float log_tail(float f) {
  return poly(f, 0.3333333170969448f, -0.25000821056247524f, 0.20001226667337002f, -0.16623356478228918f,
              0.14201762470439766f, -0.13160195067782796f, 0.12761550338068445f, -0.07634429838539307f);
}
/* x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), for positive finite x, denormals too. */
EFFC_INLINE float split_log(float x, float* e) {
  bool tiny = x < 0x1p-126f;
  float s = tiny ? x * 0x1p25f : x;
  int32_t b = (int32_t)(bitcast<uint32_t>(s) - 0x3f3504f3u);
  *e = (float)(b >> 23) - (tiny ? 25.0f : 0.0f);
  return bitcast<float>(((uint32_t)b & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
}
/* The values of a logarithm outside (0, inf). */
EFFC_INLINE float log_edges(float x, float y) {
  y = x == 0.0f ? -inf_f : y;
  y = x < 0.0f ? nan_f : y;
  y = x == inf_f ? x : y;
  return x != x ? x : y;
}

EFFC_INLINE float log(float x) {
  float e, f = split_log(x, &e);
  float h = 0.5f * f * f;
  float lo = fma(f * f * f, log_tail(f), e * ln2_lo);
  float y = fma(e, ln2_hi, f - (h - lo));
  return log_edges(x, y);
}

EFFC_INLINE float log1p(float x) {
  float u = 1.0f + x;
  /* What the rounding of 1 + x lost (two-sum). */
  float bb = u - 1.0f;
  float c = (1.0f - (u - bb)) + (x - bb);
  c = u == inf_f ? 0.0f : c;
  float e, f = split_log(u, &e);
  int32_t ei = (int32_t)e;
  ei = ei < -120 ? -120 : (ei > 126 ? 126 : ei);
  f = fma(c, bitcast<float>((uint32_t)(127 - ei) << 23), f);
  float h = 0.5f * f * f;
  float lo = fma(f * f * f, log_tail(f), e * ln2_lo);
  float y = log_edges(u, fma(e, ln2_hi, f - (h - lo)));
  return x == 0.0f ? x : y;
}

/* log of base b: log2(1+f) style results need 1/ln b in two pieces. */
EFFC_INLINE float log_base(float x, float inv_hi, float inv_lo, float e_hi, float e_lo) {
  float e, f = split_log(x, &e);
  float h = 0.5f * f * f;
  float t = f * f * f * log_tail(f) - h; /* ln(1+f) = f + t */
  float hi = f * inv_hi;
  float lo = fma(f, inv_hi, -hi) + fma(t, inv_hi, (f + t) * inv_lo);
  float y = fma(e, e_hi, hi + fma(e, e_lo, lo));
  return log_edges(x, y);
}
EFFC_INLINE float log2(float x) { return log_base(x, 1.44269502f, 1.92596303e-8f, 1.0f, 0.0f); }
EFFC_INLINE float log10(float x) {
  return log_base(x, 0.434294492f, -1.01007893e-8f, 0.301025391f, 4.60503907e-6f);
}

/* With t = e^(2|x|) - 1: tanh |x| = t / (t + 2). */
EFFC_INLINE float tanh(float x) {
  float a = fabs(x) * 2.0f;
  a = a > 20.0f ? 20.0f : a;
  float m = fma(a, 1.44269504f, round_magic);
  float n = m - round_magic;
  float r = fma(n, -ln2_lo, fma(n, -ln2_hi, a));
  float p = fma(r * r, exp_tail(r), r);
  float s = bitcast<float>((bitcast<uint32_t>(m) << 23) + (127u << 23));
  float t = fma(s, p, s - 1.0f);
  return __builtin_copysignf(t / (t + 2.0f), x);
}

EFFC_INLINE float erf(float x) {
  float a = fabs(x), z = x * x, s = a - 2.45f;
  /* erf(x) / x, error 2e-9 on |x| < 1; the leading coefficient in two pieces */
  float p = poly(z, 5.93921441e-08f, -0.37612627136965326f, 0.11283600176250101f, -0.026854444591546504f,
                 0.0051895353385514086f, -0.00080208412719764413f, 7.8891195033523864e-05f);
  float small = fma(x, 1.12837911f, x * p);
  /* erf(2.45 + s), error 3e-8 on [1, 3.95]; beyond 3.92 it rounds to 1 */
  float q = poly(s, 0.99946945068001514f, 0.0027898969761720035f, -0.006836878253680255f, 0.010236055273499405f,
                 -0.010248466510139064f, 0.0069764065905150649f, -0.0029963076618843543f, 0.0004297667791432517f,
                 0.00042006431168677057f, -0.0003066783669337526f, 4.8107854232403941e-05f, 2.6509021568080899e-05f,
                 -9.0067160508148094e-06f);
  q = a > 3.92f ? 1.0f : q;
  return a < 1.0f ? small : __builtin_copysignf(q, x);
}

/* x = n pi/2 + r, right for every float. |x| = a 2^e with a < 2^50 and e in {0, 26, 52, 78, 104}; 2^e mod 2 pi is a constant of
 * two doubles, so a * constant is one exact product plus a small term, and one step of Cody and Waite in double remains.
 * The table is a few selections and not a load, because a gather would stop the vectoriser. */
EFFC_INLINE double reduce_trig(float x, int32_t* quadrant) {
  float a = fabs(x), scale = 1.0f;
  double hi = 1.0, lo = 0.0;
  scale = a >= 0x1p49f ? 0x1p-26f : scale;
  hi = a >= 0x1p49f ? 0x1.5a8920fc746b2p+1 : hi;
  lo = a >= 0x1p49f ? -0x1.f003a5a903450p-53 : lo;
  scale = a >= 0x1p75f ? 0x1p-52f : scale;
  hi = a >= 0x1p75f ? 0x1.09f4683d25023p+1 : hi;
  lo = a >= 0x1p75f ? 0x1.fee10ecf6f246p-55 : lo;
  scale = a >= 0x1p101f ? 0x1p-78f : scale;
  hi = a >= 0x1p101f ? 0x1.711a1110cccd4p+1 : hi;
  lo = a >= 0x1p101f ? -0x1.5302971d2c45bp-53 : lo;
  scale = a >= 0x1p127f ? 0x1p-104f : scale;
  hi = a >= 0x1p127f ? 0x1.e52a7a6600402p+0 : hi;
  lo = a >= 0x1p127f ? 0x1.8f351633e671fp-54 : lo;
  double m = x * scale, p = m * hi, tail = fma(m, hi, -p);
  tail = fma(m, lo, tail);
  double t = fma(p, 0.63661977236758134308, round_magic_d);
  double n = t - round_magic_d;
  double r = fma(n, -1.5707963267948965580, p);
  r = fma(n, -6.1232339957367660359e-17, r);
  *quadrant = (int32_t)(uint32_t)bitcast<uint64_t>(t);
  return r + tail;
}
template <class T>
EFFC_INLINE T sin_poly(T r) { /* error 5e-12 on |r| <= pi/4 */
  T z = r * r;
  T p = poly(z, (T)-0.16666666641425973, (T)0.0083333293622316965, (T)-0.00019839327123785856,
             (T)2.7182371728669749e-06);
  return fma(r * z, p, r);
}
template <class T>
EFFC_INLINE T cos_poly(T r) { /* error 1e-13 on |r| <= pi/4 */
  T z = r * r;
  T p = poly(z, (T)0.041666666622475944, (T)-0.0013888883722547028, (T)2.4799511746505741e-05,
             (T)-2.7209546485362346e-07);
  return fma(z * z, p, fma(z, (T)-0.5, (T)1.0));
}
EFFC_INLINE float sin_quadrant(float r, int32_t q) {
  float s = sin_poly(r), c = cos_poly(r);
  float y = (q & 1) != 0 ? c : s;
  return bitcast<float>(bitcast<uint32_t>(y) ^ (((uint32_t)q & 2u) << 30));
}
EFFC_INLINE float sin(float x) {
  int32_t q;
  float r = (float)reduce_trig(x, &q);
  float y = sin_quadrant(r, q);
  return x == 0.0f ? x : y;
}
EFFC_INLINE float cos(float x) {
  int32_t q;
  float r = (float)reduce_trig(x, &q);
  return sin_quadrant(r, q + 1);
}
EFFC_INLINE float tan(float x) {
  int32_t q;
  double r = reduce_trig(x, &q);
  double s = sin_poly(r), c = cos_poly(r);
  bool odd = (q & 1) != 0;
  float y = (float)((odd ? -c : s) / (odd ? s : c));
  return x == 0.0f ? x : y;
}

/* log2 |x| in double to about 1e-11, for every float. */
EFFC_INLINE double log2_wide(float x) {
  float e, f = split_log(x, &e);
  double d = f, s = d / (d + 2.0), z = s * s;
  double p = poly(z, 2.8853900817902645, 0.96179667311549244, 0.57708362874707764, 0.41167004932607076,
                  0.34078036859566507);
  return fma(s, p, (double)e);
}
/* 2^t in double to about 2e-9, |t| <= 1000. */
EFFC_INLINE double exp2_wide(double t) {
  double k = t + round_magic_d;
  double r = t - (k - round_magic_d);
  uint64_t n = bitcast<uint64_t>(k) - bitcast<uint64_t>(round_magic_d);
  double p = poly(r, 0.99999999991843957, 0.69314720686711073, 0.24022651509768245, 0.055503268801741279,
                  0.0096179939911635853, 0.0013400565770805384, 0.00015478167141404781);
  return p * bitcast<double>((n + 1023u) << 52);
}

/* x^y with the special values of C99 Annex F. */
EFFC_INLINE float pow(float x, float y) {
  float a = fabs(x);
  double l = log2_wide(a);
  l = a == 0.0f ? (double)-inf_f : l;
  l = a == inf_f ? (double)inf_f : l;
  double t = (double)y * l;
  t = t < -200.0 ? -200.0 : t;
  t = t > 200.0 ? 200.0 : t;
  float p = (float)exp2_wide(t == t ? t : 0.0);
  float yt = __builtin_truncf(y), yh = y * 0.5f;
  bool whole = yt == y, odd = whole & (__builtin_truncf(yh) != yh);
  p = (a == 1.0f) | (y == 0.0f) ? 1.0f : p;
  p = odd ? __builtin_copysignf(p, x) : p;
  p = (x < 0.0f) & (x > -inf_f) & !whole ? nan_f : p;
  p = (y != y) & (x != 1.0f) ? y : p;
  return (x != x) & (y != 0.0f) ? x : p;
}

EFFC_INLINE float hypot(float x, float y) {
  double a = x, b = y;
  float r = (float)__builtin_sqrt(fma(a, a, b * b));
  return (fabs(x) == inf_f) | (fabs(y) == inf_f) ? inf_f : r;
}

}  // namespace fm
}  // namespace effc
#endif
