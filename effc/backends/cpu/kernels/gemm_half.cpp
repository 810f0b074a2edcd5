/* Matrix multiplication of float16 and bfloat16 with float32 accumulators. Packed constants stay 16 bits wide. */
#include "gemm.hpp"

using namespace effc;

static constexpr gemm::Table kWide = gemm::make_table<float, float>();
static constexpr gemm::Table kF16 = gemm::make_table<float, f16>();
static constexpr gemm::Table kBf16 = gemm::make_table<float, bf16>();

EFFC_EXPORT int32_t effc_matmul_f16(const effc_call* call) {
  return gemm::matmul<float>(call, gemm::Real<float, f16>::format<f16>(&kWide));
}

EFFC_EXPORT int32_t effc_matmul_packed_f16(const effc_call* call) {
  return gemm::matmul_packed<float>(call, gemm::Real<float, f16>::format<f16>(&kWide, &kF16, 2), EFFC_F16);
}

EFFC_EXPORT int32_t effc_matmul_bf16(const effc_call* call) {
  return gemm::matmul<float>(call, gemm::Real<float, bf16>::format<bf16>(&kWide));
}

EFFC_EXPORT int32_t effc_matmul_packed_bf16(const effc_call* call) {
  return gemm::matmul_packed<float>(call, gemm::Real<float, bf16>::format<bf16>(&kWide, &kBf16, 2), EFFC_BF16);
}
