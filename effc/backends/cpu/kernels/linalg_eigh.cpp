/* Eigenvalues and vectors of symmetric and Hermitian matrices: Householder tridiagonalisation, then implicit QL or QR with
 * Wilkinson's shift (Golub and Van Loan, 8.3; the order of operations is that of LAPACK's sytd2 and steqr, so that the signs
 * of the vectors are too, at least up to the size where LAPACK divides and conquers). Works in the operand's precision. */
#include "rotations.hpp"

using namespace effc::la;

namespace {

/* Reduces the Hermitian a (lower triangle) to the tridiagonal d, e; reflectors are left below the subdiagonal. */
template <class S>
void tridiagonalise_lower(Mat<S> a, Real<S>* d, Real<S>* e, S* tau, S* w) {
  using R = Real<S>;
  const int64_t n = a.rows;
  if (n > 0) a(0, 0) = S(re(a(0, 0)));
  for (int64_t i = 0; i < n - 1; i++) {
    Mat<S> tail = below(a, i + 1, i);
    S t = reflector(a(i + 1, i), tail);
    e[i] = re(a(i + 1, i));
    if (t != S(0)) {
      a(i + 1, i) = S(1);
      const int64_t k = n - i - 1;
      Mat<S> b = a.sub(i + 1, i + 1, k, k);
      const S* v = &a(i + 1, i); /* contiguous: column-major */
      for (int64_t r = 0; r < k; r++) w[r] = S(0);
      for (int64_t c = 0; c < k; c++) { /* w = tau B v */
        S sum = S(re(b(c, c))) * v[c];
        for (int64_t r = c + 1; r < k; r++) {
          w[r] += b(r, c) * v[c];
          sum += conj(b(r, c)) * v[r];
        }
        w[c] += sum;
      }
      S dot = S(0);
      for (int64_t r = 0; r < k; r++) {
        w[r] *= t;
        dot += conj(w[r]) * v[r];
      }
      const S alpha = S(R(-0.5)) * t * dot;
      for (int64_t r = 0; r < k; r++) w[r] += alpha * v[r];
      for (int64_t c = 0; c < k; c++) {
        const S vc = conj(v[c]), wc = conj(w[c]);
        for (int64_t r = c; r < k; r++) b(r, c) -= v[r] * wc + w[r] * vc;
        b(c, c) = S(re(b(c, c)));
      }
      a(i + 1, i) = S(e[i]);
    }
    d[i] = re(a(i, i));
    tau[i] = t;
  }
  if (n > 0) d[n - 1] = re(a(n - 1, n - 1));
}

/* The same from the upper triangle, last column first (reflectors above the superdiagonal). */
template <class S>
void tridiagonalise_upper(Mat<S> a, Real<S>* d, Real<S>* e, S* tau, S* w) {
  using R = Real<S>;
  const int64_t n = a.rows;
  if (n > 0) a(n - 1, n - 1) = S(re(a(n - 1, n - 1)));
  for (int64_t i = n - 2; i >= 0; i--) {
    Mat<S> head{&a(0, i + 1), i, 1, a.rs, 0}; /* v = [head; 1] on rows 0 .. i */
    S t = reflector(a(i, i + 1), head);
    e[i] = re(a(i, i + 1));
    if (t != S(0)) {
      a(i, i + 1) = S(1);
      const int64_t k = i + 1;
      const S* v = &a(0, i + 1);
      for (int64_t r = 0; r < k; r++) w[r] = S(0);
      for (int64_t c = 0; c < k; c++) {
        S sum = S(re(a(c, c))) * v[c];
        for (int64_t r = 0; r < c; r++) {
          w[r] += a(r, c) * v[c];
          sum += conj(a(r, c)) * v[r];
        }
        w[c] += sum;
      }
      S dot = S(0);
      for (int64_t r = 0; r < k; r++) {
        w[r] *= t;
        dot += conj(w[r]) * v[r];
      }
      const S alpha = S(R(-0.5)) * t * dot;
      for (int64_t r = 0; r < k; r++) w[r] += alpha * v[r];
      for (int64_t c = 0; c < k; c++) {
        const S vc = conj(v[c]), wc = conj(w[c]);
        for (int64_t r = 0; r <= c; r++) a(r, c) -= v[r] * wc + w[r] * vc;
        a(c, c) = S(re(a(c, c)));
      }
      a(i, i + 1) = S(e[i]);
    }
    d[i + 1] = re(a(i + 1, i + 1));
    tau[i] = t;
  }
  if (n > 0) d[0] = re(a(0, 0));
}

/* Eigenvalues of the tridiagonal (d, e) in d, ascending; z, if it has columns, is multiplied by the rotations. c, s: work of n.
 * Returns 0, or the number of off-diagonals that did not converge. */
template <class S>
int64_t tridiagonal_eigen(int64_t n, Real<S>* d, Real<S>* e, Mat<S> z, Real<S>* c, Real<S>* s) {
  using R = Real<S>;
  constexpr R eps = machine<R>::eps, eps2 = eps * eps, tiny = machine<R>::safe_min;
  const bool vectors = z.cols > 0;
  const int64_t limit = n * 30;
  int64_t steps = 0;
  for (int64_t first = 0; first < n;) {
    if (first > 0) e[first - 1] = 0;
    int64_t m = first;
    for (; m < n - 1; m++) {
      const R t = mag(e[m]);
      if (t == 0) break;
      if (t <= root(mag(d[m])) * root(mag(d[m + 1])) * eps) {
        e[m] = 0;
        break;
      }
    }
    int64_t l = first, end = m;
    const int64_t block = first, block_end = m;
    first = m + 1;
    if (end == l) continue;
    R scale = 0;
    for (int64_t i = block; i <= block_end; i++) scale = max_of(scale, max_of(mag(d[i]), i < block_end ? mag(e[i]) : R(0)));
    if (scale == 0) continue;
    const R big = root(1 / tiny) / 3, small = root(tiny) / eps2;
    R factor = 1;
    if (scale > big) factor = big / scale;
    if (scale < small) factor = small / scale;
    if (factor != 1)
      for (int64_t i = block; i <= block_end; i++) {
        d[i] *= factor;
        if (i < block_end) e[i] *= factor;
      }
    if (mag(d[end]) < mag(d[l])) {
      l = block_end;
      end = block;
    }
    if (end > l) { /* QL: look for a small subdiagonal element below l */
      while (l <= end) {
        for (m = l; m < end; m++)
          if (e[m] * e[m] <= (eps2 * mag(d[m])) * mag(d[m + 1]) + tiny) break;
        if (m < end) e[m] = 0;
        R p = d[l];
        if (m == l) {
          l++;
          continue;
        }
        if (m == l + 1) {
          R rt1, rt2, cs, sn;
          symmetric_2x2(d[l], e[l], d[l + 1], &rt1, &rt2, &cs, &sn);
          if (vectors) rotate_columns(z.sub(0, l, z.rows, 2), &cs, &sn, 2, false);
          d[l] = rt1;
          d[l + 1] = rt2;
          e[l] = 0;
          l += 2;
          continue;
        }
        if (steps == limit) break;
        steps++;
        R g = (d[l + 1] - p) / (2 * e[l]), r = hypotenuse(g, R(1));
        g = d[m] - p + e[l] / (g + sign_of(r, g));
        R sn = 1, cs = 1;
        p = 0;
        for (int64_t i = m - 1; i >= l; i--) {
          const R f = sn * e[i], b = cs * e[i];
          rotation<true>(g, f, &cs, &sn, &r);
          if (i != m - 1) e[i + 1] = r;
          g = d[i + 1] - p;
          r = (d[i] - g) * sn + 2 * cs * b;
          p = sn * r;
          d[i + 1] = g + p;
          g = cs * r - b;
          c[i] = cs;
          s[i] = -sn;
        }
        if (vectors) rotate_columns(z.sub(0, l, z.rows, m - l + 1), c + l, s + l, m - l + 1, false);
        d[l] -= p;
        e[l] = g;
      }
    } else { /* QR: look above l */
      while (l >= end) {
        for (m = l; m > end; m--)
          if (e[m - 1] * e[m - 1] <= (eps2 * mag(d[m])) * mag(d[m - 1]) + tiny) break;
        if (m > end) e[m - 1] = 0;
        R p = d[l];
        if (m == l) {
          l--;
          continue;
        }
        if (m == l - 1) {
          R rt1, rt2, cs, sn;
          symmetric_2x2(d[l - 1], e[l - 1], d[l], &rt1, &rt2, &cs, &sn);
          if (vectors) rotate_columns(z.sub(0, l - 1, z.rows, 2), &cs, &sn, 2, true);
          d[l - 1] = rt1;
          d[l] = rt2;
          e[l - 1] = 0;
          l -= 2;
          continue;
        }
        if (steps == limit) break;
        steps++;
        R g = (d[l - 1] - p) / (2 * e[l - 1]), r = hypotenuse(g, R(1));
        g = d[m] - p + e[l - 1] / (g + sign_of(r, g));
        R sn = 1, cs = 1;
        p = 0;
        for (int64_t i = m; i < l; i++) {
          const R f = sn * e[i], b = cs * e[i];
          rotation<true>(g, f, &cs, &sn, &r);
          if (i != m) e[i - 1] = r;
          g = d[i] - p;
          r = (d[i + 1] - g) * sn + 2 * cs * b;
          p = sn * r;
          d[i] = g + p;
          g = cs * r - b;
          c[i] = cs;
          s[i] = sn;
        }
        if (vectors) rotate_columns(z.sub(0, m, z.rows, l - m + 1), c + m, s + m, l - m + 1, true);
        d[l] -= p;
        e[l - 1] = g;
      }
    }
    if (factor != 1)
      for (int64_t i = block; i <= block_end; i++) {
        d[i] /= factor;
        if (i < block_end) e[i] /= factor;
      }
    if (steps == limit) {
      int64_t left = 0;
      for (int64_t i = 0; i < n - 1; i++) left += e[i] != 0;
      return left;
    }
  }
  for (int64_t i = 0; i < n - 1; i++) { /* selection sort: few exchanges of vectors */
    int64_t k = i;
    for (int64_t j = i + 1; j < n; j++)
      if (d[j] < d[k]) k = j;
    if (k == i) continue;
    const R t = d[i];
    d[i] = d[k];
    d[k] = t;
    if (vectors)
      for (int64_t r = 0; r < z.rows; r++) {
        const S u = z(r, i);
        z(r, i) = z(r, k);
        z(r, k) = u;
      }
  }
  return 0;
}

}  // namespace

/* in A [.., n, n]; out w [.., n] real, ascending, and V [.., n, n] if there are two results; attrs lower: the triangle that is
 * read. Scratch 16 (2 n n + 8 n) + 1024. */
EFFC_EXPORT int32_t effc_eigh(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using R = Real<S>;
    const effc_tensor& a = call->in[0];
    const int64_t n = size_at(a, 1);
    const bool lower = call->attr[0] != 0, vectors = call->n_out > 1;
    int64_t which = 0;
    const int64_t bad = for_batches(call, batches(a, 2), 10 * n * n * n, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<S> w = columns(arena.take<S>(n * n), n, n);
      R *d = arena.take<R>(n), *e = arena.take<R>(n), *c = arena.take<R>(n), *s = arena.take<R>(n);
      S *tau = arena.take<S>(n), *work = arena.take<S>(n);
      copy(matrix<S>(a, b), w);
      bool finite = true; /* only the triangle that is read */
      for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < n; i++)
          if (lower ? i >= j : i <= j) finite = finite && mag1(w(i, j)) <= mag1(w(i, j)) && mag1(w(i, j)) < __builtin_inf();
      if (!finite) return n + 1;
      for (int64_t j = 0; j < n; j++) /* the other triangle may hold anything */
        for (int64_t i = 0; i < n; i++)
          if (lower ? i < j : i > j) w(i, j) = S(0);
      const R factor = normalise_range(w);
      if (lower)
        tridiagonalise_lower(w, d, e, tau, work);
      else
        tridiagonalise_upper(w, d, e, tau, work);
      Mat<S> z = columns(arena.take<S>(vectors ? n * n : 0), n, vectors ? n : 0);
      fill(z, S(1), S(0));
      const int64_t status = tridiagonal_eigen(n, d, e, z, c, s);
      Mat<R> values = vector<R>(call->out[0], b);
      for (int64_t i = 0; i < n; i++) values[i] = factor == 1 ? d[i] : d[i] / factor;
      if (vectors) {
        if (lower) {
          apply_q(w, tau, n - 1, z, 1);
        } else {
          for (int64_t i = 0; i < n - 1; i++) { /* Q = H_{n-2} ... H_0, v = [head; 1] on rows 0 .. i: rows reversed */
            Mat<S> rows{&z(i, 0), i + 1, n, -z.rs, z.cs};
            Mat<S> tail{i > 0 ? &w(i - 1, i + 1) : &w(0, i + 1), i, 1, -w.rs, 0};
            reflect_left(rows, tail, tau[i]);
          }
        }
        copy(z, matrix<S>(call->out[1], b));
      }
      return status;
    }, &which);
    if (bad) {
      call->api->fail(call, "linalg.eigh: (Batch element %lld): The algorithm failed to converge because the input matrix is "
                      "ill-conditioned or not finite", (long long)which);
      return 1;
    }
    return 0;
  });
}
