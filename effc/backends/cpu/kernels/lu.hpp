/* LU with partial pivoting and triangular substitution, unblocked and column-oriented (Golub and Van Loan, chapter 3). */
#ifndef EFFC_LU_HPP
#define EFFC_LU_HPP
#include "linalg.hpp"

namespace effc {
namespace la {

/* A = P L U in place; piv[k] (1-based) is the row exchanged with row k. Returns LAPACK's info: the first zero pivot or 0. */
template <class S>
int64_t lu(Mat<S> a, int32_t* piv, bool pivot) {
  const int64_t k = min_of(a.rows, a.cols);
  int64_t info = 0;
  for (int64_t j = 0; j < k; j++) {
    int64_t best = j;
    if (pivot) {
      for (int64_t i = j + 1; i < a.rows; i++)
        if (mag1(a(i, j)) > mag1(a(best, j))) best = i;
    }
    piv[j] = (int32_t)(best + 1);
    if (best != j)
      for (int64_t c = 0; c < a.cols; c++) {
        S t = a(j, c);
        a(j, c) = a(best, c);
        a(best, c) = t;
      }
    if (a(j, j) == S(0)) {
      if (info == 0) info = j + 1;
      if (pivot) continue;
    }
    const S d = a(j, j);
    for (int64_t i = j + 1; i < a.rows; i++) a(i, j) = a(i, j) / d;
    for (int64_t c = j + 1; c < a.cols; c++) {
      const S f = a(j, c);
      if (f == S(0)) continue;
      S* x = &a(0, c);
      const S* l = &a(0, j);
      for (int64_t i = j + 1; i < a.rows; i++) x[i] -= l[i] * f;
    }
  }
  return info;
}

/* Solves T x = b in place for one column; T upper or lower, unit diagonal or not. Unit stride down b. */
template <class S>
void triangular(Mat<S> t, bool upper, bool unit, S* b) {
  const int64_t n = t.rows;
  for (int64_t s = 0; s < n; s++) {
    const int64_t j = upper ? n - 1 - s : s;
    if (!unit) b[j] = b[j] / t(j, j);
    const S f = b[j];
    const int64_t from = upper ? 0 : j + 1, to = upper ? j : n;
    for (int64_t i = from; i < to; i++) b[i] -= t(i, j) * f;
  }
}

}  // namespace la
}  // namespace effc
#endif
