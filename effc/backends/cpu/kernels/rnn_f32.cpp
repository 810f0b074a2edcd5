/* Recurrent layers of float32. */
#include "rnn.hpp"

using namespace effc;

EFFC_EXPORT int32_t effc_lstm_f32(const effc_call* call) { return rnn::layer<float, rnn::kLstm>(call); }
EFFC_EXPORT int32_t effc_gru_f32(const effc_call* call) { return rnn::layer<float, rnn::kGru>(call); }
EFFC_EXPORT int32_t effc_rnn_tanh_f32(const effc_call* call) { return rnn::layer<float, rnn::kTanh>(call); }
EFFC_EXPORT int32_t effc_rnn_relu_f32(const effc_call* call) { return rnn::layer<float, rnn::kRelu>(call); }
EFFC_EXPORT int32_t effc_rnn_pack_f32(const effc_call* call) { return rnn::pack<float>(call, EFFC_F32); }
