/* Eigenvalues and right eigenvectors of general matrices: balancing, Hessenberg form, the shifted QR iteration to Schur form
 * (double shifts for real matrices), back substitution (Golub and Van Loan, 7.4 - 7.6). The order of operations is that of
 * LAPACK's geev with lahqr, so that eigenvalues come in its order. Works in the operand's precision. */
#include "rotations.hpp"

using namespace effc::la;

namespace {

template <class S>
void swap_cols(Mat<S> a, int64_t i, int64_t j) {
  for (int64_t r = 0; r < a.rows; r++) {
    S t = a(r, i);
    a(r, i) = a(r, j);
    a(r, j) = t;
  }
}

struct Span {
  int64_t lo, hi; /* rows lo .. hi, inclusive, are not yet triangular */
};

/* Permutes isolated eigenvalues to the ends and scales the rest by powers of 2 (gebal). scale[i]: the row exchanged with i
 * outside the span, the factor inside. */
template <class S>
Span balance(Mat<S> a, Real<S>* scale) {
  using R = Real<S>;
  const int64_t n = a.rows;
  int64_t k = 0, l = n - 1;
  auto exchange = [&](int64_t i, int64_t m) {
    if (i == m) return;
    swap_cols(a.sub(0, 0, l + 1, n), i, m);
    swap_cols(a.t().sub(k, 0, n - k, n), i, m); /* rows i, m in columns k .. */
  };
  for (bool again = true; again;) {
    again = false;
    for (int64_t i = l; i >= 0; i--) {
      bool alone = true;
      for (int64_t j = 0; j <= l && alone; j++) alone = i == j || a(i, j) == S(0);
      if (!alone) continue;
      scale[l] = (R)i;
      exchange(i, l);
      again = true;
      if (l == 0) return Span{0, 0};
      l--;
    }
  }
  for (bool again = true; again;) {
    again = false;
    for (int64_t j = k; j <= l; j++) {
      bool alone = true;
      for (int64_t i = k; i <= l && alone; i++) alone = i == j || a(i, j) == S(0);
      if (!alone) continue;
      scale[k] = (R)j;
      exchange(j, k);
      again = true;
      k++;
    }
  }
  for (int64_t i = k; i <= l; i++) scale[i] = 1;
  const R small = machine<R>::safe_min / machine<R>::ulp, big = 1 / small, small2 = small * 2, big2 = 1 / small2;
  for (bool again = true; again;) {
    again = false;
    for (int64_t i = k; i <= l; i++) {
      R c = norm(Mat<S>{&a(k, i), l - k + 1, 1, a.rs, 0}), r = norm(Mat<S>{&a(i, k), l - k + 1, 1, a.cs, 0});
      R ca = 0, ra = 0;
      for (int64_t j = 0; j <= l; j++) ca = max_of(ca, mag(a(j, i)));
      for (int64_t j = k; j < n; j++) ra = max_of(ra, mag(a(i, j)));
      if (c == 0 || r == 0) continue;
      R g = r / 2, f = 1, s = c + r;
      while (c < g && max_of(f, max_of(c, ca)) < big2 && min_of(r, min_of(g, ra)) > small2) {
        f *= 2;
        c *= 2;
        ca *= 2;
        r /= 2;
        g /= 2;
        ra /= 2;
      }
      g = c / 2;
      while (g >= r && max_of(r, ra) < big2 && min_of(min_of(f, c), min_of(g, ca)) > small2) {
        f /= 2;
        c /= 2;
        g /= 2;
        ca /= 2;
        r *= 2;
        ra *= 2;
      }
      if (c + r >= R(0.95) * s) continue;
      if (f < 1 && scale[i] < 1 && f * scale[i] <= small) continue;
      if (f > 1 && scale[i] > 1 && scale[i] >= big / f) continue;
      scale[i] *= f;
      again = true;
      for (int64_t j = k; j < n; j++) a(i, j) = a(i, j) * (1 / f);
      for (int64_t j = 0; j <= l; j++) a(j, i) = a(j, i) * f;
    }
  }
  return Span{k, l};
}

template <class S>
void unbalance(Mat<S> v, Span span, const Real<S>* scale) {
  const int64_t n = v.rows;
  Mat<S> t = v.t();
  for (int64_t i = span.lo; i <= span.hi; i++)
    if (span.lo != span.hi)
      for (int64_t j = 0; j < v.cols; j++) v(i, j) = v(i, j) * scale[i];
  for (int64_t i = span.lo - 1; i >= 0; i--)
    if ((int64_t)scale[i] != i) swap_cols(t, i, (int64_t)scale[i]);
  for (int64_t i = span.hi + 1; i < n; i++)
    if ((int64_t)scale[i] != i) swap_cols(t, i, (int64_t)scale[i]);
}

/* A = Q H Q^H; h becomes H, q becomes Q. tau: work. */
template <class S>
void hessenberg(Mat<S> h, Span span, Mat<S> q, S* tau) {
  const int64_t n = h.rows;
  fill(q, S(1), S(0));
  for (int64_t i = span.lo; i < span.hi; i++) {
    Mat<S> v{&h(i + 2 < n ? i + 2 : n - 1, i), span.hi - i - 1, 1, h.rs, 0};
    tau[i] = reflector(h(i + 1, i), v);
    reflect_right(h.sub(0, i + 1, span.hi + 1, span.hi - i), v, tau[i]);
    reflect_left(h.sub(i + 1, i + 1, span.hi - i, n - i - 1), v, conj(tau[i]));
  }
  for (int64_t i = span.hi - 1; i >= span.lo; i--) {
    Mat<S> v{&h(i + 2 < n ? i + 2 : n - 1, i), span.hi - i - 1, 1, h.rs, 0};
    reflect_left(q.sub(i + 1, i + 1, span.hi - i, span.hi - i), v, tau[i]);
    for (int64_t r = i + 2; r < n; r++) h(r, i) = S(0);
  }
  for (int64_t j = 0; j + 2 < n; j++)
    for (int64_t r = j + 2; r < n; r++) h(r, j) = S(0);
}

/* The Schur form of [a b; c d]: rotation (cs, sn), the matrix overwritten, eigenvalues rt1 = a +- i wi (lanv2). */
template <class R>
void schur_2x2(R& a, R& b, R& c, R& d, R* wi, R* cs, R* sn) {
  constexpr R eps = machine<R>::ulp;
  if (c == 0) {
    *cs = 1;
    *sn = 0;
  } else if (b == 0) {
    *cs = 0;
    *sn = 1;
    const R t = d;
    d = a;
    a = t;
    b = -c;
    c = 0;
  } else if (a - d == 0 && unit_sign(b) != unit_sign(c)) {
    *cs = 1;
    *sn = 0;
  } else {
    R temp = a - d, p = R(0.5) * temp;
    const R bcmax = max_of(mag(b), mag(c)), bcmis = min_of(mag(b), mag(c)) * unit_sign(b) * unit_sign(c);
    const R scale = max_of(mag(p), bcmax);
    R z = (p / scale) * p + (bcmax / scale) * bcmis;
    if (z >= 4 * eps) {
      z = p + sign_of(root(scale) * root(z), p);
      a = d + z;
      d = d - (bcmax / z) * bcmis;
      const R tau = hypotenuse(c, z);
      *cs = z / tau;
      *sn = c / tau;
      b = b - c;
      c = 0;
    } else {
      const R sigma = b + c, tau = hypotenuse(sigma, temp);
      *cs = root(R(0.5) * (1 + mag(sigma) / tau));
      *sn = -(p / (tau * *cs)) * unit_sign(sigma);
      const R aa = a * *cs + b * *sn, bb = -a * *sn + b * *cs, cc = c * *cs + d * *sn, dd = -c * *sn + d * *cs;
      a = aa * *cs + cc * *sn;
      b = bb * *cs + dd * *sn;
      c = -aa * *sn + cc * *cs;
      d = -bb * *sn + dd * *cs;
      temp = R(0.5) * (a + d);
      a = d = temp;
      if (c != 0) {
        if (b == 0) {
          b = -c;
          c = 0;
          const R t = *cs;
          *cs = -*sn;
          *sn = t;
        } else if (unit_sign(b) == unit_sign(c)) {
          const R sab = root(mag(b)), sac = root(mag(c)), t = 1 / root(mag(b + c));
          p = sign_of(sab * sac, c);
          a = temp + p;
          d = temp - p;
          b = b - c;
          c = 0;
          const R cs1 = sab * t, sn1 = sac * t, u = *cs * cs1 - *sn * sn1;
          *sn = *cs * sn1 + *sn * cs1;
          *cs = u;
        }
      }
    }
  }
  *wi = c == 0 ? R(0) : root(mag(b)) * root(mag(c));
}

template <class R>
void rotate_pair(Mat<R> x, int64_t i, int64_t j, R cs, R sn) {
  for (int64_t r = 0; r < x.rows; r++) {
    const R t = cs * x(r, i) + sn * x(r, j);
    x(r, j) = cs * x(r, j) - sn * x(r, i);
    x(r, i) = t;
  }
}

/* Is the subdiagonal element k, k-1 negligible (Ahues and Tisseur's test, LAWN 122)? */
template <class S>
bool negligible(Mat<S> h, int64_t k, Span span, Real<S> tiny) {
  using R = Real<S>;
  constexpr R ulp = machine<R>::ulp;
  const S sub = h(k, k - 1);
  if (mag1(sub) <= tiny) return true;
  R test = mag1(h(k - 1, k - 1)) + mag1(h(k, k));
  if (test == 0) {
    if (k - 2 >= span.lo) test += mag(re(h(k - 1, k - 2)));
    if (k + 1 <= span.hi) test += mag(re(h(k + 1, k)));
  }
  if (mag(re(sub)) > ulp * test) return false;
  const R ab = max_of(mag1(sub), mag1(h(k - 1, k))), ba = min_of(mag1(sub), mag1(h(k - 1, k)));
  const R diff = mag1(h(k - 1, k - 1) - h(k, k));
  const R aa = max_of(mag1(h(k, k)), diff), bb = min_of(mag1(h(k, k)), diff), s = aa + ab;
  return ba * (ab / s) <= max_of(tiny, ulp * (bb * (aa / s)));
}

/* Real Schur form: h, z in place, eigenvalues in (wr, wi) (lahqr). Returns 0, or how many were not found. */
template <class R>
int64_t schur(Mat<R> h, Span span, Mat<R> z, R* wr, R* wi) {
  constexpr R ulp = machine<R>::ulp;
  const int64_t n = h.rows;
  for (int64_t i = 0; i < n; i++)
    if (i < span.lo || i > span.hi || span.lo == span.hi) {
      wr[i] = h(i, i);
      wi[i] = 0;
    }
  if (n == 0 || span.lo == span.hi) return 0;
  const int64_t nh = span.hi - span.lo + 1, limit = 30 * max_of<int64_t>(10, nh);
  const R tiny = machine<R>::safe_min * ((R)nh / ulp);
  int64_t stalled = 0;
  for (int64_t i = span.hi; i >= span.lo;) {
    int64_t l = span.lo;
    bool found = false;
    for (int64_t its = 0; its <= limit; its++) {
      int64_t k = i;
      while (k > l && !negligible(h, k, span, tiny)) k--;
      l = k;
      if (l > span.lo) h(l, l - 1) = 0;
      if (l >= i - 1) {
        found = true;
        break;
      }
      stalled++;
      R h11, h21, h12, h22;
      if (stalled % 20 == 0) {
        const R s = mag(h(i, i - 1)) + mag(h(i - 1, i - 2));
        h11 = R(0.75) * s + h(i, i);
        h12 = R(-0.4375) * s;
        h21 = s;
        h22 = h11;
      } else if (stalled % 10 == 0) {
        const R s = mag(h(l + 1, l)) + mag(h(l + 2, l + 1));
        h11 = R(0.75) * s + h(l, l);
        h12 = R(-0.4375) * s;
        h21 = s;
        h22 = h11;
      } else {
        h11 = h(i - 1, i - 1);
        h21 = h(i, i - 1);
        h12 = h(i - 1, i);
        h22 = h(i, i);
      }
      R s = mag(h11) + mag(h12) + mag(h21) + mag(h22), rt1r = 0, rt1i = 0, rt2r = 0, rt2i = 0;
      if (s != 0) {
        h11 /= s;
        h21 /= s;
        h12 /= s;
        h22 /= s;
        const R tr = (h11 + h22) / 2, det = (h11 - tr) * (h22 - tr) - h12 * h21, disc = root(mag(det));
        if (det >= 0) {
          rt1r = rt2r = tr * s;
          rt1i = disc * s;
          rt2i = -rt1i;
        } else {
          rt1r = tr + disc;
          rt2r = tr - disc;
          rt1r = rt2r = (mag(rt1r - h22) <= mag(rt2r - h22) ? rt1r : rt2r) * s;
        }
      }
      R v[3] = {0, 0, 0};
      int64_t m = i - 2;
      for (; m >= l; m--) {
        s = mag(h(m, m) - rt2r) + mag(rt2i) + mag(h(m + 1, m));
        const R h21s = h(m + 1, m) / s;
        v[0] = h21s * h(m, m + 1) + (h(m, m) - rt1r) * ((h(m, m) - rt2r) / s) - rt1i * (rt2i / s);
        v[1] = h21s * (h(m, m) + h(m + 1, m + 1) - rt1r - rt2r);
        v[2] = h21s * h(m + 2, m + 1);
        s = mag(v[0]) + mag(v[1]) + mag(v[2]);
        for (R& x : v) x /= s;
        if (m == l) break;
        const R around = mag(h(m - 1, m - 1)) + mag(h(m, m)) + mag(h(m + 1, m + 1));
        if (mag(h(m, m - 1)) * (mag(v[1]) + mag(v[2])) <= ulp * mag(v[0]) * around) break;
      }
      for (k = m; k < i; k++) {
        const int64_t nr = min_of<int64_t>(3, i - k + 1);
        if (k > m)
          for (int64_t r = 0; r < nr; r++) v[r] = h(k + r, k - 1);
        const R t1 = reflector(v[0], Mat<R>{v + 1, nr - 1, 1, 1, 0});
        if (k > m) {
          h(k, k - 1) = v[0];
          h(k + 1, k - 1) = 0;
          if (k < i - 1) h(k + 2, k - 1) = 0;
        } else if (m > l) {
          h(k, k - 1) *= 1 - t1;
        }
        Mat<R> tail{v + 1, nr - 1, 1, 1, 0};
        reflect_left(h.sub(k, k, nr, n - k), tail, t1);
        reflect_right(h.sub(0, k, min_of(k + 3, i) + 1, nr), tail, t1);
        reflect_right(z.sub(0, k, n, nr), tail, t1);
      }
    }
    if (!found) return i + 1;
    if (l == i) {
      wr[i] = h(i, i);
      wi[i] = 0;
    } else {
      R cs, sn;
      schur_2x2(h(i - 1, i - 1), h(i - 1, i), h(i, i - 1), h(i, i), &wi[i - 1], &cs, &sn);
      wr[i - 1] = h(i - 1, i - 1);
      wr[i] = h(i, i);
      wi[i] = -wi[i - 1];
      rotate_pair(h.t().sub(i + 1, 0, n - i - 1, n), i - 1, i, cs, sn);
      rotate_pair(h.sub(0, 0, i - 1, n), i - 1, i, cs, sn);
      rotate_pair(z, i - 1, i, cs, sn);
    }
    stalled = 0;
    i = l - 1;
  }
  return 0;
}

template <class S>
void scale_row(Mat<S> h, int64_t i, int64_t from, int64_t to, S f) {
  for (int64_t j = from; j <= to; j++) h(i, j) *= f;
}
template <class S>
void scale_col(Mat<S> h, int64_t j, int64_t from, int64_t to, S f) {
  for (int64_t i = from; i <= to; i++) h(i, j) *= f;
}
inline C<float> square_root(C<float> z) {
  _Complex float c;
  __real__ c = z.re;
  __imag__ c = z.im;
  c = __builtin_csqrtf(c);
  return C<float>(__real__ c, __imag__ c);
}
inline C<double> square_root(C<double> z) {
  _Complex double c;
  __real__ c = z.re;
  __imag__ c = z.im;
  c = __builtin_csqrt(c);
  return C<double>(__real__ c, __imag__ c);
}

/* Complex Schur form with single shifts; subdiagonals are kept real. */
template <class R>
int64_t schur(Mat<C<R>> h, Span span, Mat<C<R>> z, C<R>* w) {
  using S = C<R>;
  constexpr R ulp = machine<R>::ulp;
  const int64_t n = h.rows, top = n - 1;
  for (int64_t i = 0; i < n; i++)
    if (i < span.lo || i > span.hi || span.lo == span.hi) w[i] = h(i, i);
  if (n == 0 || span.lo == span.hi) return 0;
  for (int64_t i = span.lo + 1; i <= span.hi; i++)
    if (im(h(i, i - 1)) != 0) {
      S f = h(i, i - 1) / mag1(h(i, i - 1));
      f = conj(f) / mag(f);
      h(i, i - 1) = S(mag(h(i, i - 1)));
      scale_row(h, i, i, top, f);
      scale_col(h, i, 0, min_of(top, i + 1), conj(f));
      scale_col(z, i, 0, top, conj(f));
    }
  const int64_t nh = span.hi - span.lo + 1, limit = 30 * max_of<int64_t>(10, nh);
  const R tiny = machine<R>::safe_min * ((R)nh / ulp);
  int64_t stalled = 0;
  for (int64_t i = span.hi; i >= span.lo;) {
    int64_t l = span.lo;
    bool found = false;
    for (int64_t its = 0; its <= limit; its++) {
      int64_t k = i;
      while (k > l && !negligible(h, k, span, tiny)) k--;
      l = k;
      if (l > span.lo) h(l, l - 1) = S(0);
      if (l >= i) {
        found = true;
        break;
      }
      stalled++;
      S t;
      if (stalled % 20 == 0) {
        t = S(R(0.75) * mag(re(h(i, i - 1)))) + h(i, i);
      } else if (stalled % 10 == 0) {
        t = S(R(0.75) * mag(re(h(l + 1, l)))) + h(l, l);
      } else {
        t = h(i, i);
        const S u = square_root(h(i - 1, i)) * square_root(h(i, i - 1));
        R s = mag1(u);
        if (s != 0) {
          const S x = R(0.5) * (h(i - 1, i - 1) - t);
          const R sx = mag1(x);
          s = max_of(s, sx);
          S y = s * square_root((x / s) * (x / s) + (u / s) * (u / s));
          if (sx > 0 && re(x / sx) * re(y) + im(x / sx) * im(y) < 0) y = -y;
          t -= u * (u / (x + y));
        }
      }
      S v[2];
      int64_t m = i - 1;
      for (;; m--) {
        const S h11 = h(m, m), h22 = h(m + 1, m + 1);
        S h11s = h11 - t;
        R h21 = re(h(m + 1, m));
        const R s = mag1(h11s) + mag(h21);
        h11s = h11s / s;
        h21 /= s;
        v[0] = h11s;
        v[1] = S(h21);
        if (m <= l) break;
        if (mag(re(h(m, m - 1))) * mag(h21) <= ulp * (mag1(h11s) * (mag1(h11) + mag1(h22)))) break;
      }
      for (k = m; k < i; k++) {
        if (k > m) {
          v[0] = h(k, k - 1);
          v[1] = h(k + 1, k - 1);
        }
        Mat<S> tail{v + 1, 1, 1, 1, 0};
        const S t1 = reflector(v[0], tail);
        if (k > m) {
          h(k, k - 1) = v[0];
          h(k + 1, k - 1) = S(0);
        }
        reflect_left(h.sub(k, k, 2, n - k), tail, conj(t1));
        reflect_right(h.sub(0, k, min_of(k + 2, i) + 1, 2), tail, t1);
        reflect_right(z.sub(0, k, n, 2), tail, t1);
        if (k == m && m > l) { /* the subdiagonal element m, m-1 would turn complex */
          S f = S(1) - t1;
          f = f / mag(f);
          h(m + 1, m) *= conj(f);
          if (m + 2 <= i) h(m + 2, m + 1) *= f;
          for (int64_t j = m; j <= i; j++) {
            if (j == m + 1) continue;
            scale_row(h, j, j + 1, top, f);
            scale_col(h, j, 0, j - 1, conj(f));
            scale_col(z, j, 0, top, conj(f));
          }
        }
      }
      S f = h(i, i - 1);
      if (im(f) != 0) {
        const R r = mag(f);
        h(i, i - 1) = S(r);
        f = f / r;
        scale_row(h, i, i + 1, top, conj(f));
        scale_col(h, i, 0, i - 1, f);
        scale_col(z, i, 0, top, f);
      }
    }
    if (!found) return i + 1;
    w[i] = h(i, i);
    stalled = 0;
    i = l - 1;
  }
  return 0;
}

/* x / d, with d kept away from zero. */
template <class R>
C<R> guarded(C<R> x, C<R> d, R least) { return x / (mag1(d) < least ? C<R>(least) : d); }

/* Solves (T - w) x = 0 for x with x[j + 1 ..] = 0 on the quasi-triangular T; x[j] (and x[j - 1] of a pair) are given. */
template <class S, class R>
void back_substitute(Mat<S> t, int64_t known, int64_t j, C<R> w, C<R>* x) {
  const R least = max_of(machine<R>::ulp * mag1(w), machine<R>::safe_min * ((R)t.rows / machine<R>::ulp));
  for (int64_t i = 0; i < known; i++) {
    C<R> s(0);
    for (int64_t c = known; c <= j; c++) s -= cast<C<R>>(t(i, c)) * x[c];
    x[i] = s;
  }
  for (int64_t i = known - 1; i >= 0; i--) {
    const bool pair = !is_c<S> && i > 0 && t(i, i - 1) != S(0);
    if (!pair) {
      x[i] = guarded(x[i], cast<C<R>>(t(i, i)) - w, least);
      for (int64_t r = 0; r < i; r++) x[r] -= cast<C<R>>(t(r, i)) * x[i];
      continue;
    }
    const C<R> a = cast<C<R>>(t(i - 1, i - 1)) - w, b = cast<C<R>>(t(i - 1, i));
    const C<R> c = cast<C<R>>(t(i, i - 1)), d = cast<C<R>>(t(i, i)) - w, p = x[i - 1], q = x[i];
    if (mag1(a) >= mag1(c)) { /* elimination with the larger pivot */
      const C<R> f = guarded(c, a, least);
      x[i] = guarded(q - f * p, d - f * b, least);
      x[i - 1] = guarded(p - b * x[i], a, least);
    } else {
      const C<R> f = guarded(a, c, least);
      x[i] = guarded(p - f * q, b - f * d, least);
      x[i - 1] = guarded(q - d * x[i], c, least);
    }
    for (int64_t r = 0; r < i - 1; r++)
      x[r] -= cast<C<R>>(t(r, i - 1)) * x[i - 1] + cast<C<R>>(t(r, i)) * x[i];
    i--;
  }
  R big = 0; /* keep the products with the Schur vectors in range */
  for (int64_t i = 0; i <= j; i++) big = max_of(big, mag1(x[i]));
  if (big > 1)
    for (int64_t i = 0; i <= j; i++) x[i] = x[i] / big;
}

/* column j of v: the combination of the Schur vectors z. */
template <class S, class R>
void combine(Mat<S> z, const C<R>* x, int64_t j, Mat<C<R>> v) {
  for (int64_t i = 0; i < z.rows; i++) {
    C<R> s(0);
    for (int64_t c = 0; c <= j; c++) s += cast<C<R>>(z(i, c)) * x[c];
    v(i, j) = s;
  }
}

/* Columns of norm 1; in a complex column the largest component is made real. */
template <class R>
void normalise(Mat<C<R>> v, int64_t j, bool real_matrix) {
  Mat<C<R>> col{&v(0, j), v.rows, 1, v.rs, 0};
  const R scale = 1 / norm(col);
  R big = -1;
  int64_t at = 0;
  for (int64_t i = 0; i < v.rows; i++) {
    col[i] = col[i] * scale;
    if (norm2(col[i]) > big) {
      big = norm2(col[i]);
      at = i;
    }
  }
  const C<R> top = col[at];
  R length;
  C<R> turn;
  if (real_matrix) { /* a rotation of the real and imaginary columns; PyTorch's sgeev and dgeev differ in its sign */
    R cs, sn;
    rotation<sizeof(R) == 8>(top.re, top.im, &cs, &sn, &length);
    turn = C<R>(cs, -sn);
  } else {
    turn = conj(top) / root(big);
  }
  for (int64_t i = 0; i < v.rows; i++) col[i] *= turn;
  col[at].im = 0;
}

template <class S>
int64_t eig(Mat<S> a, C<Real<S>>* w, Mat<C<Real<S>>> v, Arena arena) {
  using R = Real<S>;
  const int64_t n = a.rows;
  const bool vectors = v.cols > 0;
  R *scale = arena.take<R>(n), *wr = arena.take<R>(n), *wi = arena.take<R>(n);
  S* tau = arena.take<S>(n);
  C<R>* x = arena.take<C<R>>(n);
  Mat<S> z = columns(arena.take<S>(n * n), n, n);
  const Span span = balance(a, scale);
  hessenberg(a, span, z, tau);
  int64_t status;
  if constexpr (is_c<S>) {
    status = schur(a, span, z, w);
  } else {
    status = schur(a, span, z, wr, wi);
    for (int64_t i = 0; i < n; i++) w[i] = C<R>(wr[i], wi[i]);
  }
  if (status || !vectors) return status;
  for (int64_t j = n - 1; j >= 0; j--) {
    if constexpr (is_c<S>) {
      x[j] = C<R>(1);
      back_substitute<S, R>(a, j, j, w[j], x);
      combine(z, x, j, v);
    } else if (wi[j] == 0) {
      x[j] = C<R>(1);
      back_substitute<S, R>(a, j, j, w[j], x);
      combine(z, x, j, v);
    } else { /* a pair j-1, j: the vector of the eigenvalue with positive imaginary part, then its conjugate */
      const R up = a(j - 1, j), down = a(j, j - 1), wp = wi[j - 1];
      if (mag(up) >= mag(down)) {
        x[j - 1] = C<R>(1);
        x[j] = C<R>(0, wp / up);
      } else {
        x[j - 1] = C<R>(-wp / down);
        x[j] = C<R>(0, 1);
      }
      back_substitute<S, R>(a, j - 1, j, w[j - 1], x);
      combine(z, x, j, v);
      for (int64_t i = 0; i < n; i++) v(i, j - 1) = v(i, j);
      j--;
    }
  }
  Mat<C<R>> all = v;
  unbalance(all, span, scale);
  for (int64_t j = 0; j < n; j++) {
    if (!is_c<S> && wi[j] == 0) {
      Mat<C<R>> col{&v(0, j), n, 1, v.rs, 0};
      const R s = 1 / norm(col);
      for (int64_t i = 0; i < n; i++) col[i] = C<R>(col[i].re * s, 0);
      continue;
    }
    normalise(v, j, !is_c<S>);
    if (!is_c<S>) {
      for (int64_t i = 0; i < n; i++) v(i, j + 1) = conj(v(i, j));
      j++;
    }
  }
  return 0;
}

}  // namespace

/* in A [.., n, n]; out w complex [.., n] and V complex [.., n, n] if there are two results. Scratch 16 (3 n n + 6 n) + 1024. */
EFFC_EXPORT int32_t effc_eig(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using K = C<Real<S>>;
    const effc_tensor& a = call->in[0];
    const int64_t n = size_at(a, 1);
    const bool vectors = call->n_out > 1;
    int64_t which = 0;
    const int64_t bad = for_batches(call, batches(a, 2), 25 * n * n * n, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<S> m = columns(arena.take<S>(n * n), n, n);
      copy(matrix<S>(a, b), m);
      for (int64_t i = 0; i < n * n; i++)
        if (!(mag1(m.p[i]) < __builtin_inf())) return n + 1;
      K* w = arena.take<K>(n);
      Mat<K> v = columns(arena.take<K>(vectors ? n * n : 0), n, vectors ? n : 0);
      const Real<S> factor = normalise_range(m);
      const int64_t status = n ? eig(m, w, v, arena) : 0;
      Mat<K> values = vector<K>(call->out[0], b);
      for (int64_t i = 0; i < n; i++) values[i] = factor == 1 ? w[i] : w[i] / factor;
      if (vectors) copy(v, matrix<K>(call->out[1], b));
      return status;
    }, &which);
    if (bad) {
      call->api->fail(call, "linalg.eig: (Batch element %lld): The algorithm failed to converge or the input is not finite",
                      (long long)which);
      return 1;
    }
    return 0;
  });
}
