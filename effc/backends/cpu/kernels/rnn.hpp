/* Recurrent layers: LSTM, GRU and plain, one direction, all steps of a sequence in one call.
 *
 * The inputs' share of the gates, xg = x W_ih^T for all steps, is a product of its own that comes before. A panel of the
 * recurrent weights holds the columns of all gates of a block of units, [k][gate][lane] (packing/rnn.py), so that a micro-kernel
 * call gives a block's gates, which become its new state in registers. Threads split a large batch, each running through the whole
 * sequence on its own. What there is of a small one is a product of few rows for each step, as fast as its weights come: threads split
 * the units, so that each reads its own part of the weights from its own cache at every step, and exchange the states (team.hpp). Blocks
 * are taken in turn forward and backward, so that weights that do not fit a cache meet at the start of a step what the one before left.
 */
#ifndef EFFC_RNN_HPP
#define EFFC_RNN_HPP
#include "gemm.hpp"
#include "team.hpp"

namespace effc {
namespace rnn {

using gemm::ceil_div;
using gemm::max;
using gemm::min;
using gemm::Tile;

enum Kind { kLstm = 0, kGru = 1, kTanh = 2, kRelu = 3 };
constexpr double kSplitWork = 1e5; /* operations of a step from which on it is split over threads */

/* Vectors of a panel: one per gate; a plain layer has one gate and takes four blocks of units at once. */
constexpr int vectors_of(int kind) { return kind == kGru ? 3 : 4; }
constexpr int rows_of(int vectors) { return EFFC_VLEN >= 64 ? 6 : vectors == 3 ? 4 : 3; }

template <class T, int N>
struct Kernels {
  gemm::Micro fn[6];
  template <int R>
  constexpr void fill() {
    fn[R - 1] = gemm::micro<T, T, R, N>;
    if constexpr (R < rows_of(N)) fill<R + 1>();
  }
  constexpr Kernels() : fn{} { fill<1>(); }
};

/* in: xg (T,B,columns), h0 (B,P), c0 (B,H) or absent, recurrent weights (packed), bias of the inputs and of the state (packed
 * [1, columns]) or absent, w_hr (P,H) or absent; all dense. out: y (T,B,P), final h (B,P), final c (B,H).
 * attrs: reverse, units. scratch: rows padded to whole blocks, (1 or with w_hr 2) B * padded units elements. */
template <class T, int KIND>
struct Layer {
  static constexpr int L = lanes<T>, N = vectors_of(KIND), G = KIND == kLstm ? 4 : KIND == kGru ? 3 : 1;
  static constexpr int BLOCK = KIND >= kTanh ? N * L : L; /* units of a panel */
  static constexpr int WIDE = N * L;                      /* columns of a panel */
  static constexpr int ROW_PANELS = 2;                    /* that a single row takes at once */
  typedef Vec<T> V;
  static constexpr Kernels<T, N> kernels{};

  const effc_call* call;
  const T *xg, *h0, *c0, *weights, *bx, *bh, *w_hr;
  T *y, *state, *hidden; /* state: c, padded; hidden: outputs before the projection, padded */
  int64_t steps, batch, out_size, units, blocks, padded;
  bool reverse;

  static V part(const T* p, int64_t n) {
    if (n >= L) return load(p);
    T t[L] = {};
    for (int64_t i = 0; i < n; ++i) t[i] = p[i];
    return load(t);
  }
  static void put(T* p, V v, int64_t n) {
    if (n >= L) return store(p, v);
    T t[L];
    store(t, v);
    for (int64_t i = 0; i < n; ++i) p[i] = t[i];
  }

  int64_t time(int64_t step) const { return reverse ? steps - 1 - step : step; }
  const T* previous(int64_t step) const { return step == 0 ? h0 : y + time(step - 1) * batch * out_size; }

  /* sums[P][WIDE] = h w[P][out_size][WIDE], panels side by side. Two give accumulators enough to hide the latency of the FMAs. */
  template <int P>
  void row(const T* h, const T* w, T* sums) const {
    constexpr int U = 4;
    const int64_t panel = out_size * WIDE;
    V acc[P][N] = {};
    int64_t k = out_size;
    for (; k >= U; k -= U, h += U, w += U * WIDE) row_steps<P, U>(acc, h, w, panel);
    for (; k > 0; --k, ++h, w += WIDE) row_steps<P, 1>(acc, h, w, panel);
    EFFC_UNROLL_ALL
    for (int p = 0; p < P; ++p)
      EFFC_UNROLL_ALL
      for (int i = 0; i < N; ++i) store(sums + p * WIDE + i * L, acc[p][i]);
  }
  template <int P, int U>
  EFFC_INLINE void row_steps(V (&acc)[P][N], const T* h, const T* w, int64_t panel) {
    EFFC_UNROLL_ALL
    for (int o = 0; o < U; ++o) {
      const V x = splat(h[o]);
      EFFC_UNROLL_ALL
      for (int p = 0; p < P; ++p)
        EFFC_UNROLL_ALL
        for (int i = 0; i < N; ++i) acc[p][i] += x * load(w + o * WIDE + p * panel + i * L);
    }
  }

  /* sums = h w for a group of `count` blocks from j on. One row's blocks lie side by side, rows WIDE apart. */
  void product(const T* h, int64_t rows, int64_t j, int64_t count, T* sums) const {
    const T* w = weights + j * out_size * WIDE;
    if (rows == 1) return count == ROW_PANELS ? row<ROW_PANELS>(h, w, sums) : row<1>(h, w, sums);
    Tile t;
    t.k = out_size, t.a = h, t.lda = out_size * (int64_t)sizeof(T);
    t.b = w, t.ldb = WIDE, t.panel_stride = gemm::kNV * L;
    t.c = sums, t.ldc = WIDE, t.accumulate = false;
    t.next = (const char*)w, t.next_step = 0;
    kernels.fn[rows - 1](&t);
  }

  /* New state of rows [r0, r1) and blocks [j0, j1); the last blocks first in every other step. */
  void advance(int64_t step, int64_t r0, int64_t r1, int64_t j0, int64_t j1) const {
    const T* before = previous(step);
    const T* inputs = xg + time(step) * batch * blocks * WIDE;
    T* after = w_hr ? hidden : y + time(step) * batch * out_size;
    const int64_t after_row = w_hr ? padded : out_size;
    alignas(64) T sums[max(rows_of(N), ROW_PANELS) * WIDE];
    const int64_t tiles = ceil_div(r1 - r0, rows_of(N)), at_once = r1 - r0 == 1 ? ROW_PANELS : 1;
    const int64_t groups = ceil_div(j1 - j0, at_once);
    for (int64_t n = 0; n < groups; ++n) {
      const int64_t j = j0 + (step % 2 ? groups - 1 - n : n) * at_once, count = min(at_once, j1 - j);
      for (int64_t r = r0; r < r1; ++r) /* comes from another thread's cache, or from memory */
        for (int64_t i = 0; i < count * WIDE; i += 64 / sizeof(T)) __builtin_prefetch(inputs + (r * blocks + j) * WIDE + i);
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t a0 = r0 + i * (r1 - r0) / tiles, a1 = r0 + (i + 1) * (r1 - r0) / tiles;
        product(before + a0 * out_size, a1 - a0, j, count, sums);
        for (int64_t r = a0; r < a1; ++r)
          for (int64_t b = j; b < j + count; ++b)
            gates(sums + (r - a0 + b - j) * WIDE, inputs + (r * blocks + b) * WIDE, before + r * out_size + b * BLOCK,
                  state + r * padded + b * BLOCK, after + r * after_row + b * BLOCK, b);
      }
    }
  }

  void gates(const T* g, const T* x, const T* h, T* c, T* out, int64_t j) const {
    const int64_t left = units - j * BLOCK;
    V s[N], in[N];
    EFFC_UNROLL_ALL
    for (int i = 0; i < N; ++i) {
      s[i] = load(g + i * L), in[i] = load(x + i * L);
      if (bx) in[i] += load(bx + j * WIDE + i * L);
      if (bh) s[i] += load(bh + j * WIDE + i * L);
    }
    if constexpr (KIND == kLstm) {
      V f[4] = {sigmoid_argument(in[0] + s[0]), sigmoid_argument(in[1] + s[1]), tanh_argument(in[2] + s[2]),
                sigmoid_argument(in[3] + s[3])};
      logistic_vecs(f);
      const V cell = f[1] * load(c) + f[0] * tanh_of(f[2]);
      store(c, cell);
      put(out, f[3] * tanh_vec(cell), w_hr ? L : left);
    } else if constexpr (KIND == kGru) {
      V f[2] = {sigmoid_argument(in[0] + s[0]), sigmoid_argument(in[1] + s[1])};
      logistic_vecs(f);
      const V n = tanh_vec(in[2] + f[0] * s[2]);
      put(out, n + f[1] * (part(h, left) - n), left);
    } else {
      V f[N];
      EFFC_UNROLL_ALL
      for (int i = 0; i < N; ++i) f[i] = KIND == kTanh ? tanh_argument(in[i] + s[i]) : in[i] + s[i];
      if constexpr (KIND == kTanh) logistic_vecs(f);
      EFFC_UNROLL_ALL
      for (int i = 0; i < N; ++i)
        if (left > i * L) put(out + i * L, KIND == kTanh ? tanh_of(f[i]) : (f[i] < T(0) ? V{} : f[i]), left - i * L);
    }
  }

  /* y[rows, p0:p1] = hidden[rows] w_hr[p0:p1]^T. */
  void project(int64_t step, int64_t r0, int64_t r1, int64_t p0, int64_t p1) const {
    T* after = y + time(step) * batch * out_size;
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t p = p0; p < p1; ++p) {
        const T *a = hidden + r * padded, *w = w_hr + p * units;
        V sum{};
        int64_t i = 0;
        for (; i + L <= units; i += L) sum += load(a + i) * load(w + i);
        if (i < units) sum += part(a + i, units - i) * part(w + i, units - i);
        after[r * out_size + p] = sum_lanes<T>(sum);
      }
  }

  static const T* optional(const effc_tensor& t, int64_t header = 0) {
    return t.rank < 0 ? nullptr : (const T*)((const char*)t.data + header);
  }

  int32_t run() {
    if (call->n_own != 7 || call->n_attr < 2 || call->n_out < 2) {
      call->api->fail(call, "recurrent layer: seven operands and two attributes expected");
      return 1;
    }
    const effc_tensor* in = call->in;
    xg = (const T*)in[0].data, h0 = (const T*)in[1].data, c0 = optional(in[2]);
    weights = optional(in[3], gemm::kHeader), bx = optional(in[4], gemm::kHeader), bh = optional(in[5], gemm::kHeader);
    w_hr = optional(in[6]), y = (T*)call->out[0].data;
    reverse = call->attr[0] != 0, units = call->attr[1];
    steps = in[0].shape[0], batch = in[0].shape[1], out_size = in[1].shape[1];
    blocks = ceil_div(units, BLOCK), padded = blocks * BLOCK;
    if (in[0].shape[2] != blocks * WIDE || in[3].shape[0] != gemm::kHeader + blocks * WIDE * out_size * (int64_t)sizeof(T)) {
      call->api->fail(call, "recurrent layer: the weights have another layout");
      return 1;
    }
    if (call->scratch_bytes < (w_hr ? 2 : 1) * batch * padded * (int64_t)sizeof(T)) {
      call->api->fail(call, "recurrent layer: scratch is too small");
      return 1;
    }
    state = (T*)call->scratch, hidden = state + batch * padded;
    if (KIND == kLstm)
      for (int64_t r = 0; r < batch; ++r)
        for (int64_t i = 0; i < padded; ++i) state[r * padded + i] = i < units ? c0[r * units + i] : T(0);
    const int64_t threads = call->api->num_threads(call->run), pairs = ceil_div(blocks, ROW_PANELS);
    const int64_t parts = min(min(threads, pairs), Team::kMaxParts);
    const double work = 2.0 * batch * out_size * blocks * WIDE;
    if (batch <= threads * rows_of(N) && work >= kSplitWork && parts > 1) {
      const int64_t phases = w_hr ? 2 : 1; /* of a step */
      auto first = [&](int64_t p) { return min(blocks, pairs * p / parts * ROW_PANELS); };
      Team::run(call, parts, steps * phases, [&](int64_t p, int64_t n) {
        if (n % phases)
          project(n / phases, 0, batch, out_size * p / parts, out_size * (p + 1) / parts);
        else
          advance(n / phases, 0, batch, first(p), first(p + 1));
      });
    } else {
      gemm::parallel(call, batch, ceil_div(batch, threads), [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t s = 0; s < steps; ++s) {
          advance(s, begin, end, 0, blocks);
          if (w_hr) project(s, begin, end, 0, out_size);
        }
      });
    }
    memcpy(call->out[1].data, previous(steps), sizeof(T) * batch * out_size);
    if (KIND == kLstm)
      for (int64_t r = 0; r < batch; ++r) memcpy((T*)call->out[2].data + r * units, state + r * padded, sizeof(T) * units);
    return 0;
  }
};

template <class T, int KIND>
int32_t layer(const effc_call* call) {
  Layer<T, KIND> l;
  l.call = call;
  return l.run();
}

/* Packs weights (gates * units, k), or a bias (gates * units), that are not constants: out is what packing/rnn.py and
 * packing/gemm.py make, without the checksum. attrs: gates, lanes, panel width, k. */
template <class T>
int32_t pack(const effc_call* call, uint32_t dtype) {
  const effc_tensor& w = call->in[0];
  const int64_t gates = call->attr[0], wide = call->attr[1], nr = call->attr[2], k = call->attr[3];
  const int64_t units = w.shape[0] / gates, n = ceil_div(units, wide) * gates * wide, panels = ceil_div(n, nr);
  if (call->out[0].shape[0] != gemm::kHeader + panels * k * nr * (int64_t)sizeof(T)) {
    call->api->fail(call, "recurrent layer: the packed buffer has another size");
    return 1;
  }
  const gemm::Header h = {{'E', 'F', 'F', 'C', 'P', 'A', 'C', 'K'}, gemm::kFormat, gemm::kVersion, dtype, (uint32_t)nr, 1, k, n, 0, 1, 0};
  memcpy(call->out[0].data, &h, sizeof h);
  T* dst = (T*)((char*)call->out[0].data + gemm::kHeader);
  const int64_t row = w.strides[0], col = w.rank > 1 ? w.strides[1] : 0;
  gemm::parallel(call, panels, max<int64_t>(1, 4096 / (k * nr + 1)), [&](int64_t begin, int64_t end, int32_t) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t c = 0; c < nr; ++c) {
        const int64_t column = p * nr + c, block = column / (gates * wide), gate = column / wide % gates;
        const int64_t unit = block * wide + column % wide;
        const bool real = column < n && unit < units;
        const T* src = (const T*)w.data + (gate * units + unit) * row;
        for (int64_t i = 0; i < k; ++i) dst[(p * k + i) * nr + c] = real ? src[i * col] : T(0);
      }
  });
  return 0;
}

}  // namespace rnn
}  // namespace effc
#endif
