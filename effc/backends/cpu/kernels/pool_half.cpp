/* Pooling of float16 and bfloat16: sums in float32. */
#include "pool.hpp"
#include "simd.hpp"

EFFC_EXPORT int32_t effc_pool_f16(const effc_call* call) { return effc::pool::pool_kernel<effc::f16>(call); }
EFFC_EXPORT int32_t effc_pool_bf16(const effc_call* call) { return effc::pool::pool_kernel<effc::bf16>(call); }
