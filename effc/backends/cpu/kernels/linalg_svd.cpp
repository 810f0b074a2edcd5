/* Singular value decomposition: Householder bidiagonalisation, then implicit QR with Demmel and Kahan's zero shift (Accurate
 * Singular Values of Bidiagonal Matrices, 1990). The order of operations is that of LAPACK's gesdd, gebd2 and bdsqr, so that
 * the signs of the vectors are too, at least up to the size where LAPACK divides and conquers. Works in the operand's precision. */
#include "rotations.hpp"

using namespace effc::la;

namespace {

/* The singular values of the bidiagonal (d, e), upper, in d, descending; vt (rows) and u (columns) are multiplied by the
 * rotations where they have rows. work: 4 n. Returns 0, or the number of superdiagonals that did not converge. */
template <class S>
int64_t bidiagonal_svd(int64_t n, Real<S>* d, Real<S>* e, Mat<S> vt, Mat<S> u, Real<S>* work) {
  using R = Real<S>;
  constexpr R eps = machine<R>::eps, tiny = machine<R>::safe_min;
  Mat<S> v = vt.t(); /* so that both are rotated by columns */
  auto finish = [&]() -> int64_t {
    for (int64_t i = 0; i < n; i++)
      if (d[i] < 0) {
        d[i] = -d[i];
        for (int64_t r = 0; r < v.rows; r++) v(r, i) = -v(r, i);
      } else {
        d[i] = mag(d[i]); /* -0 */
      }
    for (int64_t i = 0; i < n - 1; i++) { /* descending, few exchanges */
      int64_t k = 0;
      const int64_t last = n - 1 - i;
      for (int64_t j = 1; j <= last; j++)
        if (d[j] <= d[k]) k = j;
      if (k == last) continue;
      R t = d[k];
      d[k] = d[last];
      d[last] = t;
      for (int64_t r = 0; r < v.rows; r++) {
        S x = v(r, k);
        v(r, k) = v(r, last);
        v(r, last) = x;
      }
      for (int64_t r = 0; r < u.rows; r++) {
        S x = u(r, k);
        u(r, k) = u(r, last);
        u(r, last) = x;
      }
    }
    return 0;
  };
  if (n <= 1) return finish();
  R *cr = work, *sr = work + n, *cl = work + 2 * n, *sl = work + 3 * n;
  const R tolmul = max_of(R(10), min_of(R(100), (R)__builtin_pow((double)eps, -0.125))), tol = tolmul * eps;
  R least = mag(d[0]);
  if (least != 0) {
    R mu = least;
    for (int64_t i = 1; i < n; i++) {
      mu = mag(d[i]) * (mu / (mu + mag(e[i - 1])));
      least = min_of(least, mu);
      if (least == 0) break;
    }
  }
  const int64_t limit = 6 * n * n;
  const R thresh = max_of(tol * (least / root((R)n)), (R)limit * tiny);
  int64_t iter = 0, old_ll = -1, old_m = -1, m = n - 1; /* the active block is ll .. m */
  int direction = 0;
  while (m > 0) {
    if (iter > limit) {
      int64_t left = 0;
      for (int64_t i = 0; i < n - 1; i++) left += e[i] != 0;
      return left;
    }
    R smax = mag(d[m]);
    int64_t ll = m - 1;
    for (; ll >= 0; ll--) {
      const R abse = mag(e[ll]);
      if (abse <= thresh) break;
      smax = max_of(smax, max_of(mag(d[ll]), abse));
    }
    if (ll >= 0) {
      e[ll] = 0;
      if (ll == m - 1) {
        m--;
        continue;
      }
    }
    ll++;
    if (ll == m - 1) {
      R small, big, sinr, cosr, sinl, cosl;
      svd_2x2(d[m - 1], e[m - 1], d[m], &small, &big, &sinr, &cosr, &sinl, &cosl);
      d[m - 1] = big;
      e[m - 1] = 0;
      d[m] = small;
      if (v.rows) rotate_columns(v.sub(0, m - 1, v.rows, 2), &cosr, &sinr, 2, true);
      if (u.rows) rotate_columns(u.sub(0, m - 1, u.rows, 2), &cosl, &sinl, 2, true);
      m -= 2;
      continue;
    }
    if (ll > old_m || m < old_ll || direction == 0) direction = mag(d[ll]) >= mag(d[m]) ? 1 : 2;
    R low = 0;
    bool split = false;
    if (direction == 1) {
      if (mag(e[m - 1]) <= tol * mag(d[m])) {
        e[m - 1] = 0;
        continue;
      }
      R mu = mag(d[ll]);
      low = mu;
      for (int64_t k = ll; k < m && !split; k++) {
        if (mag(e[k]) <= tol * mu) {
          e[k] = 0;
          split = true;
        } else {
          mu = mag(d[k + 1]) * (mu / (mu + mag(e[k])));
          low = min_of(low, mu);
        }
      }
    } else {
      if (mag(e[ll]) <= tol * mag(d[ll])) {
        e[ll] = 0;
        continue;
      }
      R mu = mag(d[m]);
      low = mu;
      for (int64_t k = m - 1; k >= ll && !split; k--) {
        if (mag(e[k]) <= tol * mu) {
          e[k] = 0;
          split = true;
        } else {
          mu = mag(d[k]) * (mu / (mu + mag(e[k])));
          low = min_of(low, mu);
        }
      }
    }
    if (split) continue;
    old_ll = ll;
    old_m = m;
    R shift = 0;
    if (!((R)n * tol * (low / smax) <= max_of(eps, R(0.01) * tol))) {
      const R top = direction == 1 ? mag(d[ll]) : mag(d[m]);
      shift = direction == 1 ? smaller_singular(d[m - 1], e[m - 1], d[m]) : smaller_singular(d[ll], e[ll], d[ll + 1]);
      if (top > 0 && (shift / top) * (shift / top) < eps) shift = 0;
    }
    iter += m - ll;
    const int64_t count = m - ll + 1;
    if (shift == 0 && direction == 1) {
      R cs = 1, oldcs = 1, sn = 0, oldsn = 0, r;
      for (int64_t i = ll; i < m; i++) {
        rotation(d[i] * cs, e[i], &cs, &sn, &r);
        if (i > ll) e[i - 1] = oldsn * r;
        rotation(oldcs * r, d[i + 1] * sn, &oldcs, &oldsn, &d[i]);
        cr[i - ll] = cs;
        sr[i - ll] = sn;
        cl[i - ll] = oldcs;
        sl[i - ll] = oldsn;
      }
      const R h = d[m] * cs;
      d[m] = h * oldcs;
      e[m - 1] = h * oldsn;
    } else if (shift == 0) {
      R cs = 1, oldcs = 1, sn = 0, oldsn = 0, r;
      for (int64_t i = m; i > ll; i--) {
        rotation(d[i] * cs, e[i - 1], &cs, &sn, &r);
        if (i < m) e[i] = oldsn * r;
        rotation(oldcs * r, d[i - 1] * sn, &oldcs, &oldsn, &d[i]);
        cl[i - ll - 1] = cs;
        sl[i - ll - 1] = -sn;
        cr[i - ll - 1] = oldcs;
        sr[i - ll - 1] = -oldsn;
      }
      const R h = d[ll] * cs;
      d[ll] = h * oldcs;
      e[ll] = h * oldsn;
    } else if (direction == 1) {
      R f = (mag(d[ll]) - shift) * (unit_sign(d[ll]) + shift / d[ll]), g = e[ll];
      for (int64_t i = ll; i < m; i++) {
        R cosr, sinr, cosl, sinl, r;
        rotation(f, g, &cosr, &sinr, &r);
        if (i > ll) e[i - 1] = r;
        f = cosr * d[i] + sinr * e[i];
        e[i] = cosr * e[i] - sinr * d[i];
        g = sinr * d[i + 1];
        d[i + 1] = cosr * d[i + 1];
        rotation(f, g, &cosl, &sinl, &r);
        d[i] = r;
        f = cosl * e[i] + sinl * d[i + 1];
        d[i + 1] = cosl * d[i + 1] - sinl * e[i];
        if (i < m - 1) {
          g = sinl * e[i + 1];
          e[i + 1] = cosl * e[i + 1];
        }
        cr[i - ll] = cosr;
        sr[i - ll] = sinr;
        cl[i - ll] = cosl;
        sl[i - ll] = sinl;
      }
      e[m - 1] = f;
    } else {
      R f = (mag(d[m]) - shift) * (unit_sign(d[m]) + shift / d[m]), g = e[m - 1];
      for (int64_t i = m; i > ll; i--) {
        R cosr, sinr, cosl, sinl, r;
        rotation(f, g, &cosr, &sinr, &r);
        if (i < m) e[i] = r;
        f = cosr * d[i] + sinr * e[i - 1];
        e[i - 1] = cosr * e[i - 1] - sinr * d[i];
        g = sinr * d[i - 1];
        d[i - 1] = cosr * d[i - 1];
        rotation(f, g, &cosl, &sinl, &r);
        d[i] = r;
        f = cosl * e[i - 1] + sinl * d[i - 1];
        d[i - 1] = cosl * d[i - 1] - sinl * e[i - 1];
        if (i > ll + 1) {
          g = sinl * e[i - 2];
          e[i - 2] = cosl * e[i - 2];
        }
        cl[i - ll - 1] = cosr;
        sl[i - ll - 1] = -sinr;
        cr[i - ll - 1] = cosl;
        sr[i - ll - 1] = -sinl;
      }
      e[ll] = f;
    }
    if (v.rows) rotate_columns(v.sub(0, ll, v.rows, count), cr, sr, count, direction == 1);
    if (u.rows) rotate_columns(u.sub(0, ll, u.rows, count), cl, sl, count, direction == 1);
    const int64_t edge = direction == 1 ? m - 1 : ll;
    if (mag(e[edge]) <= thresh) e[edge] = 0;
  }
  return finish();
}

/* A = Q B P^H in place, B upper bidiagonal (m >= n) or lower: reflectors of Q below the (sub)diagonal, of P right of it. */
template <class S>
void bidiagonalise(Mat<S> a, Real<S>* d, Real<S>* e, S* tauq, S* taup) {
  const int64_t m = a.rows, n = a.cols;
  auto conj_row = [&](int64_t i, int64_t from) {
    if constexpr (is_c<S>)
      for (int64_t j = from; j < n; j++) a(i, j) = conj(a(i, j));
  };
  if (m >= n) {
    for (int64_t i = 0; i < n; i++) {
      tauq[i] = reflector(a(i, i), below(a, i, i));
      d[i] = re(a(i, i));
      reflect_left(a.sub(i, i + 1, m - i, n - i - 1), below(a, i, i), conj(tauq[i]));
      taup[i] = S(0);
      if (i < n - 1) {
        conj_row(i, i + 1);
        taup[i] = reflector(a(i, i + 1), right_of(a, i, i + 1));
        e[i] = re(a(i, i + 1));
        reflect_right(a.sub(i + 1, i + 1, m - i - 1, n - i - 1), right_of(a, i, i + 1), taup[i]);
      }
    }
  } else {
    for (int64_t i = 0; i < m; i++) {
      conj_row(i, i);
      taup[i] = reflector(a(i, i), right_of(a, i, i));
      d[i] = re(a(i, i));
      reflect_right(a.sub(i + 1, i, m - i - 1, n - i), right_of(a, i, i), taup[i]);
      tauq[i] = S(0);
      if (i < m - 1) {
        tauq[i] = reflector(a(i + 1, i), below(a, i + 1, i));
        e[i] = re(a(i + 1, i));
        reflect_left(a.sub(i + 1, i + 1, m - i - 1, n - i - 1), below(a, i + 1, i), conj(tauq[i]));
      }
    }
  }
}

/* SVD of a (m >= n or m < n, not very tall or wide): u [m, m or k], s descending, vt [n or k, n]; u and vt may be empty. */
template <class S>
int64_t svd_direct(Mat<S> a, Real<S>* s, Mat<S> u, Mat<S> vt, Arena arena) {
  using R = Real<S>;
  const int64_t m = a.rows, n = a.cols, k = min_of(m, n);
  const bool vectors = u.cols > 0, lower = m < n;
  R *e = arena.take<R>(k), *work = arena.take<R>(4 * k), *rc = arena.take<R>(k), *rs = arena.take<R>(k);
  S *tauq = arena.take<S>(k), *taup = arena.take<S>(k);
  bidiagonalise(a, s, e, tauq, taup);
  if (lower) /* rotate to upper bidiagonal; the rotations go into U at the end */
    for (int64_t i = 0; i < k - 1; i++) {
      R cs, sn, r;
      rotation(s[i], e[i], &cs, &sn, &r);
      s[i] = r;
      e[i] = sn * s[i + 1];
      s[i + 1] = cs * s[i + 1];
      rc[i] = cs;
      rs[i] = -sn;
    }
  const int64_t kv = vectors ? k : 0;
  Mat<R> bu = columns(arena.take<R>(kv * kv), kv, kv), bv = columns(arena.take<R>(kv * kv), kv, kv);
  fill(bu, R(1), R(0));
  fill(bv, R(1), R(0));
  int64_t status = 0;
  if (k == 1) { /* as bdsdc: U takes the sign */
    if (vectors) bu(0, 0) = unit_sign(s[0]);
    s[0] = mag(s[0]);
  } else {
    status = bidiagonal_svd<R>(k, s, e, bv, bu, work);
  }
  if (status || !vectors) return status;
  if (lower) rotate_columns(bu.t(), rc, rs, k, false); /* from the left, backward */
  fill(u, S(1), S(0));
  fill(vt, S(1), S(0));
  for (int64_t j = 0; j < k; j++)
    for (int64_t i = 0; i < k; i++) {
      u(i, j) = S(bu(i, j));
      vt(i, j) = S(bv(i, j));
    }
  /* U = Q [bu 0; 0 I], V^H = [bv 0; 0 I] P^H: V = P [bv^H ..], P = G_0 G_1 ... with G = I - taup v v^H, v the stored (already
   * conjugated) rows. */
  const int64_t sq = lower ? 1 : 0, sp = lower ? 0 : 1;
  apply_q(a, tauq, lower ? k - 1 : k, u, sq);
  Mat<S> v = vt.t();
  if constexpr (is_c<S>)
    for (int64_t j = 0; j < v.cols; j++)
      for (int64_t i = 0; i < v.rows; i++) v(i, j) = conj(v(i, j));
  apply_q(a.t(), taup, lower ? k : k - 1, v, sp);
  if constexpr (is_c<S>)
    for (int64_t j = 0; j < v.cols; j++)
      for (int64_t i = 0; i < v.rows; i++) v(i, j) = conj(v(i, j));
  return 0;
}

/* c = a b, small. */
template <class S>
void multiply(Mat<S> a, Mat<S> b, Mat<S> c) {
  fill(c, S(0), S(0));
  for (int64_t j = 0; j < c.cols; j++)
    for (int64_t l = 0; l < a.cols; l++) {
      const S f = b(l, j);
      for (int64_t i = 0; i < c.rows; i++) c(i, j) += a(i, l) * f;
    }
}

/* As svd_direct; a tall matrix is reduced by QR first, a wide one by LQ, where LAPACK does so. */
template <class S>
int64_t svd(Mat<S> a, Real<S>* s, Mat<S> u, Mat<S> vt, Arena arena) {
  const int64_t m = a.rows, n = a.cols, k = min_of(m, n), longer = max_of(m, n);
  const bool vectors = u.cols > 0, tall = m >= n;
  /* Where PyTorch's LAPACK reduces first (not where the reference does), which shows in the signs. */
  const int64_t crossover = is_c<S> ? k * 17 / 9 : k * 3 / 2;
  if ((!tall && !is_c<S>) || longer < crossover || longer == k || k == 0) return svd_direct(a, s, u, vt, arena);
  S* tau = arena.take<S>(k);
  /* For a wide matrix A = L Q is the transpose of A^T = Q^T L^T; with conjugates, so work on A^H. */
  Mat<S> w = tall ? a : columns(arena.take<S>(m * n), n, m);
  if (!tall)
    for (int64_t j = 0; j < m; j++)
      for (int64_t i = 0; i < n; i++) w(i, j) = conj(a(j, i));
  qr_factor(w, tau);
  Mat<S> core = columns(arena.take<S>(k * k), k, k);
  for (int64_t j = 0; j < k; j++)
    for (int64_t i = 0; i < k; i++) {
      const S x = i <= j ? w(i, j) : S(0);
      if (tall)
        core(i, j) = x;
      else
        core(j, i) = conj(x);
    }
  const int64_t kv = vectors ? k : 0;
  Mat<S> cu = columns(arena.take<S>(kv * kv), kv, kv), cv = columns(arena.take<S>(kv * kv), kv, kv);
  const int64_t status = svd_direct(core, s, cu, cv, arena);
  if (status || !vectors) return status;
  Mat<S> wide_side = tall ? u : columns(arena.take<S>(n * vt.rows), n, vt.rows);
  fill(wide_side, S(1), S(0));
  for (int64_t j = 0; j < k; j++)
    for (int64_t i = 0; i < k; i++) wide_side(i, j) = tall ? cu(i, j) : conj(cv(j, i));
  apply_q(w, tau, k, wide_side);
  if (tall) {
    copy(cv, vt);
  } else {
    copy(cu, u);
    for (int64_t j = 0; j < n; j++)
      for (int64_t i = 0; i < vt.rows; i++) vt(i, j) = conj(wide_side(j, i));
  }
  return 0;
}

}  // namespace

/* in A [.., m, n]; out U [.., m, m or k], S [.., k], Vh [.., n or k, n]; or S alone. Scratch: see lower/linalg.py. */
EFFC_EXPORT int32_t effc_svd(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using R = Real<S>;
    const effc_tensor& a = call->in[0];
    const bool vectors = call->n_out > 1;
    const int64_t m = size_at(a, 2), n = size_at(a, 1), k = min_of(m, n);
    int64_t which = 0;
    const int64_t bad = for_batches(call, batches(a, 2), 10 * m * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<S> w = columns(arena.take<S>(m * n), m, n);
      R* s = arena.take<R>(k);
      copy(matrix<S>(a, b), w);
      for (int64_t i = 0; i < m * n; i++)
        if (!(mag1(w.p[i]) < __builtin_inf())) return 1;
      const int64_t uc = vectors ? size_at(call->out[0], 1) : 0, vr = vectors ? size_at(call->out[2], 2) : 0;
      Mat<S> u = columns(arena.take<S>(m * uc), m, uc), vt = columns(arena.take<S>(vr * n), vr, n);
      if (k == 0 && vectors) {
        fill(u, S(1), S(0));
        fill(vt, S(1), S(0));
      }
      const R factor = normalise_range(w);
      const int64_t status = k ? svd(w, s, u, vt, arena) : 0;
      Mat<R> values = vector<R>(call->out[vectors ? 1 : 0], b);
      for (int64_t i = 0; i < k; i++) values[i] = factor == 1 ? s[i] : s[i] / factor;
      if (vectors) {
        copy(u, matrix<S>(call->out[0], b));
        copy(vt, matrix<S>(call->out[2], b));
      }
      return status;
    }, &which);
    if (bad) {
      call->api->fail(call, "linalg.svd: (Batch element %lld): The algorithm failed to converge because the input matrix is "
                      "ill-conditioned or not finite", (long long)which);
      return 1;
    }
    return 0;
  });
}
