/* Depthwise convolution with f32 and f64 accumulation. */
#include "conv_dw.hpp"

extern "C" __attribute__((visibility("default"))) int32_t effc_conv_dw_f32(const effc_call* call) {
  return effc::conv::depthwise_kernel<float>(call);
}

extern "C" __attribute__((visibility("default"))) int32_t effc_conv_dw_f64(const effc_call* call) {
  return effc::conv::depthwise_kernel<double>(call);
}
