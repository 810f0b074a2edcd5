/* Convolution with 3x3 windows by Winograd's minimal filtering. */
#include "conv_winograd.hpp"

extern "C" __attribute__((visibility("default"))) int32_t effc_conv_winograd_f32(const effc_call* call) {
  return effc::conv::winograd_kernel<float>(call);
}
