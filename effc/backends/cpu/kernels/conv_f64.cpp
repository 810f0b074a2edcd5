/* Convolution with f64 accumulation. */
#include "conv.hpp"

extern "C" __attribute__((visibility("default"))) int32_t effc_conv_f64(const effc_call* call) {
  return effc::conv::conv_kernel<double>(call);
}
