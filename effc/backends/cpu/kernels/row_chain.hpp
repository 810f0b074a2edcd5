/* Kernels that make each row of their results of the same row of their operands (products with constant weights,
 * normalisations along a row, elementwise ops), run one after another on a block of rows at a time: what is between them
 * stays in the cache of the core that makes it. This is the feed-forward pair of a transformer with its norms and residuals.
 *
 * The kernels are the ones that would run alone; each is called with operands that are the block's rows. So results are
 * theirs, bit for bit, and neither they nor this depend on what the others are.
 *
 * Two ways, chosen when the number of rows is known:
 *   blocks   tasks are blocks of rows, a multiple of the threads in number; a task runs all stages by itself, results
 *            between them lie in thread scratch
 *   stages   few rows: each stage runs on all rows with all threads, results between them lie in scratch
 *
 * Attributes, all written by lower/row_chain.py: RowChainAttr; for each stage RowStageAttr, then for each of its operands and
 * results kPlace.., then the stage's own attributes. */
#ifndef EFFC_ROW_CHAIN_HPP
#define EFFC_ROW_CHAIN_HPP
#include "effc_kernel.h"

namespace effc {
namespace row_chain {

enum RowChainAttr {
  kRows = 0,   /* rows of every operand but weights */
  kMost = 1,   /* rows of a block at most; what thread scratch has room for */
  kLarge = 2,  /* rows from which on there are blocks; what scratch has room for */
  kTile = 3,   /* blocks begin at multiples of this */
  kFloats = 4, /* of all results between stages, for a row */
  kChainAttrs = 5
};
enum RowStageAttr {
  kIn = 0, kOwn = 1, kOut = 2, /* operands, those of the kernel itself, results */
  kOwnAttrs = 3,               /* number of the stage's own attributes */
  kRowsAt = 4,                 /* which of them is the number of rows, or -1 */
  kStageScratch = 5,           /* its bytes of thread scratch */
  kStageAttrs = 6
};
/* Where an operand lies: kPlace is the first float of a row's part of the results between stages; or kNext, the call's next
 * operand, which has a tensor of its own; or kResult - i, result i of the call. The others hold for all but kNext. */
enum { kPlace = 0, kRank = 1, kWidth = 2, kPitch = 3, kOperandAttrs = 4 };
enum { kNext = -1, kResult = -2 };

constexpr int kMostOperands = 24, kMostRank = 4, kMostAttrs = 64;

struct Stage {
  effc_kernel_fn kernel;
  effc_epilogue_fn epilogue;
};

/* Services of a stage that a task runs by itself. */
inline void alone(void*, int64_t n, int64_t grain, effc_task_fn f, void* arg) {
  for (int64_t i = 0; i < n; i += grain) f(arg, i, i + grain < n ? i + grain : n, 0);
}
inline int32_t one_thread(void*) { return 1; }

/* An operand's tensor on rows of a block. */
struct Operand {
  int64_t shape[kMostRank], strides[kMostRank];

  /* Rows [m0, m1) of an operand of the call. */
  effc_tensor given(effc_tensor t, int64_t m0, int64_t m1) {
    if (t.rank < 2) return t; /* weights in panels */
    for (int d = 0; d < t.rank; ++d) shape[d] = t.shape[d], strides[d] = t.strides[d];
    shape[t.rank - 2] = m1 - m0;
    t.data = (char*)t.data + m0 * strides[t.rank - 2] * effc_dtype_size(t.dtype);
    t.shape = shape, t.strides = strides;
    return t;
  }
  /* A result, of a stage or of the call, whose rows begin at `data`. A row of one element has stride 0: it may be broadcast. */
  effc_tensor made(const int64_t* at, float* data, int64_t pitch, int64_t rows) {
    const int32_t rank = (int32_t)at[kRank];
    for (int d = 0; d < rank; ++d) shape[d] = 1, strides[d] = 0;
    shape[rank - 1] = at[kWidth], shape[rank - 2] = rows;
    strides[rank - 1] = at[kWidth] == 1 ? 0 : 1, strides[rank - 2] = pitch;
    return effc_tensor{data, EFFC_F32, rank, shape, strides};
  }
};

struct Chain {
  const effc_call* call;
  const Stage* stages;
  int count;
  int64_t rows, tiles, blocks;
  const effc_api* api;

  /* All stages on rows [m0, m1). `between` has `capacity` rows of results between stages; `scratch` is for stages. */
  int32_t run(int64_t m0, int64_t m1, float* between, int64_t capacity, char* scratch) const {
    const effc_tensor* in = call->in;
    const int64_t* a = call->attr + kChainAttrs;
    for (int s = 0; s < count; ++s) {
      const int64_t n_in = a[kIn], n_out = a[kOut], n_attr = a[kOwnAttrs], *at = a + kStageAttrs;
      const int64_t* own = at + (n_in + n_out) * kOperandAttrs;
      Operand views[kMostOperands];
      effc_tensor tensors[kMostOperands];
      for (int64_t k = 0; k < n_in + n_out; ++k, at += kOperandAttrs) {
        if (at[kPlace] == kNext) {
          tensors[k] = views[k].given(*in++, m0, m1);
        } else if (at[kPlace] >= 0) {
          tensors[k] = views[k].made(at, between + at[kPlace] * capacity, at[kPitch], m1 - m0);
        } else {
          const effc_tensor& t = call->out[kResult - at[kPlace]];
          tensors[k] = views[k].made(at, (float*)t.data + m0 * t.strides[0], t.strides[0], m1 - m0);
        }
      }
      int64_t attrs[kMostAttrs];
      for (int64_t k = 0; k < n_attr; ++k) attrs[k] = own[k];
      if (a[kRowsAt] >= 0) attrs[a[kRowsAt]] = m1 - m0;
      effc_call c = *call;
      c.api = api;
      c.in = tensors, c.n_in = (int32_t)n_in, c.n_own = (int32_t)a[kOwn];
      c.out = tensors + n_in, c.n_out = (int32_t)n_out;
      c.attr = attrs, c.n_attr = (int32_t)n_attr, c.fattr = nullptr, c.n_fattr = 0;
      c.scratch = nullptr, c.scratch_bytes = 0;
      c.thread_scratch = scratch, c.thread_scratch_bytes = a[kStageScratch];
      c.epilogue = stages[s].epilogue;
      if (int32_t failed = stages[s].kernel(&c)) return failed;
      a = own + n_attr;
    }
    return 0;
  }

  static void blocks_of_rows(void* arg, int64_t begin, int64_t end, int32_t worker) {
    const Chain& v = *(const Chain*)arg;
    const int64_t most = v.call->attr[kMost], tile = v.call->attr[kTile];
    float* between = (float*)(v.call->thread_scratch + worker * v.call->thread_scratch_bytes);
    char* scratch = (char*)(between + most * v.call->attr[kFloats]);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m0 = v.tiles * i / v.blocks * tile, m1 = v.tiles * (i + 1) / v.blocks * tile;
      v.run(m0, m1 < v.rows ? m1 : v.rows, between, most, scratch); /* a stage that fails has reported it */
    }
  }
};

/* The kernel, from its stages. */
inline int32_t run(const effc_call* call, const Stage* stages, int count) {
  const int64_t *a = call->attr, rows = a[kRows], threads = call->api->num_threads(call->run);
  if (rows == 0) return 0;
  effc_api api = *call->api;
  Chain v{call, stages, count, rows, (rows + a[kTile] - 1) / a[kTile], 0, &api};
  if (rows < a[kLarge]) return v.run(0, rows, (float*)call->scratch, rows, call->thread_scratch);
  api.parallel_for = alone, api.num_threads = one_thread;
  const int64_t most = a[kMost] / a[kTile]; /* tiles of a block */
  v.blocks = (v.tiles + most - 1) / most;
  v.blocks = (v.blocks + threads - 1) / threads * threads;
  if (v.blocks > v.tiles) v.blocks = v.tiles;
  call->api->parallel_for(call->run, v.blocks, 1, Chain::blocks_of_rows, &v);
  return 0;
}

}  // namespace row_chain
}  // namespace effc
#endif
