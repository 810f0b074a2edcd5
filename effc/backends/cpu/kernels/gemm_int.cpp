/* Matrix multiplication of integers modulo 2^bits: unsigned accumulators of 32 bits, or 64 for 64-bit operands. */
#include "gemm.hpp"

using namespace effc;

static constexpr gemm::Table k32 = gemm::make_table<uint32_t, uint32_t>();
static constexpr gemm::Table k64 = gemm::make_table<uint64_t, uint64_t>();

template <class T, class S>
static int32_t run(const effc_call* call, const gemm::Table* table) {
  return gemm::matmul<T>(call, gemm::Real<T, S>::template format<S>(table));
}

EFFC_EXPORT int32_t effc_matmul_int(const effc_call* call) {
  switch (call->in[0].dtype) {
    case EFFC_I8:
      return run<uint32_t, int8_t>(call, &k32);
    case EFFC_U8:
      return run<uint32_t, uint8_t>(call, &k32);
    case EFFC_I16:
      return run<uint32_t, int16_t>(call, &k32);
    case EFFC_U16:
      return run<uint32_t, uint16_t>(call, &k32);
    case EFFC_I32:
    case EFFC_U32:
      return run<uint32_t, uint32_t>(call, &k32);
    case EFFC_I64:
    case EFFC_U64:
      return run<uint64_t, uint64_t>(call, &k64);
    default:
      return gemm::bad(call, "not an integer type");
  }
}
