/* Attention of float16 and bfloat16, computed in float32. */
#include "attention.hpp"

EFFC_EXPORT int32_t effc_attention_f16(const effc_call* call) { return effc::attention::attention<float, effc::f16>(call); }
EFFC_EXPORT int32_t effc_attention_bf16(const effc_call* call) { return effc::attention::attention<float, effc::bf16>(call); }
