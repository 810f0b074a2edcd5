/* Plane rotations and 2 by 2 kernels with LAPACK's conventions, after the descriptions in the LAPACK Users' Guide and
 * Anderson, Discontinuous Plane Rotations (LAWN 150). Used by the eigenvalue and singular value iterations. */
#ifndef EFFC_ROTATIONS_HPP
#define EFFC_ROTATIONS_HPP
#include "householder.hpp"

namespace effc {
namespace la {

template <class R>
inline R unit_sign(R x) { return sign_of(R(1), x); }

/* [c s; -s c] [f; g] = [r; 0]. Two rules for the signs, on which those of eigenvectors and singular vectors depend: c >= 0
 * and r with f's sign (LAPACK's lartg since 3.10), or r > 0 unless |f| > |g| and f < 0 (before). The LAPACK in PyTorch's wheels
 * takes the former in bdsqr, the latter in steqr. */
template <bool Older = false, class R>
inline void rotation(R f, R g, R* c, R* s, R* r) {
  if (g == 0) {
    *c = 1;
    *s = 0;
    *r = f;
  } else if (f == 0) {
    *c = 0;
    *s = Older ? R(1) : unit_sign(g);
    *r = Older ? g : mag(g);
  } else {
    R d = hypotenuse(f, g);
    if (Older ? f < 0 && mag(f) > mag(g) : f < 0) d = -d;
    *c = f / d;
    *s = g / d;
    *r = d;
  }
}

/* Columns j, j+1 of z for a sequence of rotations (c[k], s[k]): LAPACK's lasr from the right, forward or backward.
 * S may be complex, rotations are real. */
template <class S>
inline void rotate_columns(Mat<S> z, const Real<S>* c, const Real<S>* s, int64_t n, bool forward) {
  for (int64_t k = 0; k < n - 1; k++) {
    const int64_t j = forward ? k : n - 2 - k;
    const Real<S> cj = c[j], sj = s[j];
    if (cj == 1 && sj == 0) continue;
    for (int64_t i = 0; i < z.rows; i++) {
      const S t = z(i, j + 1);
      z(i, j + 1) = t * cj - z(i, j) * sj;
      z(i, j) = t * sj + z(i, j) * cj;
    }
  }
}

/* Eigenvalues rt1 (of larger magnitude), rt2 of [a b; b c] and the unit right eigenvector (cs1, sn1) of rt1 (laev2). */
template <class R>
inline void symmetric_2x2(R a, R b, R c, R* rt1, R* rt2, R* cs1, R* sn1) {
  const R sm = a + c, df = a - c, adf = mag(df), tb = b + b, ab = mag(tb);
  const R acmx = mag(a) > mag(c) ? a : c, acmn = mag(a) > mag(c) ? c : a;
  R rt;
  if (adf > ab)
    rt = adf * root(1 + (ab / adf) * (ab / adf));
  else if (adf < ab)
    rt = ab * root(1 + (adf / ab) * (adf / ab));
  else
    rt = ab * root(R(2));
  int sgn1 = 1;
  if (sm < 0) {
    *rt1 = R(0.5) * (sm - rt);
    sgn1 = -1;
    *rt2 = (acmx / *rt1) * acmn - (b / *rt1) * b;
  } else if (sm > 0) {
    *rt1 = R(0.5) * (sm + rt);
    *rt2 = (acmx / *rt1) * acmn - (b / *rt1) * b;
  } else {
    *rt1 = R(0.5) * rt;
    *rt2 = R(-0.5) * rt;
  }
  const int sgn2 = df >= 0 ? 1 : -1;
  const R cs = df >= 0 ? df + rt : df - rt;
  if (mag(cs) > ab) {
    const R ct = -tb / cs;
    *sn1 = 1 / root(1 + ct * ct);
    *cs1 = ct * *sn1;
  } else if (ab == 0) {
    *cs1 = 1;
    *sn1 = 0;
  } else {
    const R tn = -cs / tb;
    *cs1 = 1 / root(1 + tn * tn);
    *sn1 = tn * *cs1;
  }
  if (sgn1 == sgn2) {
    const R tn = *cs1;
    *cs1 = -*sn1;
    *sn1 = tn;
  }
}

/* The smaller singular value of [f g; 0 h] (las2). */
template <class R>
inline R smaller_singular(R f, R g, R h) {
  const R fa = mag(f), ga = mag(g), ha = mag(h), lo = min_of(fa, ha), hi = max_of(fa, ha);
  if (lo == 0) return 0;
  const R as = 1 + lo / hi, at = (hi - lo) / hi;
  if (ga < hi) {
    const R au = (ga / hi) * (ga / hi);
    return lo * (2 / (root(as * as + au) + root(at * at + au)));
  }
  const R au = hi / ga;
  if (au == 0) return (lo * hi) / ga;
  const R c = 1 / (root(1 + (as * au) * (as * au)) + root(1 + (at * au) * (at * au)));
  return 2 * ((lo * c) * au);
}

/* [csl snl; -snl csl] [f g; 0 h] [csr -snr; snr csr] = diag(ssmax, ssmin) (lasv2). */
template <class R>
inline void svd_2x2(R f, R g, R h, R* ssmin, R* ssmax, R* snr, R* csr, R* snl, R* csl) {
  R ft = f, fa = mag(f), ht = h, ha = mag(h);
  int pmax = 1;
  const bool swapped = ha > fa;
  if (swapped) {
    pmax = 3;
    R t = ft;
    ft = ht;
    ht = t;
    t = fa;
    fa = ha;
    ha = t;
  }
  const R gt = g, ga = mag(g);
  R clt, crt, slt, srt;
  if (ga == 0) {
    *ssmin = ha;
    *ssmax = fa;
    clt = crt = 1;
    slt = srt = 0;
  } else {
    bool small = true;
    clt = crt = slt = srt = 0;
    if (ga > fa) {
      pmax = 2;
      if (fa / ga < machine<R>::eps) {
        small = false;
        *ssmax = ga;
        *ssmin = ha > 1 ? fa / (ga / ha) : (fa / ga) * ha;
        clt = 1;
        slt = ht / gt;
        srt = 1;
        crt = ft / gt;
      }
    }
    if (small) {
      const R d = fa - ha, m = gt / ft, mm = m * m;
      R l = d == fa ? R(1) : d / fa, t = 2 - l;
      const R s = root(t * t + mm), r = l == 0 ? mag(m) : root(l * l + mm), a = R(0.5) * (s + r);
      *ssmin = ha / a;
      *ssmax = fa * a;
      if (mm == 0)
        t = l == 0 ? sign_of(R(2), ft) * unit_sign(gt) : gt / sign_of(d, ft) + m / t;
      else
        t = (m / (s + t) + m / (r + l)) * (1 + a);
      l = root(t * t + 4);
      crt = 2 / l;
      srt = t / l;
      clt = (crt + srt * m) / a;
      slt = (ht / ft) * srt / a;
    }
  }
  *csl = swapped ? srt : clt;
  *snl = swapped ? crt : slt;
  *csr = swapped ? slt : crt;
  *snr = swapped ? clt : srt;
  R tsign;
  if (pmax == 1)
    tsign = unit_sign(*csr) * unit_sign(*csl) * unit_sign(f);
  else if (pmax == 2)
    tsign = unit_sign(*snr) * unit_sign(*csl) * unit_sign(g);
  else
    tsign = unit_sign(*snr) * unit_sign(*snl) * unit_sign(h);
  *ssmax = sign_of(*ssmax, tsign);
  *ssmin = sign_of(*ssmin, tsign * unit_sign(f) * unit_sign(h));
}

}  // namespace la
}  // namespace effc
#endif
