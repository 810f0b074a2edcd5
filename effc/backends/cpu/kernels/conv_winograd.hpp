/* Convolution with 3x3 windows, stride 1 or 2, and with 3x3 windows in the last two of three dims, by Winograd's minimal filtering (Lavin and Gray, 2015): F(M x M, 3 x 3).
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
 * The point at infinity contributes to the last of a tile's M results alone, and with stride 2 the last odd pixel's product
 * does. Without these what is left is F(M - 1), with the same transforms and the same transformed weights. So a row of n
 * results is cut into as few tiles as possible, ceil(n / M), but none longer than needed: first those of M, then those of
 * M - 1, the narrow ones. 7 results are 4 and 3, that is 6 + 5 positions and not 12.
 *
 * In three dims a window is a sum over its depth, D windows of 3x3 of D slices of the image, and sums are made before they are
 * transformed: the products are [tiles, D C] x [D C, O], transforms of results as many as in two dims. Tiles are numbered
 * along the depth first, so that those of a block share slices: each is transformed once for all windows it is in. In two
 * dims D is 1 and so is the depth.
 *
 * A block is a number of tiles by a number of output channels. Its transformed input lies as [position][slice][C] in
 * scratch: in the thread's own, where tasks are blocks of tiles (early layers: many tiles, small weights), or in the call's,
 * where tasks are parts of the output channels (late layers: few tiles, large weights, which are read once).
 *
 * What makes an output wrong that the direct sum has right is a value that is not finite: one in the input, which the
 * transforms spread over its tile, or an overflow in a transform. Such values never vanish again in sums, so outputs that
 * are not finite show them; these are summed anew from the weights themselves, which follow the transformed ones
 * as effc_conv_* takes them: images of few pixels are that kernel's (lower/conv_winograd.py).
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
constexpr int kKinds = 4;  /* of tiles: full or narrow in both dims */

/* One-dimensional transforms for tiles of M and stride S: N values of the input to N positions, N sums to M outputs. */
template <class T, int Tile, int Stride>
struct Minimal;

template <int Tile, int Stride>
struct Sizes {
  static constexpr int M = Tile, S = Stride, N = S == 1 ? M + 2 : 2 * M + 1;

  /* Does position i contribute to the last result alone? */
  static constexpr bool last(int i) { return i == N - 1 || (S == 2 && i == M); }
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

/* A tile of a slice of the image; `tile`: one that it is needed for. */
struct Slice {
  int64_t tile, depth;
};

/* A block's rows of the transformed input. `at`: where each tile's first one lies. */
struct Rows {
  int64_t* at;
  Slice* slices;
  int64_t n;
};

template <class T>
struct Winograd {
  Conv<T> conv;
  const T* plain;  /* the weights themselves, in panels as conv.hpp takes them */
  int64_t padded;  /* output channels in whole vectors */
  int64_t count_of[2], full[2]; /* tiles of an image's column and row, and those that are not narrow */
  /* Tiles of all images in order of their kind; each kind's first one, and how many there are. By the column's and the row's
   * tiles: full, narrow; both full; narrow, full; both narrow. So the tiles that are full in any given way are consecutive. */
  int64_t start[kKinds + 1];
  int64_t block, first, count; /* the most tiles of a block; with a shared input, the block at hand */
  int64_t v_row, m_row, v_step, m_step; /* strides of a row and of a position in the transformed input and in the sums */
  int64_t depth, slices; /* D, and the most slices of a block's tiles */
  int64_t row_blocks, col_blocks, block_k;
  T* shared;
  Rows rows; /* of the block at hand, with a shared input */
};

/* ---- transforms ---- */

/* Where tile t begins, and how much of it is in the image; by dim (column, row). */
struct Place {
  int64_t image, depth, at[2];
  bool narrow[2];
  int size[2];
};

template <class T, class F>
EFFC_INLINE Place place(const Winograd<T>& w, int64_t t) {
  int kind = 0;
  while (t >= w.start[kind + 1]) ++kind;
  Place p;
  p.narrow[0] = kind >= 2, p.narrow[1] = kind == 0 || kind == 3;
  int64_t count[2];
  for (int d = 0; d < 2; ++d) count[d] = p.narrow[d] ? w.count_of[d] - w.full[d] : w.full[d];
  p.depth = t % w.conv.sp[0]; /* kinds begin at multiples of it */
  const int64_t u = (t - w.start[kind]) / w.conv.sp[0], index[2] = {u / count[1] % count[0], u % count[1]};
  p.image = u / count[1] / count[0];
  for (int d = 0; d < 2; ++d) {
    const int64_t size = F::M - p.narrow[d];
    p.at[d] = index[d] * size + (p.narrow[d] ? w.full[d] * F::M : 0);
    p.size[d] = (int)min64(size, w.conv.sp[1 + d] - p.at[d]);
  }
  return p;
}

/* The tiles that position (i, j) is needed for: [*lo, *hi). */
template <class T, class F>
EFFC_INLINE void tiles_of(const Winograd<T>& w, int i, int j, int64_t* lo, int64_t* hi) {
  *lo = w.start[F::last(j) ? 1 : 0], *hi = w.start[F::last(i) ? 2 : F::last(j) ? 3 : kKinds];
}

/* The N x N pixels of a slice that a tile depends on; zeros outside of the image. */
template <class T, class F>
EFFC_INLINE void pixels(const Winograd<T>& w, const Place& p, int64_t depth, const T* (&px)[F::N * F::N]) {
  constexpr int N = F::N;
  const Conv<T>& v = w.conv;
  const int64_t y = p.at[0] * F::S - v.pad[1], x = p.at[1] * F::S - v.pad[2];
  for (int i = 0; i < N; ++i) {
    const bool in = inside(depth, v.in[0]) && inside(y + i, v.in[1]);
    const T* row = v.x + p.image * v.xs[0] + depth * v.xs[2] + (y + i) * v.xs[3] + x * v.xs[4];
    for (int j = 0; j < N; ++j) px[i * N + j] = in && inside(x + j, v.in[2]) ? row + j * v.xs[4] : v.zeros;
  }
}

/* N pixels, `from(i)` each, to N positions, `to(i)` each: a vector of channels. */
template <class T, class F, bool Narrow, class From, class To>
EFFC_INLINE void input_vector(From from, To to) {
  typename Simd<T>::vec d[F::N], v[F::N];
  EFFC_UNROLL
  for (int i = 0; i < F::N; ++i) d[i] = i < F::N - (Narrow ? F::S : 0) ? from(i) : typename Simd<T>::vec{};
  F::input(d, v);
  EFFC_UNROLL
  for (int i = 0; i < F::N; ++i)
    if (!(Narrow && F::last(i))) Simd<T>::store(to(i), v[i]);
}

/* The first dim: the pixels px of `columns` columns, channels [c0, c0 + n), to [position][column][kChunk]. */
template <class T, class F, bool Narrow>
void input_columns(const T* const* px, int columns, int64_t c0, int64_t n, T* tmp) {
  using S = Simd<T>;
  constexpr int N = F::N;
  const int64_t whole = n / S::lanes * S::lanes;
  for (int j = 0; j < columns; ++j) {
    const T* p[N];
    EFFC_UNROLL
    for (int i = 0; i < N; ++i) p[i] = px[i * N + j] + c0;
    T* to = tmp + j * kChunk;
    for (int64_t c = 0; c < whole; c += S::lanes)
      input_vector<T, F, Narrow>([&](int i) { return S::load(p[i] + c); }, [&](int i) { return to + i * N * kChunk + c; });
    if (whole < n)
      input_vector<T, F, Narrow>([&](int i) { return load_part<T>(p[i] + whole, n - whole); },
                                 [&](int i) { return to + i * N * kChunk + whole; });
  }
}

/* The second dim: those to the tile's row of each position, `step` apart from `dst` on. */
template <class T, class F, bool Narrow>
void input_rows(const T* tmp, bool narrow_columns, int64_t n, T* dst, int64_t step) {
  using S = Simd<T>;
  constexpr int N = F::N;
  for (int i = 0; i < N; ++i) {
    if (narrow_columns && F::last(i)) continue;
    const T* from = tmp + i * N * kChunk;
    T* to = dst + i * N * step;
    for (int64_t c = 0; c < n; c += S::lanes)
      input_vector<T, F, Narrow>([&](int j) { return S::load(from + j * kChunk + c); }, [&](int j) { return to + j * step + c; });
  }
}

/* A tile's pixels px to its row of each position that it needs, `step` apart from `dst` on. */
template <class T, class F>
void input_tile(const Place& p, const T* const* px, int64_t channels, T* dst, int64_t step) {
  constexpr int N = F::N;
  alignas(64) T tmp[N * N * kChunk];
  const int columns = N - (p.narrow[1] ? F::S : 0);
  for (int64_t c0 = 0; c0 < channels; c0 += kChunk) {
    const int64_t n = min64(kChunk, channels - c0);
    p.narrow[0] ? input_columns<T, F, true>(px, columns, c0, n, tmp) : input_columns<T, F, false>(px, columns, c0, n, tmp);
    p.narrow[1] ? input_rows<T, F, true>(tmp, p.narrow[0], n, dst + c0, step)
                : input_rows<T, F, false>(tmp, p.narrow[0], n, dst + c0, step);
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

/* N sums, `from(i)` each, to M results, of which the last of a narrow tile is undefined. */
template <class T, class F, bool Narrow, class From>
EFFC_INLINE void output_vector(From from, typename Simd<T>::vec (&y)[F::M]) {
  typename Simd<T>::vec m[F::N];
  EFFC_UNROLL
  for (int i = 0; i < F::N; ++i) m[i] = Narrow && F::last(i) ? typename Simd<T>::vec{} : from(i);
  F::output(m, y);
}

/* The first dim: columns [n0, n0 + n) of the sums from `acc` on, `step` apart, to [result][position][kChunk]. */
template <class T, class F, bool Narrow>
void output_columns(const T* acc, int64_t step, bool narrow_rows, int64_t n, T* tmp) {
  using S = Simd<T>;
  constexpr int M = F::M, N = F::N;
  for (int j = 0; j < N; ++j) {
    if (narrow_rows && F::last(j)) continue;
    for (int64_t c = 0; c < n; c += S::lanes) {
      typename S::vec y[M];
      output_vector<T, F, Narrow>([&](int i) { return S::load(acc + (i * N + j) * step + c); }, y);
      EFFC_UNROLL
      for (int i = 0; i < M - Narrow; ++i) S::store(tmp + (i * N + j) * kChunk + c, y[i]);
    }
  }
}

/* Column n of a tile's row i: N sums, which lie kChunk apart, to its outputs. Returns 0 if all are finite, else NaN. */
template <class T, class F, bool Narrow, bool Whole>
EFFC_INLINE typename Simd<T>::vec output_row(const Conv<T>& v, const Target<T>& to, const T* sums, int i, int cols, int64_t n,
                                             int64_t tail) {
  using S = Simd<T>;
  typedef typename S::vec V;
  constexpr int M = F::M - Narrow;
  V y[F::M], zero = V{};
  output_vector<T, F, Narrow>([&](int j) { return S::load(sums + j * kChunk + n); }, y);
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
  const auto bias = to.bias ? load_part<T>(to.bias + at, tail) : typename S::vec{};
  const int64_t wide = v.nv * S::lanes, first = n / wide * wide, width = min64(wide, w.padded - first);
  const T* panel = w.plain + first * 9 * w.depth * v.cg + (n - first);
  for (int i = 0; i < p.size[0]; ++i) {
    typename S::vec sum[M] = {};
    for (int64_t d = 0; d < w.depth; ++d) {
      const T* px[N * N];
      pixels<T, F>(w, p, p.depth * v.st[0] - v.pad[0] + d, px);
      for (int tap = 0; tap < 9; ++tap) {
        const T* const* x = px + (i * F::S + tap / 3) * N + tap % 3;
        const T* b = panel + (d * 9 + tap) * v.cg * width;
        for (int64_t c = 0; c < v.cg; ++c, b += width) {
          const auto weights = S::load(b);
          EFFC_UNROLL
          for (int j = 0; j < M; ++j) sum[j] += x[j * F::S][c] * weights;
        }
      }
    }
    for (int j = 0; j < p.size[1]; ++j) {
      const T* r = to.r ? to.r + i * to.r_row + j * to.r_col + at : nullptr;
      put<T, false>(v, sum[j], bias, to.c + i * to.c_row + j * to.c_col + at, r, tail);
    }
  }
}

/* The second dim: `n` columns of a tile to its outputs. A bit for each vector of those that has one that is not finite. */
template <class T, class F, bool Narrow>
uint64_t output_rows(const Conv<T>& v, const Place& p, const Target<T>& to, const T* tmp, int64_t n) {
  using S = Simd<T>;
  typedef typename S::vec V;
  constexpr int N = F::N;
  const int64_t whole = n / S::lanes * S::lanes;
  V zero = {};
  for (int i = 0; i < p.size[0]; ++i) {
    const T* sums = tmp + i * N * kChunk;
    for (int64_t c = 0; c < whole; c += S::lanes) zero += output_row<T, F, Narrow, true>(v, to, sums, i, p.size[1], c, S::lanes);
    if (whole < n) zero += output_row<T, F, Narrow, false>(v, to, sums, i, p.size[1], whole, n - whole);
  }
  uint64_t found = 0;
  if (__builtin_expect(!is_zero(zero), 0)) { /* which vectors: each for itself, so that no block's border decides */
    for (int64_t c = 0; c < n; c += S::lanes) {
      V mine = {};
      for (int i = 0; i < p.size[0]; ++i)
        mine += output_row<T, F, Narrow, false>(v, to, tmp + i * N * kChunk, i, p.size[1], c, min64(S::lanes, n - c));
      if (!is_zero(mine)) found |= (uint64_t)1 << c / S::lanes;
    }
  }
  return found;
}

/* A tile's sums, columns [n0, n1) of the result, from `acc` on, to the result or the epilogue. */
template <class T, class F>
void output_tile(const Winograd<T>& w, int64_t t, const T* acc, int64_t n0, int64_t n1) {
  using S = Simd<T>;
  constexpr int M = F::M, N = F::N;
  const Conv<T>& v = w.conv;
  alignas(64) T tmp[M * N * kChunk], plain[M * M * kChunk];
  const Place p = place<T, F>(w, t);
  const effc_tensor& out = *v.result;
  const int64_t pixel = (p.depth * v.sp[1] + p.at[0]) * v.sp[2] + p.at[1];
  for (int64_t c0 = n0; c0 < n1; c0 += kChunk, acc += kChunk) {
    const int64_t n = min64(kChunk, n1 - c0);
    Target<T> to = {plain, nullptr, M * kChunk, kChunk, 0, 0, v.bias ? v.bias + c0 : nullptr};
    if (v.direct) {
      to.c_col = out.strides[2], to.c_row = v.sp[2] * to.c_col;
      to.c = (T*)out.data + p.image * out.strides[0] + pixel * to.c_col + c0;
    }
    if (v.residual) {
      to.r_col = v.residual->strides[2], to.r_row = v.sp[2] * to.r_col;
      to.r = residual_row(v, p.image, pixel, c0);
    }
    p.narrow[0] ? output_columns<T, F, true>(acc, w.m_step, p.narrow[1], n, tmp)
                : output_columns<T, F, false>(acc, w.m_step, p.narrow[1], n, tmp);
    const uint64_t found = p.narrow[1] ? output_rows<T, F, true>(v, p, to, tmp, n) : output_rows<T, F, false>(v, p, to, tmp, n);
    for (int64_t c = 0; found && c < n; c += S::lanes)
      if (found >> c / S::lanes & 1) direct_vector<T, F>(w, p, to, c, c0 + c, min64(S::lanes, n - c));
    if (v.direct) continue;
    for (int i = 0; i < p.size[0]; ++i) {
      const int64_t m = pixel + i * v.sp[2];
      v.call->epilogue(v.call, p.image, 0, m, m + p.size[1], c0, c0 + n, plain + i * M * kChunk, kChunk);
    }
  }
}

/* ---- products ---- */

/* A range of `k` values of each of a product's rows: of slices of `channels`, `step` apart, those from c0 of the first one on,
 * which lies at x + at[row]. Where a window has one slice, rows follow each other. */
template <class T>
struct Range {
  const T* x;
  const int64_t* at;
  int64_t c0, channels, step, k;
};

/* c[MR][NV vectors] (+)= a[MR][k] * b[k][NV vectors]; fetches the next weights as micro_rows does. Deep: of windows of several
 * slices. */
template <class T, int MR, int NV, bool Deep>
void micro_slices(const Range<T>* a, const T* b, T* c, int64_t ldc, bool accumulate, const char* next, int64_t step) {
  using S = Simd<T>;
  typename S::vec acc[MR][NV];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) acc[i][j] = typename S::vec{};
  const T *x = a->x + a->c0, *p[MR];
  auto sum = [&](int64_t n) __attribute__((always_inline)) {
    for (int64_t s = 0; s < n; ++s, b += NV * S::lanes) {
      typename S::vec w[NV];
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) w[j] = S::load(b + j * S::lanes);
      __builtin_prefetch(next, 0, 2);
      next += step;
      EFFC_UNROLL
      for (int i = 0; i < MR; ++i) {
        const T value = p[i][s];
        EFFC_UNROLL
        for (int j = 0; j < NV; ++j) acc[i][j] += value * w[j];
      }
    }
  };
  if constexpr (Deep) {
    int64_t n = min64(a->k, a->channels - a->c0);
    for (int64_t left = a->k; left > 0; x += a->step - (left == a->k ? a->c0 : 0), left -= n, n = min64(left, a->channels)) {
      EFFC_UNROLL
      for (int i = 0; i < MR; ++i) p[i] = x + a->at[i];
      sum(n);
    }
  } else {
    const int64_t lda = a->step;
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i) p[i] = x + i * lda;
    sum(a->k);
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

template <class T, bool Deep>
struct Sliced {
  typedef void (*Fn)(const Range<T>*, const T*, T*, int64_t, bool, const char*, int64_t);
  Fn fn[kMaxNv][kMaxRows];

  template <int NV, int MR>
  constexpr void fill() {
    if constexpr (MR <= max_rows(NV)) {
      fn[NV - 1][MR - 1] = micro_slices<T, MR, NV, Deep>;
      fill<NV, MR + 1>();
    }
  }
  constexpr Sliced() : fn() {
    fill<1, 1>();
    fill<2, 1>();
    fill<3, 1>();
    fill<4, 1>();
  }
};
template <class T, bool Deep>
struct SlicedTable {
  static constexpr Sliced<T, Deep> table{};
};

/* All positions' products of `count` tiles from `first` on by columns [n0, n1), whole panels or the last one. `at`: of Rows. */
template <class T, class F>
void multiply(const Winograd<T>& w, const T* v, const int64_t* at, T* acc, int64_t first, int64_t count, int64_t n0, int64_t n1) {
  constexpr int lanes = Simd<T>::lanes, N = F::N;
  const Conv<T>& conv = w.conv;
  const int64_t wide = conv.nv * lanes, channels = conv.cg, k = w.depth * channels;
  auto rows_of = [&](int p, int64_t* lo, int64_t* hi) { /* those of the block that position p is needed for */
    tiles_of<T, F>(w, p / N, p % N, lo, hi);
    *lo = max64(0, *lo - first), *hi = min64(count, *hi - first);
    return *lo < *hi;
  };
  int64_t lo, hi, next_lo, next_hi;
  int p = 0;
  while (p < N * N && !rows_of(p, &lo, &hi)) ++p;
  while (p < N * N) {
    int after = p + 1;
    while (after < N * N && !rows_of(after, &next_lo, &next_hi)) ++after;
    const T *weights = conv.packed + p * k * w.padded, *x = v + p * w.v_step;
    const bool deep = w.depth > 1;
    T* to = acc + p * w.m_step + lo * w.m_row;
    const int64_t tiles = ceil_div(hi - lo, conv.mr);
    /* Weights are read in the order in which they lie: with few tiles, memory is what there is to wait for. */
    for (int64_t n = n0; n < n1; n += wide) {
      const int64_t width = min64(wide, w.padded - n), nv = width / lanes, step = ceil_div(width * (int64_t)sizeof(T), tiles);
      for (int64_t k0 = 0; k0 < k; k0 += w.block_k) {
        const int64_t k1 = min64(k0 + w.block_k, k), bytes = (k1 - k0) * width * (int64_t)sizeof(T);
        const T* panel = weights + n * k + k0 * width;
        const bool last = n + wide >= n1 && k1 == k; /* then the next position's first panel */
        const T* next = last ? weights + (after - p) * k * w.padded + n0 * k : panel + (k1 - k0) * width;
        Range<T> range = {x + k0 / channels * w.v_row, at, k0 % channels, channels, w.v_row, k1 - k0};
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t r0 = (hi - lo) * t / tiles, rows = (hi - lo) * (t + 1) / tiles - r0;
          if (deep)
            range.at = at + lo + r0;
          else
            range.x = x + (lo + r0) * w.v_row;
          const auto micro = deep ? SlicedTable<T, true>::table.fn[nv - 1][rows - 1] : SlicedTable<T, false>::table.fn[nv - 1][rows - 1];
          micro(&range, panel, to + r0 * w.m_row + n - n0, w.m_row, k0 > 0, (const char*)next + bytes * t / tiles, step);
        }
      }
    }
    p = after, lo = next_lo, hi = next_hi;
  }
}

/* ---- blocks ---- */

/* Lists the rows of the transformed input that tiles [t0, t1) need. */
template <class T>
void list_rows(const Winograd<T>& w, int64_t t0, int64_t t1, Rows& rows) {
  const Conv<T>& v = w.conv;
  int64_t base = 0, z0 = 0; /* the first row of these along the depth, and its slice */
  rows.n = 0;
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t depth = t % v.sp[0], z = depth * v.st[0] - v.pad[0];
    if (t == t0 || depth == 0) base = rows.n, z0 = z;
    rows.at[t - t0] = (base + z - z0) * w.v_row;
    for (; z0 + rows.n - base < z + w.depth; ++rows.n) rows.slices[rows.n] = {t, z0 + rows.n - base};
  }
}

/* Room for a block's list. Mirrored by packing/winograd.py. */
template <class T>
Rows carve_rows(const Winograd<T>& w, T* at) {
  Rows rows = {(int64_t*)at, nullptr, 0};
  rows.slices = (Slice*)(rows.at + w.block);
  return rows;
}

/* Rows [r0, r1) of the transformed input, from `dst` on. */
template <class T, class F>
void input_rows_of(const Winograd<T>& w, const Slice* slices, T* dst, int64_t r0, int64_t r1) {
  for (int64_t r = r0; r < r1; ++r) {
    const T* px[F::N * F::N];
    const Place p = place<T, F>(w, slices[r].tile);
    pixels<T, F>(w, p, slices[r].depth, px);
    input_tile<T, F>(p, px, w.conv.cg, dst + r * w.v_row, w.v_step);
  }
}

/* `count` tiles from tile `first` on, whose transformed input is `v`: columns [n0, n1). */
template <class T, class F>
void run_columns(const Winograd<T>& w, const T* v, const Rows& rows, T* acc, int64_t first, int64_t count, int64_t n0, int64_t n1) {
  multiply<T, F>(w, v, rows.at, acc, first, count, n0, n1);
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
  Rows rows = carve_rows(w, acc + F::N * F::N * w.m_step);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t t0 = w.start[kKinds] * i / w.row_blocks, t1 = w.start[kKinds] * (i + 1) / w.row_blocks;
    list_rows(w, t0, t1, rows);
    input_rows_of<T, F>(w, rows.slices, v, 0, rows.n);
    for (int64_t part = 0; part < w.col_blocks; ++part) {
      int64_t n0, n1;
      columns_of(w, part, &n0, &n1);
      run_columns<T, F>(w, v, rows, acc, t0, t1 - t0, n0, n1);
    }
  }
}

/* Tasks are rows of the transformed input, then parts of the columns. */
template <class T, class F>
void shared_input(void* arg, int64_t begin, int64_t end, int32_t) {
  const Winograd<T>& w = *(const Winograd<T>*)arg;
  input_rows_of<T, F>(w, w.rows.slices, w.shared, begin, end);
}

template <class T, class F>
void shared_columns(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Winograd<T>& w = *(const Winograd<T>*)arg;
  T* acc = (T*)(w.conv.call->thread_scratch + worker * w.conv.call->thread_scratch_bytes);
  for (int64_t part = begin; part < end; ++part) {
    int64_t n0, n1;
    columns_of(w, part, &n0, &n1);
    run_columns<T, F>(w, w.shared, w.rows, acc, w.first, w.count, n0, n1);
  }
}

template <class T, class F>
void run_winograd(Winograd<T>& w) {
  const effc_call* call = w.conv.call;
  constexpr int64_t positions = F::N * F::N;
  for (int d = 0; d < 2; ++d) {
    const int64_t n = w.conv.sp[1 + d];
    w.count_of[d] = ceil_div(n, F::M), w.full[d] = w.count_of[d] - min64(w.count_of[d], w.count_of[d] * F::M - n);
  }
  const int64_t down = w.full[0], across = w.full[1], narrow = w.count_of[0] - down, thin = w.count_of[1] - across;
  const int64_t tiles[kKinds] = {down * thin, down * across, narrow * across, narrow * thin};
  for (int k = 0; k < kKinds; ++k) w.start[k + 1] = w.start[k] + w.conv.batch * tiles[k] * w.conv.sp[0];
  /* From the next line on, after a header of its own (packing/winograd.py). */
  w.plain = w.conv.packed + align64(positions * w.depth * w.conv.cg * w.padded * (int64_t)sizeof(T)) / (int64_t)sizeof(T) +
            kHeader / (int64_t)sizeof(T);
  const int64_t threads = call->api->num_threads(call->run), want = threads > 1 ? 4 * threads : 1;
  if (w.shared) {
    /* A few parts for every thread, and as many for one thread as for another. */
    int64_t one = 1;
    w.col_blocks = max64(w.col_blocks, min64(w.conv.panels, want));
    even_out(threads, 1, w.conv.panels, 1, &w.col_blocks, &one);
    w.rows = carve_rows(w, w.shared + positions * w.v_step);
    for (int64_t b = 0; b < w.row_blocks; ++b) {
      w.first = w.start[kKinds] * b / w.row_blocks, w.count = w.start[kKinds] * (b + 1) / w.row_blocks - w.first;
      list_rows(w, w.first, w.first + w.count, w.rows);
      call->api->parallel_for(call->run, w.rows.n, max64(1, 8192 / (positions * w.conv.cg)), shared_input<T, F>, &w);
      call->api->parallel_for(call->run, w.col_blocks, 1, shared_columns<T, F>, &w);
    }
    return;
  }
  int64_t one = 1;
  const int64_t whole = ceil_div(w.start[kKinds], w.conv.mr);
  w.row_blocks = max64(w.row_blocks, min64(whole, want));
  even_out(threads, 1, 1, whole, &one, &w.row_blocks);
  call->api->parallel_for(call->run, w.row_blocks, 1, own_blocks<T, F>, &w);
}

/* The kernel: in x [N, C, H, W] or [N, C, D, H, W] with its channels innermost, packed weights, then the epilogue's or the steps' operands; out
 * rank 4 (N, 1, pixels, O). */
template <class T>
int32_t winograd_kernel(const effc_call* call) {
  auto bad = [&](const char* what) {
    call->api->fail(call, "winograd: %s", what);
    return 1;
  };
  if (call->n_attr < kWinogradAttrs || call->n_own < 2 || call->n_out < 1) return bad("wrong number of operands or attributes");
  const int64_t *a = call->attr, tile = a[kTile], stride = a[kStride + 1];
  const bool plain = a[kStride] <= a[kKernel] && a[kDilation] == 1 && a[kKernel + 1] == 3 && a[kKernel + 2] == 3 && (stride == 1 || stride == 2) &&
                     a[kStride + 2] == stride && a[kDilation + 1] == 1 && a[kDilation + 2] == 1 && a[kGroups] == 1 && !a[kTransposed];
  if (!plain || !a[kPacked] || a[kCopyX] || (tile != 2 && tile != 4))
    return bad("a window of 3x3, stride 1 or 2, no groups, packed weights expected");
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
  w.depth = a[kKernel];
  w.slices = w.block * v.st[0] + min64(w.block, ceil_div(w.block - 1, v.sp[0]) + 1) * (w.depth - v.st[0]);
  w.v_row = ceil_div(v.cg, line) * line + line, w.m_row = ceil_div(a[kBlockCols], line) * line + line;
  w.v_step = w.slices * w.v_row, w.m_step = w.block * w.m_row;
  w.shared = a[kShared] ? (T*)s : nullptr;
  const int64_t per_image = v.sp[0] * ceil_div(v.sp[1], tile) * ceil_div(v.sp[2], tile);
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
