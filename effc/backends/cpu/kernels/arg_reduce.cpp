/* effc_arg_reduce: index of the first maximum (minimum) along one dim; a NaN counts as the extreme, as in PyTorch.
 * in[0]: any strides. out[0]: i64, the other dims (with or without the reduced one as 1). attr: dim, min?, keepdims. */
#include "loop.hpp"

namespace effc {
namespace {

struct ArgTask {
  const effc_call* c;
  Nest nest; /* kept dims; operand 0 the input, 1 the output */
  int64_t n, stride;
  bool min;
};

template <class T>
void arg_task(void* arg, int64_t begin, int64_t end, int32_t) {
  const ArgTask& t = *(const ArgTask*)arg;
  using C = compute_t<T>;
  Cursor<2> cur;
  cur.seek(&t.nest, t.nest.rank, begin);
  for (int64_t u = begin; u < end; ++u, cur.next()) {
    const T* x = (const T*)((const char*)t.c->in[0].data + cur.offset[0]);
    C best = to_compute(x[0]);
    int64_t at = 0;
    for (int64_t i = 1; i < t.n && best == best; ++i) {
      C v = to_compute(x[i * t.stride]);
      bool better = (t.min ? v < best : v > best) | (v != v);
      best = better ? v : best;
      at = better ? i : at;
    }
    *(int64_t*)((char*)t.c->out[0].data + cur.offset[1]) = at;
  }
}

effc_task_fn task_for(int32_t dtype) {
  switch (dtype) {
    case EFFC_BOOL: return arg_task<bool>;
    case EFFC_U8: return arg_task<uint8_t>;
    case EFFC_I8: return arg_task<int8_t>;
    case EFFC_U16: return arg_task<uint16_t>;
    case EFFC_I16: return arg_task<int16_t>;
    case EFFC_U32: return arg_task<uint32_t>;
    case EFFC_I32: return arg_task<int32_t>;
    case EFFC_U64: return arg_task<uint64_t>;
    case EFFC_I64: return arg_task<int64_t>;
    case EFFC_F16: return arg_task<f16>;
    case EFFC_BF16: return arg_task<bf16>;
    case EFFC_F32: return arg_task<float>;
    case EFFC_F64: return arg_task<double>;
    default: return nullptr;
  }
}

}  // namespace
}  // namespace effc

extern "C" EFFC_EXPORT int32_t effc_arg_reduce(const effc_call* c) {
  using namespace effc;
  const effc_tensor& x = c->in[0];
  const effc_tensor& y = c->out[0];
  int dim = (int)c->attr[0];
  ArgTask t;
  t.c = c;
  t.min = c->attr[1] != 0;
  t.n = x.shape[dim];
  t.stride = x.strides[dim];
  bool keep = c->attr[2] != 0;
  effc_task_fn fn = task_for(x.dtype);
  if (!fn) {
    c->api->fail(c, "argmax is not defined for dtype code %d", (int)x.dtype);
    return 1;
  }
  int64_t size = item_size(x.dtype), total = 1;
  for (int d = 0, o = 0; d < x.rank; ++d) {
    if (d == dim) {
      o += keep;
      continue;
    }
    int64_t s[2] = {x.strides[d] * size, y.strides[o++] * 8};
    total *= x.shape[d];
    t.nest.push(x.shape[d], s, 2);
  }
  if (total == 0) return 0;
  if (t.n == 0) {
    c->api->fail(c, "argmax over an empty dim %d", dim);
    return 1;
  }
  int64_t grain = (BLOCK + t.n - 1) / t.n;
  if (total <= grain)
    fn(&t, 0, total, 0);
  else
    c->api->parallel_for(c->run, total, grain, fn, &t);
  return 0;
}
