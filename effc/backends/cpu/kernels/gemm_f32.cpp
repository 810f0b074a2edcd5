/* Matrix multiplication of float32. */
#include "gemm.hpp"

using namespace effc;

static constexpr gemm::Table kTable = gemm::make_table<float, float>();

EFFC_EXPORT int32_t effc_matmul_f32(const effc_call* call) {
  return gemm::matmul<float>(call, gemm::Real<float, float>::format<float>(&kTable, &kTable));
}

EFFC_EXPORT int32_t effc_matmul_packed_f32(const effc_call* call) {
  return gemm::matmul_packed<float>(call, gemm::Real<float, float>::format<float>(&kTable, &kTable), EFFC_F32);
}
