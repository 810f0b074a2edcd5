/* LU with partial pivoting, what is made of it, triangular systems and Cholesky.
 *
 * Textbook algorithms (Golub and Van Loan, chapters 3 and 4), column-oriented and unblocked; pivots and info are LAPACK's.
 */
#include "lu.hpp"

using namespace effc::la;

namespace {

template <class S>
void conjugate(Mat<S> a) {
  if constexpr (is_c<S>)
    for (int64_t j = 0; j < a.cols; j++)
      for (int64_t i = 0; i < a.rows; i++) a(i, j) = conj(a(i, j));
}

/* A copy of the triangle-carrying square matrix, transposed and conjugated as asked, column-major. */
template <class S, class W>
Mat<W> load_square(Mat<S> a, bool transpose, bool conjugated, Arena& arena) {
  Mat<W> w = columns(arena.take<W>(a.rows * a.cols), a.rows, a.cols);
  copy(transpose ? a.t() : a, w);
  if (conjugated) conjugate(w);
  return w;
}

int32_t singular(const effc_call* call, const char* what, int64_t which, int64_t info, const char* why) {
  call->api->fail(call, "%s: (Batch element %lld): %s (info %lld)", what, (long long)which, why, (long long)info);
  return 1;
}

}  // namespace

/* in A [.., m, n]; out LU [.., m, n], pivots i32 [.., min(m, n)], info i32 [..]; attrs pivot, check. Scratch 16 m n. */
EFFC_EXPORT int32_t effc_lu_factor(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor &a = call->in[0], &out = call->out[0], &piv = call->out[1], &info = call->out[2];
    const int64_t m = size_at(a, 2), n = size_at(a, 1), k = min_of(m, n);
    int64_t which = 0;
    const int64_t bad = for_batches(call, batches(a, 2), m * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = columns(arena.take<W>(m * n), m, n);
      int32_t* p = arena.take<int32_t>(k);
      copy(matrix<S>(a, b), w);
      const int64_t status = lu(w, p, call->attr[0] != 0);
      copy(w, matrix<S>(out, b));
      Mat<int32_t> pv = vector<int32_t>(piv, b);
      for (int64_t i = 0; i < k; i++) pv[i] = p[i];
      element<int32_t>(info, b) = (int32_t)status;
      return status;
    }, &which);
    if (bad && call->attr[1])
      return singular(call, "linalg", which, element<int32_t>(info, which),
                      "the diagonal element is zero, the matrix is singular");
    return 0;
  });
}

/* in LU [.., n, n], pivots, B [.., n, k] (left), [.., k, n] (right) or absent (identity); out X like B; attrs left, adjoint.
 * left: op(A) X = B, right: X op(A) = B. Scratch 16 (n n + n k) + 128. */
EFFC_EXPORT int32_t effc_lu_solve(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor &lu_t = call->in[0], &piv = call->in[1], &x = call->out[0];
    const bool left = call->attr[0] != 0, adjoint = call->attr[1] != 0, has_b = present(call, 2);
    const int64_t n = size_at(lu_t, 1), k = left ? size_at(x, 1) : size_at(x, 2);
    for_batches(call, batches(x, 2), n * n * (n + k), [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = load_square<S, W>(matrix<S>(lu_t, b), false, false, arena), wt = w.t();
      Mat<W> rhs = columns(arena.take<W>(n * k), n, k); /* right: X A = B is A^T X^T = B^T */
      if (has_b) {
        Mat<S> given = matrix<S>(call->in[2], b);
        copy(left ? given : given.t(), rhs);
      } else {
        fill(rhs, W(1), W(0));
      }
      Mat<int32_t> p = vector<int32_t>(piv, b);
      const bool transposed = adjoint == left; /* solve with A^T (right: with A^T unless adjoint, then conj A) */
      const bool conjugated = is_c<S> && adjoint;
      if (conjugated) conjugate(rhs); /* conj(A) x = b is A conj(x) = conj(b) */
      for (int64_t c = 0; c < k; c++) {
        W* v = &rhs(0, c);
        if (!transposed) {
          for (int64_t i = 0; i < n; i++) {
            W t = v[i];
            v[i] = v[p[i] - 1];
            v[p[i] - 1] = t;
          }
          triangular(w, false, true, v);
          triangular(w, true, false, v);
        } else {
          triangular(wt, false, false, v);
          triangular(wt, true, true, v);
          for (int64_t i = n - 1; i >= 0; i--) {
            W t = v[i];
            v[i] = v[p[i] - 1];
            v[p[i] - 1] = t;
          }
        }
      }
      if (conjugated) conjugate(rhs);
      Mat<S> result = matrix<S>(x, b);
      copy(rhs, left ? result : result.t());
      return 0;
    });
    return 0;
  });
}

/* in LU [.., n, n], pivots; out det [..], sign [..], log|det| real [..]. */
EFFC_EXPORT int32_t effc_lu_det(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor &lu_t = call->in[0], &piv = call->in[1];
    const int64_t n = size_at(lu_t, 1);
    for_batches(call, batches(lu_t, 2), n, [&](int64_t b, Arena&) -> int64_t {
      Mat<S> a = matrix<S>(lu_t, b);
      Mat<int32_t> p = vector<int32_t>(piv, b);
      W det = W(1), sign = W(1);
      double log_abs = 0;
      for (int64_t i = 0; i < n; i++) {
        const W d = cast<W>(a(i, i));
        const double m = mag(d);
        if (p[i] != i + 1) {
          det = -det;
          sign = -sign;
        }
        det *= d;
        sign *= m == 0 ? W(0) : d / m;
        log_abs += __builtin_log(m);
      }
      element<S>(call->out[0], b) = cast<S>(det);
      element<S>(call->out[1], b) = cast<S>(sign);
      element<Real<S>>(call->out[2], b) = (Real<S>)log_abs;
      return 0;
    });
    return 0;
  });
}

/* in LU [.., m, n], pivots; out P [.., m, m], L [.., m, k], U [.., k, n], k = min(m, n). Scratch 8 m. */
EFFC_EXPORT int32_t effc_lu_unpack(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    const effc_tensor &lu_t = call->in[0], &piv = call->in[1];
    const int64_t m = size_at(lu_t, 2), n = size_at(lu_t, 1), k = min_of(m, n);
    for_batches(call, batches(lu_t, 2), m * n, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<S> a = matrix<S>(lu_t, b), p = matrix<S>(call->out[0], b), l = matrix<S>(call->out[1], b);
      Mat<S> u = matrix<S>(call->out[2], b);
      Mat<int32_t> pv = vector<int32_t>(piv, b);
      int64_t* row = arena.take<int64_t>(m);
      for (int64_t i = 0; i < m; i++) row[i] = i;
      for (int64_t i = 0; i < k; i++) {
        int64_t t = row[i];
        row[i] = row[pv[i] - 1];
        row[pv[i] - 1] = t;
      }
      fill(p, S(0), S(0));
      for (int64_t i = 0; i < m; i++) p(row[i], i) = S(1);
      for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j++) l(i, j) = i == j ? S(1) : i > j ? a(i, j) : S(0);
      for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++) u(i, j) = i <= j ? a(i, j) : S(0);
      return 0;
    });
    return 0;
  });
}

/* in A [.., n, n], B [.., n, k] (left) or [.., k, n]; out X like B; attrs left, upper, unit, transpose (0 A, 1 A^T, 2 A^H).
 * left: op(A) X = B, right: X op(A) = B. Scratch 16 (n n + n k) + 128. */
EFFC_EXPORT int32_t effc_solve_triangular(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor &a = call->in[0], &rhs_t = call->in[1], &x = call->out[0];
    const bool left = call->attr[0] != 0, unit = call->attr[2] != 0;
    const bool transposed = (call->attr[3] != 0) == left, conjugated = call->attr[3] == 2;
    const bool upper = (call->attr[1] != 0) != transposed;
    const int64_t n = size_at(a, 1), k = left ? size_at(x, 1) : size_at(x, 2);
    for_batches(call, batches(x, 2), n * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> t = load_square<S, W>(matrix<S>(a, b), transposed, conjugated, arena);
      Mat<W> rhs = columns(arena.take<W>(n * k), n, k);
      Mat<S> given = matrix<S>(rhs_t, b), result = matrix<S>(x, b);
      copy(left ? given : given.t(), rhs);
      for (int64_t c = 0; c < k; c++) triangular(t, upper, unit, &rhs(0, c));
      copy(rhs, left ? result : result.t());
      return 0;
    });
    return 0;
  });
}

/* in A [.., n, n]; out L (or U: A = U^H U) with the other triangle zero, info i32 [..]; attrs upper, check. Only the triangle
 * that the result occupies is read. Scratch 16 n n. */
EFFC_EXPORT int32_t effc_cholesky(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor &a = call->in[0], &out = call->out[0], &info = call->out[1];
    const bool upper = call->attr[0] != 0;
    const int64_t n = size_at(a, 1);
    int64_t which = 0;
    const int64_t bad = for_batches(call, batches(a, 2), n * n * n, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = load_square<S, W>(matrix<S>(a, b), upper, upper, arena); /* always work on the lower triangle */
      int64_t status = 0;
      for (int64_t j = 0; j < n && !status; j++) {
        const double d = re(w(j, j));
        if (!(d > 0)) {
          status = j + 1;
          break;
        }
        const double r = root(d);
        w(j, j) = W(r);
        for (int64_t i = j + 1; i < n; i++) w(i, j) = w(i, j) / r;
        for (int64_t c = j + 1; c < n; c++) {
          const W f = conj(w(c, j));
          for (int64_t i = c; i < n; i++) w(i, c) -= w(i, j) * f;
        }
      }
      for (int64_t j = 1; j < n; j++)
        for (int64_t i = 0; i < j; i++) w(i, j) = W(0);
      if (upper) conjugate(w);
      Mat<S> result = matrix<S>(out, b);
      copy(w, upper ? result.t() : result);
      element<int32_t>(info, b) = (int32_t)status;
      return status;
    }, &which);
    if (bad && call->attr[1])
      return singular(call, "linalg.cholesky", which, element<int32_t>(info, which),
                      "the factorization could not be completed because the input is not positive-definite");
    return 0;
  });
}

/* in L [.., n, n] (or U), B [.., n, k] or absent (identity); out X with A X = B, A = L L^H; attrs upper. */
EFFC_EXPORT int32_t effc_cholesky_solve(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor &l = call->in[0], &x = call->out[0];
    const bool upper = call->attr[0] != 0;
    const int64_t n = size_at(l, 1), k = size_at(x, 1);
    for_batches(call, batches(x, 2), n * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = load_square<S, W>(matrix<S>(l, b), upper, upper, arena);
      Mat<W> h = load_square<S, W>(matrix<S>(l, b), !upper, !upper, arena);
      Mat<W> rhs = columns(arena.take<W>(n * k), n, k);
      if (present(call, 1))
        copy(matrix<S>(call->in[1], b), rhs);
      else
        fill(rhs, W(1), W(0));
      for (int64_t c = 0; c < k; c++) {
        triangular(w, false, false, &rhs(0, c));
        triangular(h, true, false, &rhs(0, c));
      }
      copy(rhs, matrix<S>(x, b));
      return 0;
    });
    return 0;
  });
}
