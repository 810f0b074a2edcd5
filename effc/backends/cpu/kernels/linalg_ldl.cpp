/* The symmetric indefinite (or Hermitian) factorisation A = L D L^T of Bunch and Kaufman (1977) and systems solved with it.
 * D has blocks of order 1 and 2; the packed form and the pivots are LAPACK's (sytf2, hetf2, lower triangle). */
#include "linalg.hpp"

using namespace effc::la;

namespace {

template <class S>
S turned(S x, bool hermitian) { return hermitian ? conj(x) : x; }

/* In place on the lower triangle; piv as LAPACK's ipiv. Returns info. */
template <class S>
int64_t ldl(Mat<S> a, int32_t* piv, bool hermitian) {
  using R = Real<S>;
  const int64_t n = a.rows;
  const R alpha = (1 + root(R(17))) / 8;
  auto diag = [&](int64_t i) { return hermitian ? mag(re(a(i, i))) : mag1(a(i, i)); };
  auto real_diag = [&](int64_t i) {
    if (hermitian) a(i, i) = S(re(a(i, i)));
  };
  int64_t info = 0;
  for (int64_t k = 0; k < n;) {
    int64_t step = 1, kp = k, imax = k;
    const R akk = diag(k);
    R colmax = 0;
    for (int64_t i = k + 1; i < n; i++)
      if (mag1(a(i, k)) > colmax) {
        colmax = mag1(a(i, k));
        imax = i;
      }
    if (!(max_of(akk, colmax) > 0)) {
      if (info == 0) info = k + 1;
      real_diag(k);
    } else {
      if (akk < alpha * colmax) {
        R rowmax = 0;
        for (int64_t j = k; j < imax; j++) rowmax = max_of(rowmax, mag1(a(imax, j)));
        for (int64_t i = imax + 1; i < n; i++) rowmax = max_of(rowmax, mag1(a(i, imax)));
        if (akk >= alpha * colmax * (colmax / rowmax)) {
          kp = k;
        } else if (diag(imax) >= alpha * rowmax) {
          kp = imax;
        } else {
          kp = imax;
          step = 2;
        }
      }
      const int64_t kk = k + step - 1;
      if (kp != kk) {
        for (int64_t i = kp + 1; i < n; i++) {
          const S t = a(i, kk);
          a(i, kk) = a(i, kp);
          a(i, kp) = t;
        }
        for (int64_t j = kk + 1; j < kp; j++) {
          const S t = turned(a(j, kk), hermitian);
          a(j, kk) = turned(a(kp, j), hermitian);
          a(kp, j) = t;
        }
        a(kp, kk) = turned(a(kp, kk), hermitian);
        const S t = a(kk, kk);
        a(kk, kk) = a(kp, kp);
        a(kp, kp) = t;
        real_diag(kk);
        real_diag(kp);
        if (step == 2) {
          real_diag(k);
          const S u = a(k + 1, k);
          a(k + 1, k) = a(kp, k);
          a(kp, k) = u;
        }
      } else {
        real_diag(k);
        if (step == 2) real_diag(k + 1);
      }
      if (step == 1) {
        const S d = S(1) / a(k, k);
        for (int64_t j = k + 1; j < n; j++) {
          const S f = turned(a(j, k), hermitian) * d;
          for (int64_t i = j; i < n; i++) a(i, j) -= a(i, k) * f;
          real_diag(j);
        }
        for (int64_t i = k + 1; i < n; i++) a(i, k) *= d;
      } else if (k < n - 2) {
        const S d21 = a(k + 1, k), d12 = turned(d21, hermitian);
        const S d11 = a(k + 1, k + 1) / d21, d22 = a(k, k) / d12; /* rows of the inverse of the 2 by 2 block */
        const S t = S(1) / (d11 * d22 - S(1));
        for (int64_t j = k + 2; j < n; j++) {
          const S x = a(j, k), y = a(j, k + 1);
          const S wk = t * (d11 * x - y) / d12, wk1 = t * (d22 * y - x) / d21;
          const S fk = turned(wk, hermitian), fk1 = turned(wk1, hermitian);
          for (int64_t i = j; i < n; i++) a(i, j) -= a(i, k) * fk + a(i, k + 1) * fk1;
          a(j, k) = wk;
          a(j, k + 1) = wk1;
          real_diag(j);
        }
      }
    }
    if (step == 1) {
      piv[k] = (int32_t)(kp + 1);
    } else {
      piv[k] = piv[k + 1] = (int32_t)-(kp + 1);
    }
    k += step;
  }
  return info;
}

template <class S>
void swap_entries(S* b, int64_t i, int64_t j) {
  const S t = b[i];
  b[i] = b[j];
  b[j] = t;
}

template <class S>
void ldl_solve(Mat<S> a, Mat<int32_t> piv, bool hermitian, S* b) {
  const int64_t n = a.rows;
  for (int64_t k = 0; k < n;) {
    if (piv[k] > 0) {
      swap_entries(b, k, (int64_t)piv[k] - 1);
      for (int64_t i = k + 1; i < n; i++) b[i] -= a(i, k) * b[k];
      b[k] = b[k] / (hermitian ? S(re(a(k, k))) : a(k, k));
      k++;
    } else {
      swap_entries(b, k + 1, (int64_t)-piv[k] - 1);
      for (int64_t i = k + 2; i < n; i++) b[i] -= a(i, k) * b[k] + a(i, k + 1) * b[k + 1];
      const S low = a(k + 1, k), up = turned(low, hermitian), p = a(k, k) / up, q = a(k + 1, k + 1) / low;
      const S den = p * q - S(1), x = b[k] / up, y = b[k + 1] / low;
      b[k] = (q * x - y) / den;
      b[k + 1] = (p * y - x) / den;
      k += 2;
    }
  }
  for (int64_t k = n - 1; k >= 0;) {
    const int64_t width = piv[k] > 0 ? 1 : 2;
    for (int64_t c = k; c > k - width; c--)
      for (int64_t i = k + 1; i < n; i++) b[c] -= turned(a(i, c), hermitian) * b[i];
    swap_entries(b, k, (int64_t)(piv[k] > 0 ? piv[k] : -piv[k]) - 1);
    k -= width;
  }
}

}  // namespace

/* in A [.., n, n], lower triangle; out LD (zero above), pivots i32 [.., n], info i32 [..]; attrs hermitian, check. */
EFFC_EXPORT int32_t effc_ldl_factor(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor& a = call->in[0];
    const int64_t n = size_at(a, 1);
    int64_t which = 0;
    const int64_t bad = for_batches(call, batches(a, 2), n * n * n, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = columns(arena.take<W>(n * n), n, n);
      int32_t* p = arena.take<int32_t>(n);
      copy(matrix<S>(a, b), w);
      for (int64_t j = 1; j < n; j++)
        for (int64_t i = 0; i < j; i++) w(i, j) = W(0);
      const int64_t status = ldl(w, p, is_c<S> && call->attr[0] != 0);
      copy(w, matrix<S>(call->out[0], b));
      Mat<int32_t> pv = vector<int32_t>(call->out[1], b);
      for (int64_t i = 0; i < n; i++) pv[i] = p[i];
      element<int32_t>(call->out[2], b) = (int32_t)status;
      return status;
    }, &which);
    if (bad && call->attr[1]) {
      call->api->fail(call, "linalg.ldl_factor: (Batch element %lld): D is exactly zero at position %d, the matrix is singular",
                      (long long)which, (int)element<int32_t>(call->out[2], which));
      return 1;
    }
    return 0;
  });
}

/* in LD [.., n, n], pivots, B [.., n, k]; out X; attrs hermitian. */
EFFC_EXPORT int32_t effc_ldl_solve(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor& x = call->out[0];
    const int64_t n = size_at(x, 2), k = size_at(x, 1);
    for_batches(call, batches(x, 2), n * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = columns(arena.take<W>(n * n), n, n), rhs = columns(arena.take<W>(n * k), n, k);
      copy(matrix<S>(call->in[0], b), w);
      copy(matrix<S>(call->in[2], b), rhs);
      for (int64_t c = 0; c < k; c++)
        ldl_solve(w, vector<int32_t>(call->in[1], b), is_c<S> && call->attr[0] != 0, &rhs(0, c));
      copy(rhs, matrix<S>(x, b));
      return 0;
    });
    return 0;
  });
}
