/* Householder reflectors H = I - tau v v^H with v[0] = 1, by LAPACK's conventions (larfg, larf, orgqr). */
#ifndef EFFC_HOUSEHOLDER_HPP
#define EFFC_HOUSEHOLDER_HPP
#include "linalg.hpp"

namespace effc {
namespace la {

inline float hypotenuse(float a, float b) { return __builtin_hypotf(a, b); }
inline double hypotenuse(double a, double b) { return __builtin_hypot(a, b); }

/* The 2-norm, scaled where squares could leave the range. */
template <class S>
Real<S> norm(Mat<S> x) {
  using R = Real<S>;
  R sum = 0, big = 0;
  for (int64_t i = 0; i < x.rows; i++) {
    sum += norm2(x[i]);
    big = max_of(big, max_of(mag(re(x[i])), mag(im(x[i]))));
  }
  if (sum > machine<R>::safe_min / machine<R>::ulp && sum < 1 / machine<R>::safe_min) return root(sum);
  if (!(big > 0) || big > 1 / machine<R>::safe_min) return is_nan(sum) ? sum : big;
  sum = 0;
  for (int64_t i = 0; i < x.rows; i++) sum += norm2(x[i] * (1 / big));
  return big * root(sum);
}

/* H^H [alpha; x] = [beta; 0]: alpha becomes the real beta, x the tail of v; returns tau. x is a column vector. */
template <class S>
S reflector(S& alpha, Mat<S> x) {
  using R = Real<S>;
  const R tail = norm(x);
  if (tail == 0 && im(alpha) == 0) return S(0);
  const R length = is_c<S> ? hypotenuse(hypotenuse(re(alpha), im(alpha)), tail) : hypotenuse(re(alpha), tail);
  const R beta = -sign_of(length, re(alpha));
  S tau;
  if constexpr (is_c<S>)
    tau = S((beta - alpha.re) / beta, -alpha.im / beta);
  else
    tau = (beta - alpha) / beta;
  const S scale = S(1) / (alpha - S(beta));
  for (int64_t i = 0; i < x.rows; i++) x[i] *= scale;
  alpha = S(beta);
  return tau;
}

/* A = (I - tau v v^H) A, v = [1; tail]; A has one row more than tail. */
template <class S>
void reflect_left(Mat<S> a, Mat<S> tail, S tau) {
  if (tau == S(0)) return;
  for (int64_t j = 0; j < a.cols; j++) {
    S dot = a(0, j);
    for (int64_t i = 0; i < tail.rows; i++) dot += conj(tail[i]) * a(i + 1, j);
    dot *= tau;
    a(0, j) -= dot;
    for (int64_t i = 0; i < tail.rows; i++) a(i + 1, j) -= tail[i] * dot;
  }
}
/* A = A (I - tau v v^H). */
template <class S>
void reflect_right(Mat<S> a, Mat<S> tail, S tau) {
  if (tau == S(0)) return;
  for (int64_t i = 0; i < a.rows; i++) {
    S dot = a(i, 0);
    for (int64_t j = 0; j < tail.rows; j++) dot += a(i, j + 1) * tail[j];
    dot *= tau;
    a(i, 0) -= dot;
    for (int64_t j = 0; j < tail.rows; j++) a(i, j + 1) -= dot * conj(tail[j]);
  }
}

/* The part of column j below row i, as a vector. */
template <class S>
Mat<S> below(Mat<S> a, int64_t i, int64_t j) { return Mat<S>{a.p + (i + 1) * a.rs + j * a.cs, a.rows - i - 1, 1, a.rs, 0}; }
template <class S>
Mat<S> right_of(Mat<S> a, int64_t i, int64_t j) { return below(a.t(), j, i); }

/* A = Q R in place: R above, reflectors below the diagonal. */
template <class S>
void qr_factor(Mat<S> a, S* tau) {
  const int64_t k = min_of(a.rows, a.cols);
  for (int64_t j = 0; j < k; j++) {
    Mat<S> v = below(a, j, j);
    tau[j] = reflector(a(j, j), v);
    reflect_left(a.sub(j, j + 1, a.rows - j, a.cols - j - 1), v, conj(tau[j]));
  }
}
/* q = H_0 ... H_{k-1} q; the reflectors are in the columns of v below the diagonal shifted down by `shift`. */
template <class S>
void apply_q(Mat<S> v, const S* tau, int64_t k, Mat<S> q, int64_t shift = 0) {
  for (int64_t j = k - 1; j >= 0; j--)
    reflect_left(q.sub(j + shift, 0, q.rows - j - shift, q.cols), below(v, j + shift, j), tau[j]);
}
/* q = (H_0 ... H_{k-1})^H q */
template <class S>
void apply_q_adjoint(Mat<S> v, const S* tau, int64_t k, Mat<S> q) {
  for (int64_t j = 0; j < k; j++) reflect_left(q.sub(j, 0, q.rows - j, q.cols), below(v, j, j), conj(tau[j]));
}

}  // namespace la
}  // namespace effc
#endif
