/* Loop nests for generated kernels: iteration over strided operands, dim coalescing, threads, staged reductions.
 *
 * A generated unit (backends/cpu/codegen.py) supplies only inner loops over one dim; what is here walks the others. Sizes and
 * strides are run-time values. An inner loop is instantiated for the stride pattern the compiler expects of its operands (1, or
 * 0 for a broadcast operand) and once for any strides; which one runs is decided per call.
 */
#ifndef EFFC_LOOP_HPP
#define EFFC_LOOP_HPP
#include "effc_kernel.h"
#include "math.hpp"
#include "types.hpp"

#ifndef EFFC_EXPORT
#define EFFC_EXPORT __attribute__((visibility("default")))
#endif

namespace effc {

enum { ANY = 2 }; /* pattern of an operand with a run-time stride; 0 and 1 stand for themselves */

/* One operand of an inner loop: T in memory, its compute type in registers. */
template <class T, int S>
struct Operand {
  T* p;
  int64_t s;
  EFFC_INLINE Operand make(char* ptr, int64_t stride) { return Operand{(T*)ptr, stride}; }
  inline __attribute__((always_inline)) compute_t<T> load(int64_t i) const {
    return to_compute(S == 0 ? p[0] : S == 1 ? p[i] : p[i * s]);
  }
  template <class V>
  inline __attribute__((always_inline)) void store(int64_t i, V v) const {
    (S == 0 ? p[0] : S == 1 ? p[i] : p[i * s]) = convert<T>(v);
  }
};

/* An operand whose rows an index operand chooses: its element is data[row][i] where a plain operand's is data[i]. Along a row the
 * index has stride 0, so that the row is looked up once an inner loop. Indices count from the end where they are negative;
 * in_range has seen them all before. */
template <class T, int S, class I, int SI>
struct Taken {
  const T* p;
  int64_t s;
  const I* index;
  int64_t is, size, pitch;
  static inline __attribute__((always_inline)) int64_t wrapped(I i, int64_t size) { return (int64_t)i < 0 ? i + size : i; }
  EFFC_INLINE Taken make(char* ptr, int64_t stride, char* at, int64_t index_stride, int64_t size, int64_t pitch) {
    const T* p = (const T*)ptr;
    if (SI == 0) p += wrapped(*(const I*)at, size) * pitch;
    return Taken{p, stride, (const I*)at, index_stride, size, pitch};
  }
  inline __attribute__((always_inline)) compute_t<T> load(int64_t i) const {
    const int64_t at = S == 0 ? 0 : S == 1 ? i : i * s;
    return to_compute(SI == 0 ? p[at] : p[wrapped(index[i * is], size) * pitch + at]);
  }
};

/* Results that are looked up in a table of 256 bytes: LOOKUPS indices are computed, then their entries are stored. */
constexpr int64_t LOOKUPS = 64;

/* The compiler's vectors and not immintrin.h's, which every generated file would read for half a second. */
typedef char Bytes32 __attribute__((vector_size(32)));
typedef int16_t Halves16 __attribute__((vector_size(32)));

/* A vector of entries: bytes of each 16th of the table by the low half of the index, then chosen by its high half. */
EFFC_INLINE void look_up_vector(const Bytes32 (&part)[16], const uint8_t* index, uint8_t* out) {
  Bytes32 at;
  __builtin_memcpy(&at, index, 32);
  const Bytes32 low = at & 15;
  Bytes32 r[16];
#pragma GCC unroll 16
  for (int k = 0; k < 16; ++k) r[k] = __builtin_ia32_pshufb256(part[k], low);
  /* Bit 4, 5, 6, 7 of each index comes to the top of its byte, which is what a blend looks at. */
#pragma GCC unroll 4
  for (int bit = 0, n = 8; bit < 4; ++bit, n /= 2) {
    const Bytes32 top = (Bytes32)((Halves16)at << (3 - bit));
#pragma GCC unroll 8
    for (int k = 0; k < n; ++k) r[k] = __builtin_ia32_pblendvb256(r[2 * k], r[2 * k + 1], top);
  }
  __builtin_memcpy(out, &r[0], 32);
}

/* out[from + i] = table[index[i]] for i below `n`. */
template <class O>
EFFC_INLINE void look_up(const uint8_t* table, const O& out, const uint8_t* index, int64_t from, int64_t n) {
  int64_t i = 0;
  if (out.s == 1 && n >= 32) {
    Bytes32 part[16];
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k)
      for (int half = 0; half < 2; ++half) __builtin_memcpy((char*)&part[k] + 16 * half, table + 16 * k, 16);
    for (; i + 32 <= n; i += 32) look_up_vector(part, index + i, out.p + from + i);
  }
  for (; i < n; ++i) out.store(from + i, table[index[i]]);
}

/* Rounds a compute value to a storage type and back: what a tensor of that type between two ops would hold. */
template <class T, class V>
EFFC_INLINE compute_t<T> round_to(V v) {
  return to_compute(convert<T>(v));
}

typedef void (*inner_fn)(int64_t n, char* const* p, const int64_t* s, const int64_t* dv);

EFFC_INLINE int64_t item_size(int32_t dtype) { return effc_dtype_size(dtype); }

constexpr int MAX_OPERANDS = 32;
constexpr int64_t BLOCK = 8192; /* elements an inner loop gets at most: small enough for the L1 and to share among threads */

/* A nest of dims, outermost first, with byte strides for each operand. */
struct Nest {
  int rank = 0;
  int64_t size[EFFC_MAX_RANK];
  int64_t step[EFFC_MAX_RANK][MAX_OPERANDS];

  void push(int64_t n, const int64_t* s, int ops) {
    if (n == 1) return;
    if (rank > 0) { /* merge with the dim outside when every operand walks straight on */
      bool straight = true;
      for (int k = 0; k < ops; ++k) straight &= step[rank - 1][k] == s[k] * n;
      if (straight) {
        size[rank - 1] *= n;
        for (int k = 0; k < ops; ++k) step[rank - 1][k] = s[k];
        return;
      }
    }
    size[rank] = n;
    for (int k = 0; k < ops; ++k) step[rank][k] = s[k];
    ++rank;
  }
  int64_t count() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= size[d];
    return n;
  }
};

/* Position in the outer dims of a nest (all but the last `skip`), with the operands' byte offsets there. */
template <int OPS>
struct Cursor {
  static constexpr int ops = OPS;
  const Nest* nest;
  int rank;
  int64_t at[EFFC_MAX_RANK];
  int64_t offset[OPS];

  void seek(const Nest* n, int outer, int64_t linear) {
    nest = n, rank = outer;
    for (int k = 0; k < ops; ++k) offset[k] = 0;
    for (int d = rank - 1; d >= 0; --d) {
      at[d] = linear % n->size[d];
      linear /= n->size[d];
      for (int k = 0; k < ops; ++k) offset[k] += at[d] * n->step[d][k];
    }
  }
  void next() {
    for (int d = rank - 1; d >= 0; --d) {
      if (++at[d] < nest->size[d]) {
        for (int k = 0; k < ops; ++k) offset[k] += nest->step[d][k];
        return;
      }
      for (int k = 0; k < ops; ++k) offset[k] -= (nest->size[d] - 1) * nest->step[d][k];
      at[d] = 0;
    }
  }
};

/* Dims of `shape` sorted by how far apart the leading operand's elements lie, farthest first; size-1 dims stay in place. */
inline void sort_dims(int rank, const int64_t* strides, int* order) {
  for (int d = 0; d < rank; ++d) order[d] = d;
  for (int i = 1; i < rank; ++i) {
    int d = order[i], j = i;
    int64_t sd = strides[d] < 0 ? -strides[d] : strides[d];
    while (j > 0) {
      int64_t sp = strides[order[j - 1]] < 0 ? -strides[order[j - 1]] : strides[order[j - 1]];
      if (sp >= sd || sd == 0 || sp == 0) break;
      order[j] = order[j - 1];
      --j;
    }
    order[j] = d;
  }
}

inline bool matches(const int64_t* bytes, const int64_t* items, const int8_t* pattern, int ops) {
  for (int k = 0; k < ops; ++k)
    if (pattern[k] == ANY || bytes[k] != pattern[k] * items[k]) return false;
  return true;
}

/* ---- indices of taken operands ---- */

template <class I>
struct Indices {
  Nest nest;
  const char* base;
  int64_t n, step, size, bad;
  int32_t failed;

  static void run(void* arg, int64_t begin, int64_t end, int32_t) {
    Indices& t = *(Indices*)arg;
    Cursor<1> cur;
    cur.seek(&t.nest, t.nest.rank > 0 ? t.nest.rank - 1 : 0, begin);
    for (int64_t u = begin; u < end; ++u, cur.next()) {
      const char* p = t.base + cur.offset[0];
      bool bad = false;
      for (int64_t i = 0; i < t.n; ++i) {
        const int64_t v = *(const I*)(p + i * t.step);
        bad |= (v < -t.size) | (v >= t.size);
      }
      for (int64_t i = 0; bad && i < t.n; ++i) {
        const int64_t v = *(const I*)(p + i * t.step);
        if (v >= -t.size && v < t.size) continue;
        __atomic_store_n(&t.bad, v, __ATOMIC_RELAXED);
        __atomic_store_n(&t.failed, 1, __ATOMIC_RELAXED);
        bad = false;
      }
    }
  }
};

/* Whether all indices of operand k, for a dim of `size`, are in [-size, size); reports one that is not, as effc_take does. */
template <class I>
bool in_range(const effc_call* c, int k, int dim, int64_t size) {
  const effc_tensor& x = c->in[k];
  Indices<I> t{};
  t.base = (const char*)x.data, t.size = size;
  for (int d = 0; d < x.rank; ++d) {
    const int64_t step = x.strides[d] * (int64_t)sizeof(I);
    if (step == 0) continue; /* not a dim of the index */
    if (x.shape[d] == 0) return true;
    t.nest.push(x.shape[d], &step, 1);
  }
  const int last = t.nest.rank - 1;
  t.n = last < 0 ? 1 : t.nest.size[last], t.step = last < 0 ? 0 : t.nest.step[last][0];
  const int64_t units = t.nest.count() / t.n, grain = (2 * BLOCK + t.n - 1) / t.n;
  if (units <= grain)
    Indices<I>::run(&t, 0, units, 0);
  else
    c->api->parallel_for(c->run, units, grain, Indices<I>::run, &t);
  if (!t.failed) return true;
  c->api->fail(c, "take: index %lld is out of range for dim %d of size %lld", (long long)t.bad, dim, (long long)size);
  return false;
}

/* ---- map: every result element depends on the operands' elements at the same place ---- */

template <int OPS>
struct MapTask {
  const effc_call* c;
  Nest nest;
  static constexpr int ops = OPS;
  char* base[MAX_OPERANDS];
  int64_t stride[MAX_OPERANDS]; /* of the inner loop, in elements */
  int64_t step[MAX_OPERANDS];   /* the same in bytes */
  int64_t n, blocks;
  const int64_t* dv;
  inner_fn inner;

  static void run(void* arg, int64_t begin, int64_t end, int32_t) {
    const MapTask& t = *(const MapTask*)arg;
    int outer = t.nest.rank > 0 ? t.nest.rank - 1 : 0;
    Cursor<OPS> cur;
    cur.seek(&t.nest, outer, begin / t.blocks);
    int64_t block = begin % t.blocks;
    char* p[MAX_OPERANDS];
    for (int64_t u = begin; u < end; ++u) {
      int64_t i0 = block * BLOCK, len = t.n - i0 < BLOCK ? t.n - i0 : BLOCK;
      for (int k = 0; k < t.ops; ++k) p[k] = t.base[k] + cur.offset[k] + i0 * t.step[k];
      t.inner(len, p, t.stride, t.dv);
      if (++block == t.blocks) {
        block = 0;
        cur.next();
      }
    }
  }
};

/* Operands: all inputs, then all outputs; every one described on the common shape call->out[0]->shape. `fast` is used where the
 * innermost strides are `pattern`. */
template <int OPS>
int32_t run_map(const effc_call* c, inner_fn fast, const int8_t* pattern, inner_fn any) {
  MapTask<OPS> t;
  t.c = c;
  t.dv = c->attr;
  const effc_tensor& lead = c->out[0];
  int order[EFFC_MAX_RANK];
  sort_dims(lead.rank, lead.strides, order);
  int64_t items[MAX_OPERANDS], s[MAX_OPERANDS];
  for (int k = 0; k < t.ops; ++k) {
    const effc_tensor& x = k < c->n_in ? c->in[k] : c->out[k - c->n_in];
    t.base[k] = (char*)x.data;
    items[k] = item_size(x.dtype);
  }
  for (int d = 0; d < lead.rank; ++d) {
    if (lead.shape[d] == 0) return 0;
    for (int k = 0; k < t.ops; ++k)
      s[k] = (k < c->n_in ? c->in[k] : c->out[k - c->n_in]).strides[order[d]] * items[k];
    t.nest.push(lead.shape[order[d]], s, t.ops);
  }
  int last = t.nest.rank - 1;
  t.n = last < 0 ? 1 : t.nest.size[last];
  for (int k = 0; k < t.ops; ++k) {
    t.step[k] = last < 0 ? pattern[k] * items[k] : t.nest.step[last][k];
    t.stride[k] = t.step[k] / items[k];
  }
  t.inner = matches(t.step, items, pattern, t.ops) ? fast : any;
  t.blocks = (t.n + BLOCK - 1) / BLOCK;
  int64_t units = t.nest.count() / t.n * t.blocks;
  int64_t per = t.n < BLOCK ? t.n : BLOCK;
  int64_t grain = (2 * BLOCK + per - 1) / per;
  if (units <= grain)
    MapTask<OPS>::run(&t, 0, units, 0);
  else
    c->api->parallel_for(c->run, units, grain, MapTask<OPS>::run, &t);
  return 0;
}

/* ---- epilogue: a map over a tile of accumulators; operand 0 is the tile. dv: the last attributes of the call ---- */

/* m rows of n elements from `first` on, `row` bytes apart. */
typedef void (*rows_fn)(int64_t m, int64_t n, char* const* first, const int64_t* row, const int64_t* s, const int64_t* dv);

constexpr int64_t PAIR = EFFC_VLEN / 2; /* elements of f32 in two vectors */

template <int OPS>
void run_epilogue(const effc_call* c, int64_t b0, int64_t b1, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                         const void* acc, int64_t ld, int64_t acc_size, const int64_t* dv, rows_fn fast,
                         const int8_t* pattern, rows_fn any) {
  char* p[MAX_OPERANDS];
  int64_t row[MAX_OPERANDS], s[MAX_OPERANDS];
  bool match = true;
  const int extras = c->n_in - c->n_own;
  constexpr int ops = OPS;
  p[0] = (char*)acc, row[0] = ld * acc_size, s[0] = 1;
  for (int k = 1; k < ops; ++k) {
    const effc_tensor& x = k <= extras ? c->in[c->n_own + k - 1] : c->out[k - 1 - extras];
    int64_t size = item_size(x.dtype);
    p[k] = (char*)x.data + (b0 * x.strides[0] + b1 * x.strides[1] + m0 * x.strides[2] + n0 * x.strides[3]) * size;
    row[k] = x.strides[2] * size;
    s[k] = x.strides[3];
    match &= s[k] == pattern[k];
  }
  (match ? fast : any)(m1 - m0, n1 - n0, p, row, s, dv);
}

/* ---- prologue: a map over rows [m0, m1) of batch b and head h, written to `to`, rows `ld` elements apart. Operands, from
 * call->in[n_own] on, are described on one shape (batch, head, row, ...), whose last dims lie side by side in a row of `to`. dv: the
 * last attributes of the call ---- */

template <int OPS>
void run_prologue(const effc_call* c, int64_t b, int64_t h, int64_t m0, int64_t m1, void* to, int64_t ld, int64_t to_size,
                  const int64_t* dv, inner_fn fast, const int8_t* pattern, inner_fn any) {
  constexpr int ins = OPS - 1;
  const effc_tensor* in = c->in + c->n_own;
  const int rank = in[0].rank;
  char *base[OPS], *p[OPS];
  int64_t items[OPS], s[OPS], stride[OPS], step[OPS];
  for (int k = 0; k < ins; ++k) {
    items[k] = item_size(in[k].dtype);
    base[k] = (char*)in[k].data + (b * in[k].strides[0] + h * in[k].strides[1] + m0 * in[k].strides[2]) * items[k];
  }
  base[ins] = (char*)to, items[ins] = to_size;
  int64_t side[EFFC_MAX_RANK], width = 1;
  for (int d = rank - 1; d > 2; width *= in[0].shape[d--]) side[d] = width;
  side[2] = ld;
  Nest nest;
  for (int d = 2; d < rank; ++d) {
    for (int k = 0; k < ins; ++k) s[k] = in[k].strides[d] * items[k];
    s[ins] = side[d] * to_size;
    nest.push(d == 2 ? m1 - m0 : in[0].shape[d], s, OPS);
  }
  const int last = nest.rank - 1;
  const int64_t n = last < 0 ? 1 : nest.size[last], units = nest.count() / n;
  for (int k = 0; k < OPS; ++k) {
    step[k] = last < 0 ? pattern[k] * items[k] : nest.step[last][k];
    stride[k] = step[k] / items[k];
  }
  inner_fn inner = matches(step, items, pattern, OPS) ? fast : any;
  Cursor<OPS> cur;
  cur.seek(&nest, last > 0 ? last : 0, 0);
  for (int64_t u = 0; u < units; ++u, cur.next()) {
    for (int k = 0; k < OPS; ++k) p[k] = base[k] + cur.offset[k];
    inner(n, p, stride, dv);
  }
}

/* ---- staged reductions ----
 *
 * The region has a full shape; `reduced` dims of it are reduced by every reduction in it, the others are kept. Stage k computes the
 * reductions that depend on stages before it; the last stage writes the results of full shape. Two forms:
 *   rows:    the innermost dim is reduced: an inner loop runs along it, for one kept position at a time;
 *   columns: the innermost dim is kept: an inner loop runs across LANES kept positions, for one reduced position at a time.
 * Values that are dear to compute and needed by a later stage are kept in a cache (thread scratch), addressed as further operands. */

constexpr int64_t LANES = 64;   /* kept positions of a column block */
constexpr int64_t CHUNK = 2048; /* elements summed in the compute type before they are added to the wide total */

struct RowsTask {
  const effc_call* c;
  Nest kept, red;
  int ops, caches, stages;
  bool columns;
  char* base[MAX_OPERANDS];
  int64_t kept_step[MAX_OPERANDS], red_step[MAX_OPERANDS]; /* innermost, bytes */
  int64_t kept_stride[MAX_OPERANDS], red_stride[MAX_OPERANDS]; /* innermost, elements */
  int64_t items[MAX_OPERANDS];
  int64_t n_kept, n_red, blocks;
  const int64_t* dv;
  bool fast;
};

/* K (generated): struct State; static constexpr int stages; begin<lanes>(State&); per stage
 *   template <bool FAST> rows(stage, n, p, s, State&, dv), columns(stage, n, p, s, State&, dv);
 *   flush(stage, State&, lanes): folds partial sums into totals; finish(stage, State&, lanes, p, kept strides, dv): values of reduced shape. */
template <class K>
struct Rows {
  static void run(void* arg, int64_t begin, int64_t end, int32_t worker) {
    const RowsTask& t = *(const RowsTask*)arg;
    typename K::State state;
    int kept_outer = t.columns && t.kept.rank > 0 ? t.kept.rank - 1 : t.kept.rank;
    int red_outer = !t.columns && t.red.rank > 0 ? t.red.rank - 1 : t.red.rank;
    int64_t red_count = 1;
    for (int d = 0; d < red_outer; ++d) red_count *= t.red.size[d];
    constexpr int ops = K::ops, all = ops + K::caches;
    char* cache = t.c->thread_scratch + worker * t.c->thread_scratch_bytes;
    int64_t cache_bytes = K::caches ? t.c->thread_scratch_bytes / K::caches : 0;
    Cursor<K::ops> cur, rc;
    cur.seek(&t.kept, kept_outer, begin / t.blocks);
    int64_t block = begin % t.blocks;
    char* kp[MAX_OPERANDS];
    char* p[MAX_OPERANDS];
    for (int64_t u = begin; u < end; ++u) {
      int64_t lanes = 1;
      for (int k = 0; k < ops; ++k) kp[k] = t.base[k] + cur.offset[k];
      if (t.columns) {
        int64_t i0 = block * LANES;
        lanes = t.n_kept - i0 < LANES ? t.n_kept - i0 : LANES;
        for (int k = 0; k < ops; ++k) kp[k] += i0 * t.kept_step[k];
      }
      for (int stage = 0; stage < K::stages; ++stage) {
        K::begin(stage, state, lanes);
        rc.seek(&t.red, red_outer, 0);
        for (int64_t r = 0; r < red_count; ++r) {
          for (int k = 0; k < ops; ++k) p[k] = kp[k] + rc.offset[k];
          if (t.columns) {
            for (int k = ops; k < all; ++k) p[k] = cache + (k - ops) * cache_bytes + r * LANES * t.items[k];
            if (t.fast)
              K::template columns<true>(stage, lanes, p, t.kept_stride, state, t.dv);
            else
              K::template columns<false>(stage, lanes, p, t.kept_stride, state, t.dv);
            if ((r & 255) == 255) K::flush(stage, state, lanes);
          } else {
            for (int k = ops; k < all; ++k) p[k] = cache + (k - ops) * cache_bytes + r * t.n_red * t.items[k];
            for (int64_t i0 = 0; i0 < t.n_red; i0 += CHUNK) {
              int64_t n = t.n_red - i0 < CHUNK ? t.n_red - i0 : CHUNK;
              if (t.fast)
                K::template rows<true>(stage, n, p, t.red_stride, state, t.dv);
              else
                K::template rows<false>(stage, n, p, t.red_stride, state, t.dv);
              K::flush(stage, state, 1);
              for (int k = 0; k < all; ++k) p[k] += n * t.red_step[k];
            }
          }
          rc.next();
        }
        K::flush(stage, state, lanes);
        K::finish(stage, state, lanes, kp, t.kept_stride, t.dv);
      }
      if (++block == t.blocks) {
        block = 0;
        cur.next();
      }
    }
  }
};

/* Few kept positions and long reductions: each is cut into SPLITS pieces (their borders depend on sizes alone), partial states are
 * kept in call->scratch and merged in order. */
constexpr int64_t SPLITS = 16, SPLIT_UNITS = 8;

template <class K>
struct Split {
  const RowsTask* t;
  int64_t total, len; /* inner loops of one kept position, and of one piece of it */
  typename K::State* states;

  static void run(void* arg, int64_t begin, int64_t end, int32_t) {
    const Split& s = *(const Split*)arg;
    const RowsTask& t = *s.t;
    constexpr int ops = K::ops;
    int kept_outer = t.columns && t.kept.rank > 0 ? t.kept.rank - 1 : t.kept.rank;
    int red_outer = !t.columns && t.red.rank > 0 ? t.red.rank - 1 : t.red.rank;
    int64_t per = t.columns ? 1 : (t.n_red + CHUNK - 1) / CHUNK;
    Cursor<ops> cur, rc;
    char* p[ops];
    for (int64_t item = begin; item < end; ++item) {
      int64_t u = item / SPLITS, piece = item % SPLITS;
      typename K::State& state = s.states[item];
      int64_t lanes = lanes_of(t, u);
      K::begin(0, state, lanes);
      cur.seek(&t.kept, kept_outer, u / t.blocks);
      int64_t first = piece * s.len, last = first + s.len < s.total ? first + s.len : s.total;
      for (int64_t r = first; r < last; ++r) {
        rc.seek(&t.red, red_outer, r / per);
        int64_t i0 = r % per * CHUNK, lane0 = u % t.blocks * LANES;
        for (int k = 0; k < ops; ++k)
          p[k] = t.base[k] + cur.offset[k] + rc.offset[k] + (t.columns ? lane0 * t.kept_step[k] : i0 * t.red_step[k]);
        int64_t n = t.columns ? lanes : t.n_red - i0 < CHUNK ? t.n_red - i0 : CHUNK;
        if (t.columns)
          t.fast ? K::template columns<true>(0, n, p, t.kept_stride, state, t.dv)
                 : K::template columns<false>(0, n, p, t.kept_stride, state, t.dv);
        else
          t.fast ? K::template rows<true>(0, n, p, t.red_stride, state, t.dv)
                 : K::template rows<false>(0, n, p, t.red_stride, state, t.dv);
        if (!t.columns || (r & 255) == 255) K::flush(0, state, lanes);
      }
      K::flush(0, state, lanes);
    }
  }
  static int64_t lanes_of(const RowsTask& t, int64_t u) {
    if (!t.columns) return 1;
    int64_t left = t.n_kept - u % t.blocks * LANES;
    return left < LANES ? left : LANES;
  }
  /* Merges the pieces of every kept position and writes the results. */
  void join(int64_t units) const {
    constexpr int ops = K::ops;
    int kept_outer = t->columns && t->kept.rank > 0 ? t->kept.rank - 1 : t->kept.rank;
    Cursor<ops> cur;
    char* kp[ops];
    for (int64_t u = 0; u < units; ++u) {
      int64_t lanes = lanes_of(*t, u);
      typename K::State& state = states[u * SPLITS];
      for (int64_t i = 1; i < SPLITS; ++i) K::merge(state, states[u * SPLITS + i], lanes);
      cur.seek(&t->kept, kept_outer, u / t->blocks);
      for (int k = 0; k < ops; ++k) kp[k] = t->base[k] + cur.offset[k] + (t->columns ? u % t->blocks * LANES * t->kept_step[k] : 0);
      K::finish(0, state, lanes, kp, t->kept_stride, t->dv);
    }
  }
};

/* call->attr: rank, mask of reduced dims, columns?, index of the operand whose strides order the dims, then the dims, then the
 * region's own attributes (dv). Operands (inputs, then outputs) are all described on the full shape; a result of reduced shape has
 * stride 0 along reduced dims. */
template <class K>
int32_t run_rows(const effc_call* c) {
  RowsTask t;
  t.c = c;
  t.ops = c->n_in + c->n_out;
  t.caches = K::caches;
  int rank = (int)c->attr[0];
  int64_t mask = c->attr[1];
  t.columns = c->attr[2] != 0;
  int lead = (int)c->attr[3];
  const int64_t* shape = c->attr + 4;
  t.dv = c->attr + 4 + rank;
  auto tensor = [&](int k) -> const effc_tensor& { return k < c->n_in ? c->in[k] : c->out[k - c->n_in]; };
  for (int k = 0; k < t.ops; ++k) {
    t.base[k] = (char*)tensor(k).data;
    t.items[k] = item_size(tensor(k).dtype);
  }
  for (int k = 0; k < t.caches; ++k) t.items[t.ops + k] = K::cache_item(k);
  int order[EFFC_MAX_RANK];
  sort_dims(rank, tensor(lead).strides, order);
  int64_t s[MAX_OPERANDS];
  bool empty_red = false;
  for (int i = 0; i < rank; ++i) {
    int d = order[i];
    bool reduced = mask >> d & 1;
    if (shape[d] == 0) {
      if (!reduced) return 0;
      empty_red = true;
      continue;
    }
    for (int k = 0; k < t.ops; ++k) s[k] = tensor(k).strides[d] * t.items[k];
    (reduced ? t.red : t.kept).push(shape[d], s, t.ops);
  }
  int rl = t.red.rank - 1, kl = t.kept.rank - 1;
  t.n_red = empty_red ? 0 : rl < 0 ? 1 : t.red.size[rl];
  t.n_kept = kl < 0 ? 1 : t.kept.size[kl];
  if (empty_red) {
    t.red.rank = 1, t.red.size[0] = 0;
    for (int k = 0; k < t.ops; ++k) t.red.step[0][k] = 0;
    rl = 0;
  }
  for (int k = 0; k < t.ops; ++k) {
    t.red_step[k] = rl < 0 ? 0 : t.red.step[rl][k];
    t.kept_step[k] = kl < 0 ? 0 : t.kept.step[kl][k];
    t.red_stride[k] = t.red_step[k] / t.items[k];
    t.kept_stride[k] = t.kept_step[k] / t.items[k];
  }
  for (int k = t.ops; k < t.ops + t.caches; ++k) {
    t.red_step[k] = t.kept_step[k] = t.items[k];
    t.red_stride[k] = t.kept_stride[k] = 1;
  }
  const int64_t* inner = t.columns ? t.kept_step : t.red_step;
  t.fast = true;
  for (int k = 0; k < t.ops; ++k) t.fast &= K::pattern(k) != ANY && inner[k] == K::pattern(k) * t.items[k];
  t.blocks = t.columns ? (t.n_kept + LANES - 1) / LANES : 1;
  int64_t kept_outer = 1;
  for (int d = 0; d < (t.columns && t.kept.rank > 0 ? t.kept.rank - 1 : t.kept.rank); ++d) kept_outer *= t.kept.size[d];
  int64_t units = kept_outer * t.blocks;
  int64_t work = (t.columns ? LANES : 1) * (empty_red ? 0 : t.red.count()) + 1;
  int64_t grain = (BLOCK + work - 1) / work;
  if constexpr (K::splittable) {
    int64_t loops = t.columns ? t.red.count() : t.red.count() / (t.n_red ? t.n_red : 1) * ((t.n_red + CHUNK - 1) / CHUNK);
    bool fits = c->scratch_bytes >= (int64_t)sizeof(typename K::State) * SPLITS * units;
    if (units <= SPLIT_UNITS && fits && !empty_red && work >= 8 * BLOCK && loops >= 4 * SPLITS) {
      Split<K> split{&t, loops, (loops + SPLITS - 1) / SPLITS, (typename K::State*)c->scratch};
      c->api->parallel_for(c->run, units * SPLITS, 1, Split<K>::run, &split);
      split.join(units);
      return 0;
    }
  }
  if (units <= grain)
    Rows<K>::run(&t, 0, units, 0);
  else
    c->api->parallel_for(c->run, units, grain, Rows<K>::run, &t);
  return 0;
}

/* Reductions that pragma omp simd has no name for. NaN wins in max and min, as in PyTorch. */
template <class T>
EFFC_INLINE T nan_max(T a, T b) {
  return (b > a) | (b != b) ? b : a;
}
template <class T>
EFFC_INLINE T nan_min(T a, T b) {
  return (b < a) | (b != b) ? b : a;
}
template <class T>
struct limits;
#define EFFC_LIMITS(T, LO, HI)          \
  template <>                           \
  struct limits<T> {                    \
    static constexpr T lo = LO, hi = HI; \
  };
EFFC_LIMITS(float, -__builtin_inff(), __builtin_inff())
EFFC_LIMITS(double, -__builtin_inf(), __builtin_inf())
EFFC_LIMITS(int8_t, -128, 127)
EFFC_LIMITS(uint8_t, 0, 255)
EFFC_LIMITS(int16_t, -32768, 32767)
EFFC_LIMITS(uint16_t, 0, 65535)
EFFC_LIMITS(int32_t, -2147483647 - 1, 2147483647)
EFFC_LIMITS(uint32_t, 0, 4294967295u)
EFFC_LIMITS(int64_t, -9223372036854775807LL - 1, 9223372036854775807LL)
EFFC_LIMITS(uint64_t, 0, 18446744073709551615ull)
EFFC_LIMITS(bool, false, true)
#undef EFFC_LIMITS
#define EFFC_PRAGMA(x) _Pragma(#x)
#define EFFC_DECLARE(T)                                                                                               \
  EFFC_PRAGMA(omp declare reduction(nanmax : T : omp_out = nan_max(omp_out, omp_in)) initializer(omp_priv = limits<T>::lo)) \
  EFFC_PRAGMA(omp declare reduction(nanmin : T : omp_out = nan_min(omp_out, omp_in)) initializer(omp_priv = limits<T>::hi))
EFFC_DECLARE(float)
EFFC_DECLARE(double)
EFFC_DECLARE(int8_t)
EFFC_DECLARE(uint8_t)
EFFC_DECLARE(int16_t)
EFFC_DECLARE(uint16_t)
EFFC_DECLARE(int32_t)
EFFC_DECLARE(uint32_t)
EFFC_DECLARE(int64_t)
EFFC_DECLARE(uint64_t)
#undef EFFC_DECLARE

}  // namespace effc
#endif
