/* Matrix multiplication of float64. */
#include "gemm.hpp"

using namespace effc;

static constexpr gemm::Table kTable = gemm::make_table<double, double>();

EFFC_EXPORT int32_t effc_matmul_f64(const effc_call* call) {
  return gemm::matmul<double>(call, gemm::Real<double, double>::format<double>(&kTable, &kTable));
}

EFFC_EXPORT int32_t effc_matmul_packed_f64(const effc_call* call) {
  return gemm::matmul_packed<double>(call, gemm::Real<double, double>::format<double>(&kTable, &kTable), EFFC_F64);
}
