/* Recurrent layers of float64. */
#include "rnn.hpp"

using namespace effc;

EFFC_EXPORT int32_t effc_lstm_f64(const effc_call* call) { return rnn::layer<double, rnn::kLstm>(call); }
EFFC_EXPORT int32_t effc_gru_f64(const effc_call* call) { return rnn::layer<double, rnn::kGru>(call); }
EFFC_EXPORT int32_t effc_rnn_tanh_f64(const effc_call* call) { return rnn::layer<double, rnn::kTanh>(call); }
EFFC_EXPORT int32_t effc_rnn_relu_f64(const effc_call* call) { return rnn::layer<double, rnn::kRelu>(call); }
EFFC_EXPORT int32_t effc_rnn_pack_f64(const effc_call* call) { return rnn::pack<double>(call, EFFC_F64); }
