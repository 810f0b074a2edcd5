/* Special functions, in double; the float versions round the double result. The IR ops are declared in ir/ops/special.py.
 *
 * Bessel functions: Chebyshev series for small arguments and for the amplitude forms of Abramowitz and Stegun 9.2.5, 9.7
 * for large ones. Accuracy is about 1e-14 of the function's scale (next to a zero of J or Y the error is absolute).
 * Edge values follow PyTorch.
 */
#ifndef EFFC_MATH_SPECIAL_HPP
#define EFFC_MATH_SPECIAL_HPP
#include "math.hpp"
#include "math_chebyshev.hpp"

namespace effc {
namespace sf {

constexpr double inf = __builtin_inf();
constexpr double nan = __builtin_nan("");
constexpr double pi = 3.14159265358979323846;
constexpr double eps = 2.220446049250313e-16;
constexpr double two_over_pi = 0.63661977236758134308;
constexpr double sqrt_half = 0.70710678118654752440;

/* sum c[k] T_k(t) by Clenshaw's recurrence, with t = x mapped from [lo, hi] to [-1, 1]. */
template <int N>
static inline double series(const double (&c)[N], double x, double lo, double hi) {
  double t = (2 * x - (lo + hi)) / (hi - lo), b1 = 0, b2 = 0;
  for (int k = N - 1; k > 0; k--) {
    double b = 2 * t * b1 - b2 + c[k];
    b2 = b1;
    b1 = b;
  }
  return t * b1 - b2 + c[0];
}

static inline double fabs(double x) { return __builtin_fabs(x); }
static inline bool whole(double x) { return __builtin_floor(x) == x; }

/* ---- modified Bessel functions ---- */

static inline double i0e(double x) {
  double a = fabs(x);
  return a <= 8 ? series(cheb::i0e_small, a, 0, 8) : series(cheb::i0e_large, 8 / a, 0, 1) / __builtin_sqrt(a);
}
static inline double i1e(double x) {
  double a = fabs(x);
  double y = a <= 8 ? a * series(cheb::i1e_small, a, 0, 8) : series(cheb::i1e_large, 8 / a, 0, 1) / __builtin_sqrt(a);
  return x < 0 ? -y : y;
}
/* As PyTorch's, NaN at infinity (inf * 0). */
static inline double i0(double x) { return __builtin_exp(fabs(x)) * i0e(x); }
static inline double i1(double x) { return __builtin_exp(fabs(x)) * i1e(x); }
/* K0(x), or e^x K0(x). */
static inline double k0(double x, bool scaled) {
  if (x == 0) return inf;
  if (!(x > 0)) return nan;
  if (x <= 2) {
    double y = series(cheb::k0_small, x * x, 0, 4) - __builtin_log(0.5 * x) * i0(x);
    return scaled ? y * __builtin_exp(x) : y;
  }
  double y = series(cheb::k0_large, 2 / x, 0, 1) / __builtin_sqrt(x);
  return scaled ? y : y * __builtin_exp(-x);
}
static inline double k1(double x, bool scaled) {
  if (x == 0) return inf;
  if (!(x > 0)) return nan;
  if (x <= 2) {
    double y = series(cheb::k1_small, x * x, 0, 4) / x + __builtin_log(0.5 * x) * i1(x);
    return scaled ? y * __builtin_exp(x) : y;
  }
  double y = series(cheb::k1_large, 2 / x, 0, 1) / __builtin_sqrt(x);
  return scaled ? y : y * __builtin_exp(-x);
}

/* ---- Bessel functions of the first and second kind ---- */

/* sqrt(2 / (pi x)) (P a - Q b) with the phase x - pi/4 - order pi/2 expanded, so that large x lose nothing. */
template <int NP, int NQ>
static inline double amplitude(const double (&p)[NP], const double (&q)[NQ], double x, double c, double s) {
  double z = 64 / (x * x);
  return __builtin_sqrt(two_over_pi / x) * (series(p, z, 0, 1) * c - series(q, z, 0, 1) / x * s);
}
/* At infinity NaN, as PyTorch. */
static inline double j0(double x) {
  double a = fabs(x);
  if (a <= 8) return series(cheb::j0_small, a * a, 0, 64);
  double s = __builtin_sin(a), c = __builtin_cos(a);
  return amplitude(cheb::p0_large, cheb::q0_large, a, (c + s) * sqrt_half, (s - c) * sqrt_half);
}
static inline double j1(double x) {
  double a = fabs(x), y;
  if (a <= 8) return x * series(cheb::j1_small, a * a, 0, 64);
  double s = __builtin_sin(a), c = __builtin_cos(a);
  y = amplitude(cheb::p1_large, cheb::q1_large, a, (s - c) * sqrt_half, -(c + s) * sqrt_half);
  return x < 0 ? -y : y;
}
static inline double y0(double x) {
  if (x == 0) return -inf;
  if (!(x > 0)) return nan;
  if (x <= 8) return series(cheb::y0_small, x * x, 0, 64) + two_over_pi * __builtin_log(x) * j0(x);
  double s = __builtin_sin(x), c = __builtin_cos(x);
  return amplitude(cheb::p0_large, cheb::q0_large, x, (s - c) * sqrt_half, -(c + s) * sqrt_half);
}
static inline double y1(double x) {
  if (x == 0) return -inf;
  if (!(x > 0)) return nan;
  if (x <= 8) return x * series(cheb::y1_small, x * x, 0, 64) + two_over_pi * (__builtin_log(x) * j1(x) - 1 / x);
  double s = __builtin_sin(x), c = __builtin_cos(x);
  return amplitude(cheb::p1_large, cheb::q1_large, x, -(c + s) * sqrt_half, -(s - c) * sqrt_half);
}
static inline double spherical_j0(double x) {
  if (fabs(x) == inf) return 0;
  if (fabs(x) >= 0.5) return __builtin_sin(x) / x;
  double z = x * x, term = 1, sum = 1;
  for (int k = 1; k < 8; k++) {
    term *= -z / ((2 * k) * (2 * k + 1));
    sum += term;
  }
  return sum;
}
static inline double airy_ai(double x) {
  if (x != x || fabs(x) == inf) return nan;
  if (x > 103.892) return 0;
  if (x >= -6 && x <= 2) return series(cheb::ai_mid, x, -6, 2);
  double a = fabs(x), root = __builtin_sqrt(a), zeta = a * root * (2.0 / 3.0), q = __builtin_sqrt(root * pi);
  if (x > 0) return __builtin_exp(-zeta) / (2 * q) * series(cheb::ai_right, 1 / zeta, 0, 0.53033008588991064);
  double w = 1 / (zeta * zeta), s = __builtin_sin(zeta), c = __builtin_cos(zeta);
  double ct = (c + s) * sqrt_half, st = (s - c) * sqrt_half;
  return (series(cheb::ai_p, w, 0, 1.0 / 96) * ct + series(cheb::ai_q, w, 0, 1.0 / 96) / zeta * st) / q;
}

/* ---- the error function's family ---- */

static inline double erfcx(double x) {
  if (x != x) return x;
  if (x < 0) {
    double a = -x;
    double y = series(cheb::erfcx_cheb, (a - 3.75) / (a + 3.75), -1, 1) / (1 + 2 * a);
    if (x < -26.7) return inf;
    double head = (double)(float)x, tail = x - head; /* e^(x^2) with the square in two pieces */
    return 2 * __builtin_exp(head * head) * __builtin_exp(tail * (x + head)) - y;
  }
  if (x > 1e15) return 0.56418958354775628695 / x;
  return series(cheb::erfcx_cheb, (x - 3.75) / (x + 3.75), -1, 1) / (1 + 2 * x);
}
static inline double log_ndtr(double x) {
  double t = x * sqrt_half;
  if (x < -1) return __builtin_log(erfcx(-t) * 0.5) - t * t;
  return __builtin_log1p(-__builtin_erfc(t) * 0.5);
}
/* The x < 0 with Phi(x) = p, 0 < p <= 1/2: a rough start (Abramowitz and Stegun 26.2.23), then Halley's method on Phi. */
static inline double ndtri_lower(double p) {
  double lp = __builtin_log(p), t = __builtin_sqrt(-2 * lp);
  double x = -(t - (2.515517 + t * (0.802853 + t * 0.010328)) /
                       (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))));
  for (int k = 0; k < 3; k++) {
    /* (Phi(x) - p) / phi(x), by way of erfcx so that nothing underflows. */
    double cdf_ratio = 0.5 * erfcx(-x * sqrt_half) * 2.50662827463100050242;
    double u = cdf_ratio - 2.50662827463100050242 * __builtin_exp(0.5 * x * x + lp);
    x -= u / (1 + 0.5 * x * u);
  }
  return x;
}
static inline double ndtri(double p) {
  if (p == 0) return -inf;
  if (p == 1) return inf;
  if (!(p > 0 && p < 1)) return nan;
  return p <= 0.5 ? ndtri_lower(p) : -ndtri_lower(1 - p);
}
static inline double erfinv(double y) {
  double a = fabs(y);
  if (a == 1) return y * inf;
  if (!(a < 1)) return nan;
  if (a < 0.5) { /* Newton with a third-order term from the series' start */
    double z = a * a;
    double x = 0.88622692545275801365 * a * (1 + z * (0.26179938779914943654 + z * (0.14393173084921977 + z * 0.0976636)));
    for (int k = 0; k < 3; k++) {
      double f = (__builtin_erf(x) - a) * 0.88622692545275801365 * __builtin_exp(x * x);
      x -= f / (1 + x * f);
    }
    return y < 0 ? -x : x;
  }
  double x = -ndtri_lower(0.5 * (1 - a)) * sqrt_half;
  return y < 0 ? -x : x;
}

/* ---- gamma family ---- */

static inline double log_gamma(double x) {
  int sign;
  return lgamma_r(x, &sign);
}
/* Recurrence up to 10, then the asymptotic series; reflection for negative x. */
static inline double digamma(double x) {
  if (x == 0) return __builtin_copysign(inf, -x);
  double shift = 0;
  if (x < 0) {
    if (whole(x)) return nan; /* -inf too */
    double frac = x - __builtin_trunc(x);
    shift = -pi / __builtin_tan(pi * frac);
    x = 1 - x;
  }
  while (x < 10) {
    shift -= 1 / x;
    x += 1;
  }
  double z = 1 / (x * x);
  double tail = z * (1.0 / 12 - z * (1.0 / 120 - z * (1.0 / 252 - z * (1.0 / 240 - z * (1.0 / 132 - z * (691.0 / 32760 - z / 12))))));
  if (x > 1e17) tail = 0;
  return __builtin_log(x) - 0.5 / x - tail + shift;
}
/* Hurwitz's zeta(x, q) by Euler and Maclaurin's formula. */
static inline double zeta(double x, double q) {
  constexpr double bernoulli[] = {/* B_2j / (2j)! */
                                  1.0 / 12,           -1.0 / 720,         1.0 / 30240,        -1.0 / 1209600,
                                  1.0 / 47900160,     -5.2841901386874932e-10, 1.3382536530684679e-11,
                                  -3.3896802963225829e-13, 8.5860620562778446e-15, -2.1748686985580619e-16};
  if (x == 1) return inf;
  if (x < 1) return nan;
  if (q <= 0) {
    if (whole(q)) return inf;
    if (!whole(x)) return nan;
  }
  if (x != x || q != q || q == inf) return nan;
  if (q > 1e9) return (1 / (x - 1) + 1 / (2 * q)) * __builtin_pow(q, 1 - x);
  double sum = 0, a = q;
  double start = 10 + 0.7 * (x < 1e6 ? x : 1e6); /* from where the correction terms fall fast enough */
  while (a < start) {
    double t = __builtin_pow(a, -x);
    sum += t;
    a += 1;
    if (a > 1 && fabs(t) * (1 + a / (x - 1)) < eps * 0.25 * fabs(sum)) return sum;
  }
  double p = __builtin_pow(a, -x), term = x * p / a, z = 1 / (a * a);
  double tail = 0;
  for (int j = 0; j < 10; j++) {
    tail += bernoulli[j] * term;
    term *= (x + 2 * j + 1) * (x + 2 * j + 2) * z;
  }
  return sum + p * a / (x - 1) + 0.5 * p + tail;
}
/* log(1 + t) - t without cancellation. */
static inline double log1pmx(double t) {
  if (fabs(t) > 0.5) return __builtin_log1p(t) - t;
  double term = t, sum = 0;
  for (int k = 2; k < 80; k++) {
    term *= -t;
    double d = term / k;
    sum += d;
    if (fabs(d) < 1e-18 * fabs(sum)) break;
  }
  return sum;
}
/* x^a e^-x / Gamma(a + 1). */
static inline double gamma_prefix(double a, double x) {
  if (a < 20) return __builtin_exp(a * __builtin_log(x) - x - log_gamma(a + 1));
  double z = 1 / (a * a);
  double stirling = (1.0 / 12 - z * (1.0 / 360 - z * (1.0 / 1260 - z * (1.0 / 1680 - z / 1188)))) / a;
  return __builtin_exp(a * log1pmx((x - a) / a) - stirling) / __builtin_sqrt(2 * pi * a);
}
/* The regularised incomplete gamma functions: P (lower) by its power series where x <= a + 1, Q (upper) by Legendre's
 * continued fraction (modified Lentz) beyond. Both need about 10 sqrt(a) steps around x = a. */
static inline double gamma_pq(double a, double x, bool upper) {
  double prefix = gamma_prefix(a, x);
  double steps = 200 + 20 * __builtin_sqrt(a);
  if (x <= a + 1) {
    double term = 1, sum = 1;
    for (double k = 1; k < steps; k += 1) {
      term *= x / (a + k);
      sum += term;
      if (term < sum * (eps * 0.25)) break;
    }
    double p = prefix * sum;
    if (!upper) return p < 1 ? p : 1;
    if (a < 1 && x < 0.5) { /* Q for small a, x: 1 - P cancels; 1 - x^a / Gamma(a+1) + x^a/Gamma(a+1) (1 - e^-x sum) */
      double lg = a * __builtin_log(x) - log_gamma(a + 1);
      double head = -__builtin_expm1(lg), t = 1, s = 0;
      for (int k = 1; k < 60; k++) { /* x^a/Gamma(a) sum_{k>=1} (-x)^k / (k! (a + k)), with a factor a */
        t *= -x / k;
        s += t / (a + k);
        if (fabs(t) < 1e-18) break;
      }
      return head - __builtin_exp(lg) * a * s;
    }
    return 1 - p;
  }
  double b = x + 1 - a, c = 1e300, d = 1 / b, h = d;
  for (double k = 1; k < steps; k += 1) {
    double an = -k * (k - a);
    b += 2;
    d = an * d + b;
    d = fabs(d) < 1e-300 ? 1e-300 : d;
    c = b + an / c;
    c = fabs(c) < 1e-300 ? 1e-300 : c;
    d = 1 / d;
    double m = d * c;
    h *= m;
    if (fabs(m - 1) < eps) break;
  }
  double q = prefix * a * h;
  return upper ? q : 1 - q;
}
static inline double igamma_either(double a, double x, bool upper) {
  if (a < 0 || x < 0) return nan;
  if (a == 0) return x > 0 ? (upper ? 0 : 1) : nan;
  if (x == 0) return upper ? 1 : 0;
  if (a == inf) return x == inf ? nan : (upper ? 1 : 0);
  if (x == inf) return upper ? 0 : 1;
  if (a != a || x != x) return nan;
  return gamma_pq(a, x, upper);
}

/* ---- orthogonal polynomials by their recurrences, in the operands' own type; the degree is truncated to an integer ---- */

/* p_0 = 1, p_1 = first, p_{k+1} = step(k, p_k, p_{k-1}); stops at NaN. */
template <class T, class F>
static inline T recurrence(int64_t n, T first, F step) {
  if (n == 0) return (T)1;
  T p = (T)1, q = first;
  for (int64_t k = 1; k < n && q == q; k++) {
    T r = step((T)k, q, p);
    p = q;
    q = r;
  }
  return q;
}
static inline int64_t degree(double n) { return n != n ? -1 : (fabs(n) > 4e18 ? (n > 0 ? 1 : -1) * (int64_t)4e18 : (int64_t)n); }

enum class Cheb { t, u, v, w };

/* The four kinds at argument x, |x| <= 1 by angles for high degrees; the ends and the outside by recurrence. */
template <Cheb Kind, class T>
static inline T chebyshev(T x, int64_t n, int64_t angle_above) {
  if (n < 0) return (T)0;
  bool even = n % 2 == 0;
  if (x == (T)1 || x == (T)-1) {
    bool right = x > 0;
    T wide = (T)(n + n + 1);
    switch (Kind) {
      case Cheb::t: return right || even ? (T)1 : (T)-1;
      case Cheb::u: return right || even ? (T)(n + 1) : (T)-(n + 1);
      case Cheb::v: return right ? (T)1 : (even ? wide : -wide);
      case Cheb::w: return right ? wide : (even ? (T)1 : (T)-1);
    }
  }
  if (n > angle_above && x > -1 && x < 1) {
    double theta = __builtin_acos((double)x), m = (double)n;
    switch (Kind) {
      case Cheb::t: return (T)__builtin_cos(m * theta);
      case Cheb::u: return (T)(__builtin_sin((m + 1) * theta) / __builtin_sin(theta));
      case Cheb::v: return (T)(__builtin_cos((m + 0.5) * theta) / __builtin_cos(0.5 * theta));
      case Cheb::w: return (T)(__builtin_sin((m + 0.5) * theta) / __builtin_sin(0.5 * theta));
    }
  }
  T twice = x + x;
  T first = Kind == Cheb::t ? x : Kind == Cheb::u ? twice : Kind == Cheb::v ? twice - (T)1 : twice + (T)1;
  return recurrence<T>(n, first, [twice](T, T q, T p) { return twice * q - p; });
}
template <class T>
constexpr int64_t hermite_limit = sizeof(T) == 4 ? 128 : 512;

}  // namespace sf

namespace op {

#define EFFC_SPECIAL_1(name, expr)                                  \
  static inline double name(double x) { return expr; }                \
  static inline float name(float x) { return (float)name((double)x); }
#define EFFC_SPECIAL_2(name, expr)                                                              \
  static inline double name(double x, double y) { return expr; }                                  \
  static inline float name(float x, float y) { return (float)name((double)x, (double)y); }

EFFC_SPECIAL_1(erfinv, sf::erfinv(x))
EFFC_SPECIAL_1(digamma, sf::digamma(x))
EFFC_SPECIAL_1(i0, sf::i0(x))
EFFC_SPECIAL_1(i0e, sf::i0e(x))
EFFC_SPECIAL_1(i1, sf::i1(x))
EFFC_SPECIAL_1(i1e, sf::i1e(x))
EFFC_SPECIAL_1(bessel_j0, sf::j0(x))
EFFC_SPECIAL_1(bessel_j1, sf::j1(x))
EFFC_SPECIAL_1(bessel_y0, sf::y0(x))
EFFC_SPECIAL_1(bessel_y1, sf::y1(x))
EFFC_SPECIAL_1(modified_bessel_i0, sf::i0(x))
EFFC_SPECIAL_1(modified_bessel_i1, sf::i1(x))
EFFC_SPECIAL_1(modified_bessel_k0, sf::k0(x, false))
EFFC_SPECIAL_1(modified_bessel_k1, sf::k1(x, false))
EFFC_SPECIAL_1(scaled_modified_bessel_k0, sf::k0(x, true))
EFFC_SPECIAL_1(scaled_modified_bessel_k1, sf::k1(x, true))
EFFC_SPECIAL_1(spherical_bessel_j0, sf::spherical_j0(x))
EFFC_SPECIAL_1(airy_ai, sf::airy_ai(x))
EFFC_SPECIAL_1(ndtri, sf::ndtri(x))
EFFC_SPECIAL_1(log_ndtr, sf::log_ndtr(x))
EFFC_SPECIAL_1(erfcx, sf::erfcx(x))
EFFC_SPECIAL_2(igamma, sf::igamma_either(x, y, false))
EFFC_SPECIAL_2(igammac, sf::igamma_either(x, y, true))
EFFC_SPECIAL_2(zeta, sf::zeta(x, y))

#define EFFC_POLYNOMIAL(name, expr) \
  template <class T>                \
  static inline T name(T x, T degree) { \
    int64_t n = sf::degree((double)degree); \
    return expr;                    \
  }
EFFC_POLYNOMIAL(chebyshev_polynomial_t, (sf::chebyshev<sf::Cheb::t>(x, n, 6)))
EFFC_POLYNOMIAL(chebyshev_polynomial_u, (sf::chebyshev<sf::Cheb::u>(x, n, 8)))
EFFC_POLYNOMIAL(chebyshev_polynomial_v, (sf::chebyshev<sf::Cheb::v>(x, n, 8)))
EFFC_POLYNOMIAL(chebyshev_polynomial_w, (sf::chebyshev<sf::Cheb::w>(x, n, 8)))
EFFC_POLYNOMIAL(shifted_chebyshev_polynomial_t, (sf::chebyshev<sf::Cheb::t>(x + x - (T)1, n, 6)))
EFFC_POLYNOMIAL(shifted_chebyshev_polynomial_u, (sf::chebyshev<sf::Cheb::u>(x + x - (T)1, n, 6)))
EFFC_POLYNOMIAL(shifted_chebyshev_polynomial_v, (sf::chebyshev<sf::Cheb::v>(x + x - (T)1, n, 6)))
EFFC_POLYNOMIAL(shifted_chebyshev_polynomial_w, (sf::chebyshev<sf::Cheb::w>(x + x - (T)1, n, 6)))
EFFC_POLYNOMIAL(hermite_polynomial_h,
                (n < 0 ? (T)0 : n > sf::hermite_limit<T> ? (T)sf::nan
                     : sf::recurrence<T>(n, x + x, [x](T k, T q, T p) { return 2 * x * q - 2 * k * p; })))
EFFC_POLYNOMIAL(hermite_polynomial_he,
                (n < 0 ? (T)0 : n > sf::hermite_limit<T> ? (T)sf::nan
                     : sf::recurrence<T>(n, x, [x](T k, T q, T p) { return x * q - k * p; })))
EFFC_POLYNOMIAL(laguerre_polynomial_l,
                (n < 0 ? (T)0 : x == (T)0 ? (T)1
                     : sf::recurrence<T>(n, (T)1 - x, [x](T k, T q, T p) {
                         return ((k + k + ((T)1 - x)) * q - k * p) / (k + 1);
                       })))
EFFC_POLYNOMIAL(legendre_polynomial_p,
                (n < 0 ? (T)0 : x == (T)1 || x == (T)-1 ? (x > 0 || n % 2 == 0 ? (T)1 : (T)-1)
                     : sf::recurrence<T>(n, x, [x](T k, T q, T p) {
                         return ((k + k + 1) * x * q - k * p) / (k + 1);
                       })))
#undef EFFC_SPECIAL_1
#undef EFFC_SPECIAL_2
#undef EFFC_POLYNOMIAL

}  // namespace op
}  // namespace effc
#endif
