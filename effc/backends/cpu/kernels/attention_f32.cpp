/* Attention of float32. */
#include "attention.hpp"

EFFC_EXPORT int32_t effc_attention_f32(const effc_call* call) { return effc::attention::attention<float, float>(call); }
