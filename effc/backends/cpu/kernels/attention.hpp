/* Attention with an online softmax: softmax(scale q k^T + mask) v without the matrix of scores.
 *
 * After Rabe and Staats, "Self-attention does not need O(n^2) memory" (2021), and Dao et al., "FlashAttention" (2022). A task is
 * up to kQB query rows; keys come in blocks of kKB. Scores are held transposed, [key][query], so that queries lie along vectors:
 *
 *     S^T[keys, queries] = K[keys, e] Q^T[e, queries]      K read row by row; Q^T is made once per task
 *     P^T = 2^(S^T - reference)                            maxima and sums are vectors, there is no horizontal reduction
 *     O^T[e, queries] += V^T[e, keys] P^T[keys, queries]   V read column by column
 *
 * so that neither K nor V is transposed, and both products are the GEMM's micro-kernel. K and V are read in place, or where their
 * rows lie apart and many queries use them, from a copy of the block: rows of one page each cost more than the copy. The rows of
 * the next block and task are prefetched while products run, and a thread whose next task has the same block of keys keeps its
 * copy. log2(e) is part of the scale of Q, so that scores are exponents of two. Query heads that share a key head and are short
 * are rows of one task. Few tasks over many keys (decoding) split the keys into a number of parts that depends on the shape
 * alone; the parts' sums are merged in order.
 */
#ifndef EFFC_ATTENTION_HPP
#define EFFC_ATTENTION_HPP
#include "gemm.hpp"

namespace effc {
namespace attention {

using gemm::ceil_div;
using gemm::kMR;
using gemm::kNR;
using gemm::kNV;
using gemm::max;
using gemm::min;
using gemm::Tile;

constexpr int64_t kQB = 512;   /* query rows of a task, at most */
constexpr int64_t kQFew = 64;  /* of one whose keys are split; also what a task should have at least */
constexpr int64_t kKB = 300;   /* keys of a block: whole tiles */
constexpr int64_t kPart = 256; /* keys of a part, at least */
constexpr int64_t kParts = 16; /* parts, at most; also the number of tasks from which on keys are not split */
constexpr int64_t kKept = 16;  /* elements of Scratch::kept and its padding */

constexpr double kLog2E = 1.4426950408889634;
constexpr double kSlack = 8; /* by which scores may exceed their reference, as a power of two */
static_assert(kKB % kMR == 0 && kQB % kQFew == 0, "blocks are whole tiles");

/* Kernels by rows and vectors. */
struct Micros {
  gemm::Micro fn[kMR][kNV];
};
template <class T, bool COLUMNS, int R>
constexpr void fill_row(Micros& t) {
  t.fn[R - 1][0] = gemm::micro<T, T, R, 1, COLUMNS>;
  t.fn[R - 1][1] = gemm::micro<T, T, R, 2, COLUMNS>;
  if constexpr (kNV > 2) {
    t.fn[R - 1][2] = gemm::micro<T, T, R, 3, COLUMNS>;
    t.fn[R - 1][3] = gemm::micro<T, T, R, 4, COLUMNS>;
  }
}
template <class T, bool COLUMNS>
constexpr Micros make_micros() {
  Micros t{};
  fill_row<T, COLUMNS, 1>(t);
  fill_row<T, COLUMNS, 2>(t);
  fill_row<T, COLUMNS, 3>(t);
  fill_row<T, COLUMNS, 4>(t);
  fill_row<T, COLUMNS, 5>(t);
  fill_row<T, COLUMNS, 6>(t);
  return t;
}
/* Rows that are used soon but lie apart, so that the hardware does not see them coming: what K, V and queries are copied from and
 * results are written to. The micro-kernels' prefetches, two lines each four steps, walk through them. */
struct Ahead {
  static constexpr int64_t kLines = 128; /* bytes of a row at once */
  struct Rows {
    const char* data;
    int64_t stride, rows, bytes;
  } rows[4];
  int count = 0, current = 0;
  int64_t row = 0, column = 0;

  void add(const void* data, int64_t stride, int64_t n, int64_t bytes) {
    if (n > 0 && bytes > 0) rows[count++] = {(const char*)data, stride, n, bytes};
  }
  /* What a tile of k steps prefetches. */
  void next(Tile& t, const void* nothing) {
    if (current == count) {
      t.next = (const char*)nothing, t.next_step = 0;
      return;
    }
    const Rows& r = rows[current];
    t.next = r.data + row * r.stride + column, t.next_step = r.stride;
    row += t.k / 4;
    if (row < r.rows) return;
    row = 0, column += kLines;
    if (column >= r.bytes) column = 0, ++current;
  }
};

template <class T>
struct Kernels {
  static constexpr Micros rows = make_micros<T, false>(), columns = make_micros<T, true>();
};

struct Tensor {
  char* data;
  const int64_t* shape;
  const int64_t* stride; /* elements */
  int dtype;
};

/* in: q (B,H,Lq,E), k (B,Hk,Lk,E), v (B,Hk,Lk,Ev), mask (B,H,Lq,Lk) bool or S, or absent; out (B,H,Lq,Ev). S is the storage
 * type, T the type of arithmetic. attrs: causal, causal offset, NaN for rows without keys, default scale; fattrs: scale, softcap.
 * With call->epilogue, here a prologue, q has a shape only: call->epilogue(call, b, h, first row, last + 1, 0, E, to, E) writes rows
 * of queries, of S, and reads the operands after the mask. */
template <class T, class S>
struct Attention {
  static constexpr int L = lanes<T>, NR = kNR<T>;
  typedef Vec<T> V;
  typedef typename VecOf<typename IntOf<sizeof(T)>::type>::type I;
  typedef typename IntOf<sizeof(T)>::type Index;

  const effc_call* call;
  Tensor q, k, v, mask, out;
  bool causal, empty_nan, has_mask;
  int64_t offset, batches, heads, kv_heads, lq, lk, e, ev;
  int64_t group, units, unit_rows, blocks, parts; /* a unit: the rows that share keys and are tiled together */
  int64_t share;                                  /* rows of a block */
  T scale, softcap;

  static int64_t thread_elements(int64_t e, int64_t ev) { return e * kQB + 2 * kKB * NR + ev * kQB + kKB * (e + ev) + 6 * kQB + kKept; }
  int64_t part_elements() const { return (ev + 2) * kQFew; }
  static int64_t padded(int64_t rows) { return ceil_div(rows, NR) * NR; }

  struct Scratch {
    T *qt, *s, *o, *kbuf, *vbuf, *mbuf, *top, *sum;
    int64_t* kept; /* which keys kbuf and vbuf begin with, and how many of them they hold */
    S* rows;      /* of queries, as a prologue makes them */
    Index* limit; /* last key that a query sees */
  };

  /* Calls f(head, query index, first row, rows) for runs of rows of one head. */
  template <class F>
  void runs(int64_t unit, int64_t r0, int64_t r1, const F& f) const {
    const int64_t per = heads / units;
    for (int64_t r = r0; r < r1;) {
      const int64_t i = r % lq, n = min(r1 - r, lq - i);
      f(unit * per + r / lq, i, r - r0, n);
      r += n;
    }
  }

  static const S* at(const Tensor& t, int64_t a, int64_t b, int64_t c) {
    return (const S*)t.data + a * t.stride[0] + b * t.stride[1] + c * t.stride[2];
  }

  struct Scaled {
    T factor;
    template <class X>
    inline __attribute__((always_inline)) X operator()(X x, int64_t) const {
      return x * factor;
    }
  };
  struct Weighted { /* by a factor of each column */
    const T* factor;
    inline __attribute__((always_inline)) T operator()(T x, int64_t c) const { return x * factor[c]; }
    inline __attribute__((always_inline)) V operator()(V x, int64_t c) const { return x * load(factor + c); }
  };

  void load_queries(int64_t b, int64_t unit, int64_t r0, int64_t r1, const Scratch& w) const {
    const int64_t all = padded(r1 - r0);
    if (all != r1 - r0) memset((void*)(w.qt + e * (all - NR)), 0, sizeof(T) * e * NR);
    runs(unit, r0, r1, [&](int64_t head, int64_t i, int64_t row, int64_t n) {
      if (call->epilogue && e > 0) call->epilogue(call, b, head, i, i + n, 0, e, w.rows, e);
      for (int64_t done = 0; done < n;) { /* panel by panel */
        const int64_t r = row + done, p = r / NR, c = r % NR, m = min(n - done, NR - c);
        T* to = w.qt + p * e * NR + c;
        const S* from = call->epilogue ? w.rows + done * e : at(q, b, head, i + done);
        const int64_t stride = call->epilogue ? e : q.stride[2], step = call->epilogue ? 1 : q.stride[3];
        if (step == 1 || e == 1) {
          gemm::transpose<T, S>(from, stride, to, NR, m, e, Scaled{scale * T(kLog2E)});
        } else {
          gemm::copy_block<T, S>(from, step, stride, to, NR, e, m);
          for (int64_t y = 0; y < e; ++y)
            for (int64_t x = 0; x < m; ++x) to[y * NR + x] *= scale * T(kLog2E);
        }
        done += m;
      }
      for (int64_t j = 0; j < n; ++j) w.limit[row + j] = (Index)max<int64_t>(-1, min(i + j + offset, lk - 1));
    });
    for (int64_t j = r1 - r0; j < all; ++j) w.limit[j] = w.limit[0];
    for (int64_t j = 0; j < all; ++j) w.top[j] = -__builtin_inf(), w.sum[j] = 0;
  }

  /* dst[rows][cols] of rows that lie `stride` apart, likely on a page each: the hardware does not see the next one coming. */
  static void copy_rows(const S* src, int64_t stride, T* dst, int64_t rows, int64_t cols) {
    constexpr int64_t kAhead = 6, kLine = 64 / (int64_t)sizeof(S);
    for (int64_t i = 0; i < rows; ++i, src += stride, dst += cols) {
      const S* ahead = src + min(kAhead, rows - 1 - i) * stride;
      for (int64_t j = 0; j < cols; j += kLine) __builtin_prefetch(ahead + j, 0, 3);
      if constexpr (__is_same(T, S)) memcpy((void*)dst, src, cols * sizeof(T));
    }
  }
  /* Whether rows of K or V are read where they are. */
  static bool in_place(const Tensor& t, int64_t queries, int64_t cols) {
    return __is_same(T, S) && (t.stride[3] == 1 || cols == 1) && (t.stride[2] == cols || queries <= 2 * NR);
  }
  /* A block of K or V with its columns side by side: in place, or in `buffer`, whose first `have` rows are there already. Returns
   * the elements between its rows. */
  static int64_t rows_of(const Tensor& t, const S* src, int64_t queries, int64_t have, int64_t rows, int64_t cols, T* buffer,
                         const T** out) {
    if constexpr (__is_same(T, S)) {
      if (in_place(t, queries, cols)) {
        *out = src;
        return t.stride[2];
      }
    }
    *out = buffer;
    if (have >= rows) return cols;
    src += have * t.stride[2], buffer += have * cols, rows -= have;
    if (__is_same(T, S) && (t.stride[3] == 1 || cols == 1))
      copy_rows(src, t.stride[2], buffer, rows, cols);
    else
      gemm::copy_block<T, S>(src, t.stride[2], t.stride[3], buffer, cols, rows, cols);
    return cols;
  }
  /* Rows [i, i + n) of a head, to be prefetched. */
  static void soon(Ahead& ahead, const Tensor& t, int64_t b, int64_t head, int64_t i, int64_t n, int64_t cols) {
    if (t.stride[3] == 1 && t.stride[2] > cols) ahead.add(at(t, b, head, i), t.stride[2] * sizeof(S), n, cols * sizeof(S));
  }

  /* dst[key][query] = 0 where src[query][key] is true, else -inf. */
  static void bool_mask(const uint8_t* src, int64_t query, int64_t key, T* dst, int64_t queries, int64_t keys) {
    const T minus_inf = -__builtin_inf();
    int64_t c = 0;
    for (; key == 1 && c + L <= queries; c += L) {
      int64_t j = 0;
      for (; j + L <= keys; j += L)
        transpose_block(
            [&](int i) {
              const auto bytes = *(const typename VecOf<uint8_t, L>::loose*)(src + (c + i) * query + j);
              return (V)((__builtin_convertvector(bytes, I) == 0) & (I)splat(minus_inf));
            },
            dst + j * NR + c, NR);
      for (; j < keys; ++j)
        for (int64_t i = 0; i < L; ++i) dst[j * NR + c + i] = src[(c + i) * query + j] ? T(0) : minus_inf;
    }
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t i = c; i < queries; ++i) dst[j * NR + i] = src[i * query + j * key] ? T(0) : minus_inf;
  }

  /* The mask of keys [j0, j1) and the rows of a panel, transposed and as numbers to add. */
  void load_mask(int64_t b, int64_t unit, int64_t r0, int64_t r1, int64_t j0, int64_t j1, const Scratch& w) const {
    runs(unit, r0, r1, [&](int64_t head, int64_t i, int64_t row, int64_t n) {
      T* dst = w.mbuf + row;
      const uint8_t* src = (const uint8_t*)mask.data + b * mask.stride[0] + head * mask.stride[1] + i * mask.stride[2];
      if (mask.stride[2] == 0) { /* the same for all queries: padding */
        const S* numbers = at(mask, b, head, i);
        for (int64_t j = j0; j < j1; ++j) {
          const int64_t from = j * mask.stride[3];
          const T x = mask.dtype != EFFC_BOOL ? convert<T>(numbers[from]) : src[from] ? T(0) : T(-__builtin_inf());
          for (int64_t c = 0; c < n; ++c) dst[(j - j0) * NR + c] = x;
        }
      } else if (mask.dtype == EFFC_BOOL) {
        bool_mask(src + j0 * mask.stride[3], mask.stride[2], mask.stride[3], dst, n, j1 - j0);
      } else {
        gemm::copy_block<T, S>(at(mask, b, head, i) + j0 * mask.stride[3], mask.stride[3], mask.stride[2], dst, NR, j1 - j0, n);
      }
    });
  }

  /* A mask's numbers times log2(e). What is finite stays so: -FLT_MAX is a usual way to hide keys, and unlike -inf hides none where
   * it hides all. */
  static V exponents(V m) {
    const V most = splat(sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__));
    const V x = m * T(kLog2E), low = x < -most ? -most : x, finite = low > most ? most : low;
    return (m >= -most) & (m <= most) ? finite : x;
  }

  /* Scores of one panel with softcap, causal mask and mask applied. */
  template <int N>
  void adjust(int64_t keys, int64_t j0, bool cut, const Index* limit, const Scratch& w) const {
    for (int64_t j = 0; j < keys; ++j) {
      T* row = w.s + j * NR;
      EFFC_UNROLL_ALL
      for (int c = 0; c < N; ++c) {
        V x = load(row + c * L);
        if (softcap > 0) { /* c tanh(x / c), tanh y = 1 - 2 / (e^2y + 1) */
          V y = x * (2 / softcap);
          y = y > T(86) ? splat(T(86)) : y;
          x = T(kLog2E) * softcap * (T(1) - T(2) / (exp2_vec(y) + T(1)));
        }
        if (cut) {
          const I seen = load(limit + c * L) >= (I)(splat(Index(j0 + j)));
          x = seen ? x : splat(T(-__builtin_inf()));
        }
        if (has_mask) x += exponents(load(w.mbuf + j * NR + c * L));
        store(row + c * L, x);
      }
    }
  }

  template <int N, int R>
  EFFC_INLINE void exponentials(T* s, const V (&high)[N], V (&total)[N]) {
    V x[R * N];
    EFFC_UNROLL_ALL
    for (int i = 0; i < R * N; ++i) x[i] = load(s + i / N * NR + i % N * L) - high[i % N];
    exp2_vecs(x);
    EFFC_UNROLL_ALL
    for (int i = 0; i < R * N; ++i) {
      store(s + i / N * NR + i % N * L, x[i]);
      total[i % N] += x[i];
    }
  }

  /* Scores of one panel to probabilities; updates the running references and sums and rescales O^T. A query's reference is a
   * maximum of its scores, but follows it only where it has grown by kSlack: most blocks need no rescaling. */
  template <int N>
  void softmax(int64_t keys, int64_t j0, bool cut, bool first, const Index* limit, T* top, T* sum, T* o, const Scratch& w) const {
    if (cut || has_mask || softcap > 0) adjust<N>(keys, j0, cut, limit, w);
    const V none = splat(T(-__builtin_inf()));
    V high[N], total[N];
    EFFC_UNROLL_ALL
    for (int c = 0; c < N; ++c) high[c] = none;
    T* const s = w.s;
    for (int64_t j = 0; j < keys; ++j)
      EFFC_UNROLL_ALL
      for (int c = 0; c < N; ++c) {
        const V x = load(s + j * NR + c * L);
        high[c] = larger(x, high[c]);
      }
    I grown = I{};
    EFFC_UNROLL_ALL
    for (int c = 0; c < N; ++c) grown |= (I)(high[c] > load(top + c * L) + T(kSlack));
    bool rescale = false;
    for (int l = 0; l < L; ++l) rescale |= grown[l] != 0;
    EFFC_UNROLL_ALL
    for (int c = 0; c < N; ++c) {
      const V old = load(top + c * L);
      total[c] = load(sum + c * L);
      if (rescale) {
        high[c] = high[c] > old + T(kSlack) ? high[c] : old;
        store(top + c * L, high[c]);
        /* -inf: no keys so far, 0 */
        high[c] = high[c] == none ? V{} : high[c];
        const V alpha = exp2_vec(old - high[c]);
        total[c] *= alpha;
        if (!first)
          for (int64_t i = 0; i < ev; ++i) store(o + i * NR + c * L, load(o + i * NR + c * L) * alpha);
      } else {
        high[c] = old == none ? V{} : old;
      }
    }
    constexpr int kRows = N < 2 ? 2 : 1; /* two vectors at a time at least: one is a chain of some 45 cycles */
    int64_t j = 0;
    for (; j + kRows <= keys; j += kRows) exponentials<N, kRows>(s + j * NR, high, total);
    for (; j < keys; ++j) exponentials<N, 1>(s + j * NR, high, total);
    EFFC_UNROLL_ALL
    for (int c = 0; c < N; ++c) store(sum + c * L, total[c]);
  }

  static void product(const gemm::Micro* micros, int stride, Tile& t, int64_t rows, int64_t row_bytes, T* c, Ahead& ahead) {
    const int64_t tiles = ceil_div(rows, kMR);
    const char* a = (const char*)t.a;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t m0 = i * rows / tiles, m1 = (i + 1) * rows / tiles;
      t.a = a + m0 * row_bytes;
      t.c = c + m0 * NR;
      ahead.next(t, c);
      micros[(m1 - m0 - 1) * stride](&t);
    }
  }

  struct Task {
    int64_t i, b, unit, kv, r0, r1, k0, k1;
  };
  /* The rows of a task in q or in the result: of one head, if it has more than one. */
  void soon_rows(Ahead& ahead, const Tensor& t, const Task& task, int64_t cols) const {
    const int64_t head = task.unit * (heads / units) + task.r0 / lq, i = task.r0 % lq;
    soon(ahead, t, task.b, head, i, min(task.r1 - task.r0, lq - i), cols);
  }

  Task task(int64_t i) const {
    const int64_t part = i % parts, rest = i / parts, unit = rest / blocks % units;
    const int64_t r0 = min(rest % blocks * share, unit_rows);
    return {i, rest / blocks / units, unit, unit * kv_heads / units, r0, min(r0 + share, unit_rows),
            lk * part / parts, lk * (part + 1) / parts};
  }

  /* Rows [r0, r1) of a unit against keys [k0, k1): O^T, maxima and sums are left in w. */
  void block(const Task& task, const Task& after, const Scratch& w) const {
    const int64_t b = task.b, unit = task.unit, kv = task.kv, r0 = task.r0, r1 = task.r1, k0 = task.k0;
    int64_t k1 = task.k1;
    const bool keeps = r1 - r0 > 2 * NR; /* copies of K and V: with fewer rows they may be read in place */
    load_queries(b, unit, r0, r1, w);
    if (causal) {
      Index most = -1;
      for (int64_t j = 0; j < r1 - r0; ++j) most = max(most, w.limit[j]);
      k1 = min<int64_t>(k1, (int64_t)most + 1);
    }
    const int64_t all = max<int64_t>(0, k1 - k0), key_blocks = ceil_div(all, kKB);
    if (all == 0) memset((void*)w.o, 0, sizeof(T) * ev * padded(r1 - r0));
    for (int64_t kb = 0; kb < key_blocks; ++kb) {
      auto bound = [&](int64_t i) { return k0 + min(all, ceil_div(all * i, key_blocks * kMR) * kMR); };
      const int64_t j0 = bound(kb), j1 = bound(kb + 1);
      const T *ks, *vs;
      const int64_t keys_id = (b * kv_heads + kv) * lk + j0;
      const int64_t have = keeps && w.kept[0] == keys_id ? w.kept[1] : 0;
      const int64_t ldk = rows_of(k, at(k, b, kv, j0), r1 - r0, have, j1 - j0, e, w.kbuf, &ks);
      const int64_t ldv = rows_of(v, at(v, b, kv, j0), r1 - r0, have, j1 - j0, ev, w.vbuf, &vs);
      w.kept[0] = keeps ? keys_id : -1, w.kept[1] = max(have, j1 - j0);
      Ahead ahead;
      if (kb + 1 < key_blocks) {
        if (!in_place(k, r1 - r0, e)) soon(ahead, k, b, kv, j1, bound(kb + 2) - j1, e);
        if (!in_place(v, r1 - r0, ev)) soon(ahead, v, b, kv, j1, bound(kb + 2) - j1, ev);
      } else {
        if (parts == 1) soon_rows(ahead, out, task, ev);
        if (after.i != task.i) {
          if (!call->epilogue) soon_rows(ahead, q, after, e);
          const int64_t n = min(kKB, after.k1 - after.k0);
          if (after.kv != kv || after.b != b || after.k0 != j0) {
            if (!in_place(k, r1 - r0, e)) soon(ahead, k, after.b, after.kv, after.k0, n, e);
            if (!in_place(v, r1 - r0, ev)) soon(ahead, v, after.b, after.kv, after.k0, n, ev);
          }
        }
      }
      for (int64_t p = 0; p * NR < r1 - r0; ++p) {
        const int64_t rows = min<int64_t>(NR, r1 - r0 - p * NR);
        const int n = (int)ceil_div(rows, L);
        const Index* limit = w.limit + p * NR;
        T* o = w.o + p * ev * NR;
        int64_t keys = j1 - j0; /* but those that none of the panel's queries sees */
        bool cut = false;
        if (causal) {
          Index most = limit[0], least = limit[0];
          for (int64_t j = 1; j < rows; ++j) most = max(most, limit[j]), least = min(least, limit[j]);
          keys = min<int64_t>(keys, (int64_t)most + 1 - j0);
          cut = j1 - 1 > least;
          if (keys <= 0) {
            if (kb == 0) memset((void*)o, 0, sizeof(T) * ev * NR);
            continue;
          }
        }
        Tile t;
        t.panel_stride = 0, t.ldc = NR;
        t.k = e, t.accumulate = false;
        t.a = ks, t.lda = ldk * (int64_t)sizeof(T);
        t.b = w.qt + p * e * NR, t.ldb = NR;
        product(&Kernels<T>::rows.fn[0][n - 1], kNV, t, keys, t.lda, w.s, ahead);
        if (has_mask) load_mask(b, unit, r0 + p * NR, r0 + p * NR + rows, j0, j0 + keys, w);
        T *top = w.top + p * NR, *sum = w.sum + p * NR;
        const bool first = kb == 0;
        if constexpr (kNV > 2) {
          if (n == 4) softmax<4>(keys, j0, cut, first, limit, top, sum, o, w);
          if (n == 3) softmax<3>(keys, j0, cut, first, limit, top, sum, o, w);
        }
        if (n == 2) softmax<2>(keys, j0, cut, first, limit, top, sum, o, w);
        if (n == 1) softmax<1>(keys, j0, cut, first, limit, top, sum, o, w);
        t.k = keys, t.accumulate = !first;
        t.a = vs, t.lda = ldv * (int64_t)sizeof(T);
        t.b = w.s;
        product(&Kernels<T>::columns.fn[0][n - 1], kNV, t, ev, sizeof(T), o, ahead);
      }
    }
  }

  /* O^T / sum to the result. */
  void finish(int64_t b, int64_t unit, int64_t r0, int64_t r1, const Scratch& w) const {
    const V empty = splat(empty_nan && lk > 0 ? T(__builtin_nan("")) : T(0));
    for (int64_t j = 0; j < r1 - r0; j += L) {
      const V sum = load(w.sum + j);
      store(w.sum + j, sum == T(0) ? empty : T(1) / sum);
    }
    runs(unit, r0, r1, [&](int64_t head, int64_t i, int64_t row, int64_t n) {
      for (int64_t done = 0; done < n;) {
        const int64_t r = row + done, p = r / NR, c = r % NR, m = min(n - done, NR - c);
        S* dst = (S*)at(out, b, head, i + done);
        const T* src = w.o + p * ev * NR + c;
        const Weighted weighted{w.sum + r};
        if (out.stride[3] == 1)
          gemm::transpose<S, T>(src, NR, dst, out.stride[2], ev, m, weighted);
        else
          for (int64_t y = 0; y < m; ++y)
            for (int64_t x = 0; x < ev; ++x)
              dst[y * out.stride[2] + x * out.stride[3]] = convert<S>(weighted(src[x * NR + y], y));
        done += m;
      }
    });
  }

  Scratch scratch(int32_t worker) const {
    Scratch w;
    T* at = (T*)(call->thread_scratch + worker * call->thread_scratch_bytes);
    w.qt = at, at += e * kQB;
    w.s = at, at += kKB * NR;
    w.mbuf = at, at += kKB * NR;
    w.o = at, at += ev * kQB;
    w.top = at, at += kQB;
    w.sum = at, at += kQB;
    w.limit = (Index*)at, at += kQB;
    w.kept = (int64_t*)at, at += kKept;
    w.kbuf = at, at += kKB * e;
    w.vbuf = at, at += kKB * ev;
    w.rows = (S*)at;
    return w;
  }

  /* Merges the parts of one task of `rows` rows in order, into w. */
  void merge(const T* part, int64_t rows, const Scratch& w) const {
    const int64_t all = padded(rows);
    for (int64_t j = 0; j < all; j += L) {
      V top = splat(T(-__builtin_inf()));
      for (int64_t s = 0; s < parts; ++s) {
        const V x = load(part + s * part_elements() + j);
        top = top > x ? top : x;
      }
      const V none = splat(T(-__builtin_inf()));
      top = top == none ? V{} : top;
      store(w.top + j, top);
      store(w.sum + j, V{});
    }
    memset((void*)w.o, 0, sizeof(T) * ev * all);
    for (int64_t s = 0; s < parts; ++s, part += part_elements())
      for (int64_t j = 0; j < all; j += L) {
        const V weight = exp2_vec(load(part + j) - load(w.top + j));
        store(w.sum + j, load(w.sum + j) + weight * load(part + kQFew + j));
        const int64_t base = j / NR * ev * NR + j % NR;
        for (int64_t i = 0; i < ev; ++i)
          store(w.o + base + i * NR, load(w.o + base + i * NR) + weight * load(part + 2 * kQFew + base + i * NR));
      }
  }

  int32_t bad(const char* what) const {
    call->api->fail(call, "attention: %s", what);
    return 1;
  }

  int32_t run() {
    const effc_tensor* in = call->in;
    if (call->n_own != 4 || call->n_attr < 4 || call->n_fattr < 2) return bad("four operands, four attributes, two floats expected");
    for (int i = 0; i < 3; ++i)
      if (in[i].rank != 4) return bad("operands must have rank 4");
    auto view = [](const effc_tensor& t) { return Tensor{(char*)t.data, t.shape, t.strides, t.dtype}; };
    q = view(in[0]), k = view(in[1]), v = view(in[2]), mask = view(in[3]), out = view(call->out[0]);
    has_mask = in[3].rank == 4;
    causal = call->attr[0] != 0, offset = call->attr[1], empty_nan = call->attr[2] != 0;
    batches = q.shape[0], heads = q.shape[1], lq = q.shape[2], e = q.shape[3];
    kv_heads = k.shape[1], lk = k.shape[2], ev = v.shape[3];
    if (k.shape[0] != batches || v.shape[0] != batches || v.shape[1] != kv_heads || v.shape[2] != lk || k.shape[3] != e)
      return bad("sizes of q, k and v differ");
    if (batches == 0 || heads == 0 || lq == 0 || ev == 0) return 0;
    if (kv_heads == 0 || heads % kv_heads != 0) return bad("the query heads do not divide into the key heads");
    scale = (T)call->fattr[0], softcap = (T)call->fattr[1];
    if (call->attr[3]) scale = e > 0 ? T(1) / (T)__builtin_sqrt((double)e) : T(1);
    group = heads / kv_heads;
    const bool together = lq < kQFew;
    units = together ? kv_heads : heads;
    unit_rows = together ? group * lq : lq;
    const int64_t fewest = ceil_div(unit_rows, kQB), most = ceil_div(unit_rows, kQFew);
    parts = batches * units * most >= kParts ? 1 : max<int64_t>(1, min(kParts, lk / kPart));
    blocks = parts > 1 ? most : min(most, max(fewest, ceil_div(kParts, batches * units)));
    const int64_t tasks = batches * units * blocks;
    const int64_t made = call->epilogue ? e * kQB : 0;
    if (call->thread_scratch_bytes < (thread_elements(e, ev) + made) * (int64_t)sizeof(T) ||
        (parts > 1 && call->scratch_bytes < tasks * parts * part_elements() * (int64_t)sizeof(T)))
      return bad("scratch is too small");
    share = padded(ceil_div(unit_rows, blocks));
    const int32_t threads = call->api->num_threads(call->run);
    for (int32_t t = 0; t < threads && min(share, unit_rows) > 2 * NR; ++t) scratch(t).kept[0] = -1;
    T* partial = (T*)call->scratch;
    const double work = 2.0 * min(unit_rows, share) * lk * (e + ev) / parts;
    const int64_t grain = max<int64_t>(1, (int64_t)(50000 / (work + 1)));
    gemm::parallel(call, tasks * parts, grain, [&](int64_t begin, int64_t end, int32_t worker) {
      const Scratch w = scratch(worker);
      for (int64_t i = begin; i < end; ++i) {
        const Task now = task(i);
        const int64_t r0 = now.r0, r1 = now.r1;
        if (r0 == r1) continue;
        block(now, i + 1 < tasks * parts ? task(i + 1) : now, w);
        if (parts == 1) {
          finish(now.b, now.unit, r0, r1, w);
        } else {
          T* dst = partial + i * part_elements();
          const int64_t all = padded(r1 - r0);
          memcpy((void*)dst, w.top, all * sizeof(T));
          memcpy((void*)(dst + kQFew), w.sum, all * sizeof(T));
          memcpy((void*)(dst + 2 * kQFew), w.o, ev * all * sizeof(T));
        }
      }
    });
    if (parts == 1) return 0;
    gemm::parallel(call, tasks, 1, [&](int64_t begin, int64_t end, int32_t worker) {
      const Scratch w = scratch(worker);
      for (int64_t i = begin; i < end; ++i) {
        const Task now = task(i * parts);
        if (now.r0 == now.r1) continue;
        merge(partial + i * parts * part_elements(), now.r1 - now.r0, w);
        finish(now.b, now.unit, now.r0, now.r1, w);
      }
    });
    return 0;
  }
};

template <class T, class S>
int32_t attention(const effc_call* call) {
  Attention<T, S> a;
  a.call = call;
  return a.run();
}

}  // namespace attention
}  // namespace effc
#endif
