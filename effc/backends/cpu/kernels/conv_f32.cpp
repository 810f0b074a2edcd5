/* Convolution with f32 accumulation: f32, f16, bf16 and fp8 storage. */
#include "conv.hpp"

extern "C" __attribute__((visibility("default"))) int32_t effc_conv_f32(const effc_call* call) {
  return effc::conv::conv_kernel<float>(call);
}
