// Non-maximum suppression.
#include <algorithm>

#include "move.hpp"

using namespace effc;

namespace {

struct Box {
  float x0, x1, y0, y1, area;
};

/* The product rounded to float whatever the compiler contracts: a product of two floats is exact in double. */
EFFC_INLINE float times(float a, float b) { return (float)((double)a * (double)b); }
EFFC_INLINE float lower(float a, float b) { return b < a ? b : a; }
EFFC_INLINE float upper(float a, float b) { return b > a ? b : a; }

Box load_box(const float* p, bool center) {
  Box b;
  if (center) {
    const float w = p[2] / 2, h = p[3] / 2;
    b = {p[0] - w, p[0] + w, p[1] - h, p[1] + h, 0};
  } else {
    b = {lower(p[0], p[2]), upper(p[0], p[2]), lower(p[1], p[3]), upper(p[1], p[3]), 0};
  }
  b.area = times(b.x1 - b.x0, b.y1 - b.y0);
  return b;
}

bool overlap(const Box& a, const Box& b, float iou) {
  const float w = lower(a.x1, b.x1) - upper(a.x0, b.x0), h = lower(a.y1, b.y1) - upper(a.y0, b.y0);
  if (!(w > 0 && h > 0)) return false;
  const float common = times(w, h), both = a.area + b.area - common;
  return common > 0 && a.area > 0 && b.area > 0 && both > 0 && common / both > iou;
}

}  // namespace

// in: boxes dense f32 [B, N, 4], scores dense f32 [B, C, N], limit i64, iou f32, threshold f32 or absent.
// out: i64 [count, 3]. attrs: centre and size instead of corners, count (-1: dyn).
// scratch: 8 bytes per (batch, class), then 4 per score. thread_scratch: 4 bytes per box.
EFFC_EXPORT int32_t effc_nms(const effc_call* call) {
  const effc_tensor &boxes = call->in[0], &scores = call->in[1];
  const int64_t classes = scores.shape[1], n = scores.shape[2], rows = scores.shape[0] * classes;
  const int64_t limit = *(const int64_t*)call->in[2].data;
  const float iou = *(const float*)call->in[3].data;
  const bool filter = call->in[4].data != nullptr, center = call->attr[0] != 0;
  const float threshold = filter ? *(const float*)call->in[4].data : 0;
  int64_t* counts = (int64_t*)call->scratch;
  int32_t* taken = (int32_t*)(counts + rows);
  pfor(call, rows, 1, [&](int64_t begin, int64_t end, int32_t worker) {
    int32_t* order = (int32_t*)(call->thread_scratch + worker * call->thread_scratch_bytes);
    for (int64_t row = begin; row < end; ++row) {
      const float* s = (const float*)scores.data + row * n;
      const float* at = (const float*)boxes.data + row / classes * n * 4;
      int32_t* mine = taken + row * n;
      int64_t candidates = 0, found = 0;
      for (int64_t i = 0; i < n; ++i)
        if (filter ? s[i] > threshold : s[i] == s[i]) order[candidates++] = (int32_t)i;
      std::sort(order, order + candidates, [s](int32_t a, int32_t b) { return s[a] != s[b] ? s[a] > s[b] : a < b; });
      for (int64_t k = 0; k < candidates && found < limit; ++k) {
        const Box box = load_box(at + (int64_t)order[k] * 4, center);
        bool keep = true;
        for (int64_t j = 0; j < found && keep; ++j) keep = !overlap(box, load_box(at + (int64_t)mine[j] * 4, center), iou);
        if (keep) mine[found++] = order[k];
      }
      counts[row] = found;
    }
  });
  int64_t total = 0;
  for (int64_t row = 0; row < rows; ++row) total += counts[row];
  const int64_t shape[2] = {total, 3};
  if (sized_out(call, 0, 2, shape, total, call->attr[1])) return 1;
  int64_t* to = (int64_t*)call->out[0].data;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < counts[row]; ++k, to += 3) {
      to[0] = row / classes;
      to[1] = row % classes;
      to[2] = taken[row * n + k];
    }
  return 0;
}
