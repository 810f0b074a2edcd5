// Assertions on data.
#include "move.hpp"

using namespace effc;

// in: condition (bool, 0-d), message (u8, UTF-8 text). No outputs; fails with the message unless the condition holds.
EFFC_EXPORT int32_t effc_assert(const effc_call* call) {
  const effc_tensor &condition = call->in[0], &message = call->in[1];
  if (*(const uint8_t*)condition.data) return 0;
  call->api->fail(call, "%.*s", (int)numel(message), (const char*)message.data);
  return 1;
}
