/* The micro-kernels of convolution: a tile of output pixels by vectors of output channels, its accumulators in registers, and
 * what is done to it after the sum. conv.hpp says how their operands are laid out. */
#ifndef EFFC_CONV_MICRO_HPP
#define EFFC_CONV_MICRO_HPP
#include <stdint.h>

#include "types.hpp"

namespace effc {
namespace conv {

#define EFFC_UNROLL _Pragma("GCC unroll 16")

template <class T>
struct Simd {
  static constexpr int lanes = EFFC_VLEN / (int)sizeof(T);
  typedef T vec __attribute__((vector_size(EFFC_VLEN)));
  typedef T loose __attribute__((vector_size(EFFC_VLEN), aligned(alignof(T)), may_alias));
  EFFC_INLINE vec load(const T* p) { return *(const loose*)p; }
  EFFC_INLINE void store(T* p, vec v) { *(loose*)p = v; }
};

/* The most rows of a tile that is nv vectors wide. */
constexpr int max_rows(int nv) {
  return EFFC_VLEN >= 64 ? (nv == 1 ? 12 : nv == 2 ? 12 : nv == 3 ? 8 : 6) : (nv == 1 ? 10 : nv == 2 ? 6 : nv == 3 ? 4 : 3);
}
constexpr int kMaxRows = 12;
constexpr int kMaxNv = 4;
constexpr int kMaxShared = 3;
constexpr int64_t kHeader = 64; /* bytes before packed data */

/* len values of k from weight row k on. */
struct Seg {
  int64_t k, len;
};

/* One output pixel of a block. */
template <class T>
struct Pixel {
  int64_t base;   /* offset of the window's origin */
  int32_t at[3];  /* window's origin in the image, may be negative (transposed: its first pixel that tap 0 of the class reads) */
  int32_t inside; /* the whole window is inside the image */
  T* c;           /* output row */
  const T* r;     /* residual's row */
};

/* Where a tile goes: columns from `at` on of its pixels' rows. `tail` of the last vector's lanes are stored.
 * With `last`, what the kernel itself can do after the sum: add a bias per column, add a residual, clamp. */
template <class T>
struct Sink {
  const Pixel<T>* px;
  int64_t at, tail;
  const T* bias; /* or null */
  bool accumulate, last, residual, clamp;
  T lo, hi;
  int64_t from = 0; /* what is listed are rows of the first group; this one's begin so much after them */
  inline T* out(int i) const { return px[i].c + at; }
  inline const T* add(int i) const { return px[i].r + at; }
};

constexpr int64_t kLine = 64; /* bytes of a line of the caches */

/* Pixels that lie at equal distances in x, in the result and in the residual, as those of a pointwise convolution do. */
template <class T>
struct Lines {
  const T* x; /* at the first step of the range of k */
  T* c;       /* at the panel's first column */
  const T* r; /* as c; without a residual not read */
  int64_t x_step, c_step, r_step;

  template <int MR, int NV>
  inline void claim() const {}
  inline void skip(int64_t pixels) { x += pixels * x_step, c += pixels * c_step, r += pixels * r_step; }
};

/* Those whose results come to lie elsewhere in the end, where that is claimed while the sums are made. A type of its own, with
 * micro-kernels of its own: a branch for each tile shows in the others. */
template <class T>
struct OwnLines : Lines<T> {
  T* own; /* as c */
  int64_t own_step;

  /* Writes to each line of the first MR pixels' NV vectors, whatever it is. A line that another core has read is given up by it only
   * when it is written, one line after the other: the stores that follow find it here, and until then nothing waits for these. */
  template <int MR, int NV>
  inline __attribute__((always_inline)) void claim() const {
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL
      for (int64_t at = 0; at < NV * Simd<T>::lanes; at += kLine / (int64_t)sizeof(T)) *(volatile T*)(own + i * own_step + at) = T(0);
  }
  inline void skip(int64_t pixels) { Lines<T>::skip(pixels), own += pixels * own_step; }
};

/* A Sink whose pixels are those. */
template <class T>
struct LinesSink {
  Lines<T> to;
  const Sink<T>& steps;
  inline T* out(int i) const { return to.c + i * to.c_step; }
  inline const T* add(int i) const { return to.r + i * to.r_step; }
};
template <class T>
EFFC_INLINE const Sink<T>& steps_of(const Sink<T>& s) {
  return s;
}
template <class T>
EFFC_INLINE const Sink<T>& steps_of(const LinesSink<T>& s) {
  return s.steps;
}

/* The first `tail` lanes at p, the rest zero. */
template <class T>
EFFC_INLINE typename Simd<T>::vec load_part(const T* p, int64_t tail) {
  if (tail == Simd<T>::lanes) return Simd<T>::load(p);
  T tmp[Simd<T>::lanes] = {};
  for (int64_t l = 0; l < tail; ++l) tmp[l] = p[l];
  return Simd<T>::load(tmp);
}

/* NaN stays: a comparison with it is false. */
template <class V>
EFFC_INLINE V clamp_vec(V v, V lo, V hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

/* Adds what is there already, does the sink's last steps and stores the tile; `Whole`: all lanes of the last vector. */
template <class T, int MR, int NV, bool Whole, class To>
EFFC_INLINE void finish_lanes(typename Simd<T>::vec (&acc)[MR][NV], const To& to) {
  const Sink<T>& s = steps_of<T>(to);
  using S = Simd<T>;
  typedef typename S::vec V;
  auto get = [&](const T* p, int j) __attribute__((always_inline)) {
    if constexpr (Whole)
      return S::load(p + j * S::lanes);
    else
      return load_part<T>(p + j * S::lanes, j + 1 < NV ? S::lanes : s.tail);
  };
  if (s.accumulate) {
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j)
      EFFC_UNROLL
      for (int i = 0; i < MR; ++i) acc[i][j] += get(to.out(i), j);
  }
  if (s.last) {
    if (s.bias) {
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) {
        const V b = get(s.bias, j);
        EFFC_UNROLL
        for (int i = 0; i < MR; ++i) acc[i][j] += b;
      }
    }
    if (s.residual) {
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j)
        EFFC_UNROLL
        for (int i = 0; i < MR; ++i) acc[i][j] += get(to.add(i), j);
    }
    if (s.clamp) {
      const V lo = V{} + s.lo, hi = V{} + s.hi;
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j)
        EFFC_UNROLL
        for (int i = 0; i < MR; ++i) acc[i][j] = clamp_vec<V>(acc[i][j], lo, hi);
    }
  }
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i) {
    T* c = to.out(i);
    EFFC_UNROLL
    for (int j = 0; j + 1 < NV || (Whole && j < NV); ++j) S::store(c + j * S::lanes, acc[i][j]);
    if constexpr (!Whole)
      for (int64_t l = 0; l < s.tail; ++l) c[(NV - 1) * S::lanes + l] = acc[i][NV - 1][l];
  }
}

/* Columns that end within a vector. Apart, so that the accumulators of all other tiles stay in registers. */
template <class T, int MR, int NV, class To>
__attribute__((noinline)) void finish_part(typename Simd<T>::vec (&acc)[MR][NV], const To& s) {
  finish_lanes<T, MR, NV, false>(acc, s);
}

template <class T, int MR, int NV, class To>
EFFC_INLINE void finish_tile(typename Simd<T>::vec (&acc)[MR][NV], const To& s) {
  if (__builtin_expect(steps_of<T>(s).tail == Simd<T>::lanes, 1)) return finish_lanes<T, MR, NV, true>(acc, s);
  typename Simd<T>::vec kept[MR][NV];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) kept[i][j] = acc[i][j];
  const To to = s;
  finish_part<T, MR, NV>(kept, to);
}

/* As micro_rows with one segment, for `tiles` tiles of pixels at equal distances one after the other: what a tile's sums
 * wait for at its end overlaps with the next one's start, which counts where k is small. */
template <class T, class L, int MR, int NV>
void micro_lines(L to, int64_t tiles, int64_t k, const T* panel, const char* next, int64_t step, const Sink<T>* sink) {
  using S = Simd<T>;
  for (int64_t t = 0; t < tiles; ++t) {
    to.template claim<MR, NV>();
    typename S::vec acc[MR][NV];
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) acc[i][j] = typename S::vec{};
    const T* p[MR];
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i) p[i] = to.x + i * to.x_step;
    const T* b = panel;
    for (int64_t n = 0; n < k; ++n, b += NV * S::lanes) {
      typename S::vec w[NV];
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) w[j] = S::load(b + j * S::lanes);
      __builtin_prefetch(next, 0, 2);
      next += step;
      EFFC_UNROLL
      for (int i = 0; i < MR; ++i) {
        const T a = p[i][n];
        EFFC_UNROLL
        for (int j = 0; j < NV; ++j) acc[i][j] += a * w[j];
      }
    }
    finish_tile<T, MR, NV>(acc, LinesSink<T>{to, *sink});
    to.skip(MR);
  }
}

/* acc += sum over segs of rows[seg][i][0..len) * panel[seg.k ..][nv * lanes]. Meanwhile the part of the next weights that
 * falls to this tile is fetched into L2: `next` moves by `step` bytes with every k. */
template <class T, int MR, int NV>
void micro_rows(const Seg* segs, int64_t nseg, const T* const* rows, const T* panel, const char* next, int64_t step,
                const Sink<T>* sink) {
  using S = Simd<T>;
  typename S::vec acc[MR][NV];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) acc[i][j] = typename S::vec{};
  for (int64_t s = 0; s < nseg; ++s) {
    const T* p[MR];
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i) p[i] = rows[i] + sink->from;
    rows += MR;
    const T* b = panel + segs[s].k * (NV * S::lanes);
    const int64_t len = segs[s].len;
    for (int64_t k = 0; k < len; ++k, b += NV * S::lanes) {
      typename S::vec w[NV];
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) w[j] = S::load(b + j * S::lanes);
      __builtin_prefetch(next, 0, 2);
      next += step;
      EFFC_UNROLL
      for (int i = 0; i < MR; ++i) {
        const T a = p[i][k];
        EFFC_UNROLL
        for (int j = 0; j < NV; ++j) acc[i][j] += a * w[j];
      }
    }
  }
  finish_tile<T, MR, NV>(acc, *sink);
}

/* As micro_rows for one vector of columns and segments of a multiple of 8 steps: what a short sum spends on its loop counts. */
template <class T, int MR>
void micro_eights(const Seg* segs, int64_t nseg, const T* const* rows, const T* panel, const char* next, int64_t step,
                  const Sink<T>* sink) {
  using S = Simd<T>;
  typename S::vec acc[MR][1];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i) acc[i][0] = typename S::vec{};
  for (int64_t s = 0; s < nseg; ++s) {
    const T* p[MR];
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i) p[i] = rows[i] + sink->from;
    rows += MR;
    const T* b = panel + segs[s].k * S::lanes;
    for (int64_t k = 0; k < segs[s].len; k += 8, b += 8 * S::lanes, next += 8 * step) {
      __builtin_prefetch(next, 0, 2);
      EFFC_UNROLL
      for (int u = 0; u < 8; ++u) {
        const auto w = S::load(b + u * S::lanes);
        EFFC_UNROLL
        for (int i = 0; i < MR; ++i) acc[i][0] += p[i][k + u] * w;
      }
    }
  }
  finish_tile<T, MR, 1>(acc, *sink);
}

/* The values of v's parts of Q lanes number c, each in all lanes of its part. */
template <class T, int Q>
EFFC_INLINE typename Simd<T>::vec spread(typename Simd<T>::vec v, int c) {
  typedef decltype(v < v) Lanes;
  Lanes at = {};
  EFFC_UNROLL
  for (int l = 0; l < Simd<T>::lanes; ++l) at[l] = l / Q * Q + c;
  return __builtin_shuffle(v, at);
}

/* As micro_rows for groups of Q channels in and out, as many as a vector has room for: a segment is a tap of a vector of
 * channels, and of each channel of a group a vector of weights lies there for all of them. */
template <class T, int MR, int Q>
void micro_groups(const Seg* segs, int64_t nseg, const T* const* rows, const T* panel, const char* next, int64_t step,
                  const Sink<T>* sink) {
  using S = Simd<T>;
  typename S::vec acc[MR][1];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i) acc[i][0] = typename S::vec{};
  for (int64_t s = 0; s < nseg; ++s, rows += MR, next += Q * step) {
    const T* b = panel + segs[s].k * S::lanes;
    __builtin_prefetch(next, 0, 2);
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i) {
      const auto x = S::load(rows[i] + sink->from);
      EFFC_UNROLL
      for (int c = 0; c < Q; ++c) acc[i][0] += spread<T, Q>(x, c) * S::load(b + c * S::lanes);
    }
  }
  finish_tile<T, MR, 1>(acc, *sink);
}

/* acc += sum over k in [k0, k1) of rows[i][offsets[k]] * panel[k][nv * lanes]. */
template <class T, int MR, int NV>
void micro_offsets(const int64_t* offsets, int64_t k0, int64_t k1, const T* const* rows, const T* panel, const char* next,
                   int64_t step, const Sink<T>* sink) {
  using S = Simd<T>;
  typename S::vec acc[MR][NV];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) acc[i][j] = typename S::vec{};
  const T* p[MR];
  EFFC_UNROLL
  for (int i = 0; i < MR; ++i) p[i] = rows[i];
  const T* b = panel + k0 * (NV * S::lanes);
  for (int64_t k = k0; k < k1; ++k, b += NV * S::lanes) {
    const int64_t o = offsets[k];
    typename S::vec w[NV];
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) w[j] = S::load(b + j * S::lanes);
    __builtin_prefetch(next, 0, 2);
    next += step;
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i) {
      const T a = p[i][o];
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) acc[i][j] += a * w[j];
    }
  }
  finish_tile<T, MR, NV>(acc, *sink);
}

/* As micro_offsets, for tiles of pixels at equal distances one after the other, as micro_lines does. */
template <class T, int MR, int NV>
void micro_strides(Lines<T> to, int64_t tiles, const int64_t* offsets, int64_t k, const T* panel, const char* next, int64_t step,
                   const Sink<T>* sink) {
  using S = Simd<T>;
  for (int64_t t = 0; t < tiles; ++t) {
    typename S::vec acc[MR][NV];
    EFFC_UNROLL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) acc[i][j] = typename S::vec{};
    const T* b = panel;
    for (int64_t n = 0; n < k; ++n, b += NV * S::lanes) {
      const T* p = to.x + offsets[n];
      typename S::vec w[NV];
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) w[j] = S::load(b + j * S::lanes);
      __builtin_prefetch(next, 0, 2);
      next += step;
      EFFC_UNROLL
      for (int i = 0; i < MR; ++i) {
        const T a = p[i * to.x_step];
        EFFC_UNROLL
        for (int j = 0; j < NV; ++j) acc[i][j] += a * w[j];
      }
    }
    finish_tile<T, MR, NV>(acc, LinesSink<T>{to, *sink});
    to.skip(MR);
  }
}

template <class T>
struct Micro {
  typedef void (*Rows)(const Seg*, int64_t, const T* const*, const T*, const char*, int64_t, const Sink<T>*);
  typedef void (*Offsets)(const int64_t*, int64_t, int64_t, const T* const*, const T*, const char*, int64_t, const Sink<T>*);
  typedef void (*OnLines)(Lines<T>, int64_t, int64_t, const T*, const char*, int64_t, const Sink<T>*);
  typedef void (*OnOwnLines)(OwnLines<T>, int64_t, int64_t, const T*, const char*, int64_t, const Sink<T>*);
  typedef void (*OnStrides)(Lines<T>, int64_t, const int64_t*, int64_t, const T*, const char*, int64_t, const Sink<T>*);
  Rows rows[kMaxNv][kMaxRows];
  Offsets offsets[kMaxNv][kMaxRows];
  OnLines lines[kMaxNv][kMaxRows];
  OnOwnLines own_lines[kMaxNv][kMaxRows];
  OnStrides strides[kMaxNv][kMaxRows];
  Rows eights[kMaxRows];
  Rows groups[kMaxShared][kMaxRows]; /* of 2, 4 and 8 channels */

  template <int NV, int MR>
  constexpr void fill() {
    if constexpr (MR <= max_rows(NV)) {
      rows[NV - 1][MR - 1] = micro_rows<T, MR, NV>;
      offsets[NV - 1][MR - 1] = micro_offsets<T, MR, NV>;
      lines[NV - 1][MR - 1] = micro_lines<T, Lines<T>, MR, NV>;
      own_lines[NV - 1][MR - 1] = micro_lines<T, OwnLines<T>, MR, NV>;
      strides[NV - 1][MR - 1] = micro_strides<T, MR, NV>;
      fill<NV, MR + 1>();
    }
  }
  template <int Log, int MR>
  constexpr void fill_groups() {
    if constexpr ((2 << Log) < Simd<T>::lanes && MR <= max_rows(1)) {
      groups[Log][MR - 1] = micro_groups<T, MR, 2 << Log>;
      fill_groups<Log, MR + 1>();
    }
  }
  template <int MR>
  constexpr void fill_eights() {
    if constexpr (MR <= max_rows(1)) {
      eights[MR - 1] = micro_eights<T, MR>;
      fill_eights<MR + 1>();
    }
  }
  constexpr Micro() : rows(), offsets(), lines(), own_lines(), strides(), eights(), groups() {
    fill_eights<1>();
    fill_groups<0, 1>();
    fill_groups<1, 1>();
    fill_groups<2, 1>();
    fill<1, 1>();
    fill<2, 1>();
    fill<3, 1>();
    fill<4, 1>();
  }
};
template <class T>
struct MicroTable {
  static constexpr Micro<T> table{};
};

}  // namespace conv
}  // namespace effc
#endif
