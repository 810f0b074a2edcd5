/* The matrix exponential and pairwise distances. */
#include "lu.hpp"

using namespace effc::la;

namespace {

template <class S>
void multiply(Mat<S> a, Mat<S> b, Mat<S> c) {
  const int64_t n = a.rows;
  for (int64_t j = 0; j < n; j++) {
    S* x = &c(0, j);
    for (int64_t i = 0; i < n; i++) x[i] = S(0);
    for (int64_t l = 0; l < n; l++) {
      const S f = b(l, j);
      const S* y = &a(0, l);
      for (int64_t i = 0; i < n; i++) x[i] += y[i] * f;
    }
  }
}

/* Scaling and squaring with the Pade approximant of degree 13 (Higham 2005). a is overwritten by its exponential. */
template <class S>
void exponential(Mat<S> a, Arena& arena) {
  constexpr double pade[] = {64764752532480000.0, 32382376266240000.0, 7771770303897600.0, 1187353796428800.0,
                             129060195264000.0,   10559470521600.0,    670442572800.0,     33522128640.0,
                             1323241920.0,        40840800.0,          960960.0,           16380.0,
                             182.0,               1.0};
  const int64_t n = a.rows, count = n * n;
  double norm = 0;
  bool finite = true;
  for (int64_t j = 0; j < n; j++) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += mag(a(i, j));
    finite = finite && sum < __builtin_inf();
    norm = max_of(norm, sum);
  }
  if (!finite) {
    for (int64_t i = 0; i < count; i++) a.p[i] = S(__builtin_nan(""));
    return;
  }
  int squarings = 0;
  for (double x = norm; x > 5.371920351148152; x /= 2) squarings++;
  const double scale = __builtin_ldexp(1.0, -squarings);
  Mat<S> a2 = columns(arena.take<S>(count), n, n), a4 = columns(arena.take<S>(count), n, n);
  Mat<S> a6 = columns(arena.take<S>(count), n, n), u = columns(arena.take<S>(count), n, n);
  Mat<S> v = columns(arena.take<S>(count), n, n), t = columns(arena.take<S>(count), n, n);
  int32_t* piv = arena.take<int32_t>(n);
  for (int64_t i = 0; i < count; i++) a.p[i] = a.p[i] * scale;
  multiply(a, a, a2);
  multiply(a2, a2, a4);
  multiply(a4, a2, a6);
  auto high = [&](int k, Mat<S> out) {
    for (int64_t i = 0; i < count; i++) out.p[i] = pade[k + 4] * a6.p[i] + pade[k + 2] * a4.p[i] + pade[k] * a2.p[i];
  };
  auto low = [&](int k, Mat<S> out) { /* adds the terms of degree < 8 */
    for (int64_t i = 0; i < count; i++)
      out.p[i] += pade[k + 6] * a6.p[i] + pade[k + 4] * a4.p[i] + pade[k + 2] * a2.p[i];
    for (int64_t i = 0; i < n; i++) out(i, i) += S(pade[k]);
  };
  high(9, t);
  multiply(a6, t, v);
  low(1, v);
  multiply(a, v, u); /* odd part */
  high(8, t);
  multiply(a6, t, v);
  low(0, v); /* even part */
  for (int64_t i = 0; i < count; i++) {
    const S odd = u.p[i], even = v.p[i];
    t.p[i] = even - odd;
    a.p[i] = even + odd;
  }
  lu(t, piv, true);
  for (int64_t c = 0; c < n; c++) {
    S* x = &a(0, c);
    for (int64_t i = 0; i < n; i++) {
      const S y = x[i];
      x[i] = x[piv[i] - 1];
      x[piv[i] - 1] = y;
    }
    triangular(t, false, true, x);
    triangular(t, true, false, x);
  }
  for (int k = 0; k < squarings; k++) {
    multiply(a, a, u);
    copy(u, a);
  }
}

enum class Norm { zero, one, two, inf, any };
Norm norm_of(double p) {
  return p == 0 ? Norm::zero : p == 1 ? Norm::one : p == 2 ? Norm::two : p == __builtin_inf() ? Norm::inf : Norm::any;
}
template <class T>
double distance(Norm kind, double p, const T* x, int64_t sx, const T* y, int64_t sy, int64_t n) {
  double s = 0;
  switch (kind) {
    case Norm::zero:
      for (int64_t i = 0; i < n; i++) s += x[i * sx] - y[i * sy] != 0;
      return s;
    case Norm::one:
      for (int64_t i = 0; i < n; i++) s += mag((double)x[i * sx] - (double)y[i * sy]);
      return s;
    case Norm::two:
      for (int64_t i = 0; i < n; i++) {
        const double d = (double)x[i * sx] - (double)y[i * sy];
        s += d * d;
      }
      return root(s);
    case Norm::inf:
      for (int64_t i = 0; i < n; i++) {
        const double d = mag((double)x[i * sx] - (double)y[i * sy]);
        s = d > s || is_nan(d) ? d : s;
      }
      return s;
    default:
      for (int64_t i = 0; i < n; i++) s += __builtin_pow(mag((double)x[i * sx] - (double)y[i * sy]), p);
      return __builtin_pow(s, 1 / p);
  }
}

struct Distances {
  const effc_call* call;
  double p;
  Norm kind;
};

template <class T>
void cdist_rows(void* arg, int64_t begin, int64_t end, int32_t) {
  const Distances& job = *(const Distances*)arg;
  const effc_tensor &x_t = job.call->in[0], &y_t = job.call->in[1], &out = job.call->out[0];
  const int64_t rows = size_at(out, 2), cols = size_at(out, 1), n = size_at(x_t, 1);
  for (int64_t r = begin; r < end; r++) {
    Mat<T> x = matrix<T>(x_t, r / rows), y = matrix<T>(y_t, r / rows), z = matrix<T>(out, r / rows);
    const int64_t i = r % rows;
    for (int64_t j = 0; j < cols; j++)
      z(i, j) = (T)distance(job.kind, job.p, x.p + i * x.rs, x.cs, y.p + j * y.rs, y.cs, n);
  }
}
template <class T>
void pdist_rows(void* arg, int64_t begin, int64_t end, int32_t) {
  const Distances& job = *(const Distances*)arg;
  Mat<T> x = matrix<T>(job.call->in[0], 0);
  Mat<T> z = vector<T>(job.call->out[0], 0);
  for (int64_t i = begin; i < end; i++) {
    int64_t at = i * (2 * x.rows - i - 1) / 2;
    for (int64_t j = i + 1; j < x.rows; j++, at++)
      z[at] = (T)distance(job.kind, job.p, x.p + i * x.rs, x.cs, x.p + j * x.rs, x.cs, x.cols);
  }
}

}  // namespace

/* in A [.., n, n]; out e^A. Scratch 16 * 7 n n + 8 n + 1024. */
EFFC_EXPORT int32_t effc_matrix_exp(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor& a = call->in[0];
    const int64_t n = size_at(a, 1);
    for_batches(call, batches(a, 2), 20 * n * n * n, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = columns(arena.take<W>(n * n), n, n);
      copy(matrix<S>(a, b), w);
      exponential(w, arena);
      copy(w, matrix<S>(call->out[0], b));
      return 0;
    });
    return 0;
  });
}

/* in X [.., p, n], Y [.., r, n]; out distances [.., p, r]; f: the norm's order. */
EFFC_EXPORT int32_t effc_cdist(const effc_call* call) {
  Distances job{call, call->fattr[0], norm_of(call->fattr[0])};
  const effc_tensor& out = call->out[0];
  const int64_t rows = batches(out, 2) * size_at(out, 2), work = size_at(out, 1) * (size_at(call->in[0], 1) + 1);
  call->api->parallel_for(call->run, rows, work > 0 ? 1 + 20000 / work : 1,
                          out.dtype == EFFC_F32 ? cdist_rows<float> : cdist_rows<double>, &job);
  return 0;
}

/* in X [p, n]; out distances of the pairs i < j [p (p - 1) / 2]; f: the norm's order. */
EFFC_EXPORT int32_t effc_pdist(const effc_call* call) {
  Distances job{call, call->fattr[0], norm_of(call->fattr[0])};
  const int64_t rows = size_at(call->in[0], 2), work = rows * (size_at(call->in[0], 1) + 1);
  call->api->parallel_for(call->run, rows, work > 0 ? 1 + 40000 / work : 1,
                          call->out[0].dtype == EFFC_F32 ? pdist_rows<float> : pdist_rows<double>, &job);
  return 0;
}
