/* Convolution with 3x3 windows, stride 1 or 2, by Winograd's minimal filtering (Lavin and Gray, 2015): F(M x M, 3 x 3).
 *
 * The result is cut into tiles of M x M pixels. The N x N pixels that a tile depends on are transformed, each
 * channel for itself, to N x N values; for each of these positions, a product of matrices [tiles, C] x [C, O] with
 * transformed weights (packing/winograd.py) gives N x N sums, and those are transformed to the tile. That is N^2 / M^2
 * multiplications a pixel instead of 9. With stride 1, N = M + 2: 4 for M = 2, 2.25 for M = 4.
 *
 * With stride 2 a row of results takes the even pixels with the outer two weights, F(M, 2), and the odd ones with the middle
 * one, M products that are added to the results as they are: N = 2 M + 1, 6.25 multiplications for M = 2, 5.06 for M = 4. In
 * two dims that is the sum over four phases of the image, with windows of 2x2, 2x1, 1x2 and 1x1.
 *
 * A block is a number of tiles by a number of output channels. Its transformed input lies as [position][tile][C] in
 * scratch: in the thread's own, where tasks are blocks of tiles (early layers: many tiles, small weights), or in the call's,
 * where tasks are parts of the output channels (late layers: few tiles, large weights, which are read once).
 *
 * What makes an output wrong that the direct sum has right is a value that is not finite: one in the input, which the
 * transforms spread over its tile, or an overflow in a transform. Such values never vanish again in sums, so outputs that
 * are not finite show them; these are summed anew from the weights themselves, which follow the transformed ones.
 */
#ifndef EFFC_CONV_WINOGRAD_HPP
#define EFFC_CONV_WINOGRAD_HPP
#include "conv.hpp"

namespace effc {
namespace conv {

/* Attributes after those of conv.hpp, of which kBlockRows counts tiles here, and kBlockK channels. */
enum WinogradAttr {
  kTile = kAttrs, /* M */
  kShared,        /* the transformed input is shared by all threads */
  kWinogradAttrs
};

constexpr int kChunk = 64; /* channels that are transformed at a time */

/* One-dimensional transforms for tiles of M and stride S: N values of the input to N positions, N sums to M outputs. */
template <class T, int Tile, int Stride>
struct Minimal;

template <int Tile, int Stride>
struct Sizes {
  static constexpr int M = Tile, S = Stride, N = S == 1 ? M + 2 : 2 * M + 1;
};

/* Points 0, 1, -1, infinity. */
template <class T>
struct Minimal<T, 2, 1> : Sizes<2, 1> {
  template <class V>
  EFFC_INLINE void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[2] - d[0], v[1] = d[2] + d[1], v[2] = d[2] - d[1], v[3] = d[3] - d[1];
  }
  template <class V>
  EFFC_INLINE void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]), y[1] = (m[1] - m[2]) + m[3];
  }
};

/* Points 0, a, -a, b, -b, infinity with a = sqrt(1/2), b = sqrt(2): symmetric, so that pairs share their even and odd parts;
 * reciprocal, so that a^2 b^2 = 1; and the error is a fourth of that with the usual 1 and 2 (packing/winograd.py). */
template <class T>
struct Minimal<T, 4, 1> : Sizes<4, 1> {
  static constexpr T a = T(0.70710678118654752440), b = T(1.41421356237309504880);

  template <class V>
  EFFC_INLINE void input(const V (&d)[6], V (&v)[6]) {
    const V e0 = d[4] - T(2) * d[2], o0 = d[3] - T(2) * d[1], e1 = d[4] - T(0.5) * d[2], o1 = d[3] - T(0.5) * d[1];
    v[0] = (d[0] + d[4]) - T(2.5) * d[2];
    v[1] = e0 + a * o0, v[2] = e0 - a * o0;
    v[3] = e1 + b * o1, v[4] = e1 - b * o1;
    v[5] = (d[1] + d[5]) - T(2.5) * d[3];
  }
  template <class V>
  EFFC_INLINE void output(const V (&m)[6], V (&y)[4]) {
    const V s0 = m[1] + m[2], d0 = m[1] - m[2], s1 = m[3] + m[4], d1 = m[3] - m[4];
    y[0] = m[0] + (s0 + s1);
    y[1] = a * d0 + b * d1;
    y[2] = T(0.5) * s0 + T(2) * s1;
    y[3] = (a * T(0.5)) * d0 + ((b * T(2)) * d1 + m[5]);
  }
};

/* Stride 2: points 0, 1, infinity for the even pixels, then the odd ones. */
template <class T>
struct Minimal<T, 2, 2> : Sizes<2, 2> {
  template <class V>
  EFFC_INLINE void input(const V (&d)[5], V (&v)[5]) {
    v[0] = d[2] - d[0], v[1] = d[2], v[2] = d[4] - d[2], v[3] = d[1], v[4] = d[3];
  }
  template <class V>
  EFFC_INLINE void output(const V (&m)[5], V (&y)[2]) {
    y[0] = (m[0] + m[1]) + m[3], y[1] = (m[1] + m[2]) + m[4];
  }
};

/* Points a, -a, b, -b, infinity with a = 1/2, b = 3/2: symmetric again, and all factors are exact. */
template <class T>
struct Minimal<T, 4, 2> : Sizes<4, 2> {
  static constexpr T a = T(0.5), b = T(1.5);

  template <class V>
  EFFC_INLINE void input(const V (&d)[9], V (&v)[9]) {
    const V e0 = d[4] - (b * b) * d[0], o0 = d[6] - (b * b) * d[2], e1 = d[4] - (a * a) * d[0], o1 = d[6] - (a * a) * d[2];
    v[0] = o0 + a * e0, v[1] = o0 - a * e0;
    v[2] = o1 + b * e1, v[3] = o1 - b * e1;
    v[4] = (d[8] - (a * a + b * b) * d[4]) + (a * a * b * b) * d[0];
    v[5] = d[1], v[6] = d[3], v[7] = d[5], v[8] = d[7];
  }
  template <class V>
  EFFC_INLINE void output(const V (&m)[9], V (&y)[4]) {
    const V s0 = m[0] + m[1], d0 = m[0] - m[1], s1 = m[2] + m[3], d1 = m[2] - m[3];
    y[0] = (s0 + s1) + m[5];
    y[1] = (a * d0 + b * d1) + m[6];
    y[2] = ((a * a) * s0 + (b * b) * s1) + m[7];
    y[3] = ((a * a * a) * d0 + (b * b * b) * d1) + (m[4] + m[8]);
  }
};

template <class T>
struct Winograd {
  Conv<T> conv;
  const T* plain;  /* the weights themselves: [tap][C][padded] */
  int64_t padded;  /* output channels in whole vectors */
  int64_t across, down, tiles; /* tiles of an image's row and column, and of all images */
  int64_t block, first, count; /* the most tiles of a block; with a shared input, the block at hand */
  int64_t v_row, m_row, v_step, m_step; /* strides of a tile and of a position in the transformed input and in the sums */
  int64_t row_blocks, col_blocks, block_k;
  T* shared;
};

/* ---- transforms ---- */

/* Where tile t begins, and how much of it is in the image. */
struct Place {
  int64_t image, y, x;
  int rows, cols;
};

template <class T, class F>
EFFC_INLINE Place place(const Winograd<T>& w, int64_t t) {
  const int64_t u = t % (w.down * w.across);
  Place p = {t / (w.down * w.across), u / w.across * F::M, u % w.across * F::M, 0, 0};
  p.rows = (int)min64(F::M, w.conv.sp[1] - p.y), p.cols = (int)min64(F::M, w.conv.sp[2] - p.x);
  return p;
}

/* The N x N pixels that a tile depends on; zeros outside of the image. */
template <class T, class F>
EFFC_INLINE void pixels(const Winograd<T>& w, const Place& p, const T* (&px)[F::N * F::N]) {
  constexpr int N = F::N;
  const Conv<T>& v = w.conv;
  const int64_t y = p.y * F::S - v.pad[1], x = p.x * F::S - v.pad[2];
  for (int i = 0; i < N; ++i) {
    const bool in = inside(y + i, v.in[1]);
    const T* row = v.x + p.image * v.xs[0] + (y + i) * v.xs[3] + x * v.xs[4];
    for (int j = 0; j < N; ++j) px[i * N + j] = in && inside(x + j, v.in[2]) ? row + j * v.xs[4] : v.zeros;
  }
}

/* A tile's pixels px to its row of each position, `step` apart from `dst` on. */
template <class T, class F>
void input_tile(const T* const* px, int64_t channels, T* dst, int64_t step) {
  using S = Simd<T>;
  typedef typename S::vec V;
  constexpr int N = F::N;
  alignas(64) T tmp[N * N * kChunk];
  for (int64_t c0 = 0; c0 < channels; c0 += kChunk) {
    const int64_t n = min64(kChunk, channels - c0), whole = n / S::lanes * S::lanes;
    for (int j = 0; j < N; ++j) {
      const T* p[N];
      EFFC_UNROLL
      for (int i = 0; i < N; ++i) p[i] = px[i * N + j] + c0;
      V d[N], v[N];
      T* to = tmp + j * kChunk;
      for (int64_t c = 0; c < whole; c += S::lanes) {
        EFFC_UNROLL
        for (int i = 0; i < N; ++i) d[i] = S::load(p[i] + c);
        F::input(d, v);
        EFFC_UNROLL
        for (int i = 0; i < N; ++i) S::store(to + i * N * kChunk + c, v[i]);
      }
      if (whole < n) {
        EFFC_UNROLL
        for (int i = 0; i < N; ++i) d[i] = load_part<T>(p[i] + whole, n - whole);
        F::input(d, v);
        EFFC_UNROLL
        for (int i = 0; i < N; ++i) S::store(to + i * N * kChunk + whole, v[i]);
      }
    }
    for (int i = 0; i < N; ++i) {
      const T* from = tmp + i * N * kChunk;
      T* to = dst + i * N * step + c0;
      for (int64_t c = 0; c < n; c += S::lanes) {
        V d[N], v[N];
        EFFC_UNROLL
        for (int j = 0; j < N; ++j) d[j] = S::load(from + j * kChunk + c);
        F::input(d, v);
        EFFC_UNROLL
        for (int j = 0; j < N; ++j) S::store(to + j * step + c, v[j]);
      }
    }
  }
}

/* Output pixels of a tile from column n0 on. */
template <class T>
struct Target {
  T* c;
  const T* r; /* the residual, or null */
  int64_t c_row, c_col, r_row, r_col; /* strides of an image's row and of a pixel */
  const T* bias;
};

/* Does the last steps on a vector of sums, and stores its first `tail` lanes. */
template <class T, bool Whole>
EFFC_INLINE void put(const Conv<T>& v, typename Simd<T>::vec y, typename Simd<T>::vec bias, T* c, const T* r, int64_t tail) {
  using S = Simd<T>;
  typedef typename S::vec V;
  y += bias;
  if (r) y += Whole ? S::load(r) : load_part<T>(r, tail);
  if (v.clamp) y = clamp_vec<V>(y, V{} + v.lo, V{} + v.hi);
  if constexpr (Whole)
    S::store(c, y);
  else
    for (int64_t l = 0; l < tail; ++l) c[l] = y[l];
}

/* Column n of a tile's row i: N sums, which lie kChunk apart, to its outputs. Returns 0 if all are finite, else NaN. */
template <class T, class F, bool Whole>
EFFC_INLINE typename Simd<T>::vec output_row(const Conv<T>& v, const Target<T>& to, const T* sums, int i, int cols, int64_t n,
                                             int64_t tail) {
  using S = Simd<T>;
  typedef typename S::vec V;
  constexpr int M = F::M, N = F::N;
  V m[N], y[M], zero = V{};
  EFFC_UNROLL
  for (int j = 0; j < N; ++j) m[j] = S::load(sums + j * kChunk + n);
  F::output(m, y);
  const V bias = !to.bias ? V{} : Whole ? S::load(to.bias + n) : load_part<T>(to.bias + n, tail);
  T* c = to.c + i * to.c_row + n;
  const T* r = to.r ? to.r + i * to.r_row + n : nullptr;
  EFFC_UNROLL
  for (int j = 0; j < M; ++j) {
    zero += y[j] * T(0);
    if (j < cols) put<T, Whole>(v, y[j], bias, c + j * to.c_col, r ? r + j * to.r_col : nullptr, tail);
  }
  return zero;
}

template <class V>
EFFC_INLINE bool is_zero(V v) {
  auto sum = v[0];
  for (unsigned l = 1; l < sizeof(V) / sizeof(sum); ++l) sum += v[l];
  return sum == 0;
}

/* The direct sum for a vector of output channels of a tile: columns [n, n + lanes) of the weights, from `at` on of the target. */
template <class T, class F>
__attribute__((noinline)) void direct_vector(const Winograd<T>& w, const Place& p, const Target<T>& to, int64_t at, int64_t n,
                                             int64_t tail) {
  using S = Simd<T>;
  constexpr int M = F::M, N = F::N;
  const Conv<T>& v = w.conv;
  const T* px[N * N];
  pixels<T, F>(w, p, px);
  const auto bias = to.bias ? load_part<T>(to.bias + at, tail) : typename S::vec{};
  for (int i = 0; i < p.rows; ++i) {
    typename S::vec sum[M] = {};
    for (int tap = 0; tap < 9; ++tap) {
      const T* const* x = px + (i * F::S + tap / 3) * N + tap % 3;
      const T* b = w.plain + tap * v.cg * w.padded + n;
      for (int64_t c = 0; c < v.cg; ++c, b += w.padded) {
        const auto weights = S::load(b);
        EFFC_UNROLL
        for (int j = 0; j < M; ++j) sum[j] += x[j * F::S][c] * weights;
      }
    }
    for (int j = 0; j < p.cols; ++j) {
      const T* r = to.r ? to.r + i * to.r_row + j * to.r_col + at : nullptr;
      put<T, false>(v, sum[j], bias, to.c + i * to.c_row + j * to.c_col + at, r, tail);
    }
  }
}

/* A tile's sums, columns [n0, n1) of the result, from `acc` on, to the result or the epilogue. */
template <class T, class F>
void output_tile(const Winograd<T>& w, int64_t t, const T* acc, int64_t n0, int64_t n1) {
  using S = Simd<T>;
  typedef typename S::vec V;
  constexpr int M = F::M, N = F::N;
  const Conv<T>& v = w.conv;
  alignas(64) T tmp[M * N * kChunk], plain[M * M * kChunk];
  const Place p = place<T, F>(w, t);
  const effc_tensor& out = *v.result;
  const int64_t pixel = p.y * v.sp[2] + p.x;
  for (int64_t c0 = n0; c0 < n1; c0 += kChunk, acc += kChunk) {
    const int64_t n = min64(kChunk, n1 - c0), whole = n / S::lanes * S::lanes;
    Target<T> to = {plain, nullptr, M * kChunk, kChunk, 0, 0, v.bias ? v.bias + c0 : nullptr};
    if (v.direct) {
      to.c_col = out.strides[2], to.c_row = v.sp[2] * to.c_col;
      to.c = (T*)out.data + p.image * out.strides[0] + pixel * to.c_col + c0;
    }
    if (v.residual) {
      to.r_col = v.residual->strides[2], to.r_row = v.sp[2] * to.r_col;
      to.r = residual_row(v, p.image, pixel, c0);
    }
    for (int j = 0; j < N; ++j)
      for (int64_t c = 0; c < n; c += S::lanes) {
        V m[N], y[M];
        EFFC_UNROLL
        for (int i = 0; i < N; ++i) m[i] = S::load(acc + (i * N + j) * w.m_step + c);
        F::output(m, y);
        EFFC_UNROLL
        for (int i = 0; i < M; ++i) S::store(tmp + (i * N + j) * kChunk + c, y[i]);
      }
    V zero = {};
    for (int i = 0; i < p.rows; ++i) {
      const T* sums = tmp + i * N * kChunk;
      for (int64_t c = 0; c < whole; c += S::lanes) zero += output_row<T, F, true>(v, to, sums, i, p.cols, c, S::lanes);
      if (whole < n) zero += output_row<T, F, false>(v, to, sums, i, p.cols, whole, n - whole);
    }
    if (__builtin_expect(!is_zero(zero), 0)) { /* which vectors: each for itself, so that no block's border decides */
      for (int64_t c = 0; c < n; c += S::lanes) {
        const int64_t tail = min64(S::lanes, n - c);
        V mine = {};
        for (int i = 0; i < p.rows; ++i) mine += output_row<T, F, false>(v, to, tmp + i * N * kChunk, i, p.cols, c, tail);
        if (!is_zero(mine)) direct_vector<T, F>(w, p, to, c, c0 + c, tail);
      }
    }
    if (v.direct) continue;
    for (int i = 0; i < p.rows; ++i) {
      const int64_t m = pixel + i * v.sp[2];
      v.call->epilogue(v.call, p.image, 0, m, m + p.cols, c0, c0 + n, plain + i * M * kChunk, kChunk);
    }
  }
}

/* ---- products ---- */

/* c[MR][NV vectors] (+)= a[MR][k] * b[k][NV vectors]; fetches the next weights as micro_rows does. */
template <class T, int MR, int NV>
void micro_strided(const T* a, int64_t lda, const T* b, int64_t k, T* c, int64_t ldc, bool accumulate, const char* next,
                   int64_t step) {
  using S = Simd<T>;
  typename S::vec acc[MR][NV];
  const T* p[MR];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i) {
    p[i] = a + i * lda;
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) acc[i][j] = typename S::vec{};
  }
  for (int64_t s = 0; s < k; ++s, b += NV * S::lanes) {
    typename S::vec w[NV];
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) w[j] = S::load(b + j * S::lanes);
    __builtin_prefetch(next, 0, 2);
    next += step;
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i) {
      const T x = p[i][s];
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) acc[i][j] += x * w[j];
    }
  }
  if (accumulate) {
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) acc[i][j] += S::load(c + i * ldc + j * S::lanes);
  }
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) S::store(c + i * ldc + j * S::lanes, acc[i][j]);
}

template <class T>
struct Strided {
  typedef void (*Fn)(const T*, int64_t, const T*, int64_t, T*, int64_t, bool, const char*, int64_t);
  Fn fn[kMaxNv][kMaxRows];

  template <int NV, int MR>
  constexpr void fill() {
    if constexpr (MR <= max_rows(NV)) {
      fn[NV - 1][MR - 1] = micro_strided<T, MR, NV>;
      fill<NV, MR + 1>();
    }
  }
  constexpr Strided() : fn() {
    fill<1, 1>();
    fill<2, 1>();
    fill<3, 1>();
    fill<4, 1>();
  }
};
template <class T>
struct StridedTable {
  static constexpr Strided<T> table{};
};

/* All positions' products of `count` tiles by columns [n0, n1), whole panels or the last one. */
template <class T, class F>
void multiply(const Winograd<T>& w, const T* v, T* acc, int64_t count, int64_t n0, int64_t n1) {
  constexpr int lanes = Simd<T>::lanes;
  const Conv<T>& conv = w.conv;
  const int64_t wide = conv.nv * lanes, tiles = ceil_div(count, conv.mr), channels = conv.cg;
  for (int64_t p = 0; p < F::N * F::N; ++p, v += w.v_step, acc += w.m_step) {
    const T* weights = conv.packed + p * channels * w.padded;
    /* Weights are read in the order in which they lie: with few tiles, memory is what there is to wait for. */
    for (int64_t n = n0; n < n1; n += wide) {
      const int64_t width = min64(wide, w.padded - n), nv = width / lanes, step = ceil_div(width * (int64_t)sizeof(T), tiles);
      for (int64_t k0 = 0; k0 < channels; k0 += w.block_k) {
        const int64_t k1 = min64(k0 + w.block_k, channels), bytes = (k1 - k0) * width * (int64_t)sizeof(T);
        const T* panel = weights + n * channels + k0 * width;
        const bool last = n + wide >= n1 && k1 == channels; /* then the next position's first panel */
        const T* next = last ? weights + channels * w.padded + n0 * channels : panel + (k1 - k0) * width;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t r0 = count * t / tiles, rows = count * (t + 1) / tiles - r0;
          StridedTable<T>::table.fn[nv - 1][rows - 1](v + r0 * w.v_row + k0, w.v_row, panel, k1 - k0, acc + r0 * w.m_row + n - n0,
                                                      w.m_row, k0 > 0, (const char*)next + bytes * t / tiles, step);
        }
      }
    }
  }
}

/* ---- blocks ---- */

/* Tiles [t0, t1) of all, from row 0 of `dst` on. */
template <class T, class F>
void input_tiles(const Winograd<T>& w, T* dst, int64_t t0, int64_t t1) {
  for (int64_t t = t0; t < t1; ++t, dst += w.v_row) {
    const T* px[F::N * F::N];
    pixels<T, F>(w, place<T, F>(w, t), px);
    input_tile<T, F>(px, w.conv.cg, dst, w.v_step);
  }
}

/* `count` tiles from tile `first` on, whose transformed input is `v`: columns [n0, n1). */
template <class T, class F>
void run_columns(const Winograd<T>& w, const T* v, T* acc, int64_t first, int64_t count, int64_t n0, int64_t n1) {
  multiply<T, F>(w, v, acc, count, n0, n1);
  for (int64_t t = 0; t < count; ++t) output_tile<T, F>(w, first + t, acc + t * w.m_row, n0, n1);
}

template <class T>
EFFC_INLINE void columns_of(const Winograd<T>& w, int64_t part, int64_t* n0, int64_t* n1) {
  const int64_t wide = w.conv.nv * Simd<T>::lanes;
  *n0 = w.conv.panels * part / w.col_blocks * wide;
  *n1 = min64(w.conv.panels * (part + 1) / w.col_blocks * wide, w.conv.og);
}

/* Tasks are blocks of tiles. */
template <class T, class F>
void own_blocks(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Winograd<T>& w = *(const Winograd<T>*)arg;
  T* v = (T*)(w.conv.call->thread_scratch + worker * w.conv.call->thread_scratch_bytes);
  T* acc = v + F::N * F::N * w.v_step;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t t0 = w.tiles * i / w.row_blocks, t1 = w.tiles * (i + 1) / w.row_blocks;
    input_tiles<T, F>(w, v, t0, t1);
    for (int64_t part = 0; part < w.col_blocks; ++part) {
      int64_t n0, n1;
      columns_of(w, part, &n0, &n1);
      run_columns<T, F>(w, v, acc, t0, t1 - t0, n0, n1);
    }
  }
}

/* Tasks are tiles whose input is transformed, then parts of the columns. */
template <class T, class F>
void shared_input(void* arg, int64_t begin, int64_t end, int32_t) {
  const Winograd<T>& w = *(const Winograd<T>*)arg;
  input_tiles<T, F>(w, w.shared + begin * w.v_row, w.first + begin, w.first + end);
}

template <class T, class F>
void shared_columns(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Winograd<T>& w = *(const Winograd<T>*)arg;
  T* acc = (T*)(w.conv.call->thread_scratch + worker * w.conv.call->thread_scratch_bytes);
  for (int64_t part = begin; part < end; ++part) {
    int64_t n0, n1;
    columns_of(w, part, &n0, &n1);
    run_columns<T, F>(w, w.shared, acc, w.first, w.count, n0, n1);
  }
}

template <class T, class F>
void run_winograd(Winograd<T>& w) {
  const effc_call* call = w.conv.call;
  constexpr int64_t positions = F::N * F::N;
  w.across = ceil_div(w.conv.sp[2], F::M), w.down = ceil_div(w.conv.sp[1], F::M);
  w.tiles = w.conv.batch * w.across * w.down;
  w.plain = w.conv.packed + positions * w.conv.cg * w.padded;
  const int64_t threads = call->api->num_threads(call->run), want = threads > 1 ? 4 * threads : 1;
  if (w.shared) {
    /* A few parts for every thread, and as many for one thread as for another. */
    int64_t one = 1;
    w.col_blocks = max64(w.col_blocks, min64(w.conv.panels, want));
    even_out(threads, 1, w.conv.panels, 1, &w.col_blocks, &one);
    for (int64_t b = 0; b < w.row_blocks; ++b) {
      w.first = w.tiles * b / w.row_blocks, w.count = w.tiles * (b + 1) / w.row_blocks - w.first;
      call->api->parallel_for(call->run, w.count, max64(1, 8192 / (positions * w.conv.cg)), shared_input<T, F>, &w);
      call->api->parallel_for(call->run, w.col_blocks, 1, shared_columns<T, F>, &w);
    }
    return;
  }
  int64_t one = 1;
  const int64_t whole = ceil_div(w.tiles, w.conv.mr);
  w.row_blocks = max64(w.row_blocks, min64(whole, want));
  even_out(threads, 1, 1, whole, &one, &w.row_blocks);
  call->api->parallel_for(call->run, w.row_blocks, 1, own_blocks<T, F>, &w);
}

/* The kernel: in x [N, C, H, W] with its channels innermost, packed weights, then the epilogue's or the steps' operands; out
 * rank 4 (N, 1, pixels, O). */
template <class T>
int32_t winograd_kernel(const effc_call* call) {
  auto bad = [&](const char* what) {
    call->api->fail(call, "winograd: %s", what);
    return 1;
  };
  if (call->n_attr < kWinogradAttrs || call->n_own < 2 || call->n_out < 1) return bad("wrong number of operands or attributes");
  const int64_t *a = call->attr, tile = a[kTile], stride = a[kStride + 1];
  const bool plain = a[kKernel] == 1 && a[kKernel + 1] == 3 && a[kKernel + 2] == 3 && (stride == 1 || stride == 2) &&
                     a[kStride + 2] == stride && a[kDilation + 1] == 1 && a[kDilation + 2] == 1 && a[kGroups] == 1 && !a[kTransposed];
  if (!plain || !a[kPacked] || a[kCopyX] || (tile != 2 && tile != 4))
    return bad("a 3x3 window, stride 1 or 2, no groups, packed weights expected");
  Winograd<T> w;
  memset(&w, 0, sizeof w);
  Conv<T>& v = w.conv;
  char* s = set_up(v, call, a, call->in[0], call->in[1], call->out[0], (char*)call->scratch);
  if (v.rows <= 0 || v.og <= 0) return 0;
  int operand = 2, limits = 0;
  if (!take_steps(v, &operand, &limits) || (a[kSteps] && operand != call->n_own) || (!v.direct && !call->epilogue))
    return bad("bias, residual and clamp need a plain result and their operands");
  if (!v.innermost) return bad("x must have its channels innermost");
  constexpr int lanes = Simd<T>::lanes;
  const int64_t wide = v.nv * lanes, line = 64 / (int64_t)sizeof(T);
  w.padded = ceil_div(v.og, lanes) * lanes;
  w.block = a[kBlockRows], w.block_k = max64(1, a[kBlockK]);
  w.col_blocks = ceil_div(v.panels, max64(1, a[kBlockCols] / wide));
  /* A line more than a row needs: powers of two would fall on few sets of the first cache. */
  w.v_row = ceil_div(v.cg, line) * line + line, w.m_row = ceil_div(a[kBlockCols], line) * line + line;
  w.v_step = w.block * w.v_row, w.m_step = w.block * w.m_row;
  w.shared = a[kShared] ? (T*)s : nullptr;
  const int64_t per_image = ceil_div(v.sp[1], tile) * ceil_div(v.sp[2], tile);
  w.row_blocks = ceil_div(v.batch * per_image, w.block);
  if (stride == 1)
    tile == 2 ? run_winograd<T, Minimal<T, 2, 1>>(w) : run_winograd<T, Minimal<T, 4, 1>>(w);
  else
    tile == 2 ? run_winograd<T, Minimal<T, 2, 2>>(w) : run_winograd<T, Minimal<T, 4, 2>>(w);
  return 0;
}

}  // namespace conv
}  // namespace effc
#endif
