/* Discrete Fourier transforms of any length over one dimension, float and double.
 *
 * Stockham's self-sorting algorithm with radices 4, 2, 3, 5 and a generic odd one up to 31 (Van Loan, Computational
 * Frameworks for the FFT, 1992); other lengths by Bluestein's chirp (1970) on a power of two. Real transforms of even length
 * run a complex one of half the length. Several lines are transformed at once, interleaved ("lanes"), in planar scratch, so
 * that every inner loop is contiguous and vectorises; long lines go one by one and vectorise within. The inverse is the
 * forward transform with real and imaginary parts exchanged.
 *
 * effc_fft: in x, [table]; out y; attrs dim, kind (0 forward, 1 inverse, 2 real to half spectrum, 3 half spectrum to real),
 * n (the transform's length), f: scale. Input and output may be the same tensor for kinds 0 and 1. x and y have any strides.
 * The table (interleaved complex, of y's precision) is: roots e^(-2 pi i k / n) for k < n; and for Bluestein, with c the
 * complex length and m the power of two, chirp e^(-pi i k^2 / c) for k < c, the transformed filter / m, roots of m. It is
 * computed into scratch if absent; backends/cpu/lower/fft.py makes it a constant when n is known.
 */
#include "effc_kernel.h"
#include "types.hpp"

namespace {

constexpr double pi = 3.14159265358979323846;
constexpr int max_prime = 31;
constexpr int64_t lane_budget = 512 * 1024; /* bytes of scratch within which lines are interleaved */

struct Plan {
  int64_t n;      /* length of the transform */
  int64_t c;      /* length of the complex transform */
  int64_t m;      /* Bluestein's length, 0: none */
  int n_factors;
  int32_t factors[64];
};

int factorise(int64_t n, int32_t* f) {
  int k = 0;
  while (n % 4 == 0) {
    f[k++] = 4;
    n /= 4;
  }
  for (int32_t p = 2; p <= max_prime; p++)
    while (n % p == 0) {
      f[k++] = p;
      n /= p;
    }
  return n == 1 ? k : -1;
}

Plan make_plan(int64_t n, bool real) {
  Plan p;
  p.n = n;
  p.c = real && n % 2 == 0 ? n / 2 : n;
  p.m = 0;
  p.n_factors = factorise(p.c, p.factors);
  if (p.n_factors < 0) {
    p.m = 1;
    while (p.m < 2 * p.c - 1) p.m *= 2;
    p.n_factors = factorise(p.m, p.factors);
  }
  return p;
}

/* One Stockham stage of radix R: out[q + s (R p + k)] = w^(p k) sum_j W_R^(j k) in[q + s (p + m j)], q < s, p < m.
 * w: roots table, step: index distance of one unit of p k. */
template <int R, class T>
void stage(int64_t m, int64_t s, const T* __restrict xr, const T* __restrict xi, T* __restrict yr, T* __restrict yi,
           const T* __restrict w, int64_t step) {
  const int64_t d = m * s;
  for (int64_t p = 0; p < m; p++) {
    T wr[R], wi[R];
    for (int k = 1; k < R; k++) {
      wr[k] = w[2 * (p * k * step)];
      wi[k] = w[2 * (p * k * step) + 1];
    }
    const T* ar = xr + s * p;
    const T* ai = xi + s * p;
    T* br = yr + s * R * p;
    T* bi = yi + s * R * p;
#pragma omp simd
    for (int64_t q = 0; q < s; q++) {
      if constexpr (R == 2) {
        T r0 = ar[q], i0 = ai[q], r1 = ar[q + d], i1 = ai[q + d];
        T dr = r0 - r1, di = i0 - i1;
        br[q] = r0 + r1;
        bi[q] = i0 + i1;
        br[q + s] = dr * wr[1] - di * wi[1];
        bi[q + s] = dr * wi[1] + di * wr[1];
      } else if constexpr (R == 3) {
        constexpr T h = (T)0.86602540378443864676;
        T r0 = ar[q], i0 = ai[q];
        T sr = ar[q + d] + ar[q + 2 * d], si = ai[q + d] + ai[q + 2 * d];
        T dr = (ar[q + d] - ar[q + 2 * d]) * h, di = (ai[q + d] - ai[q + 2 * d]) * h;
        T cr = r0 - sr * (T)0.5, ci = i0 - si * (T)0.5;
        br[q] = r0 + sr;
        bi[q] = i0 + si;
        T ur = cr + di, ui = ci - dr, vr = cr - di, vi = ci + dr;
        br[q + s] = ur * wr[1] - ui * wi[1];
        bi[q + s] = ur * wi[1] + ui * wr[1];
        br[q + 2 * s] = vr * wr[2] - vi * wi[2];
        bi[q + 2 * s] = vr * wi[2] + vi * wr[2];
      } else if constexpr (R == 4) {
        T r0 = ar[q], i0 = ai[q], r1 = ar[q + d], i1 = ai[q + d];
        T r2 = ar[q + 2 * d], i2 = ai[q + 2 * d], r3 = ar[q + 3 * d], i3 = ai[q + 3 * d];
        T er = r0 + r2, ei = i0 + i2, fr = r0 - r2, fi = i0 - i2;
        T gr = r1 + r3, gi = i1 + i3, hr = i1 - i3, hi = r3 - r1; /* -i (x1 - x3) */
        br[q] = er + gr;
        bi[q] = ei + gi;
        T ur = fr + hr, ui = fi + hi, vr = er - gr, vi = ei - gi, zr = fr - hr, zi = fi - hi;
        br[q + s] = ur * wr[1] - ui * wi[1];
        bi[q + s] = ur * wi[1] + ui * wr[1];
        br[q + 2 * s] = vr * wr[2] - vi * wi[2];
        bi[q + 2 * s] = vr * wi[2] + vi * wr[2];
        br[q + 3 * s] = zr * wr[3] - zi * wi[3];
        bi[q + 3 * s] = zr * wi[3] + zi * wr[3];
      } else {
        static_assert(R == 5, "radix");
        constexpr T c1 = (T)0.30901699437494742410, c2 = (T)-0.80901699437494742410;
        constexpr T s1 = (T)0.95105651629515357212, s2 = (T)0.58778525229247312917;
        T r0 = ar[q], i0 = ai[q];
        T pr = ar[q + d] + ar[q + 4 * d], pi_ = ai[q + d] + ai[q + 4 * d];
        T mr = ar[q + d] - ar[q + 4 * d], mi = ai[q + d] - ai[q + 4 * d];
        T or_ = ar[q + 2 * d] + ar[q + 3 * d], oi = ai[q + 2 * d] + ai[q + 3 * d];
        T nr = ar[q + 2 * d] - ar[q + 3 * d], ni = ai[q + 2 * d] - ai[q + 3 * d];
        br[q] = r0 + pr + or_;
        bi[q] = i0 + pi_ + oi;
        T e1r = r0 + c1 * pr + c2 * or_, e1i = i0 + c1 * pi_ + c2 * oi;
        T e2r = r0 + c2 * pr + c1 * or_, e2i = i0 + c2 * pi_ + c1 * oi;
        T o1r = s1 * mr + s2 * nr, o1i = s1 * mi + s2 * ni;
        T o2r = s2 * mr - s1 * nr, o2i = s2 * mi - s1 * ni;
        T ar1 = e1r + o1i, ai1 = e1i - o1r, ar4 = e1r - o1i, ai4 = e1i + o1r;
        T ar2 = e2r + o2i, ai2 = e2i - o2r, ar3 = e2r - o2i, ai3 = e2i + o2r;
        br[q + s] = ar1 * wr[1] - ai1 * wi[1];
        bi[q + s] = ar1 * wi[1] + ai1 * wr[1];
        br[q + 2 * s] = ar2 * wr[2] - ai2 * wi[2];
        bi[q + 2 * s] = ar2 * wi[2] + ai2 * wr[2];
        br[q + 3 * s] = ar3 * wr[3] - ai3 * wi[3];
        bi[q + 3 * s] = ar3 * wi[3] + ai3 * wr[3];
        br[q + 4 * s] = ar4 * wr[4] - ai4 * wi[4];
        bi[q + 4 * s] = ar4 * wi[4] + ai4 * wr[4];
      }
    }
  }
}

/* Any radix by its definition. c: length of the whole transform, unit: table index distance of one root of c. */
template <class T>
void stage_any(int64_t r, int64_t m, int64_t s, const T* __restrict xr, const T* __restrict xi, T* __restrict yr,
               T* __restrict yi, const T* __restrict w, int64_t step, int64_t c, int64_t unit) {
  const int64_t d = m * s;
  for (int64_t p = 0; p < m; p++)
    for (int64_t k = 0; k < r; k++) {
      T* br = yr + s * (r * p + k);
      T* bi = yi + s * (r * p + k);
      for (int64_t q = 0; q < s; q++) br[q] = bi[q] = 0;
      const T tr = w[2 * (p * k * step)], ti = w[2 * (p * k * step) + 1];
      for (int64_t j = 0; j < r; j++) {
        const int64_t e = (j * k % r) * (c / r) * unit;
        const T ur = w[2 * e] * tr - w[2 * e + 1] * ti, ui = w[2 * e] * ti + w[2 * e + 1] * tr;
        const T* ar = xr + s * p + d * j;
        const T* ai = xi + s * p + d * j;
#pragma omp simd
        for (int64_t q = 0; q < s; q++) {
          br[q] += ar[q] * ur - ai[q] * ui;
          bi[q] += ar[q] * ui + ai[q] * ur;
        }
      }
    }
}

template <class T>
struct Planar {
  T *re, *im;
};

/* Transforms `lanes` interleaved lines of length c in a, with b as work space; returns where the result is. */
template <class T>
Planar<T> stockham(const Plan& plan, int64_t c, int64_t lanes, Planar<T> a, Planar<T> b, const T* w, int64_t unit) {
  int64_t rest = c, s = 1;
  for (int k = 0; k < plan.n_factors; k++) {
    const int64_t r = plan.factors[k], m = rest / r, step = s * unit;
    switch (r) {
      case 2: stage<2>(m, s * lanes, a.re, a.im, b.re, b.im, w, step); break;
      case 3: stage<3>(m, s * lanes, a.re, a.im, b.re, b.im, w, step); break;
      case 4: stage<4>(m, s * lanes, a.re, a.im, b.re, b.im, w, step); break;
      case 5: stage<5>(m, s * lanes, a.re, a.im, b.re, b.im, w, step); break;
      default: stage_any(r, m, s * lanes, a.re, a.im, b.re, b.im, w, step, c, unit);
    }
    rest = m;
    s *= r;
    Planar<T> t = a;
    a = b;
    b = t;
  }
  return a;
}

template <class T>
struct Table {
  const T *roots, *chirp, *filter, *roots_m;
};

/* The complex transform of a (length plan.c), by Bluestein where the length has a large prime factor. */
template <class T>
Planar<T> transform(const Plan& plan, const Table<T>& t, int64_t lanes, Planar<T> a, Planar<T> b) {
  if (plan.m == 0) return stockham(plan, plan.c, lanes, a, b, t.roots, plan.n / plan.c);
  for (int64_t k = 0; k < plan.c; k++) {
    const T wr = t.chirp[2 * k], wi = t.chirp[2 * k + 1];
    for (int64_t l = k * lanes; l < (k + 1) * lanes; l++) {
      T re = a.re[l], im = a.im[l];
      a.re[l] = re * wr - im * wi;
      a.im[l] = re * wi + im * wr;
    }
  }
  for (int64_t l = plan.c * lanes; l < plan.m * lanes; l++) a.re[l] = a.im[l] = 0;
  Planar<T> f = stockham(plan, plan.m, lanes, a, b, t.roots_m, 1);
  Planar<T> g = f.re == a.re ? b : a;
  for (int64_t k = 0; k < plan.m; k++) {
    const T wr = t.filter[2 * k], wi = t.filter[2 * k + 1];
    for (int64_t l = k * lanes; l < (k + 1) * lanes; l++) {
      T re = f.re[l], im = f.im[l];
      f.re[l] = re * wr - im * wi;
      f.im[l] = re * wi + im * wr;
    }
  }
  Planar<T> h = stockham(plan, plan.m, lanes, Planar<T>{f.im, f.re}, Planar<T>{g.im, g.re}, t.roots_m, 1);
  h = Planar<T>{h.im, h.re};
  for (int64_t k = 0; k < plan.c; k++) {
    const T wr = t.chirp[2 * k], wi = t.chirp[2 * k + 1];
    for (int64_t l = k * lanes; l < (k + 1) * lanes; l++) {
      T re = h.re[l], im = h.im[l];
      h.re[l] = re * wr - im * wi;
      h.im[l] = re * wi + im * wr;
    }
  }
  return h;
}

template <class T>
void fill_roots(T* w, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    double a = -2 * pi * (double)k / (double)n;
    w[2 * k] = (T)__builtin_cos(a);
    w[2 * k + 1] = (T)__builtin_sin(a);
  }
}

int64_t table_length(const Plan& p) { return p.n + (p.m ? p.c + 2 * p.m : 0); }

template <class T>
Table<T> table_at(const Plan& p, const T* at) {
  return Table<T>{at, at + 2 * p.n, at + 2 * (p.n + p.c), at + 2 * (p.n + p.c + p.m)};
}

/* Computes the table; work has room for 4 m values. */
template <class T>
void fill_table(const Plan& p, T* at, T* work) {
  fill_roots(at, p.n);
  if (!p.m) return;
  T *chirp = at + 2 * p.n, *filter = chirp + 2 * p.c, *roots_m = filter + 2 * p.m;
  fill_roots(roots_m, p.m);
  Planar<T> a{work, work + p.m}, b{work + 2 * p.m, work + 3 * p.m};
  for (int64_t k = 0; k < p.m; k++) a.re[k] = a.im[k] = 0;
  for (int64_t k = 0; k < p.c; k++) {
    int64_t square = (int64_t)((unsigned __int128)k * k % (unsigned __int128)(2 * p.c));
    double angle = -pi * (double)square / (double)p.c, re = __builtin_cos(angle), im = __builtin_sin(angle);
    chirp[2 * k] = (T)re;
    chirp[2 * k + 1] = (T)im;
    int64_t mirror = k ? p.m - k : 0;
    a.re[k] = a.re[mirror] = (T)(re / (double)p.m);
    a.im[k] = a.im[mirror] = (T)(-im / (double)p.m);
  }
  Planar<T> f = stockham(p, p.m, 1, a, b, roots_m, 1);
  for (int64_t k = 0; k < p.m; k++) {
    filter[2 * k] = f.re[k];
    filter[2 * k + 1] = f.im[k];
  }
}

enum Kind { forward = 0, inverse = 1, real_forward = 2, real_inverse = 3 };

template <class T>
struct Job {
  const effc_call* call;
  Plan plan;
  Table<T> table;
  Kind kind;
  int dim;
  int64_t lanes, lines;
  T scale;
};

/* Element offsets of line number `line` (row-major over all dims but `dim`). */
void line_offsets(const effc_tensor& x, const effc_tensor& y, int dim, int64_t line, int64_t* ox, int64_t* oy) {
  int64_t a = 0, b = 0;
  for (int d = y.rank - 1; d >= 0; d--) {
    if (d == dim) continue;
    int64_t i = line % y.shape[d];
    line /= y.shape[d];
    a += i * x.strides[d];
    b += i * y.strides[d];
  }
  *ox = a;
  *oy = b;
}

/* X[k] = (Z[k] + conj Z[c-k])/2 - i w^k (Z[k] - conj Z[c-k])/2 for k <= c: the half spectrum of x from the transform Z of
 * x[2j] + i x[2j+1]. */
template <class T>
void untangle_forward(const Job<T>& job, Planar<T> z, int64_t lanes, T* out, const int64_t* oy, int64_t sy) {
  const int64_t c = job.plan.c;
  for (int64_t k = 0; k <= c; k++) {
    const int64_t i = (k == c ? 0 : k) * lanes, j = (k == 0 ? 0 : c - k) * lanes;
    const T wr = k == c ? (T)-1 : job.table.roots[2 * k], wi = k == c ? (T)0 : job.table.roots[2 * k + 1];
    for (int64_t l = 0; l < lanes; l++) {
      T er = (z.re[i + l] + z.re[j + l]) * (T)0.5, ei = (z.im[i + l] - z.im[j + l]) * (T)0.5;
      T or_ = (z.im[i + l] + z.im[j + l]) * (T)0.5, oi = (z.re[j + l] - z.re[i + l]) * (T)0.5;
      T* p = out + 2 * (oy[l] + k * sy);
      p[0] = (er + or_ * wr - oi * wi) * job.scale;
      p[1] = (ei + or_ * wi + oi * wr) * job.scale;
    }
  }
}

template <class T>
void run_lines(const Job<T>& job, int64_t first, int64_t lanes, T* work) {
  const effc_tensor &x = job.call->in[0], &y = job.call->out[0];
  const Plan& plan = job.plan;
  const int64_t c = plan.c, room = (plan.m ? plan.m : c) * lanes;
  const int64_t sx = x.strides[job.dim], sy = y.strides[job.dim];
  const T* src = (const T*)x.data;
  T* dst = (T*)y.data;
  int64_t ox[64], oy[64];
  for (int64_t l = 0; l < lanes; l++) line_offsets(x, y, job.dim, first + l, ox + l, oy + l);
  Planar<T> a{work, work + room}, b{work + 2 * room, work + 3 * room};
  const T scale = job.scale;
  switch (job.kind) {
    case forward:
    case inverse: {
      T *re = job.kind == inverse ? a.im : a.re, *im = job.kind == inverse ? a.re : a.im;
      if (sx == 1) {
        for (int64_t l = 0; l < lanes; l++)
          for (int64_t k = 0; k < c; k++) {
            re[k * lanes + l] = src[2 * (ox[l] + k)];
            im[k * lanes + l] = src[2 * (ox[l] + k) + 1];
          }
      } else {
        for (int64_t k = 0; k < c; k++)
          for (int64_t l = 0; l < lanes; l++) {
            re[k * lanes + l] = src[2 * (ox[l] + k * sx)];
            im[k * lanes + l] = src[2 * (ox[l] + k * sx) + 1];
          }
      }
      Planar<T> f = transform(plan, job.table, lanes, a, b);
      re = job.kind == inverse ? f.im : f.re;
      im = job.kind == inverse ? f.re : f.im;
      if (sy == 1) {
        for (int64_t l = 0; l < lanes; l++)
          for (int64_t k = 0; k < c; k++) {
            dst[2 * (oy[l] + k)] = re[k * lanes + l] * scale;
            dst[2 * (oy[l] + k) + 1] = im[k * lanes + l] * scale;
          }
      } else {
        for (int64_t k = 0; k < c; k++)
          for (int64_t l = 0; l < lanes; l++) {
            dst[2 * (oy[l] + k * sy)] = re[k * lanes + l] * scale;
            dst[2 * (oy[l] + k * sy) + 1] = im[k * lanes + l] * scale;
          }
      }
      break;
    }
    case real_forward: {
      const bool half = c != plan.n;
      for (int64_t k = 0; k < c; k++)
        for (int64_t l = 0; l < lanes; l++) {
          a.re[k * lanes + l] = half ? src[ox[l] + 2 * k * sx] : src[ox[l] + k * sx];
          a.im[k * lanes + l] = half ? src[ox[l] + (2 * k + 1) * sx] : (T)0;
        }
      Planar<T> f = transform(plan, job.table, lanes, a, b);
      if (half) {
        untangle_forward(job, f, lanes, dst, oy, sy);
        break;
      }
      for (int64_t k = 0; k < y.shape[job.dim]; k++)
        for (int64_t l = 0; l < lanes; l++) {
          T* p = dst + 2 * (oy[l] + k * sy);
          p[0] = f.re[k * lanes + l] * scale;
          p[1] = f.im[k * lanes + l] * scale;
        }
      break;
    }
    case real_inverse: {
      if (c == plan.n) { /* odd length: the full Hermitian spectrum; parts exchanged for the inverse */
        for (int64_t k = 0; k < c; k++) {
          const bool mirror = k > c / 2;
          const int64_t at = mirror ? c - k : k;
          for (int64_t l = 0; l < lanes; l++) {
            const T* p = src + 2 * (ox[l] + at * sx);
            a.im[k * lanes + l] = p[0];
            a.re[k * lanes + l] = k == 0 ? (T)0 : (mirror ? -p[1] : p[1]);
          }
        }
        Planar<T> f = transform(plan, job.table, lanes, a, b);
        for (int64_t k = 0; k < c; k++)
          for (int64_t l = 0; l < lanes; l++) dst[oy[l] + k * sy] = f.im[k * lanes + l] * scale;
        break;
      }
      /* Z[k] = (X[k] + conj X[c-k]) + i conj(w^k) (X[k] - conj X[c-k]); the imaginary parts of X[0], X[c] do not count. */
      for (int64_t k = 0; k < c; k++) {
        const T wr = job.table.roots[2 * k], wi = -job.table.roots[2 * k + 1];
        for (int64_t l = 0; l < lanes; l++) {
          const T *p = src + 2 * (ox[l] + k * sx), *q = src + 2 * (ox[l] + (c - k) * sx);
          const T pi_ = k ? p[1] : (T)0, qi = k ? q[1] : (T)0;
          const T er = p[0] + q[0], ei = pi_ - qi, dr = p[0] - q[0], di = pi_ + qi;
          const T tr = dr * wr - di * wi, ti = dr * wi + di * wr;
          a.im[k * lanes + l] = er - ti;
          a.re[k * lanes + l] = ei + tr;
        }
      }
      Planar<T> f = transform(plan, job.table, lanes, a, b);
      for (int64_t k = 0; k < c; k++)
        for (int64_t l = 0; l < lanes; l++) {
          dst[oy[l] + 2 * k * sy] = f.im[k * lanes + l] * scale;
          dst[oy[l] + (2 * k + 1) * sy] = f.re[k * lanes + l] * scale;
        }
      break;
    }
  }
}

template <class T>
void task(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Job<T>& job = *(const Job<T>*)arg;
  T* work = (T*)(job.call->thread_scratch + (int64_t)worker * job.call->thread_scratch_bytes);
  for (int64_t line = begin * job.lanes; line < end * job.lanes && line < job.lines; line += job.lanes) {
    const int64_t left = job.lines - line;
    run_lines(job, line, left < job.lanes ? left : job.lanes, work);
  }
}

template <class T>
int32_t run(const effc_call* call) {
  const effc_tensor &x = call->in[0], &y = call->out[0];
  Job<T> job;
  job.call = call;
  job.dim = (int)call->attr[0];
  job.kind = (Kind)call->attr[1];
  job.scale = (T)call->fattr[0];
  const int64_t n = call->attr[2];
  if (n < 1) {
    call->api->fail(call, "fft: invalid number of data points (%lld)", (long long)n);
    return 1;
  }
  const bool real = job.kind == real_forward || job.kind == real_inverse;
  job.plan = make_plan(n, real);
  if (x.shape[job.dim] != (job.kind == real_inverse ? n / 2 + 1 : n)) {
    call->api->fail(call, "fft: dimension of size %lld does not fit a transform of length %lld",
                    (long long)x.shape[job.dim], (long long)n);
    return 1;
  }
  job.lines = 1;
  for (int d = 0; d < y.rank; d++)
    if (d != job.dim) job.lines *= y.shape[d];
  if (job.lines == 0) return 0;
  const int64_t room = job.plan.m ? job.plan.m : job.plan.c;
  job.lanes = EFFC_VLEN / (int64_t)sizeof(T);
  while (job.lanes > 1 && (job.lanes > job.lines || 4 * room * job.lanes * (int64_t)sizeof(T) > lane_budget)) job.lanes /= 2;
  const T* table = call->n_in > 1 ? (const T*)call->in[1].data : nullptr;
  if (!table) {
    T* at = (T*)call->scratch;
    fill_table(job.plan, at, at + 2 * table_length(job.plan));
    table = at;
  }
  job.table = table_at(job.plan, table);
  const int64_t groups = (job.lines + job.lanes - 1) / job.lanes;
  int64_t grain = 1 + 16384 / (room * job.lanes);
  call->api->parallel_for(call->run, groups, grain, task<T>, &job);
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int32_t effc_fft(const effc_call* call) {
  const int32_t dtype = call->in[0].dtype;
  return dtype == EFFC_F32 || dtype == EFFC_C64 ? run<float>(call) : run<double>(call);
}
