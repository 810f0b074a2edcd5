/* What the linear algebra kernels share: complex scalars with operators, strided matrices, batches over threads.
 *
 * Operands and results of one call have equal batch dims (lowering broadcasts with zero strides). Direct methods (LU,
 * Cholesky, QR, ...) read f32 into double and round once at the end: the cost is small beside an unblocked algorithm's
 * memory traffic and errors stay below PyTorch's own. Iterative ones (eigenvalues, SVD) work in the operands' precision so
 * that they take LAPACK's decisions, and so its signs.
 */
#ifndef EFFC_LINALG_HPP
#define EFFC_LINALG_HPP
#include "effc_kernel.h"
#include "types.hpp"

#define EFFC_EXPORT extern "C" __attribute__((visibility("default")))

namespace effc {
namespace la {

/* A complex number laid out as cf32 / cf64. */
template <class R>
struct C {
  R re, im;
  C() = default;
  constexpr C(R r, R i = 0) : re(r), im(i) {}
  C operator-() const { return C(-re, -im); }
  C& operator+=(C b) { return *this = C(re + b.re, im + b.im); }
  C& operator-=(C b) { return *this = C(re - b.re, im - b.im); }
  C& operator*=(C b) { return *this = C(re * b.re - im * b.im, re * b.im + im * b.re); }
};
template <class R>
inline C<R> operator+(C<R> a, C<R> b) { return C<R>(a.re + b.re, a.im + b.im); }
template <class R>
inline C<R> operator-(C<R> a, C<R> b) { return C<R>(a.re - b.re, a.im - b.im); }
template <class R>
inline C<R> operator*(C<R> a, C<R> b) { return C<R>(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re); }
template <class R>
inline C<R> operator*(R a, C<R> b) { return C<R>(a * b.re, a * b.im); }
template <class R>
inline C<R> operator*(C<R> b, R a) { return C<R>(a * b.re, a * b.im); }
template <class R>
inline C<R> operator/(C<R> b, R a) { return C<R>(b.re / a, b.im / a); }
/* Smith's algorithm. */
template <class R>
inline C<R> operator/(C<R> x, C<R> y) {
  if (__builtin_fabs(y.re) >= __builtin_fabs(y.im)) {
    R q = y.im / y.re, d = y.re + y.im * q;
    return C<R>((x.re + x.im * q) / d, (x.im - x.re * q) / d);
  }
  R q = y.re / y.im, d = y.re * q + y.im;
  return C<R>((x.re * q + x.im) / d, (x.im * q - x.re) / d);
}
template <class R>
inline bool operator==(C<R> a, C<R> b) { return a.re == b.re && a.im == b.im; }
template <class R>
inline bool operator!=(C<R> a, C<R> b) { return !(a == b); }

template <class S>
struct scalar {
  using real = S;
  static constexpr bool complex = false;
};
template <class R>
struct scalar<C<R>> {
  using real = R;
  static constexpr bool complex = true;
};
template <class S>
using Real = typename scalar<S>::real;
template <class S>
constexpr bool is_c = scalar<S>::complex;

/* The type in which direct methods compute. */
template <class S>
struct wide {
  using type = double;
};
template <class R>
struct wide<C<R>> {
  using type = C<double>;
};
template <class S>
using Wide = typename wide<S>::type;

inline float conj(float x) { return x; }
inline double conj(double x) { return x; }
template <class R>
inline C<R> conj(C<R> x) { return C<R>(x.re, -x.im); }
inline float re(float x) { return x; }
inline double re(double x) { return x; }
template <class R>
inline R re(C<R> x) { return x.re; }
inline float im(float) { return 0; }
inline double im(double) { return 0; }
template <class R>
inline R im(C<R> x) { return x.im; }
inline float mag(float x) { return __builtin_fabsf(x); }
inline double mag(double x) { return __builtin_fabs(x); }
inline float mag(C<float> x) { return __builtin_hypotf(x.re, x.im); }
inline double mag(C<double> x) { return __builtin_hypot(x.re, x.im); }
/* |re| + |im|: LAPACK's cheap magnitude, by which it chooses pivots. */
inline float mag1(float x) { return __builtin_fabsf(x); }
inline double mag1(double x) { return __builtin_fabs(x); }
template <class R>
inline R mag1(C<R> x) { return mag1(x.re) + mag1(x.im); }
template <class S>
inline Real<S> norm2(S x) { return re(x) * re(x) + im(x) * im(x); }
inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }
template <class R>
inline R sign_of(R a, R b) { return __builtin_signbit(b) ? -mag(a) : mag(a); } /* |a| with b's sign */
template <class R>
inline R max_of(R a, R b) { return a < b ? b : a; }
template <class R>
inline R min_of(R a, R b) { return b < a ? b : a; }
template <class S>
inline bool is_nan(S x) { return x != x; }

template <class R>
struct machine; /* LAPACK's dlamch: eps is half an ulp of 1, safe_min the least number whose reciprocal is finite */
template <>
struct machine<float> {
  static constexpr float eps = 0x1p-24f, ulp = 0x1p-23f, safe_min = 0x1p-126f;
};
template <>
struct machine<double> {
  static constexpr double eps = 0x1p-53, ulp = 0x1p-52, safe_min = 0x1p-1022;
};

template <class To>
inline To cast(float x) { return To((Real<To>)x); }
template <class To>
inline To cast(double x) { return To((Real<To>)x); }
template <class To, class R>
inline To cast(C<R> x) {
  if constexpr (is_c<To>)
    return To((Real<To>)x.re, (Real<To>)x.im);
  else
    return (To)x.re;
}

/* A strided matrix; vectors have cs == 0. */
template <class S>
struct Mat {
  S* p;
  int64_t rows, cols, rs, cs;
  S& operator()(int64_t i, int64_t j) const { return p[i * rs + j * cs]; }
  S& operator[](int64_t i) const { return p[i * rs]; }
  Mat t() const { return Mat{p, cols, rows, cs, rs}; }
  Mat sub(int64_t i, int64_t j, int64_t r, int64_t c) const { return Mat{p + i * rs + j * cs, r, c, rs, cs}; }
};
/* Column-major over plain memory. */
template <class S>
inline Mat<S> columns(S* p, int64_t rows, int64_t cols) { return Mat<S>{p, rows, cols, 1, rows}; }
template <class A, class B>
inline void copy(Mat<A> from, Mat<B> to) {
  for (int64_t j = 0; j < to.cols; j++)
    for (int64_t i = 0; i < to.rows; i++) to(i, j) = cast<B>(from(i, j));
}
template <class S>
inline void fill(Mat<S> a, S diagonal, S other) {
  for (int64_t j = 0; j < a.cols; j++)
    for (int64_t i = 0; i < a.rows; i++) a(i, j) = i == j ? diagonal : other;
}

/* Brings the entries of a into the range where squares neither overflow nor vanish; returns the factor (1: as it was). */
template <class S>
inline Real<S> normalise_range(Mat<S> a) {
  using R = Real<S>;
  R big = 0;
  for (int64_t j = 0; j < a.cols; j++)
    for (int64_t i = 0; i < a.rows; i++) big = max_of(big, mag1(a(i, j)));
  const R low = root(machine<R>::safe_min) / machine<R>::ulp, high = 1 / low;
  if (!(big > 0) || (big >= low && big <= high)) return 1;
  const R factor = (big < low ? low : high) / big;
  for (int64_t j = 0; j < a.cols; j++)
    for (int64_t i = 0; i < a.rows; i++) a(i, j) = a(i, j) * factor;
  return factor;
}

/* ---- tensors and batches ---- */

inline bool present(const effc_call* c, int i) { return i < c->n_in && c->in[i].rank >= 0; }
inline int64_t size_at(const effc_tensor& t, int from_end) { return t.shape[t.rank - from_end]; }
/* Product of all but the last `inner` dims. */
inline int64_t batches(const effc_tensor& t, int inner) {
  int64_t n = 1;
  for (int d = 0; d < t.rank - inner; d++) n *= t.shape[d];
  return n;
}
inline int64_t batch_offset(const effc_tensor& t, int inner, int64_t b) {
  int64_t at = 0;
  for (int d = t.rank - inner - 1; d >= 0; d--) {
    at += b % t.shape[d] * t.strides[d];
    b /= t.shape[d];
  }
  return at;
}
/* Matrix b of a tensor [..., m, n]; vector b of [..., n]; element b of [...]. */
template <class S>
inline Mat<S> matrix(const effc_tensor& t, int64_t b) {
  const int r = t.rank;
  return Mat<S>{(S*)t.data + batch_offset(t, 2, b), t.shape[r - 2], t.shape[r - 1], t.strides[r - 2], t.strides[r - 1]};
}
template <class S>
inline Mat<S> vector(const effc_tensor& t, int64_t b) {
  const int r = t.rank;
  return Mat<S>{(S*)t.data + batch_offset(t, 1, b), t.shape[r - 1], 1, t.strides[r - 1], 0};
}
template <class S>
inline S& element(const effc_tensor& t, int64_t b) { return ((S*)t.data)[batch_offset(t, 0, b)]; }

/* Scratch of one worker, handed out piece by piece. */
struct Arena {
  char* at;
  template <class S>
  S* take(int64_t n) {
    S* p = (S*)at;
    at += (n * (int64_t)sizeof(S) + 63) / 64 * 64;
    return p;
  }
};

template <class F>
struct Batch {
  const effc_call* call;
  const F* f;
  int64_t bad;  /* least matrix that failed, and its status */
  int64_t status;
};
/* Runs f(b, arena) -> status for b in [0, n) on the pool. Returns 0, or the status of the first failing matrix in *which. */
template <class F>
inline int64_t for_batches(const effc_call* call, int64_t n, int64_t work, const F& f, int64_t* which = nullptr) {
  Batch<F> job{call, &f, INT64_MAX, 0};
  const int64_t grain = work > 0 ? 1 + 20000 / work : 1;
  call->api->parallel_for(
      call->run, n, grain,
      [](void* arg, int64_t begin, int64_t end, int32_t worker) {
        Batch<F>& j = *(Batch<F>*)arg;
        for (int64_t b = begin; b < end; b++) {
          Arena arena{j.call->thread_scratch + (int64_t)worker * j.call->thread_scratch_bytes};
          const int64_t s = (*j.f)(b, arena);
          if (s == 0) continue;
          int64_t seen = __atomic_load_n(&j.bad, __ATOMIC_RELAXED);
          while (b < seen && !__atomic_compare_exchange_n(&j.bad, &seen, b, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
          }
        }
      },
      &job);
  if (job.bad == INT64_MAX) return 0;
  if (which) *which = job.bad;
  return 1;
}

/* Calls f with a null pointer of the scalar type of a dtype. */
template <class F>
inline int32_t dispatch(const effc_call* call, int32_t dtype, const F& f) {
  switch (dtype) {
    case EFFC_F32: return f((float*)nullptr);
    case EFFC_F64: return f((double*)nullptr);
    case EFFC_C64: return f((C<float>*)nullptr);
    case EFFC_C128: return f((C<double>*)nullptr);
    default: call->api->fail(call, "linear algebra needs f32, f64, c64 or c128"); return 1;
  }
}
/* The S of a pointer to S: `using S = EFFC_SCALAR(tag);` in a function that dispatch calls. */
template <class T>
struct remove_ptr;
template <class T>
struct remove_ptr<T*> {
  using type = T;
};
#define EFFC_SCALAR(tag) typename effc::la::remove_ptr<decltype(tag)>::type

}  // namespace la
}  // namespace effc
#endif
