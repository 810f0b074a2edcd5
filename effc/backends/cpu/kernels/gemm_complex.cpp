/* Matrix multiplication of complex numbers as one real product with twice the rows and twice the reduction:
 *
 *     rows 2i      [Re A, -Im A]     [Re B]     Re C
 *     rows 2i + 1  [Im A,  Re A]  x  [Im B]  =  Im C
 */
#include "gemm.hpp"

using namespace effc;
using gemm::Matrix;

static constexpr gemm::Table kF32 = gemm::make_table<float, float>();
static constexpr gemm::Table kF64 = gemm::make_table<double, double>();

template <class T, class C>
struct Complex {
  static void load_a(const Matrix& a, int64_t k_total, int64_t m0, int64_t m1, int64_t k0, int64_t k1, T* dst, int64_t ld) {
    const int64_t half = k_total;
    for (int64_t m = m0; m < m1; m += 2) {
      const C* src = (const C*)a.data + m / 2 * a.row;
      T* re = dst + (m - m0) * ld;
      T* im = re + ld;
      for (int64_t k = k0; k < k1; ++k) {
        const C x = src[(k < half ? k : k - half) * a.col];
        re[k - k0] = k < half ? x.re : -x.im;
        im[k - k0] = k < half ? x.im : x.re;
      }
    }
  }
  static void load_b(const Matrix& b, int64_t k_total, int64_t k0, int64_t k1, int64_t n0, int64_t n, T* dst) {
    constexpr int NR = gemm::kNR<T>;
    const int64_t half = k_total;
    for (int64_t k = k0; k < k1; ++k, dst += NR) {
      const C* src = (const C*)b.data + (k < half ? k : k - half) * b.row + n0 * b.col;
      for (int64_t j = 0; j < n; ++j) dst[j] = k < half ? src[j * b.col].re : src[j * b.col].im;
      for (int64_t j = n; j < NR; ++j) dst[j] = 0;
    }
  }
  static void store(const Matrix& c, int64_t m0, int64_t m1, int64_t n0, int64_t n1, const T* acc, int64_t ld) {
    for (int64_t m = m0; m < m1; m += 2, acc += 2 * ld) {
      C* dst = (C*)c.data + m / 2 * c.row + n0 * c.col;
      for (int64_t j = 0; j < n1 - n0; ++j) dst[j * c.col] = C{acc[j], acc[ld + j]};
    }
  }
  static gemm::Format<T> format(const gemm::Table* table) {
    return {2, false, false, false, sizeof(C), sizeof(C), sizeof(C), load_a, load_b, store, table, nullptr, 0, nullptr};
  }
};

EFFC_EXPORT int32_t effc_matmul_c64(const effc_call* call) {
  return gemm::matmul<float>(call, Complex<float, cf32>::format(&kF32));
}

EFFC_EXPORT int32_t effc_matmul_c128(const effc_call* call) {
  return gemm::matmul<double>(call, Complex<double, cf64>::format(&kF64));
}
