/* Attention of float64. */
#include "attention.hpp"

EFFC_EXPORT int32_t effc_attention_f64(const effc_call* call) { return effc::attention::attention<double, double>(call); }
