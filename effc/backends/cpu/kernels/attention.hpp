/* Attention with an online softmax: softmax(scale q k^T + mask) v without the matrix of scores.
 *
 * After Rabe and Staats, "Self-attention does not need O(n^2) memory" (2021), and Dao et al., "FlashAttention" (2022). A task is
 * up to 64 query rows; keys come in blocks of kKB. Scores are held transposed, [key][query], so that queries lie along vectors:
 *
 *     S^T[keys, queries] = K[keys, e] Q^T[e, queries]      K read in place, row by row; Q^T is made once per task
 *     P^T = exp(S^T - max)                                 maxima and sums are vectors, there is no horizontal reduction
 *     O^T[e, queries] += V^T[e, keys] P^T[keys, queries]   V read in place, column by column
 *
 * so that neither K nor V is packed, and both products are the GEMM's micro-kernel. Query heads that share a key head and are
 * short are rows of one task. Few tasks over many keys (decoding) split the keys into a number of parts that depends on the shape
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

constexpr int64_t kQB = 64;    /* query rows of a task */
constexpr int64_t kKB = 96;    /* keys of a block */
constexpr int64_t kPart = 256; /* keys of a part, at least */
constexpr int64_t kParts = 16; /* parts, at most; also the number of tasks from which on keys are not split */

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
  static constexpr int L = lanes<T>, NR = kNR<T>, P = (int)(kQB / NR);
  typedef Vec<T> V;
  typedef typename VecOf<typename IntOf<sizeof(T)>::type>::type I;
  typedef typename IntOf<sizeof(T)>::type Index;

  const effc_call* call;
  Tensor q, k, v, mask, out;
  bool causal, empty_nan, has_mask;
  int64_t offset, batches, heads, kv_heads, lq, lk, e, ev;
  int64_t group, units, unit_rows, blocks, parts; /* a unit: the rows that share keys and are tiled together */
  T scale, softcap;

  static int64_t thread_elements(int64_t e, int64_t ev) { return e * kQB + 2 * kKB * NR + ev * kQB + kKB * (e + ev) + 6 * kQB; }
  int64_t part_elements() const { return (ev + 2) * kQB; }

  struct Scratch {
    T *qt, *s, *o, *kbuf, *vbuf, *mbuf, *top, *sum;
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

  void load_queries(int64_t b, int64_t unit, int64_t r0, int64_t r1, const Scratch& w) const {
    memset((void*)w.qt, 0, sizeof(T) * e * kQB);
    runs(unit, r0, r1, [&](int64_t head, int64_t i, int64_t row, int64_t n) {
      if (call->epilogue && e > 0) call->epilogue(call, b, head, i, i + n, 0, e, w.rows, e);
      for (int64_t done = 0; done < n;) { /* panel by panel */
        const int64_t r = row + done, p = r / NR, c = r % NR, m = min(n - done, NR - c);
        if (call->epilogue)
          gemm::copy_block<T, S>(w.rows + done * e, 1, e, w.qt + p * e * NR + c, NR, e, m);
        else
          gemm::copy_block<T, S>(at(q, b, head, i + done), q.stride[3], q.stride[2], w.qt + p * e * NR + c, NR, e, m);
        done += m;
      }
      for (int64_t j = 0; j < n; ++j) w.limit[row + j] = (Index)max<int64_t>(-1, min(i + j + offset, lk - 1));
    });
    for (int64_t j = r1 - r0; j < kQB; ++j) w.limit[j] = w.limit[0];
    for (int64_t j = 0; j < e * kQB; ++j) w.qt[j] *= scale;
    for (int64_t j = 0; j < kQB; ++j) w.top[j] = -__builtin_inf(), w.sum[j] = 0;
    memset((void*)w.o, 0, sizeof(T) * ev * kQB);
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

  /* Scores of one panel to probabilities; updates the running maxima and sums and rescales O^T. */
  template <int N>
  void softmax(int64_t keys, int64_t j0, bool cut, bool first, const Index* limit, T* top, T* sum, T* o, const Scratch& w) const {
    V high[N], total[N];
    EFFC_UNROLL_ALL
    for (int c = 0; c < N; ++c) high[c] = load(top + c * L);
    for (int64_t j = 0; j < keys; ++j) {
      T* row = w.s + j * NR;
      EFFC_UNROLL_ALL
      for (int c = 0; c < N; ++c) {
        V x = load(row + c * L);
        if (softcap > 0) { /* c tanh(x / c), tanh y = 1 - 2 / (e^2y + 1) */
          V y = x * (2 / softcap);
          y = y > T(60) ? splat(T(60)) : y;
          x = softcap * (T(1) - T(2) / (exp_vec(y) + T(1)));
        }
        if (cut) {
          const I seen = load(limit + c * L) >= (I)(splat(Index(j0 + j)));
          x = seen ? x : splat(T(-__builtin_inf()));
        }
        if (has_mask) x += load(w.mbuf + j * NR + c * L);
        if (cut || has_mask || softcap > 0) store(row + c * L, x);
        high[c] = high[c] > x ? high[c] : x;
      }
    }
    bool rescale = false;
    EFFC_UNROLL_ALL
    for (int c = 0; c < N; ++c) {
      const V old = load(top + c * L);
      const V none = splat(T(-__builtin_inf()));
      store(top + c * L, high[c]);
      high[c] = (high[c] == none) ? V{} : high[c];
      const V alpha = exp_vec(old - high[c]); /* -inf: no keys so far, 0 */
      total[c] = load(sum + c * L) * alpha;
      store(sum + c * L, alpha);
      if (!first) {
        const I changed = (I)(alpha != T(1));
        for (int l = 0; l < L; ++l) rescale |= changed[l] != 0;
      }
    }
    if (rescale)
      for (int64_t i = 0; i < ev; ++i)
        EFFC_UNROLL_ALL
        for (int c = 0; c < N; ++c) store(o + i * NR + c * L, load(o + i * NR + c * L) * load(sum + c * L));
    for (int64_t j = 0; j < keys; ++j) {
      T* row = w.s + j * NR;
      EFFC_UNROLL_ALL
      for (int c = 0; c < N; ++c) {
        const V p = exp_vec(load(row + c * L) - high[c]);
        store(row + c * L, p);
        total[c] += p;
      }
    }
    EFFC_UNROLL_ALL
    for (int c = 0; c < N; ++c) store(sum + c * L, total[c]);
  }

  static void product(const gemm::Micro* micros, int stride, Tile& t, int64_t rows, int64_t row_bytes, T* c) {
    const int64_t tiles = ceil_div(rows, kMR);
    const char* a = (const char*)t.a;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t m0 = i * rows / tiles, m1 = (i + 1) * rows / tiles;
      t.a = a + m0 * row_bytes;
      t.c = c + m0 * NR;
      micros[(m1 - m0 - 1) * stride](&t);
    }
  }

  /* Rows [r0, r1) of a unit against keys [k0, k1): O^T, maxima and sums are left in w. */
  void block(int64_t b, int64_t unit, int64_t r0, int64_t r1, int64_t k0, int64_t k1, const Scratch& w) const {
    const int64_t kv = unit * kv_heads / units;
    load_queries(b, unit, r0, r1, w);
    Index most = -1, least = (Index)(lk - 1);
    if (causal) {
      for (int64_t j = 0; j < r1 - r0; ++j) most = max(most, w.limit[j]), least = min(least, w.limit[j]);
      k1 = min<int64_t>(k1, (int64_t)most + 1);
    }
    const bool k_in_place = __is_same(T, S) && (k.stride[3] == 1 || e == 1);
    const bool v_in_place = __is_same(T, S) && (v.stride[3] == 1 || ev == 1);
    const int64_t key_blocks = ceil_div(max<int64_t>(0, k1 - k0), kKB);
    for (int64_t kb = 0; kb < key_blocks; ++kb) {
      const int64_t j0 = k0 + (k1 - k0) * kb / key_blocks, j1 = k0 + (k1 - k0) * (kb + 1) / key_blocks, keys = j1 - j0;
      const S *ks = at(k, b, kv, j0), *vs = at(v, b, kv, j0);
      if (!k_in_place) gemm::copy_block<T, S>(ks, k.stride[2], k.stride[3], w.kbuf, e, keys, e);
      if (!v_in_place) gemm::copy_block<T, S>(vs, v.stride[2], v.stride[3], w.vbuf, ev, keys, ev);
      const bool cut = causal && j1 - 1 > least;
      for (int64_t p = 0; p < P && p * NR < r1 - r0; ++p) {
        const int64_t rows = min<int64_t>(NR, r1 - r0 - p * NR);
        const int n = (int)ceil_div(rows, L);
        T* o = w.o + p * ev * NR;
        Tile t;
        t.panel_stride = 0, t.ldc = NR, t.next = (const char*)w.s, t.next_step = 0;
        t.k = e, t.accumulate = false;
        t.a = k_in_place ? (const void*)ks : w.kbuf;
        t.lda = (k_in_place ? k.stride[2] : e) * (int64_t)sizeof(T);
        t.b = w.qt + p * e * NR, t.ldb = NR;
        product(&Kernels<T>::rows.fn[0][n - 1], kNV, t, keys, t.lda, w.s);
        if (has_mask) load_mask(b, unit, r0 + p * NR, r0 + p * NR + rows, j0, j1, w);
        const Index* limit = w.limit + p * NR;
        T *top = w.top + p * NR, *sum = w.sum + p * NR;
        const bool first = kb == 0;
        if constexpr (kNV > 2) {
          if (n == 4) softmax<4>(keys, j0, cut, first, limit, top, sum, o, w);
          if (n == 3) softmax<3>(keys, j0, cut, first, limit, top, sum, o, w);
        }
        if (n == 2) softmax<2>(keys, j0, cut, first, limit, top, sum, o, w);
        if (n == 1) softmax<1>(keys, j0, cut, first, limit, top, sum, o, w);
        t.k = keys, t.accumulate = true;
        t.a = v_in_place ? (const void*)vs : w.vbuf;
        t.lda = (v_in_place ? v.stride[2] : ev) * (int64_t)sizeof(T);
        t.b = w.s;
        product(&Kernels<T>::columns.fn[0][n - 1], kNV, t, ev, sizeof(T), o);
      }
    }
  }

  /* O^T / sum to the result. */
  void finish(int64_t b, int64_t unit, int64_t r0, int64_t r1, const Scratch& w) const {
    for (int64_t p = 0; p < P && p * NR < r1 - r0; ++p) {
      T* o = w.o + p * ev * NR;
      for (int c = 0; c < kNV; ++c) {
        const V sum = load(w.sum + p * NR + c * L);
        const V empty = splat(empty_nan && lk > 0 ? T(__builtin_nan("")) : T(0));
        const V factor = sum == T(0) ? empty : T(1) / sum;
        for (int64_t i = 0; i < ev; ++i) store(o + i * NR + c * L, load(o + i * NR + c * L) * factor);
      }
    }
    runs(unit, r0, r1, [&](int64_t head, int64_t i, int64_t row, int64_t n) {
      for (int64_t done = 0; done < n;) {
        const int64_t r = row + done, p = r / NR, c = r % NR, m = min(n - done, NR - c);
        S* dst = (S*)at(out, b, head, i + done);
        const T* src = w.o + p * ev * NR + c;
        if (out.stride[3] == 1)
          gemm::transpose<S, T>(src, NR, dst, out.stride[2], ev, m);
        else
          for (int64_t y = 0; y < m; ++y)
            for (int64_t x = 0; x < ev; ++x) dst[y * out.stride[2] + x * out.stride[3]] = convert<S>(src[x * NR + y]);
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
    w.kbuf = at, at += kKB * e;
    w.vbuf = at, at += kKB * ev;
    w.top = at, at += kQB;
    w.sum = at, at += kQB;
    w.limit = (Index*)at, at += kQB;
    w.rows = (S*)at;
    return w;
  }

  /* Merges the parts of one task in order, into w. */
  void merge(const T* part, const Scratch& w) const {
    for (int64_t j = 0; j < kQB; j += L) {
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
    memset((void*)w.o, 0, sizeof(T) * ev * kQB);
    for (int64_t s = 0; s < parts; ++s, part += part_elements())
      for (int64_t j = 0; j < kQB; j += L) {
        const V weight = exp_vec(load(part + j) - load(w.top + j));
        store(w.sum + j, load(w.sum + j) + weight * load(part + kQB + j));
        const int64_t base = j / NR * ev * NR + j % NR;
        for (int64_t i = 0; i < ev; ++i)
          store(w.o + base + i * NR, load(w.o + base + i * NR) + weight * load(part + 2 * kQB + base + i * NR));
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
    const bool together = lq < kQB;
    units = together ? kv_heads : heads;
    unit_rows = together ? group * lq : lq;
    blocks = ceil_div(unit_rows, kQB);
    const int64_t tasks = batches * units * blocks;
    parts = tasks >= kParts ? 1 : max<int64_t>(1, min(kParts, lk / kPart));
    const int64_t made = call->epilogue ? e * kQB : 0;
    if (call->thread_scratch_bytes < (thread_elements(e, ev) + made) * (int64_t)sizeof(T) ||
        (parts > 1 && call->scratch_bytes < tasks * parts * part_elements() * (int64_t)sizeof(T)))
      return bad("scratch is too small");
    /* Rows of a block: even shares, whole vectors. */
    const int64_t share = ceil_div(ceil_div(unit_rows, blocks), L) * L;
    T* partial = (T*)call->scratch;
    const double work = 2.0 * min(unit_rows, kQB) * lk * (e + ev) / parts;
    const int64_t grain = max<int64_t>(1, (int64_t)(50000 / (work + 1)));
    gemm::parallel(call, tasks * parts, grain, [&](int64_t begin, int64_t end, int32_t worker) {
      const Scratch w = scratch(worker);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i % parts, task = i / parts;
        const int64_t blk = task % blocks, unit = task / blocks % units, b = task / blocks / units;
        const int64_t r0 = min(blk * share, unit_rows), r1 = min(r0 + share, unit_rows);
        if (r0 == r1) continue;
        block(b, unit, r0, r1, lk * part / parts, lk * (part + 1) / parts, w);
        if (parts == 1) {
          finish(b, unit, r0, r1, w);
        } else {
          T* dst = partial + i * part_elements();
          memcpy((void*)dst, w.top, kQB * sizeof(T));
          memcpy((void*)(dst + kQB), w.sum, kQB * sizeof(T));
          memcpy((void*)(dst + 2 * kQB), w.o, ev * kQB * sizeof(T));
        }
      }
    });
    if (parts == 1) return 0;
    gemm::parallel(call, tasks, 1, [&](int64_t begin, int64_t end, int32_t worker) {
      const Scratch w = scratch(worker);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t blk = task % blocks, unit = task / blocks % units, b = task / blocks / units;
        const int64_t r0 = min(blk * share, unit_rows), r1 = min(r0 + share, unit_rows);
        if (r0 == r1) continue;
        merge(partial + task * parts * part_elements(), w);
        finish(b, unit, r0, r1, w);
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
