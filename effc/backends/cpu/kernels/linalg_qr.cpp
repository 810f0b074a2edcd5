/* QR by Householder reflectors: geqrf, the product of reflectors, multiplication by it. Signs are LAPACK's. */
#include "householder.hpp"

using namespace effc::la;

/* in A [.., m, n]; out packed [.., m, n], tau [.., min(m, n)]. Scratch 16 (m n + k). */
EFFC_EXPORT int32_t effc_geqrf(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor& a = call->in[0];
    const int64_t m = size_at(a, 2), n = size_at(a, 1), k = min_of(m, n);
    for_batches(call, batches(a, 2), m * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = columns(arena.take<W>(m * n), m, n);
      W* tau = arena.take<W>(k);
      copy(matrix<S>(a, b), w);
      qr_factor(w, tau);
      copy(w, matrix<S>(call->out[0], b));
      Mat<S> t = vector<S>(call->out[1], b);
      for (int64_t i = 0; i < k; i++) t[i] = cast<S>(tau[i]);
      return 0;
    });
    return 0;
  });
}

/* in A [.., m, n]; out Q [.., m, q], R [.., r, n] with q = r = min(m, n), or m if complete; or R alone. Scratch
 * 16 (m n + k + m q). */
EFFC_EXPORT int32_t effc_qr(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor& a = call->in[0];
    const effc_tensor& r_out = call->out[call->n_out - 1];
    const int64_t m = size_at(a, 2), n = size_at(a, 1), k = min_of(m, n);
    for_batches(call, batches(a, 2), m * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = columns(arena.take<W>(m * n), m, n);
      W* tau = arena.take<W>(k);
      copy(matrix<S>(a, b), w);
      qr_factor(w, tau);
      Mat<S> r = matrix<S>(r_out, b);
      for (int64_t i = 0; i < r.rows; i++)
        for (int64_t j = 0; j < n; j++) r(i, j) = i <= j ? cast<S>(w(i, j)) : S(0);
      if (call->n_out == 2) {
        Mat<S> q = matrix<S>(call->out[0], b);
        Mat<W> full = columns(arena.take<W>(m * q.cols), m, q.cols);
        fill(full, W(1), W(0));
        apply_q(w, tau, k, full);
        copy(full, q);
      }
      return 0;
    });
    return 0;
  });
}

/* in V [.., m, n], tau [.., k]; out the first n columns of H_0 ... H_{k-1}. Scratch 16 (2 m n + k). */
EFFC_EXPORT int32_t effc_householder_product(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor& v = call->in[0];
    const int64_t m = size_at(v, 2), n = size_at(v, 1), k = size_at(call->in[1], 1);
    for_batches(call, batches(v, 2), m * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<W> w = columns(arena.take<W>(m * n), m, n), q = columns(arena.take<W>(m * n), m, n);
      W* tau = arena.take<W>(k);
      copy(matrix<S>(v, b), w);
      Mat<S> t = vector<S>(call->in[1], b);
      for (int64_t i = 0; i < k; i++) tau[i] = cast<W>(t[i]);
      fill(q, W(1), W(0));
      apply_q(w, tau, k, q);
      copy(q, matrix<S>(call->out[0], b));
      return 0;
    });
    return 0;
  });
}

/* in V [.., q, k], tau [.., k], C [.., m, n]; out op(Q) C (left) or C op(Q); attrs left, adjoint. Scratch 16 (q k + m n + k). */
EFFC_EXPORT int32_t effc_ormqr(const effc_call* call) {
  return dispatch(call, call->in[0].dtype, [call](auto* tag) -> int32_t {
    using S = EFFC_SCALAR(tag);
    using W = Wide<S>;
    const effc_tensor &v = call->in[0], &c = call->in[2];
    const bool left = call->attr[0] != 0, adjoint = call->attr[1] != 0;
    const int64_t k = size_at(call->in[1], 1), m = size_at(c, 2), n = size_at(c, 1);
    for_batches(call, batches(c, 2), m * n * k, [&](int64_t b, Arena& arena) -> int64_t {
      Mat<S> given = matrix<S>(v, b);
      Mat<W> w = columns(arena.take<W>(given.rows * given.cols), given.rows, given.cols);
      Mat<W> x = columns(arena.take<W>(m * n), m, n);
      W* tau = arena.take<W>(k);
      copy(given, w);
      copy(matrix<S>(c, b), x);
      Mat<S> t = vector<S>(call->in[1], b);
      for (int64_t i = 0; i < k; i++) tau[i] = cast<W>(t[i]);
      for (int64_t s = 0; s < k; s++) {
        const int64_t j = left == adjoint ? s : k - 1 - s;
        const W f = adjoint ? conj(tau[j]) : tau[j];
        if (left)
          reflect_left(x.sub(j, 0, m - j, n), below(w, j, j), f);
        else
          reflect_right(x.sub(0, j, m, n - j), below(w, j, j), f);
      }
      copy(x, matrix<S>(call->out[0], b));
      return 0;
    });
    return 0;
  });
}
