/* Matrix multiplication of float16 and bfloat16 with float32 accumulators. Packed constants stay 16 bits wide: they are
 * widened in registers, or where the target has instructions for pairs of bfloat16 (dot_bf16.hpp), not at all. */
#include "dot_bf16.hpp"

using namespace effc;
using gemm::Format;

static constexpr gemm::Table kWide = gemm::make_table<float, float>();
static constexpr gemm::Table kF16 = gemm::make_table<float, f16>();

static Format<float> f16_format() { return gemm::Real<float, f16>::format<f16>(&kWide, &kF16, sizeof(f16)); }

#if defined(EFFC_BF16_DOT)
static constexpr gemm::Table kBf16 = gemm::dot_table();
static Format<float> bf16_format() { return gemm::dot_format(&kBf16); }
#else
static constexpr gemm::Table kBf16 = gemm::make_table<float, gemm::bf16_pair>();

static Format<float> bf16_format() {
  Format<float> f = gemm::Real<float, bf16>::format<bf16>(&kWide, &kBf16, sizeof(gemm::bf16_pair));
  f.packed_steps = 2;
  return f;
}
#endif

EFFC_EXPORT int32_t effc_matmul_f16(const effc_call* call) { return gemm::matmul<float>(call, f16_format()); }

EFFC_EXPORT int32_t effc_matmul_packed_f16(const effc_call* call) {
  return gemm::matmul_packed<float>(call, f16_format(), EFFC_F16);
}

EFFC_EXPORT int32_t effc_matmul_bf16(const effc_call* call) { return gemm::matmul<float>(call, bf16_format()); }

EFFC_EXPORT int32_t effc_matmul_packed_bf16(const effc_call* call) {
  return gemm::matmul_packed<float>(call, bf16_format(), EFFC_BF16);
}
