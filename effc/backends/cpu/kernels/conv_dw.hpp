/* Depthwise convolution, 1 to 3 spatial dims: vectors of channels, blocks of neighbouring output pixels.
 *
 * x has its channels innermost, or is copied so (with every channel repeated where a channel has several filters, which
 * leaves one filter per channel). For windows 3 or 5 wide with stride 1 or 2 the weights of a row of the window stay in
 * registers and x slides past them, without the taps outside the row (dw_window, or dw_slide where the window is not square or
 * has planes). Else pixels whose window is inside the row are done in
 * blocks while the weights of a tap stay, and the few at the left and right border one by one, over their valid taps.
 * Channels that are no whole number of vectors end with a vector that overlaps the one before: its lanes are computed
 * twice, to the same value.
 */
#ifndef EFFC_CONV_DW_HPP
#define EFFC_CONV_DW_HPP
#include "conv.hpp"
#include "simd.hpp"

namespace effc {
namespace conv {

constexpr int64_t kDwNear = 20 * 1024; /* bytes of the rows of x that a block of channels of a window takes */
constexpr int64_t kDwGroup = 8;        /* lines for which a block of channels is kept */

/* The taps of one output row: rows of x that are inside the image. */
template <class T>
struct DwRow {
  const T* x;      /* window's origin of output column 0, at d = h = 0; may lie outside */
  int64_t d0, d1;  /* valid taps */
  int64_t h0, h1;
  int64_t wrap, back; /* rows of the window from `wrap` on lie `back` elements earlier: x may be a ring of rows */
};
constexpr int64_t kDwNoWrap = INT64_MAX;

template <class T>
struct Depthwise {
  const effc_call* call;
  const int64_t* a;
  const T* x;
  int64_t xs[5], batch, channels, in[3], taps, pixels;
  const T* w; /* [tap][channel] */
  bool direct, clamp, activate;
  const T* bias;
  T limit[2];
  int64_t width_in, lo, hi; /* output columns [lo, hi) have all their taps inside the row */
  int64_t col_blocks, block_cols, segment, lines, group;
  void (*slide)(const Depthwise&, const DwRow<T>*, int64_t, int64_t, int64_t, int64_t, int64_t, T*, int64_t, int64_t); /* or null */
};

template <class T, int L>
struct DwVec {
  typedef T vec __attribute__((vector_size(L * sizeof(T))));
  typedef T loose __attribute__((vector_size(L * sizeof(T)), aligned(alignof(T)), may_alias));
};

/* A number of pixels as a type. */
template <int P>
struct DwSize {
  static constexpr int value = P;
};

/* P neighbouring pixels by NV vectors of L channels, taps [k0, k1) along the row. */
template <class T, int L, int NV, int P>
EFFC_INLINE void dw_block(const Depthwise<T>& v, const DwRow<T>& row, int64_t col, int64_t k0, int64_t k1, int64_t c, T* out, int64_t ld) {
  typedef typename DwVec<T, L>::vec V;
  typedef typename DwVec<T, L>::loose U;
  V acc[P][NV];
  EFFC_UNROLL
  for (int p = 0; p < P; ++p)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) acc[p][j] = V{};
  const int64_t step = v.a[kStride + 2] * v.xs[4], dil = v.a[kDilation + 2] * v.xs[4], cs = v.channels;
  for (int64_t d = row.d0; d < row.d1; ++d)
    for (int64_t h = row.h0; h < row.h1; ++h) {
      const T* x = row.x + d * v.a[kDilation] * v.xs[2] + h * v.a[kDilation + 1] * v.xs[3] + col * step + k0 * dil + c -
                   (h >= row.wrap ? row.back : 0);
      const T* w = v.w + ((d * v.a[kKernel + 1] + h) * v.a[kKernel + 2] + k0) * cs + c;
      for (int64_t k = k0; k < k1; ++k, x += dil, w += cs) {
        V wv[NV];
        EFFC_UNROLL
        for (int j = 0; j < NV; ++j) wv[j] = *(const U*)(w + j * L);
        const T* xp = x;
        EFFC_UNROLL
        for (int p = 0; p < P; ++p, xp += step)
          EFFC_UNROLL
          for (int j = 0; j < NV; ++j) acc[p][j] += *(const U*)(xp + j * L) * wv[j];
      }
    }
  if (v.bias)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) {
      const V b = *(const U*)(v.bias + c + j * L);
      EFFC_UNROLL
      for (int p = 0; p < P; ++p) acc[p][j] += b;
    }
  if (v.clamp) {
    const V lo = V{} + v.limit[0], hi = V{} + v.limit[1];
    EFFC_UNROLL
    for (int p = 0; p < P; ++p)
      EFFC_UNROLL
      for (int j = 0; j < NV; ++j) acc[p][j] = clamp_vec<V>(acc[p][j], lo, hi);
  }
  EFFC_UNROLL
  for (int p = 0; p < P; ++p)
    EFFC_UNROLL
    for (int j = 0; j < NV; ++j) *(U*)(out + p * ld + j * L) = acc[p][j];
}

/* The taps [*k0, *k1) of output column m that are inside the row. */
template <class T>
EFFC_INLINE void dw_taps(const Depthwise<T>& v, int64_t m, int64_t* k0, int64_t* k1) {
  const int64_t kernel = v.a[kKernel + 2], dil = v.a[kDilation + 2], at = m * v.a[kStride + 2] - v.a[kPad + 2];
  *k0 = at < 0 ? min64(kernel, (-at + dil - 1) / dil) : 0;
  *k1 = min64(kernel, max64(*k0, (v.width_in - at + dil - 1) / dil));
}

/* Columns [m0, m1), all inside the row, for channels c .. c + NV * L. */
template <class T, int L, int NV, int P>
void dw_inner(const Depthwise<T>& v, const DwRow<T>& row, int64_t m0, int64_t m1, int64_t c, T* out, int64_t ld) {
  const int64_t kernel = v.a[kKernel + 2];
  int64_t m = m0;
  for (; m + P <= m1; m += P) dw_block<T, L, NV, P>(v, row, m, 0, kernel, c, out + (m - m0) * ld, ld);
  if constexpr (P > 1) dw_inner<T, L, NV, P / 2>(v, row, m, m1, c, out + (m - m0) * ld, ld);
}

/* What the blocks of a row have in common; a copy that their stores cannot change. Distances in elements. */
template <class T, int L, int K>
struct DwSlide {
  const T *x, *w, *bias; /* at the row's first valid plane, row 0 of the window, column 0 of the image; at the vector's channels */
  int64_t planes, h0, h1, wrap, back, step, line, plane, ws, wplane, width, pad;
  bool clamp;
  T lo, hi;

  DwSlide(const Depthwise<T>& v, int64_t c)
      : x(), w(), bias(v.bias ? v.bias + c : nullptr), planes(), h0(), h1(), wrap(), back(), step(v.xs[4]), line(v.a[kDilation + 1] * v.xs[3]),
        plane(v.a[kDilation] * v.xs[2]), ws(v.channels), wplane(v.a[kKernel + 1] * K * v.channels), width(v.width_in),
        pad(v.a[kPad + 2]), clamp(v.clamp), lo(v.limit[0]), hi(v.limit[1]) {}
  inline void move(const Depthwise<T>& v, const DwRow<T>& row, int64_t c) {
    x = row.x + row.d0 * plane + pad * step + c, w = v.w + row.d0 * wplane + c;
    planes = row.d1 - row.d0, h0 = row.h0, h1 = row.h1, wrap = row.wrap, back = row.back;
  }
};

constexpr int kDwAny = -1; /* for the taps of a block that are outside of the image: to be found out */

/* p + step by an addition, which the compiler does not see through: else it keeps the distances of a whole block, in more
 * registers than there are, and loads each of them from the stack before the vector that it leads to. */
template <class T>
EFFC_INLINE T* dw_next(T* p, int64_t step) {
  p += step;
  __asm__("" : "+r"(p));
  return p;
}

/* A vector that stays in its register until its last use: else the compiler may load it again for each. */
template <class V, class U>
EFFC_INLINE V dw_load(const U* p) {
  V v = *p;
  if constexpr (sizeof(V) <= EFFC_HARDWARE_VLEN) __asm__("" : "+v"(v));
  return v;
}

/* As dw_block for P neighbouring pixels, stride S and K taps along the row known: each vector of x is loaded once per row and
 * used for every pixel that it reaches. The block's window begins at column `at` of the image. Its first Lead and last Trail
 * columns are outside of the image and left out; kDwAny: as many as `at` says. */
template <class T, int L, int K, int S, int P, int Lead, int Trail>
EFFC_INLINE void dw_slide_block(const DwSlide<T, L, K>& v, int64_t at, T* out, int64_t ld) {
  typedef typename DwVec<T, L>::vec V;
  typedef typename DwVec<T, L>::loose U;
  constexpr int reach = (P - 1) * S + K;
  constexpr bool any = Lead == kDwAny;
  const V start = v.bias ? (V) * (const U*)v.bias : V{};
  V acc[P];
  EFFC_UNROLL
  for (int p = 0; p < P; ++p) acc[p] = start;
  const int64_t from = -at, to = v.width - at;
  auto line = [&](const T* x, const T* w) __attribute__((always_inline)) {
    V wv[K];
    EFFC_UNROLL
    for (int k = 0; k < K; ++k, w = dw_next(w, v.ws)) wv[k] = *(const U*)w;
    _Pragma("GCC unroll 32") for (int q = 0; q < reach; ++q, x = dw_next(x, v.step)) {
      if (any ? q < from || q >= to : q < Lead || q >= reach - Trail) continue;
      const V xv = dw_load<V>((const U*)x);
      EFFC_UNROLL
      for (int k = 0; k < K; ++k)
        if (q >= k && (q - k) % S == 0 && (q - k) / S < P) multiply_add(acc[(q - k) / S], xv, wv[k]);
    }
  };
  const T *x = v.x + at * v.step, *w = v.w;
  for (int64_t d = 0; d < v.planes; ++d, x += v.plane, w += v.wplane)
    for (int64_t h = v.h0; h < v.h1; ++h) line(x + h * v.line - (h >= v.wrap ? v.back : 0), w + h * K * v.ws);
  if (v.clamp) {
    const V lo = V{} + v.lo, hi = V{} + v.hi;
    EFFC_UNROLL
    for (int p = 0; p < P; ++p) acc[p] = clamp_vec<V>(acc[p], lo, hi);
  }
  EFFC_UNROLL
  for (int p = 0; p < P; ++p) *(U*)(out + p * ld) = acc[p];
}

/* The number of pixels of a block in rows of `width`, as a type for f. Accumulators enough to hide the latency of a sum: 8
 * pixels of a vector, or 7 where that leaves less to be made twice. */
template <class F>
EFFC_INLINE void dw_sizes(int64_t width, F f) {
  if (width >= 7) {
    if (ceil_div(width, 8) * 8 <= ceil_div(width, 7) * 7)
      f(DwSize<8>());
    else
      f(DwSize<7>());
  } else if (width >= 4) {
    f(DwSize<4>());
  } else {
    f(DwSize<1>());
  }
}

/* Columns [m0, m1) of `n` rows of a vector of channels; see dw_slide. */
template <class T, int L, int K, int S>
void dw_slide_vector(const Depthwise<T>& v, const DwRow<T>* rows, int64_t n, int64_t m0, int64_t m1, int64_t c, T* out, int64_t ld,
                     int64_t out_line) {
  DwSlide<T, L, K> s(v, c);
  dw_sizes(m1 - m0, [&](auto size) __attribute__((always_inline)) {
    constexpr int P = decltype(size)::value, reach = (P - 1) * S + K;
    for (int64_t m = m0, end; m < m1; m = end) {
      if (m1 - m < P) m = m1 - P;
      end = m + P;
      const int64_t at = m * S - s.pad, lead = -at, trail = at + reach - s.width;
      auto all = [&](auto first, auto last) __attribute__((always_inline)) {
        T* q = out + (m - m0) * ld;
        for (int64_t i = 0; i < n; ++i, q += out_line) {
          s.move(v, rows[i], c);
          dw_slide_block<T, L, K, S, P, decltype(first)::value, decltype(last)::value>(s, at, q, ld);
        }
      };
      if (lead <= 0 && trail <= 0)
        all(DwSize<0>(), DwSize<0>());
      else
        all(DwSize<kDwAny>(), DwSize<kDwAny>());
    }
  });
}

/* Columns [m0, m1) of `n` output rows, `out_line` apart, the image's borders with them, of channels [c0, c1), at least L. A last
 * block that is not full begins earlier: what it makes again is the same. A block is made in all rows before the next one: where
 * it lies is asked once. */
template <class T, int L, int K, int S>
void dw_slide(const Depthwise<T>& v, const DwRow<T>* rows, int64_t n, int64_t m0, int64_t m1, int64_t c0, int64_t c1, T* out,
              int64_t ld, int64_t out_line) {
  for (int64_t c = c0; c < c1; c += L) {
    const int64_t from = min64(c, c1 - L);
    dw_slide_vector<T, L, K, S>(v, rows, n, m0, m1, from, out + (from - c0), ld, out_line);
  }
}

/* Distances between neighbouring pixels of x in bytes. With these four and the scales that addresses have, a row of a block
 * needs an addition for every eight of its vectors. */
struct DwSteps {
  int64_t one, three, five, seven;

  explicit DwSteps(int64_t bytes) : one(bytes), three(3 * bytes), five(5 * bytes), seven(7 * bytes) {
    __asm__("" : "+r"(three), "+r"(five), "+r"(seven));
  }
  /* Pixel q of 0 to 7 from p on. */
  inline __attribute__((always_inline)) const char* at(const char* p, int q) const {
    switch (q) {
      case 0: return p;
      case 1: return p + one;
      case 2: return p + 2 * one;
      case 3: return p + three;
      case 4: return p + 4 * one;
      case 5: return p + five;
      case 6: return p + 2 * three;
      default: return p + seven;
    }
  }
};

/* A row of the result of a square window of K rows: those of x that are inside the image, from row h0 of the window on. */
template <int K>
struct DwLine {
  const char* x[K]; /* at column 0 of the image */
  int64_t n, h0;
};

/* Blocks of pixels of a window of K rows: what they have in common. Distances in elements. */
template <class T, int K>
struct DwWindow {
  DwLine<K> line[kDwGroup];
  int64_t lines, vectors, bytes; /* neighbouring vectors of channels; bytes between pixels of x */
  int64_t c, ws, width, ld, out_line;
  const T *w, *bias; /* at channel 0 */
  bool clamp;
  T lo, hi;
};

/* `blocks` blocks of P neighbouring pixels, each as dw_slide_block makes it, the first one's window from column `at` of the image
 * on: in all rows, of neighbouring vectors one after the other, which share cache lines. What a block takes beside its sums
 * decides its time: a core begins six instructions in a cycle, of which two are multiply-adds. Not inlined: registers are few,
 * and what other blocks need would take some. */
template <class T, int L, int K, int S, int P, int Lead, int Trail>
__attribute__((noinline)) void dw_window_blocks(const DwWindow<T, K>& v, int64_t at, int64_t blocks, T* out) {
  typedef typename DwVec<T, L>::vec V;
  typedef typename DwVec<T, L>::loose U;
  constexpr int reach = (P - 1) * S + K;
  constexpr bool any = Lead == kDwAny;
  const DwSteps step(v.bytes);
  const int64_t from = -at, to = v.width - at, ld = v.ld, ws = v.ws;
  for (int64_t i = 0; i < v.lines; ++i)
    for (int64_t j = 0; j < v.vectors; ++j) {
      const DwLine<K>& line = v.line[i];
      const int64_t c = v.c + j * L, n = line.n;
      const T* const weights = v.w + line.h0 * K * ws + c;
      int64_t offset = at * step.one + c * (int64_t)sizeof(T);
      T* q = out + i * v.out_line + j * L;
      for (int64_t b = 0; b < blocks; ++b, offset += P * S * step.one) {
        const V start = v.bias ? (V) * (const U*)(v.bias + c) : V{};
        V acc[P];
        EFFC_UNROLL
        for (int p = 0; p < P; ++p) acc[p] = start;
        const T* w = weights;
        EFFC_UNROLL
        for (int h = 0; h < K; ++h) {
          if (h >= n) break;
          const char* p = line.x[h] + offset;
          V wv[K];
          EFFC_UNROLL
          for (int k = 0; k < K; ++k, w = dw_next(w, ws)) wv[k] = *(const U*)w;
          _Pragma("GCC unroll 32") for (int t = 0; t < reach; ++t) {
            if (t && t % 8 == 0) p = dw_next(p, 8 * step.one);
            if (any ? t < from || t >= to : t < Lead || t >= reach - Trail) continue;
            const U* const xp = (const U*)step.at(p, t % 8);
            auto reaches = [](int pixel, int k) constexpr { return pixel >= k && (pixel - k) % S == 0 && (pixel - k) / S < P; };
            int uses = 0;
            EFFC_UNROLL
            for (int k = 0; k < K; ++k) uses += reaches(t, k);
            V xv;
            if (uses > 1) xv = dw_load<V>(xp);
            EFFC_UNROLL
            for (int k = 0; k < K; ++k)
              if (reaches(t, k)) multiply_add<V>(acc[(t - k) / S], wv[k], uses > 1 ? xv : (V)*xp);
          }
        }
        if (v.clamp) {
          const V lo = V{} + v.lo, hi = V{} + v.hi;
          EFFC_UNROLL
          for (int p = 0; p < P; ++p) acc[p] = clamp_vec<V>(acc[p], lo, hi);
        }
        EFFC_UNROLL
        for (int p = 0; p < P; ++p, q = dw_next(q, ld)) *(U*)q = acc[p];
      }
    }
}

/* f(lead, trail) with both as types where a block of rows of K taps has at most K / 2 columns outside of the image on one side
 * or, of a short row (`Both`), on both; else kDwAny. */
template <int K, bool Both, class F>
EFFC_INLINE void dw_borders(int64_t lead, int64_t trail, F f) {
  constexpr int most = K / 2;
  if (lead <= 0 && trail <= 0) return f(DwSize<0>(), DwSize<0>());
  if (trail <= 0 && lead == most) return f(DwSize<most>(), DwSize<0>());
  if (lead <= 0 && trail == most) return f(DwSize<0>(), DwSize<most>());
  if constexpr (most > 1) {
    if (trail <= 0 && lead == 1) return f(DwSize<1>(), DwSize<0>());
    if (lead <= 0 && trail == 1) return f(DwSize<0>(), DwSize<1>());
  }
  if constexpr (Both) {
    if (lead == most && trail == most) return f(DwSize<most>(), DwSize<most>());
    if constexpr (most > 1) {
      if (lead == most && trail == 1) return f(DwSize<most>(), DwSize<1>());
      if (lead == 1 && trail == most) return f(DwSize<1>(), DwSize<most>());
    }
  }
  f(DwSize<kDwAny>(), DwSize<kDwAny>());
}

/* As dw_slide, for square windows of one plane. */
template <class T, int L, int K, int S>
void dw_window(const Depthwise<T>& v, const DwRow<T>* rows, int64_t n, int64_t m0, int64_t m1, int64_t c0, int64_t c1, T* out,
               int64_t ld, int64_t out_line) {
  constexpr int64_t most = L * sizeof(T) < 64 ? 64 / (L * sizeof(T)) : 1; /* vectors of a cache line */
  DwWindow<T, K> s;
  const int64_t pad = v.a[kPad + 2], line = v.a[kDilation + 1] * v.xs[3];
  s.lines = n, s.bytes = v.xs[4] * (int64_t)sizeof(T), s.ws = v.channels, s.width = v.width_in, s.ld = ld, s.out_line = out_line;
  s.w = v.w, s.bias = v.bias, s.clamp = v.clamp, s.lo = v.limit[0], s.hi = v.limit[1];
  for (int64_t i = 0; i < n; ++i) {
    const DwRow<T>& row = rows[i];
    DwLine<K>& to = s.line[i];
    to.n = row.h1 - row.h0, to.h0 = row.h0;
    for (int64_t h = row.h0; h < row.h1; ++h)
      to.x[h - row.h0] = (const char*)(row.x + pad * v.xs[4] + h * line - (h >= row.wrap ? row.back : 0));
  }
  dw_sizes(m1 - m0, [&](auto size) __attribute__((always_inline)) {
    constexpr int P = decltype(size)::value, reach = (P - 1) * S + K;
    for (int64_t c = c0; c < c1; c += s.vectors * L) {
      s.vectors = max64(1, min64(most, (c1 - c) / L)), s.c = min64(c, c1 - L);
      for (int64_t m = m0, blocks; m < m1; m += blocks * P) {
        m = min64(m, m1 - P);
        const int64_t at = m * S - pad, inside = at < 0 || at + reach > s.width ? 0 : (s.width - reach - at) / (S * P) + 1;
        blocks = max64(1, min64(inside, (m1 - m) / P));
        dw_borders<K, P == 7>(-at, at + reach - s.width, [&](auto lead, auto trail) __attribute__((always_inline)) {
          dw_window_blocks<T, L, K, S, P, decltype(lead)::value, decltype(trail)::value>(s, at, blocks,
                                                                                         out + (m - m0) * ld + (s.c - c0));
        });
      }
    }
  });
}

/* Channels [c0, c1), at least L, of output columns [m0, m1) of a row, taps of any distance. */
template <class T, int L>
void dw_columns_of(const Depthwise<T>& v, const DwRow<T>& row, int64_t m0, int64_t m1, int64_t c0, int64_t c1, T* out, int64_t ld) {
  constexpr int P = EFFC_VLEN >= 64 ? 8 : 4;
  constexpr bool wide = L * sizeof(T) == EFFC_VLEN;
  /* Columns at the border have few taps each: many channels at once hide the latency of their sums. */
  const int64_t inner0 = min64(max64(m0, v.lo), m1), inner1 = max64(inner0, min64(m1, v.hi));
  auto border = [&](int64_t from, int64_t to) {
    for (int64_t m = from; m < to; ++m) {
      int64_t k0, k1, c = c0;
      dw_taps(v, m, &k0, &k1);
      T* q = out + (m - m0) * ld;
      if constexpr (wide) {
        for (; c + 4 * L <= c1; c += 4 * L) dw_block<T, L, 4, 1>(v, row, m, k0, k1, c, q + (c - c0), ld);
      }
      for (; c < c1; c += L) {
        if (c + L > c1) c = c1 - L; /* overlaps the vector before */
        dw_block<T, L, 1, 1>(v, row, m, k0, k1, c, q + (c - c0), ld);
      }
    }
  };
  border(m0, inner0);
  border(inner1, m1);
  const int64_t from = inner0;
  int64_t c = c0;
  if constexpr (wide) {
    if (inner1 - from < 4)
      for (; c + 4 * L <= c1; c += 4 * L) dw_inner<T, L, 4, 2>(v, row, from, inner1, c, out + (from - m0) * ld + (c - c0), ld);
    for (; c + 2 * L <= c1; c += 2 * L) dw_inner<T, L, 2, P>(v, row, from, inner1, c, out + (from - m0) * ld + (c - c0), ld);
  }
  for (; c < c1; c += L) {
    if (c + L > c1) c = c1 - L;
    dw_inner<T, L, 1, P>(v, row, from, inner1, c, out + (from - m0) * ld + (c - c0), ld);
  }
}

/* Channels [c0, c1) of output columns [m0, m1) of `n` rows, whose results are `out_line` apart, in vectors of at most L
 * lanes. */
template <class T, int L>
void dw_channels(const Depthwise<T>& v, const DwRow<T>* rows, int64_t n, int64_t m0, int64_t m1, int64_t c0, int64_t c1, T* out,
                 int64_t ld, int64_t out_line) {
  constexpr bool wide = L * sizeof(T) == EFFC_VLEN;
  if constexpr (L > 1) {
    if (c1 - c0 < L) return dw_channels<T, L / 2>(v, rows, n, m0, m1, c0, c1, out, ld, out_line);
  }
  if constexpr (wide) {
    if (v.slide) return v.slide(v, rows, n, m0, m1, c0, c1, out, ld, out_line);
  }
  for (int64_t i = 0; i < n; ++i, out += out_line) dw_columns_of<T, L>(v, rows[i], m0, m1, c0, c1, out, ld);
}

/* The valid taps of output line `line` (of all images), and where its first window begins. */
template <class T>
DwRow<T> dw_row(const Depthwise<T>& v, int64_t line) {
  const int64_t *sp = v.a + kSpatial, oh = line % sp[1], od = line / sp[1] % sp[0], b = line / (sp[1] * sp[0]);
  DwRow<T> row;
  int64_t k[2][2], at[2];
  const int64_t o[2] = {od, oh};
  for (int d = 0; d < 2; ++d) {
    int64_t dil = v.a[kDilation + d], kernel = v.a[kKernel + d];
    at[d] = o[d] * v.a[kStride + d] - v.a[kPad + d];
    k[d][0] = at[d] < 0 ? min64(kernel, (-at[d] + dil - 1) / dil) : 0;
    k[d][1] = min64(kernel, max64(k[d][0], (v.in[d] - at[d] + dil - 1) / dil));
  }
  row.d0 = k[0][0], row.d1 = k[0][1], row.h0 = k[1][0], row.h1 = k[1][1];
  row.wrap = kDwNoWrap, row.back = 0;
  row.x = v.x + b * v.xs[0] + at[0] * v.xs[2] + at[1] * v.xs[3] - v.a[kPad + 2] * v.xs[4];
  return row;
}

/* The call's epilogue, a function of one value, in place on rows of `cols` elements at p, `ld` apart: what was just made and is in a
 * near cache. `stage`: which of the functions of a kernel with several (codegen.activations). */
template <class T>
void activate(const effc_call* call, int64_t stage, T* p, int64_t rows, int64_t cols, int64_t ld) {
  if (ld == cols) cols *= rows, ld = cols, rows = 1;
  const int64_t strides[4] = {0, 0, ld, 1};
  effc_tensor at = {p, __is_same(T, float) ? EFFC_F32 : EFFC_F64, 4, nullptr, strides};
  effc_call c = *call;
  c.out = &at, c.n_out = 1;
  call->epilogue(&c, stage, 0, 0, rows, 0, cols, p, ld);
}

/* Items: (group of output lines, block of channels, line): the rows of x that a line shares with the next one stay in L1. */
template <class T>
void dw_run(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Depthwise<T>& v = *(const Depthwise<T>*)arg;
  const int64_t* sp = v.a + kSpatial;
  const int64_t per_image = sp[0] * sp[1];
  const effc_tensor& out = v.call->out[0];
  T* acc = (T*)(v.call->thread_scratch + worker * v.call->thread_scratch_bytes);
  DwRow<T> rows[kDwGroup];
  for (int64_t i = begin, n; i < end; i += n) {
    const int64_t group = i / (v.group * v.col_blocks), inside = i % (v.group * v.col_blocks);
    const int64_t size = min64(v.group, v.lines - group * v.group), block = inside / size, line = group * v.group + inside % size;
    const int64_t c0 = block * v.block_cols, c1 = block + 1 == v.col_blocks ? v.channels : c0 + v.block_cols;
    const int64_t b = line / per_image, l = line % per_image;
    /* As many lines as follow each other in this block and image. */
    n = min64(min64(end - i, size - inside % size), min64(per_image - l, v.direct ? kDwGroup : 1));
    for (int64_t r = 0; r < n; ++r) rows[r] = dw_row(v, line + r);
    if (v.direct) {
      T* q = (T*)out.data + b * out.strides[0] + l * sp[2] * out.strides[2] + c0;
      dw_channels<T, Simd<T>::lanes>(v, rows, n, 0, sp[2], c0, c1, q, out.strides[2], sp[2] * out.strides[2]);
      if (v.activate) activate(v.call, 0, q, n * sp[2], c1 - c0, out.strides[2]);
      continue;
    }
    for (int64_t w0 = 0; w0 < sp[2]; w0 += v.segment) {
      const int64_t w1 = min64(w0 + v.segment, sp[2]), m0 = l * sp[2] + w0, m1 = m0 + w1 - w0, ld = c1 - c0;
      dw_channels<T, Simd<T>::lanes>(v, rows, 1, w0, w1, c0, c1, acc, ld, 0);
      if (v.call->epilogue) {
        v.call->epilogue(v.call, b, 0, m0, m1, c0, c1, acc, ld);
        continue;
      }
      with_real(out.dtype, [&](auto tag) {
        using To = decltype(tag);
        for (int64_t m = m0; m < m1; ++m) {
          To* q = (To*)out.data + b * out.strides[0] + m * out.strides[2];
          for (int64_t c = c0; c < c1; ++c) q[c * out.strides[3]] = convert<To>(acc[(m - m0) * ld + c - c0]);
        }
      });
    }
  }
}

template <class T>
struct RepeatArg {
  CopyArg<T> copy;
  int64_t repeat;
};

/* As copy_rows, with every channel written `repeat` times. */
template <class T>
void repeat_rows(void* arg, int64_t begin, int64_t end, int32_t) {
  const RepeatArg<T>& r = *(const RepeatArg<T>*)arg;
  const CopyArg<T>& c = r.copy;
  const int64_t channels = c.shape[1], width = c.shape[4], sc = c.strides[1], sw = c.strides[4];
  with_real(c.src->dtype, [&](auto tag) {
    using From = decltype(tag);
    for (int64_t i = begin; i < end; ++i) {
      int64_t h = i % c.shape[3], nd = i / c.shape[3];
      const From* p =
          (const From*)c.src->data + nd / c.shape[2] * c.strides[0] + nd % c.shape[2] * c.strides[2] + h * c.strides[3];
      T* q = c.dst + i * width * channels * r.repeat;
      for (int64_t w = 0; w < width; ++w)
        for (int64_t ch = 0; ch < channels; ++ch) {
          T value = convert<T>(p[w * sw + ch * sc]);
          for (int64_t j = 0; j < r.repeat; ++j) *q++ = value;
        }
    }
  });
}

/* From attributes and the size of x: which output columns have all their taps inside the row, and how those are done. */
template <class T>
void dw_columns(Depthwise<T>& v) {
  const int64_t* a = v.a;
  v.width_in = v.in[2];
  int64_t reach = (a[kKernel + 2] - 1) * a[kDilation + 2];
  v.lo = min64(a[kSpatial + 2], (a[kPad + 2] + a[kStride + 2] - 1) / a[kStride + 2]);
  if (a[kPad + 2] < 0) v.lo = 0;
  int64_t room = v.width_in - 1 - reach + a[kPad + 2];
  v.hi = room < 0 ? v.lo : max64(v.lo, min64(a[kSpatial + 2], room / a[kStride + 2] + 1));
  if constexpr (__is_same(T, float)) {
    constexpr int L = Simd<T>::lanes;
    const int64_t k = a[kKernel + 2], stride = a[kStride + 2];
    if (a[kDilation + 2] == 1) {
      const bool square = a[kKernel] == 1 && a[kKernel + 1] == k;
      auto choose = [&](auto taps) {
        constexpr int K = decltype(taps)::value;
        if (stride == 1) v.slide = square ? dw_window<T, L, K, 1> : dw_slide<T, L, K, 1>;
        if (stride == 2) v.slide = square ? dw_window<T, L, K, 2> : dw_slide<T, L, K, 2>;
      };
      if (k == 3) choose(DwSize<3>());
      if (k == 5) choose(DwSize<5>());
    }
  }
}

/* The kernel: in x [N, C, *S], w (packed: [tap][O] after a header; else [O, 1, *K]), then the epilogue's; out rank 4
 * (N, 1, pixels, O). O is a multiple of C = groups. Attributes as for conv.hpp; kBlockCols is the length of the thread's
 * accumulators. */
template <class T>
int32_t depthwise_kernel(const effc_call* call) {
  if (call->n_attr < kAttrs || call->n_own < 2 || call->n_out < 1) {
    call->api->fail(call, "depthwise conv: wrong number of operands or attributes");
    return 1;
  }
  Depthwise<T> v;
  memset(&v, 0, sizeof v);
  const int64_t* a = call->attr; /* an epilogue's come last */
  v.call = call, v.a = a;
  int64_t shape[5];
  spatial_view(call->in[0], shape, v.xs);
  v.batch = shape[0], v.channels = a[kOut];
  for (int d = 0; d < 3; ++d) v.in[d] = shape[2 + d];
  v.taps = a[kKernel] * a[kKernel + 1] * a[kKernel + 2];
  v.pixels = a[kSpatial] * a[kSpatial + 1] * a[kSpatial + 2];
  if (v.batch * v.pixels * v.channels <= 0) return 0;
  const int64_t repeat = v.channels / shape[1];

  /* Scratch: [copy of x], [weights]. */
  char* s = (char*)call->scratch;
  v.x = (const T*)call->in[0].data;
  if (a[kCopyX]) {
    RepeatArg<T> arg;
    arg.copy.src = &call->in[0], arg.copy.dst = (T*)s, arg.repeat = repeat;
    spatial_view(call->in[0], arg.copy.shape, arg.copy.strides);
    v.x = (const T*)s;
    shape[1] = v.channels;
    int64_t n = 1;
    const int order[5] = {1, 4, 3, 2, 0};
    for (int i = 0; i < 5; ++i) v.xs[order[i]] = n, n *= shape[order[i]];
    s += align64(n * (int64_t)sizeof(T));
    int64_t lines = shape[0] * shape[2] * shape[3], grain = max64(1, 16384 / max64(1, shape[1] * shape[4]));
    if (repeat == 1)
      call->api->parallel_for(call->run, lines, grain, copy_rows<T>, &arg.copy);
    else
      call->api->parallel_for(call->run, lines, grain, repeat_rows<T>, &arg);
  } else if (repeat != 1 || (v.xs[1] != 1 && v.channels != 1)) {
    call->api->fail(call, "depthwise conv: x must have its channels innermost, or be copied");
    return 1;
  }
  if (a[kPacked]) {
    v.w = (const T*)((const char*)call->in[1].data + kHeader);
  } else {
    T* w = (T*)s;
    v.w = w;
    int64_t ws[5], st[5];
    spatial_view(call->in[1], ws, st);
    with_real(call->in[1].dtype, [&](auto tag) {
      using From = decltype(tag);
      for (int64_t d = 0; d < ws[2]; ++d)
        for (int64_t h = 0; h < ws[3]; ++h)
          for (int64_t k = 0; k < ws[4]; ++k)
            for (int64_t c = 0; c < v.channels; ++c)
              *w++ = convert<T>(((const From*)call->in[1].data)[c * st[0] + d * st[2] + h * st[3] + k * st[4]]);
    });
  }
  const effc_tensor& out = call->out[0];
  v.activate = (a[kSteps] & kActivate) != 0;
  v.direct = !call->epilogue == !v.activate && out.dtype == (__is_same(T, float) ? EFFC_F32 : EFFC_F64) && (out.strides[3] == 1 || v.channels == 1);
  if (a[kSteps]) {
    if (a[kSteps] & kAddBias) v.bias = (const T*)call->in[2].data;
    v.clamp = (a[kSteps] & kClamp) != 0;
    if (v.clamp && call->n_fattr == 2) v.limit[0] = (T)call->fattr[0], v.limit[1] = (T)call->fattr[1];
    if (!v.direct || (a[kSteps] & kAddResidual) || call->n_own != 2 + (v.bias != nullptr) || (v.clamp && call->n_fattr != 2)) {
      call->api->fail(call, "depthwise conv: bias, clamp and activation need a plain result and their operands");
      return 1;
    }
  }
  dw_columns(v);

  /* Blocks of channels: enough for every thread, no wider than the accumulators allow for 8 pixels, and so that the rows of x
   * under a window stay in L1. */
  v.lines = v.batch * a[kSpatial] * a[kSpatial + 1];
  const int64_t step = 2 * Simd<T>::lanes, room_elems = a[kBlockCols], threads = call->api->num_threads(call->run);
  int64_t want = threads > 1 ? 8 * threads : 1;
  const int64_t under = a[kKernel] * a[kKernel + 1] * v.in[2] * (int64_t)sizeof(T), fit = max64(step, kDwNear / max64(1, under));
  v.col_blocks = max64(1, min64(v.channels / step, max64(ceil_div(want, v.lines), ceil_div(v.channels, fit))));
  v.block_cols = v.channels / v.col_blocks / step * step;
  if (v.block_cols == 0) v.block_cols = v.channels;
  v.col_blocks = max64(1, v.channels / v.block_cols);
  int64_t widest = v.channels - (v.col_blocks - 1) * v.block_cols;
  v.segment = max64(1, room_elems / widest);
  if (!v.direct && (widest > room_elems || room_elems * (int64_t)sizeof(T) > call->thread_scratch_bytes)) {
    call->api->fail(call, "depthwise conv: %lld channels do not fit the scratch", (long long)widest);
    return 1;
  }
  /* A thread gets what it wrote: a part of the image or of the channels, as a pointwise convolution before deals them. Of
   * several groups of lines each has as many as the others, and each thread as many groups. */
  int64_t groups = v.channels > v.batch * v.in[0] * v.in[1] * v.in[2] ? 1 : ceil_div(v.lines, kDwGroup);
  if (groups > 1) groups = ceil_div(groups, threads) * threads;
  v.group = ceil_div(v.lines, groups);
  int64_t items = v.lines * v.col_blocks;
  call->api->parallel_for(call->run, items, max64(1, items / (want * 2)), dw_run<T>, &v);
  return 0;
}

}  // namespace conv
}  // namespace effc
#endif
