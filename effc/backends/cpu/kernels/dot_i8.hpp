/* Tiles of products of bytes: c[rows][16 P] += a[rows][k] b[k][16 P], a unsigned, b signed, c 32 bits modulo 2^32, exact.
 *
 * B is in panels of 16 columns, [k / 4][16][4]: four steps of the reduction lie side by side for each column, which is what
 * every byte instruction of x86 wants. A is row-major. One of these is compiled, by the target's flags:
 *
 *   AMX-INT8     tdpbusd on tiles of 16 rows, 64 steps and 16 columns; 2 x 2 tiles of accumulators
 *   AVX512-VNNI  vpdpbusd on 64 bytes: 4 steps of 16 columns
 *   AVX-VNNI     vpdpbusd on 32 bytes: 4 steps of 8 columns
 *   AVX2         vpmaddubsw, vpmaddwd, vpaddd. vpmaddubsw multiplies unsigned by signed bytes, and adds two products into 16
 *                bits with saturation. So the packer (packing/int8.py) gives each panel a form, in which nothing saturates,
 *                whatever the data:
 *                - A unsigned, weights signed: the positive weights of a pair come to 128 at most, and the negative ones to
 *                  -128 at least (255 * 128 = 32640 < 2^15).
 *                - magnitudes: |w| unsigned, and a - 128 signed, of which the product with a negative w takes 127 - a, that is
 *                  -(a - 128) - 1: bits flipped by one exclusive or, which has no -128 to negate. The magnitudes of a pair
 *                  may come to 256 (256 * -128 = -2^15), so any two weights are one; what is left is a constant of each
 *                  column (shifts): sum w a = sum |w| x + 128 sum w + sum of |w| over negative w.
 *                Products are added in 16 bits over several groups before they are widened: a product of depth d takes 1 + 1 / d
 *                multiplications, not 2. In panels of the first form four groups, two, or one are: the packer chooses which
 *                ones, and a panel has its own order of groups (micro_ordered). Panels of magnitudes may have a depth of two
 *                neighbours; pairs of weights that such a sum has no room for lie in blocks of 4 steps by 8 columns, "extras",
 *                which are multiplied in a loop of their own.
 *
 * Intrinsics, because no compiler finds these instructions in loops; tests/null/test_int8.py builds this very text
 * for AVX512-VNNI, AVX-VNNI and AMX with functions that do what Intel's manual says, and runs it on any machine. */
#ifndef EFFC_DOT_I8_HPP
#define EFFC_DOT_I8_HPP
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "simd.hpp"

namespace effc {
namespace i8 {

constexpr int kNR = 16;       /* columns of a panel */
constexpr int kGroup = 4;     /* steps of a group */
constexpr int kAlign = 64;    /* steps that K and its blocks are padded to */
#if defined(__AMX_INT8__)
constexpr int kSteps = 64; /* steps that a tile takes at a time: of the padding, no more than that is multiplied */
#else
constexpr int kSteps = 16;
#endif

/* The blocks of one vector of 8 columns that hold what its sums have no room for, within the tile's reduction steps. */
struct Extras {
  const uint32_t* group; /* which group of 4 steps, counted as the tile's `a` counts */
  const int8_t* data;    /* [8][4] each */
  int64_t count;
};

struct Tile {
  const uint8_t* a;
  int64_t lda;
  const int8_t* b;      /* a panel, or its expand_magnitudes */
  int64_t panel_stride; /* bytes between panels */
  int64_t steps;        /* a multiple of kSteps */
  const int32_t* from;  /* what the accumulators start from; rows ld_from apart, 0 if they all start from one */
  int64_t ld_from;
  int32_t* c;
  int64_t ldc;
  const uint16_t* order; /* of an ordered panel: where each group's steps are in `a`; `quads` times four groups, `pairs` of two */
  int64_t quads, pairs;
  int64_t first_group; /* what extras' groups are counted from */
  Extras extra[2];
};
typedef void (*Micro)(const Tile*);

EFFC_INLINE int32_t four(const uint8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return x;
}

/* acc += x. In assembly, as GCC 12 else mixes the rows of a tile, rotates accumulators through registers, and spills them. */
EFFC_INLINE void accumulate(__m256i& acc, __m256i x) {
  __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(x));
}

/* Accumulators of R rows by two vectors. */
template <int R>
EFFC_INLINE void load_tile(const Tile* t, __m256i (&acc)[R][2]) {
  EFFC_UNROLL_ALL
  for (int i = 0; i < R; ++i)
    EFFC_UNROLL_ALL
    for (int j = 0; j < 2; ++j) acc[i][j] = _mm256_loadu_si256((const __m256i*)(t->from + i * t->ld_from + j * 8));
}
template <int R>
EFFC_INLINE void store_tile(const Tile* t, __m256i (&acc)[R][2]) {
  EFFC_UNROLL_ALL
  for (int i = 0; i < R; ++i)
    EFFC_UNROLL_ALL
    for (int j = 0; j < 2; ++j) _mm256_storeu_si256((__m256i*)(t->c + i * t->ldc + j * 8), acc[i][j]);
}

#if defined(__AMX_INT8__)
/* ---- AMX: rows are computed in full tiles of 16; A and C have room for them ---- */
#define EFFC_I8_VARIANT "amx_int8"
constexpr int kRows = 32, kPanels = 2, kWholeRows = 16;
constexpr bool kSplit = false;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
/* Around the tiles of a task; the state is the thread's. */
EFFC_INLINE void begin() {
  const TileConfig config;
  _tile_loadconfig(&config);
}
EFFC_INLINE void end() { _tile_release(); }

template <int R, int P>
void micro(const Tile* t) {
  const int64_t lda = t->lda, ldc = t->ldc * 4, ld_from = t->ld_from * 4;
  const uint8_t* a = t->a;
  const int8_t *b0 = t->b, *b1 = t->b + t->panel_stride;
  const int32_t* from = t->from;
  int32_t* c = t->c;
  _tile_loadd(0, from, ld_from);
  if (P > 1) _tile_loadd(1, from + kNR, ld_from);
  if (R > 16) _tile_loadd(2, from + 16 * t->ld_from, ld_from);
  if (R > 16 && P > 1) _tile_loadd(3, from + 16 * t->ld_from + kNR, ld_from);
  for (int64_t k = 0; k < t->steps; k += 64) {
    _tile_loadd(4, a + k, lda);
    _tile_loadd(6, b0 + k * kNR, 64);
    _tile_dpbusd(0, 4, 6);
    if (P > 1) {
      _tile_loadd(7, b1 + k * kNR, 64);
      _tile_dpbusd(1, 4, 7);
    }
    if (R > 16) {
      _tile_loadd(5, a + 16 * lda + k, lda);
      _tile_dpbusd(2, 5, 6);
      if (P > 1) _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, c, ldc);
  if (P > 1) _tile_stored(1, c + kNR, ldc);
  if (R > 16) _tile_stored(2, c + 16 * t->ldc, ldc);
  if (R > 16 && P > 1) _tile_stored(3, c + 16 * t->ldc + kNR, ldc);
}

#elif defined(__AVX512VNNI__) && EFFC_VLEN >= 64
#define EFFC_I8_VARIANT "avx512vnni"
constexpr int kRows = 12, kPanels = 2, kWholeRows = 1;
constexpr bool kSplit = false;
EFFC_INLINE void begin() {}
EFFC_INLINE void end() {}

template <int R, int P>
void micro(const Tile* t) {
  __m512i acc[R][P];
  const int64_t lda = t->lda, ldc = t->ldc, groups = t->steps / kGroup;
  EFFC_UNROLL_ALL
  for (int i = 0; i < R; ++i)
    EFFC_UNROLL_ALL
    for (int j = 0; j < P; ++j) acc[i][j] = _mm512_loadu_si512(t->from + i * t->ld_from + j * kNR);
  const uint8_t* a = t->a;
  const int8_t* b = t->b;
  for (int64_t g = 0; g < groups; ++g, a += kGroup, b += kGroup * kNR) {
    __m512i w[P];
    EFFC_UNROLL_ALL
    for (int j = 0; j < P; ++j) w[j] = _mm512_loadu_si512(b + j * t->panel_stride);
    EFFC_UNROLL_ALL
    for (int i = 0; i < R; ++i) {
      const __m512i x = _mm512_set1_epi32(four(a + i * lda));
      EFFC_UNROLL_ALL
      for (int j = 0; j < P; ++j) acc[i][j] = _mm512_dpbusd_epi32(acc[i][j], x, w[j]);
    }
  }
  EFFC_UNROLL_ALL
  for (int i = 0; i < R; ++i)
    EFFC_UNROLL_ALL
    for (int j = 0; j < P; ++j) _mm512_storeu_si512(t->c + i * ldc + j * kNR, acc[i][j]);
}

#else
/* ---- 32-byte vectors, two to a panel ---- */
constexpr int kPanels = 1, kWholeRows = 1;
EFFC_INLINE void begin() {}
EFFC_INLINE void end() {}

#if defined(__AVXVNNI__)
#define EFFC_I8_VARIANT "avxvnni"
constexpr bool kSplit = false;
constexpr int kRows = 6;

template <int R, int P>
void micro(const Tile* t) {
  __m256i acc[R][2];
  const int64_t lda = t->lda, groups = t->steps / kGroup;
  load_tile(t, acc);
  const uint8_t* a = t->a;
  const int8_t* b = t->b;
  for (int64_t g = 0; g < groups; ++g, a += kGroup, b += kGroup * kNR) {
    const __m256i w0 = _mm256_loadu_si256((const __m256i*)b), w1 = _mm256_loadu_si256((const __m256i*)(b + 32));
    EFFC_UNROLL_ALL
    for (int i = 0; i < R; ++i) {
      const __m256i x = _mm256_set1_epi32(four(a + i * lda));
      acc[i][0] = _mm256_dpbusd_avx_epi32(acc[i][0], x, w0);
      acc[i][1] = _mm256_dpbusd_avx_epi32(acc[i][1], x, w1);
    }
  }
  store_tile(t, acc);
}
#else
#define EFFC_I8_VARIANT "avx2"
constexpr bool kSplit = true;
constexpr int kRows = 4;
template <int R, int P>
void micro(const Tile*); /* none: every panel has a form of those below */
#endif
#endif

/* The forms of a panel; mirrored by packing/int8.py. All but the first are those of instructions that saturate. */
enum Form : uint8_t { kPairs = 0, kOrdered = 4, kMagnitudes = 9, kMagnitudes2 = 10 };
constexpr int kOrderedRows = kSplit ? 3 : 0; /* twice the accumulators: those of 16 bits, too */
constexpr int kMagnitudeRows = kSplit ? 4 : 0, kMagnitude2Rows = kSplit ? 8 : 0; /* of two vectors, and of one */
constexpr bool has_magnitudes(uint8_t form) { return form & 8; }

/* What turns A's unsigned bytes into the signed ones that |w| multiplies. */
EFFC_INLINE __m256i flips_of(__m256i w) { /* 0x80, or 0x7f where w is negative */
  return _mm256_xor_si256(_mm256_cmpgt_epi8(_mm256_setzero_si256(), w), _mm256_set1_epi8((char)0x80));
}
/* Sums of neighbours of 16 bits, in 32. */
EFFC_INLINE __m256i widened(__m256i pairs, __m256i ones) {
  return _mm256_madd_epi16(pairs, ones);
}

/* ---- panels of magnitudes ---- */

/* Where a panel serves many tiles, |w| and what flips A are written down once, in the order in which the micro-kernels read
 * them: two vectors of the one, then two of the other. A depth of one takes both vectors of a group together, a depth of
 * two the two groups of a vector. */
template <int D>
EFFC_INLINE void expand(const int8_t* b, int64_t steps, int8_t* to) {
  constexpr int64_t kNext = D == 1 ? 32 : kGroup * kNR; /* bytes from one vector to the one beside it */
  for (int64_t k = 0; k < steps * kNR; k += D * kGroup * kNR)
    for (int j = 0; j < D; ++j)
      for (int d = 0; d < 2; ++d) {
        const __m256i w = _mm256_loadu_si256((const __m256i*)(b + k + j * 32 + d * kNext));
        int8_t* at = to + 2 * k + j * 128 + d * 32;
        _mm256_storeu_si256((__m256i*)at, _mm256_abs_epi8(w));
        _mm256_storeu_si256((__m256i*)(at + 64), flips_of(w));
      }
}
inline void expand_magnitudes(uint8_t form, const int8_t* b, int64_t steps, int8_t* to) {
  if (form == kMagnitudes)
    expand<1>(b, steps, to);
  else
    expand<2>(b, steps, to);
}

/* Two vectors of magnitudes that are multiplied together, and their flips, expanded or not. */
template <bool EXPANDED, int NEXT>
EFFC_INLINE void load_magnitudes(const int8_t* b, __m256i (&w)[2], __m256i (&flips)[2]) {
  EFFC_UNROLL_ALL
  for (int d = 0; d < 2; ++d) {
    w[d] = _mm256_loadu_si256((const __m256i*)(b + d * (EXPANDED ? 32 : NEXT)));
    flips[d] = EXPANDED ? _mm256_loadu_si256((const __m256i*)(b + 64 + d * 32)) : flips_of(w[d]);
    if (!EXPANDED) w[d] = _mm256_abs_epi8(w[d]);
  }
}

template <int R, bool EXPANDED>
void micro_magnitudes(const Tile* t) {
  __m256i acc[R][2];
  const int64_t lda = t->lda, groups = t->steps / kGroup;
  load_tile(t, acc);
  const uint8_t* a = t->a;
  const int8_t* b = t->b;
  __m256i ones = _mm256_set1_epi16(1);
  __asm__("" : "+x"(ones)); /* it stays in its register */
  for (int64_t g = 0; g < groups; ++g, a += kGroup, b += (EXPANDED ? 2 : 1) * kGroup * kNR) {
    __m256i w[2], flips[2];
    load_magnitudes<EXPANDED, 32>(b, w, flips);
    EFFC_UNROLL_ALL
    for (int i = 0; i < R; ++i) {
      const __m256i x = _mm256_set1_epi32(four(a + i * lda));
      EFFC_UNROLL_ALL
      for (int j = 0; j < 2; ++j)
        accumulate(acc[i][j], widened(_mm256_maddubs_epi16(w[j], _mm256_xor_si256(x, flips[j])), ones));
    }
  }
  store_tile(t, acc);
}

/* Depth two. One vector after the other, of twice the rows: four registers hold weights and flips of two groups. */
template <int R, bool EXPANDED>
void micro_magnitudes2(const Tile* t) {
  const int64_t lda = t->lda, groups = t->steps / kGroup;
  __m256i ones = _mm256_set1_epi16(1);
  __asm__("" : "+x"(ones));
  for (int j = 0; j < 2; ++j) {
    __m256i acc[R];
    EFFC_UNROLL_ALL
    for (int i = 0; i < R; ++i) acc[i] = _mm256_loadu_si256((const __m256i*)(t->from + i * t->ld_from + j * 8));
    const uint8_t* a = t->a;
    const int8_t* b = t->b + j * (EXPANDED ? 128 : 32);
    for (int64_t g = 0; g < groups; g += 2, a += 2 * kGroup, b += (EXPANDED ? 4 : 2) * kGroup * kNR) {
      __m256i w[2], flips[2];
      load_magnitudes<EXPANDED, kGroup * kNR>(b, w, flips);
      EFFC_UNROLL_ALL
      for (int i = 0; i < R; ++i) {
        const __m256i x0 = _mm256_set1_epi32(four(a + i * lda)), x1 = _mm256_set1_epi32(four(a + i * lda + kGroup));
        const __m256i y0 = _mm256_maddubs_epi16(w[0], _mm256_xor_si256(x0, flips[0]));
        const __m256i y1 = _mm256_maddubs_epi16(w[1], _mm256_xor_si256(x1, flips[1]));
        accumulate(acc[i], widened(_mm256_add_epi16(y0, y1), ones));
      }
    }
    const Extras& e = t->extra[j];
    for (int64_t s = 0; s < e.count; ++s) {
      const __m256i both = _mm256_loadu_si256((const __m256i*)(e.data + s * 32));
      const __m256i w = _mm256_abs_epi8(both), flips = flips_of(both);
      const uint8_t* p = t->a + (e.group[s] - t->first_group) * kGroup;
      EFFC_UNROLL_ALL
      for (int i = 0; i < R; ++i) {
        const __m256i x = _mm256_set1_epi32(four(p + i * lda));
        accumulate(acc[i], widened(_mm256_maddubs_epi16(w, _mm256_xor_si256(x, flips)), ones));
      }
    }
    EFFC_UNROLL_ALL
    for (int i = 0; i < R; ++i) _mm256_storeu_si256((__m256i*)(t->c + i * t->ldc + j * 8), acc[i]);
  }
}

/* ---- ordered panels ---- */

/* `count` times D groups, which are added in 16 bits; group by group, so that a weight is loaded once for all rows. */
template <int D, int R>
EFFC_INLINE void add_groups(__m256i (&acc)[R][2], const uint8_t* const (&a)[R], const int8_t*& b, const uint16_t*& order,
                            int64_t count) {
  /* 12 accumulators leave 4 registers: the ones stay in memory, and GCC 12 must not reorder the additions. */
  alignas(32) static constexpr int16_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  for (const uint16_t* end = order + count * D; order < end; order += D, b += D * kGroup * kNR) {
    __m256i sum[R][2];
    EFFC_UNROLL_ALL
    for (int d = 0; d < D; ++d) {
      const __m256i w0 = _mm256_loadu_si256((const __m256i*)(b + d * kGroup * kNR));
      const __m256i w1 = _mm256_loadu_si256((const __m256i*)(b + d * kGroup * kNR + 32));
      uint64_t at = order[d];
      __asm__("" : "+r"(at)); /* an index: one addition for all rows would be one for each group */
      EFFC_UNROLL_ALL
      for (int i = 0; i < R; ++i) {
        const __m256i x = _mm256_set1_epi32(four(a[i] + at));
        const __m256i y0 = _mm256_maddubs_epi16(x, w0), y1 = _mm256_maddubs_epi16(x, w1);
        sum[i][0] = d ? _mm256_add_epi16(sum[i][0], y0) : y0;
        sum[i][1] = d ? _mm256_add_epi16(sum[i][1], y1) : y1;
        __asm__("" : "+x"(sum[i][0]), "+x"(sum[i][1]));
      }
    }
    EFFC_UNROLL_ALL
    for (int i = 0; i < R; ++i)
      EFFC_UNROLL_ALL
      for (int j = 0; j < 2; ++j) {
        __asm__("vpmaddwd %1, %0, %0" : "+x"(sum[i][j]) : "m"(ones));
        accumulate(acc[i][j], sum[i][j]);
      }
  }
}

template <int R>
void micro_ordered(const Tile* t) {
  __m256i acc[R][2];
  load_tile(t, acc);
  const uint8_t* a[R];
  EFFC_UNROLL_ALL
  for (int i = 0; i < R; ++i) {
    a[i] = t->a + i * t->lda;
    __asm__("" : "+r"(a[i])); /* in registers of their own */
  }
  const int8_t* b = t->b;
  const uint16_t* order = t->order;
  add_groups<4>(acc, a, b, order, t->quads);
  add_groups<2>(acc, a, b, order, t->pairs);
  add_groups<1>(acc, a, b, order, t->steps / kGroup - 4 * t->quads - 2 * t->pairs);
  store_tile(t, acc);
}

/* Rows of the next tile of at most `most` where `left` are left: as even as can be, or whole hardware tiles. */
inline int64_t tile_rows(int64_t left, int64_t most = kRows) {
  if (kWholeRows > 1) return left < most ? left : most;
  const int64_t tiles = (left + most - 1) / most;
  return (left + tiles - 1) / tiles;
}

struct Table {
  Micro fn[kRows / kWholeRows][kPanels];         /* [(rows - 1) / kWholeRows][panels - 1] */
  Micro ordered[kOrderedRows + 1];               /* [rows] */
  Micro magnitudes[2][2][kMagnitude2Rows + 1];   /* [depth - 1][expanded][rows] */

  /* The kernel for `rows` rows of `panels` panels of a form. */
  Micro of(uint8_t form, int64_t rows, int64_t panels, bool expanded) const {
    if (!kSplit) return fn[(rows - 1) / kWholeRows][panels - 1];
    return has_magnitudes(form) ? magnitudes[form - kMagnitudes][expanded][rows] : ordered[rows];
  }
  /* The most rows of a tile of a form. */
  static int64_t most_rows(uint8_t form) {
    if (!kSplit) return kRows;
    return form == kOrdered ? kOrderedRows : form == kMagnitudes ? kMagnitudeRows : kMagnitude2Rows;
  }
};
template <int I>
constexpr void fill_table(Table& t) {
  if constexpr (!kSplit && I < kRows / kWholeRows) {
    t.fn[I][0] = micro<(I + 1) * kWholeRows, 1>;
    if constexpr (kPanels > 1) t.fn[I][1] = micro<(I + 1) * kWholeRows, 2>;
    fill_table<I + 1>(t);
  }
}
template <int R>
constexpr void fill_magnitudes(Table& t) {
  if constexpr (R > 0) {
    if constexpr (R <= kMagnitudeRows)
      t.magnitudes[0][0][R] = micro_magnitudes<R, false>, t.magnitudes[0][1][R] = micro_magnitudes<R, true>;
    t.magnitudes[1][0][R] = micro_magnitudes2<R, false>, t.magnitudes[1][1][R] = micro_magnitudes2<R, true>;
    fill_magnitudes<R - 1>(t);
  }
}
template <int R>
constexpr void fill_ordered(Table& t) {
  if constexpr (R > 0) {
    t.ordered[R] = micro_ordered<R>;
    fill_ordered<R - 1>(t);
  }
}
constexpr Table make_table() {
  Table t{};
  fill_table<0>(t);
  fill_magnitudes<kMagnitude2Rows>(t);
  fill_ordered<kOrderedRows>(t);
  return t;
}

}  // namespace i8
}  // namespace effc
#endif
