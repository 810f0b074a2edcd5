/* Matrix multiplication of float32 by a packed constant with seven products of halves instead of eight. */
#include "gemm_strassen.hpp"

using namespace effc;

static constexpr gemm::Table kTable = gemm::make_table<float, float>();
static constexpr gemm::strassen::Micros<float> kMicros = gemm::strassen::make_micros<float>();

EFFC_EXPORT int32_t effc_matmul_strassen_f32(const effc_call* call) {
  return gemm::strassen::matmul<float>(call, &kMicros, gemm::Real<float, float>::format<float>(&kTable, &kTable), EFFC_F32);
}
