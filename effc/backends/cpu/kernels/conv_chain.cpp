/* Convolution, depthwise convolution and pointwise convolution as one kernel; the first two as one. */
#include "conv_chain.hpp"

extern "C" __attribute__((visibility("default"))) int32_t effc_conv_chain_f32(const effc_call* call) {
  return effc::conv::chain_kernel<float>(call);
}
extern "C" __attribute__((visibility("default"))) int32_t effc_conv_pair_f32(const effc_call* call) {
  return effc::conv::pair_kernel<float>(call);
}
