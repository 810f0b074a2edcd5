/* Pooling of integers: sums in int64. */
#include "pool.hpp"
#include "simd.hpp"

EFFC_EXPORT int32_t effc_pool_u8(const effc_call* call) { return effc::pool::pool_kernel<uint8_t>(call); }
EFFC_EXPORT int32_t effc_pool_i8(const effc_call* call) { return effc::pool::pool_kernel<int8_t>(call); }
EFFC_EXPORT int32_t effc_pool_i16(const effc_call* call) { return effc::pool::pool_kernel<int16_t>(call); }
EFFC_EXPORT int32_t effc_pool_i32(const effc_call* call) { return effc::pool::pool_kernel<int32_t>(call); }
EFFC_EXPORT int32_t effc_pool_i64(const effc_call* call) { return effc::pool::pool_kernel<int64_t>(call); }
