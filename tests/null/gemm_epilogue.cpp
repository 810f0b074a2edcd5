// A hand-written epilogue for test_gemm.py: out = relu(acc * 0.5 + in[2] + in[3]).
#include "effc_kernel.h"

extern "C" __attribute__((visibility("default"))) void test_epilogue_bias_relu(const effc_call* call, int64_t b0, int64_t b1,
                                                                                int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                                                                                const void* acc, int64_t ld) {
  auto at = [&](const effc_tensor& t, int64_t m, int64_t n) {
    return (float*)t.data + b0 * t.strides[0] + b1 * t.strides[1] + m * t.strides[2] + n * t.strides[3];
  };
  for (int64_t m = m0; m < m1; ++m)
    for (int64_t n = n0; n < n1; ++n) {
      float x = ((const float*)acc)[(m - m0) * ld + n - n0] * 0.5f;
      x += *at(call->in[call->n_own], m, n) + *at(call->in[call->n_own + 1], m, n);
      *at(call->out[0], m, n) = x > 0 ? x : 0;
    }
}
