/* Pooling of float64. */
#include "pool.hpp"
#include "simd.hpp"

EFFC_EXPORT int32_t effc_pool_f64(const effc_call* call) { return effc::pool::pool_kernel<double>(call); }
