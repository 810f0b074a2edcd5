/* Matrix multiplication C[b0,b1] = A[b0,b1] B[b0,b1] of any strides, one driver for every element type.
 *
 * B is consumed in panels of NR columns, [k][NR], the last panel zero padded; A is read in place, row by row, if its k is
 * contiguous and its type is the accumulator's, else converted block by block. The micro-kernel keeps up to 6 rows by
 * kNV vectors of accumulators in registers and broadcasts elements of A from memory. A tile's rows meet several panels in turn, so
 * that they stay in the first level of the cache and what comes from the second is one stream. Blocking follows Goto and van de Geijn,
 * "Anatomy of high-performance matrix multiplication" (2008), except that whole panels of a constant B are laid out in
 * advance (packing/gemm.py) and prefetched one panel ahead, because there the loads from L3 or memory are the limit.
 *
 * B comes in one of these ways:
 *   packed   a constant laid out by packing/gemm.py, possibly stored in a shorter type
 *   in place n contiguous and few rows of A: each element of B is used too few times to be worth a copy; k contiguous and
 *            very few rows: dot products
 *   task     each task packs the [KC][NR] block that it uses next into thread scratch (few blocks of rows)
 *   shared   all of B is packed first, in scratch, by all threads (many blocks of rows)
 * The order of additions depends on the shape only, never on threads: KC blocks in order, and for tiny outputs with a
 * huge reduction a fixed number of partial sums ("split k") that are added in order.
 *
 * The sizes of a block (Blocking) are three attributes of every call, 0 for the built-in ones: lower/contraction.py chooses.
 *
 * Scratch, mirrored by lower/contraction.py: see scratch_bytes(), ThreadScratch.
 */
#ifndef EFFC_GEMM_HPP
#define EFFC_GEMM_HPP
#include <string.h>

#include "effc_kernel.h"
#include "simd.hpp"

namespace effc {
namespace gemm {

constexpr int kMR = 6;                          /* rows of a tile */
constexpr int kMaxMR = 16;                      /* of any format's tile (dot_bf16.hpp) */
constexpr int kNV = EFFC_VLEN >= 64 ? 4 : 2;    /* vectors of a panel */
template <class T>
constexpr int kNR = kNV * lanes<T>;             /* columns of a panel */
constexpr int64_t kKC = 1024;                   /* reduction steps of a block */
constexpr int64_t kTilesMC = 12;                /* tiles of a block of rows */
constexpr int64_t kMC = kTilesMC * kMR;
constexpr int64_t kMaxTilesMC = 96;
constexpr int64_t kNC = 512;                    /* most columns of a task */
constexpr int64_t kGroupBytes = 192 << 10;      /* of the panels that a tile of rows meets in turn, at most */
constexpr int64_t kGroup = 4;                   /* of these, at most, but where whole rows of C are written */
constexpr int64_t kInPlaceRows = 2 * kMR;       /* up to here an n-contiguous B is read in place */
constexpr int64_t kSplitSteps = 4096;           /* shortest reduction that is split */
constexpr int64_t kHeader = 64;                 /* bytes before packed data */
constexpr uint32_t kFormat = 1, kVersion = 2;

/* Of packed data: packing/gemm.py. */
struct Header {
  char magic[8];
  uint32_t format, version, dtype, nr;
  int64_t batches, k, n;
  uint64_t checksum;
  uint32_t kr, reserved;
};
static_assert(sizeof(Header) == kHeader, "header");

template <class T>
T min(T a, T b) { return a < b ? a : b; }
template <class T>
T max(T a, T b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class F>
void parallel(const effc_call* call, int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  call->api->parallel_for(
      call->run, n, grain,
      [](void* arg, int64_t begin, int64_t end, int32_t worker) { (*(const F*)arg)(begin, end, worker); }, (void*)&f);
}

/* ---- micro-kernels ---- */

struct Tile {
  int64_t k;                 /* reduction steps */
  const void* a;             /* element (0, 0) of the tile's rows; k contiguous */
  int64_t lda;               /* bytes between rows */
  const void* b;             /* first panel */
  int64_t ldb, panel_stride; /* elements between reduction steps, between panels */
  void* c;
  int64_t ldc; /* elements */
  bool accumulate;
  const char* next; /* what to prefetch: the next panel */
  int64_t next_step;
  int64_t in_turn = 1, turn_bytes = 0; /* whole panels that the rows meet one after another, from one to the next (so is `next`) */
};
typedef void (*Micro)(const Tile*);

/* Elements of packed panels of bfloat16, [k / 2][NR][2]: two steps of the reduction side by side, so that they are
 * widened without a shuffle, and are what the instructions for pairs want.
 *   bf16_pair  widened: a panel's element serves two steps, which are k's
 *   bf16_dot   multiplied as pairs (dot_bf16.hpp): so are the elements of A, and a step is a pair */
struct bf16_pair {
  uint32_t bits;
};
struct bf16_dot {
  uint32_t bits;
};
template <class TB>
constexpr int steps_of = __is_same(TB, bf16_pair) ? 2 : 1; /* that an element of a panel serves */

/* The second elements of pairs. The mask stays in memory: a tile leaves no register for it. */
EFFC_INLINE Vec<float> high_halves(VecOf<uint32_t>::type bits) {
#if EFFC_VLEN <= EFFC_HARDWARE_VLEN
  alignas(EFFC_VLEN) static constexpr uint32_t mask[EFFC_VLEN / 4] = {
      0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
#if EFFC_VLEN == 64
      0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
#endif
  };
  Vec<float> r;
  __asm__("vandps %2, %1, %0" : "=v"(r) : "v"(bits), "m"(mask));
  return r;
#else
  return (Vec<float>)(bits & 0xffff0000u);
#endif
}

/* The vector at p for step `o` of an element's steps. */
template <class TB>
EFFC_INLINE auto load_step(const TB* p, int o) {
  if constexpr (steps_of<TB> == 2) {
    const auto bits = load((const uint32_t*)p);
    return o % 2 ? high_halves(bits) : (Vec<float>)(bits << 16);
  } else if constexpr (__is_same(TB, bf16_dot)) {
    return load((const float*)p);
  } else {
    return load_wide(p);
  }
}

/* acc += a * b, for elements of TB. */
template <class TB>
struct Product {
  template <class V>
  EFFC_INLINE void add(V& acc, V a, V b) {
    multiply_add(acc, a, b);
  }
  template <class T>
  EFFC_INLINE T one(T a, TB b) {
    return a * convert<T>(b);
  }
};

/* U steps of k: whole elements of B, or the first step of the last one. A function and no lambda: GCC 12 keeps accumulators
 * that a closure refers to in memory. */
template <int U, bool COLUMNS, class T, class TB, int MR, int NV>
EFFC_INLINE void steps(Vec<T> (&acc)[MR][NV], const char*& p0, const char*& p1, int64_t lda, const TB*& b, int64_t ldb,
                       int64_t panel_stride) {
  constexpr int L = lanes<T>, S = (int)sizeof(T);
  typedef Vec<T> V;
  EFFC_UNROLL_ALL
  for (int o = 0; o < U; ++o) {
    V x[NV <= kNV ? NV : 1], y[MR];
    if constexpr (NV <= kNV) {
      EFFC_UNROLL_ALL
      for (int j = 0; j < NV; ++j) x[j] = load_step(b + j * L, o);
    }
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i) {
      y[i] = splat(*(const T*)(COLUMNS ? p0 + i * S : (i < 3 ? p0 : p1) + (i % 3) * lda + o * S));
      if constexpr (NV <= kNV) {
        EFFC_UNROLL_ALL
        for (int j = 0; j < NV; ++j) Product<TB>::add(acc[i][j], y[i], x[j]);
      }
    }
    if constexpr (NV > kNV) {
      EFFC_UNROLL_ALL
      for (int j = 0; j < NV; ++j) {
        const V w = load_step(b + (j / kNV) * panel_stride + (j % kNV) * L, o);
        EFFC_UNROLL_ALL
        for (int i = 0; i < MR; ++i)
          if constexpr (__is_same(TB, T))
            acc[i][j] += y[i] * w; /* w straight from memory */
          else
            Product<TB>::add(acc[i][j], y[i], w);
      }
    }
    if (o % steps_of<TB> == steps_of<TB> - 1) b += ldb;
    if constexpr (COLUMNS) p0 += lda;
  }
  if constexpr (!COLUMNS) p0 += U * S, p1 += U * S;
}

/* c[MR][NV vectors] (+)= a[MR][k] b[k][NV vectors], k counted in steps. Vectors beyond kNV come from the following panels.
 * With COLUMNS, a is stored [k][MR] and lda is the distance between reduction steps. */
template <class T, class TB, int MR, int NV, bool COLUMNS>
EFFC_INLINE void micro_panel(const Tile* t, T* c, const TB* b, const char* next) {
  constexpr int L = lanes<T>, U = 4;
  typedef Vec<T> V;
  V acc[MR][NV];
  const int64_t ldc = t->ldc;
  if (t->accumulate) {
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL_ALL
      for (int j = 0; j < NV; ++j) acc[i][j] = load(c + i * ldc + j * L);
  } else {
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL_ALL
      for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  }
  /* Rows are addressed as p0, p1 + {0,1,2} * lda: few registers, and no induction variable per row. */
  int64_t lda = t->lda;
  const char* p0 = (const char*)t->a;
  const char* p1 = p0 + 3 * lda;
  const int64_t ldb = t->ldb, panel_stride = t->panel_stride;
  const int64_t next_step = t->next_step;
  int64_t k = t->k;
  for (; k >= U; k -= U) {
    __asm__("" : "+r"(p0), "+r"(lda));
    if constexpr (MR > 3) __asm__("" : "+r"(p1));
    __builtin_prefetch(next, 0, 2);
    __builtin_prefetch(next + 64, 0, 2);
    next += next_step;
    steps<U, COLUMNS, T>(acc, p0, p1, lda, b, ldb, panel_stride);
  }
  if constexpr (steps_of<TB> > 1)
    for (; k > 1; k -= 2) steps<2, COLUMNS, T>(acc, p0, p1, lda, b, ldb, panel_stride);
  for (; k > 0; --k) steps<1, COLUMNS, T>(acc, p0, p1, lda, b, ldb, panel_stride);
  EFFC_UNROLL_ALL
  for (int i = 0; i < MR; ++i)
    EFFC_UNROLL_ALL
    for (int j = 0; j < NV; ++j) store(c + i * ldc + j * L, acc[i][j]);
}

template <class T, class TB, int MR, int NV, bool COLUMNS = false>
void micro(const Tile* t) {
  micro_panel<T, TB, MR, NV, COLUMNS>(t, (T*)t->c, (const TB*)t->b, t->next);
}

/* Whole panels that a tile's rows meet in turn. That their loop is in here saves what a call costs, which shows where reductions are
 * short; callers with one panel do without it. */
template <class T, class TB, int MR>
void micro_in_turn(const Tile* t) {
  T* c = (T*)t->c;
  const char *b = (const char*)t->b, *next = t->next;
  for (int64_t left = t->in_turn;;) {
    micro_panel<T, TB, MR, kNV, false>(t, c, (const TB*)b, next);
    if (--left <= 0) return;
    c += kNR<T>, b += t->turn_bytes, next += t->turn_bytes;
  }
}

/* Panels that a tile of `rows` rows can take at once: narrow tiles need more columns to hide the latency of the FMAs. */
constexpr int panels_at_once(int rows) {
  return EFFC_VLEN >= 64 ? (rows <= 3 ? 2 : 1) : (rows == 1 ? 4 : rows <= 3 ? 2 : 1);
}

struct Table {
  Micro fn[kMaxMR][kNV + 1]; /* [rows - 1][vectors - 1]; the last column takes panels_at_once(rows) panels */
};
template <class T, class TB, int R>
constexpr void fill_row(Table& t) {
  t.fn[R - 1][0] = micro<T, TB, R, 1>;
  if constexpr (kNV > 2) {
    t.fn[R - 1][1] = micro<T, TB, R, 2>;
    t.fn[R - 1][2] = micro<T, TB, R, 3>;
  }
  t.fn[R - 1][kNV - 1] = micro_in_turn<T, TB, R>;
  t.fn[R - 1][kNV] = micro<T, TB, R, kNV * panels_at_once(R)>;
}
template <class T, class TB>
constexpr Table make_table() {
  Table t{};
  fill_row<T, TB, 1>(t);
  fill_row<T, TB, 2>(t);
  fill_row<T, TB, 3>(t);
  fill_row<T, TB, 4>(t);
  fill_row<T, TB, 5>(t);
  fill_row<T, TB, 6>(t);
  return t;
}

/* ---- moving data ---- */

template <class T, class S>
auto longer() {
  if constexpr (sizeof(T) >= sizeof(S))
    return T{};
  else
    return S{};
}
struct Same {
  template <class X>
  inline __attribute__((always_inline)) X operator()(X x, int64_t) const {
    return x;
  }
};

/* dst[c][r] = f(src[r][c], c) for r < rows, c < cols, dst rows ldd apart; f takes a number of the longer type, or a vector of those
 * from c on. */
template <class T, class S, class F = Same>
void transpose(const S* src, int64_t lds, T* dst, int64_t ldd, int64_t rows, int64_t cols, const F& f = F()) {
  typedef decltype(longer<T, S>()) A;
  constexpr int64_t L = lanes<T>;
  int64_t r = 0;
  if constexpr (__is_same(T, S) || (__is_same(T, float) && (__is_same(S, f16) || __is_same(S, bf16)))) {
    for (; r + L <= rows; r += L) {
      int64_t c = 0;
      for (; c + L <= cols; c += L)
        transpose_block([&](int i) { return f(load_wide(src + (r + i) * lds + c), c); }, dst + c * ldd + r, ldd);
      for (; c < cols; ++c)
        for (int64_t i = 0; i < L; ++i) dst[c * ldd + r + i] = f(convert<T>(src[(r + i) * lds + c]), c);
    }
  }
  for (; r < rows; r += 8) {
    const int64_t h = min<int64_t>(8, rows - r);
    for (int64_t c = 0; c < cols; ++c)
      for (int64_t i = 0; i < h; ++i) dst[c * ldd + r + i] = convert<T>(f(convert<A>(src[(r + i) * lds + c]), c));
  }
}

/* dst[r][c] = src[r * sr + c * sc], any strides. */
template <class T, class S>
void copy_block(const S* src, int64_t sr, int64_t sc, T* dst, int64_t ldd, int64_t rows, int64_t cols) {
  if (sc == 1 || cols == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      int64_t c = 0;
      if constexpr (__is_same(T, float) && __is_same(S, f16))
        for (; c + lanes<T> <= cols; c += lanes<T>) store(dst + r * ldd + c, load_wide(src + r * sr + c));
      for (; c < cols; ++c) dst[r * ldd + c] = convert<T>(src[r * sr + c]);
    }
  } else if (sr == 1) {
    transpose<T, S>(src, sc, dst, ldd, cols, rows);
  } else {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) dst[r * ldd + c] = convert<T>(src[r * sr + c * sc]);
  }
}

/* c[R][n] (+)= a[R][k] b[n][k]: few rows against a right-hand side whose k is contiguous, as dot products. */
template <class T, class S, int R>
void dot_rows(const Tile* t, int64_t n) {
  constexpr int L = lanes<T>, C = 4;
  const int64_t k = t->k, lda = t->lda / (int64_t)sizeof(T), whole = k / L * L;
  const T* a = (const T*)t->a;
  for (int64_t j = 0; j < n; j += C) {
    const S* b[C];
    EFFC_UNROLL_ALL
    for (int c = 0; c < C; ++c) b[c] = (const S*)t->b + min(j + c, n - 1) * t->ldb;
    Vec<T> acc[R][C] = {};
    for (int64_t i = 0; i < whole; i += L) {
      Vec<T> x[C];
      EFFC_UNROLL_ALL
      for (int c = 0; c < C; ++c) {
        x[c] = load_step(b[c] + i, 0);
        __builtin_prefetch(b[c] + i + 2 * C * t->ldb, 0, 2); /* rows are short streams: the hardware starts anew at each */
      }
      EFFC_UNROLL_ALL
      for (int r = 0; r < R; ++r) {
        const Vec<T> y = load(a + r * lda + i);
        EFFC_UNROLL_ALL
        for (int c = 0; c < C; ++c)
          if constexpr (__is_same(S, bf16_dot))
            Product<S>::add(acc[r][c], y, x[c]);
          else
            acc[r][c] += y * x[c];
      }
    }
    for (int c = 0; c < C && j + c < n; ++c)
      for (int r = 0; r < R; ++r) {
        T sum = sum_lanes<T>(acc[r][c]);
        for (int64_t i = whole; i < k; ++i) sum += Product<S>::one(a[r * lda + i], b[c][i]);
        T* dst = (T*)t->c + r * t->ldc + j + c;
        *dst = t->accumulate ? *dst + sum : sum;
      }
  }
}
constexpr int64_t kDotRows = 4;
template <class T, class S>
void dot(const Tile* t, int64_t rows, int64_t n) {
  if (rows == 1) dot_rows<T, S, 1>(t, n);
  if (rows == 2) dot_rows<T, S, 2>(t, n);
  if (rows == 3) dot_rows<T, S, 3>(t, n);
  if (rows == 4) dot_rows<T, S, 4>(t, n);
}

/* ---- the driver ---- */

struct Matrix {
  char* data;
  int64_t batch0, batch1, row, col; /* strides in elements */
};

/* How storage meets accumulators. Functions get the matrix of one batch (data already advanced). */
template <class T>
struct Format {
  int unit;       /* accumulator rows per row of A: 2 for complex numbers */
  bool a_direct;  /* A's storage type is T */
  bool b_direct;
  bool c_direct;
  int a_size, b_size, c_size; /* bytes of an element in storage */
  /* dst[m1 - m0][ld] = A[m0:m1, k0:k1]; k0 and k1 are steps, k_total is A's own size */
  void (*load_a)(const Matrix&, int64_t k_total, int64_t m0, int64_t m1, int64_t k0, int64_t k1, T* dst, int64_t ld);
  /* dst[k1 - k0][NR] = B[k0:k1, n0:n0+n], zero padded */
  void (*load_b)(const Matrix&, int64_t k_total, int64_t k0, int64_t k1, int64_t n0, int64_t n, T* dst);
  /* C[m0:m1, n0:n1] = acc */
  void (*store)(const Matrix&, int64_t m0, int64_t m1, int64_t n0, int64_t n1, const T* acc, int64_t ld);
  const Table* table;        /* for panels of T */
  const Table* packed_table; /* for packed constants */
  int packed_size;           /* bytes of their elements */
  void (*dot)(const Tile*, int64_t rows, int64_t n); /* null if the format has none */
  int step = 1;         /* k's of a step: 2 where elements are pairs */
  int packed_steps = 1; /* steps that an element of a packed constant serves */
  int mr = kMR;             /* rows of a tile */
  void (*done)() = nullptr; /* after a task */
  /* Looks at the operands (B is null where it is packed) of this k: it may read them as other elements. */
  void (*adapt)(Format& f, Matrix& a, Matrix* b, int64_t k) = nullptr;
};

/* Reduction steps of a block, tiles of a block of rows, most columns of a task. */
struct Blocking {
  int64_t steps = kKC, tiles = kTilesMC, cols = kNC;

  /* From attributes [first, first + 3), for tiles of mr rows. False if they are no sizes. */
  bool read(const effc_call* call, int first, int mr) {
    tiles = kMC / mr;
    if (call->n_attr < first + 3) return false;
    const int64_t* a = call->attr + first;
    if (a[0] < 0 || a[1] < 0 || a[1] > kMaxTilesMC || a[2] < 0) return false;
    if (a[0]) steps = a[0];
    if (a[1]) tiles = a[1];
    if (a[2]) cols = a[2];
    return true;
  }
};

/* A thread's scratch, in elements: a block of results, one of A, and of a panel of B, none longer than the operands.
 * Blocks of the same areas, higher and narrower (Driver::taller), fit it too. Mirrored by thread_scratch() of
 * packing/gemm.py. */
template <class T>
struct ThreadScratch {
  int64_t results, a, b;
  ThreadScratch(const Blocking& size, int mr, int64_t tiles, int64_t panels, int64_t k) {
    constexpr int64_t line = 64 / (int64_t)sizeof(T);
    const int64_t rows = size.tiles * mr, depth = (ceil_div(k, line) + 1) * line; /* rows of A lie odd lines apart */
    results = min(rows * max<int64_t>(size.cols, kNR<T>), tiles * mr * panels * kNR<T>);
    a = min(rows * size.steps, tiles * mr * depth);
    b = min(size.steps, depth) * kNR<T>;
  }
  int64_t bytes() const { return (int64_t)sizeof(T) * (results + a + b); }
};

template <class T>
struct Driver {
  Driver(const effc_call* call_, const Format<T>& format) : call(call_), f(format) {}
  const effc_call* call;
  const Format<T>& f;
  int64_t b0 = 0, b1 = 0, m = 0, n = 0, k = 0; /* m, k in accumulator rows and steps */
  int64_t inner = 0;                           /* k of the operands */
  Matrix a{}, b{}, c{};
  Blocking size;
  const char* packed = nullptr; /* panels of a packed constant, or of B in shared scratch */
  const Table* table = nullptr;
  int packed_size = 0, packed_steps = 1;
  int64_t packed_batch = 0;       /* bytes between the panels of B's batches */
  int64_t packed_first_batch = 0; /* the first batch and panel held in `packed` */
  int64_t packed_first_panel = 0;
  int64_t panels = 0, tiles = 0;
  int64_t tile_rows = 0, tile_more = 0; /* rows of A for each tile, and how many are over */
  bool in_place = false, direct = false, dots = false;

  /* Elements of a packed panel for this many steps. */
  int64_t elements(int64_t steps) const { return ceil_div(steps, packed_steps); }
  /* Where part i of n of the steps [k0, k1) starts: whole elements, but for the end. k0 is a whole one. */
  int64_t part(int64_t k0, int64_t k1, int64_t i, int64_t n) const {
    return min(k1, k0 + elements(k1 - k0) * i / n * packed_steps);
  }
  int64_t row_of(int64_t tile) const { return f.unit * (tile * (m / f.unit) / tiles); }

  struct Grid {
    int64_t row_blocks, col_groups, splits;
    int64_t unit, units; /* panels that are never divided, as one row takes them at once; how many such */
    int64_t tasks() const { return row_blocks * col_groups * splits; }
    /* The first panel of a group of columns, of `panels` in all. */
    int64_t start(int64_t group, int64_t panels) const { return min(panels, unit * (units * group / col_groups)); }
  };

  /* Blocks of one matrix. Splits depend on the shape alone: they change the order of additions. */
  Grid grid(int64_t batches, int64_t group_panels) const {
    Grid g;
    g.row_blocks = ceil_div(tiles, size.tiles);
    g.splits = splits(b0 * b1);
    g.unit = tiles == 1 ? panels_at_once((int)min<int64_t>(m, kMaxMR)) : 1;
    g.units = ceil_div(group_panels, g.unit);
    const int64_t threads = call->api->num_threads(call->run);
    const int64_t want = threads == 1 ? 1 : 4 * threads;
    int64_t width = max<int64_t>(1, size.cols / (kNR<T> * g.unit));
    const int64_t narrow = min(width, max<int64_t>(1, 64 / (kNR<T> * g.unit)));
    auto tasks = [&] { return batches * g.row_blocks * ceil_div(g.units, width) * g.splits; };
    /* Threads that wait for the last task: 5 % at most. */
    auto uneven = [&] { return 20 * threads * ceil_div(tasks(), threads) > 21 * tasks(); };
    while (width > narrow && (tasks() < want || uneven())) width = max(narrow, width - max<int64_t>(1, narrow));
    const bool few = tasks() < threads, still = !few && uneven();
    if (few && tiles > 1)
      g.row_blocks = min(tiles, max(g.row_blocks, ceil_div(2 * threads, max<int64_t>(1, tasks() / g.row_blocks))));
    if (few && tasks() < threads) width = 1;
    g.col_groups = ceil_div(g.units, width);
    if (still) balance(g, batches, threads);
    return g;
  }

  /* Some blocks of rows or groups of columns more, where the longest share of a thread becomes shorter so. */
  void balance(Grid& g, int64_t batches, int64_t threads) const {
    const auto longest = [&](int64_t rows, int64_t cols) { /* in tiles times units */
      return ceil_div(batches * rows * cols * g.splits, threads) * ceil_div(tiles, rows) * ceil_div(g.units, cols);
    };
    const int64_t rows = g.row_blocks, cols = g.col_groups;
    int64_t least = longest(rows, cols);
    for (int64_t more = 1; more <= min<int64_t>(threads, 8); ++more) {
      if (rows + more <= tiles && longest(rows + more, cols) < least)
        least = longest(rows + more, cols), g.row_blocks = rows + more, g.col_groups = cols;
      if (cols + more <= g.units && longest(rows, cols + more) < least)
        least = longest(rows, cols + more), g.row_blocks = rows, g.col_groups = cols + more;
    }
  }
  int64_t splits(int64_t batches) const {
    if (k < kSplitSteps || batches * ceil_div(tiles, 4) * panels >= 8) return 1;
    return min<int64_t>(16, k / (kSplitSteps / 2));
  }

  /* A is read in place. */
  bool a_stays() const { return f.a_direct && (a.col == 1 || k == 1); }

  /* One block of C: rows of tiles [t0, t1), panels [p0, p1), reduction [k0, k1). */
  void block(int64_t i0, int64_t i1, int64_t t0, int64_t t1, int64_t p0, int64_t p1, int64_t k0, int64_t k1, T* partial,
             int32_t worker) const {
    constexpr int NR = kNR<T>;
    T* scratch = (T*)(call->thread_scratch + worker * call->thread_scratch_bytes);
    T* acc_block = scratch;
    const ThreadScratch<T> room(size, f.mr, tiles, panels, k);
    T* a_block = scratch + room.results;
    const int64_t r0 = row_of(t0), r1 = row_of(t1), rows = r1 - r0;
    Matrix am = a, bm = b, cm = c;
    am.data += (i0 * a.batch0 + i1 * a.batch1) * f.a_size;
    bm.data += (i0 * b.batch0 + i1 * b.batch1) * f.b_size;
    cm.data += (i0 * c.batch0 + i1 * c.batch1) * f.c_size;
    const char* panels_of_batch = packed ? packed + packed_batch_of(i0, i1) * packed_batch : nullptr;
    const bool a_in_place = a_stays();
    T* b_block = a_in_place ? a_block : a_block + room.a;
    const int64_t blocks = max<int64_t>(1, ceil_div(k1 - k0, size.steps));
    T* out;
    int64_t ldo;
    bool to_c = false;
    if (partial) {
      out = partial + r0 * (panels * NR) + p0 * NR, ldo = panels * NR;
    } else if (direct) {
      to_c = true, ldo = c.row, out = (T*)cm.data + r0 * ldo + p0 * NR;
    } else {
      out = acc_block, ldo = (p1 - p0) * NR;
    }
    /* C's own rows are written as long as they may be, one stream of a tile's rows. Of rows whole pages apart, which share their
     * sets of the first level, and of those in scratch, only a few lines in turn. */
    const int64_t group_limit = to_c && ldo * (int64_t)sizeof(T) % 4096 != 0 ? p1 - p0 : kGroup;
    alignas(64) T edge[kMaxMR * NR];
    const int64_t used_tiles = t1 - t0;
    int64_t bounds[kMaxTilesMC + 1];
    bounds[0] = 0;
    for (int64_t i = 0, over = t0 * tile_more % tiles; i < used_tiles; ++i) { /* row_of(), without its divisions */
      over += tile_more;
      bounds[i + 1] = bounds[i] + f.unit * (tile_rows + (over >= tiles));
      over -= over >= tiles ? tiles : 0;
    }
    for (int64_t kb = 0; kb < blocks; ++kb) {
      const int64_t ks = part(k0, k1, kb, blocks), ke = part(k0, k1, kb + 1, blocks), kc = ke - ks;
      Tile t;
      t.k = kc;
      t.accumulate = kb > 0;
      const char* a_base;
      if (a_in_place) {
        a_base = am.data + (r0 * a.row + ks * a.col) * f.a_size;
        t.lda = a.row * f.a_size;
      } else {
        /* An odd number of cache lines between rows, so that they do not fall into the same sets. */
        const int64_t ld = ((kc * (int64_t)sizeof(T) + 63) / 64 | 1) * 64 / (int64_t)sizeof(T);
        f.load_a(am, inner, r0, r1, ks, ke, a_block, min(ld, size.steps));
        a_base = (const char*)a_block;
        t.lda = min(ld, size.steps) * (int64_t)sizeof(T);
      }
      for (int64_t p = p0; p < p1;) {
        const int64_t cols = min<int64_t>(NR, n - p * NR);
        int64_t vectors = ceil_div(cols, lanes<T>), taken = 1, group = 1;
        bool loaded = false;
        int64_t panel_bytes = 0;
        const char* rows_ahead = nullptr; /* of B, for the next panel to pack */
        const Table* table_used = table;
        if (packed) {
          const int64_t slice = elements(kc) * NR * packed_size, panel = elements(k) * NR * packed_size;
          t.b = panels_of_batch + (p - packed_first_panel) * panel + elements(ks) * NR * packed_size;
          t.ldb = NR, t.panel_stride = elements(k) * NR;
          panel_bytes = t.turn_bytes = panel;
          const int64_t full = p1 - p - (p1 == panels && n % NR != 0);
          const int64_t most = max<int64_t>(1, min(group_limit, kGroupBytes / max<int64_t>(1, slice)));
          if (used_tiles > 1 && full > 1) group = ceil_div(full, ceil_div(full, most));
          if (p + group < p1) {
            t.next = (const char*)t.b + group * panel;
          } else if (kb + 1 < blocks) {
            t.next = (const char*)t.b + slice - (p - p0) * panel;
          } else { /* of the next task: other rows, or other columns */
            const int64_t q = (t1 < tiles ? p0 : p + group) - packed_first_panel;
            t.next = panels_of_batch + q * panel + elements(k0) * NR * packed_size;
          }
          t.next_step = ceil_div(slice, 16 * max<int64_t>(1, used_tiles * (kc / 4))) * 16;
        } else if (in_place && cols == NR) {
          t.b = bm.data + (ks * b.row + p * NR) * f.b_size;
          t.ldb = b.row, t.panel_stride = NR;
          t.next = (const char*)t.b, t.next_step = 0;
        } else if (dots) {
          t.a = a_base, t.b = bm.data + (ks + p * NR * b.col) * f.b_size, t.ldb = b.col;
          t.c = out + (p - p0) * NR, t.ldc = ldo;
          f.dot(&t, rows, cols);
          ++p;
          continue;
        } else {
          f.load_b(bm, inner, ks, ke, p * NR, cols, b_block);
          t.b = b_block, t.ldb = NR, t.panel_stride = 0;
          t.next = (const char*)t.b, t.next_step = 0;
          table_used = f.table;
          loaded = true;
          /* The copy would wait for its rows, short streams as in dot_rows: they come in during this panel's tiles. */
          const int64_t q = p + 1 < p1 ? p + 1 : p0;
          if (b.row == 1 && f.unit == 1 && f.step == 1 && (q > p || kb + 1 < blocks) && (q + 1) * NR <= n) {
            rows_ahead = bm.data + ((q > p ? ks : ke) + q * NR * b.col) * f.b_size;
            t.next_step = 4 * f.b_size;
          }
        }
        if (used_tiles == 1 && !loaded) { /* several panels at once if all of them are full */
          const int64_t at_once = panels_at_once((int)rows);
          if (at_once > 1 && p + at_once <= p1 && (p + at_once) * NR <= n) taken = at_once, vectors = kNV + 1;
        }
        if (group > 1) {
          const char *b_first = (const char*)t.b, *next = t.next;
          for (int64_t i = 0; i < used_tiles; ++i) {
            const int64_t mr = bounds[i + 1] - bounds[i], then = i + 1 < used_tiles ? i + 1 : 0;
            const Micro fn = table_used->fn[mr - 1][kNV - 1];
            T* dst = out + bounds[i] * ldo + (p - p0) * NR;
            t.a = a_base + bounds[i] * t.lda, t.ldc = ldo;
            t.b = b_first, t.c = dst, t.next = next, t.in_turn = group - 1;
            fn(&t);
            /* rows are short streams: the hardware starts anew at each */
            const char* row = a_base + bounds[then] * t.lda;
            for (int64_t r = bounds[then]; r < bounds[then + 1]; ++r, row += t.lda)
              __builtin_prefetch(row, 0, 3), __builtin_prefetch(row + 64, 0, 3);
            const int64_t last = group - 1;
            t.b = b_first + last * panel_bytes, t.c = dst + last * NR, t.next = next + last * panel_bytes, t.in_turn = 1;
            fn(&t);
            next += t.next_step * (kc / 4);
          }
          p += group;
          continue;
        }
        const bool edge_store = to_c && vectors <= kNV && cols != vectors * lanes<T>;
        const char* next = t.next;
        for (int64_t i = 0; i < used_tiles; ++i) {
          const int64_t mr = bounds[i + 1] - bounds[i];
          T* dst = out + bounds[i] * ldo + (p - p0) * NR;
          t.a = a_base + bounds[i] * t.lda;
          t.next = next;
          if (rows_ahead) { /* this tile's part of the NR rows: the first one by its micro-kernel, others at once */
            const int64_t first = NR * i / used_tiles, end = NR * (i + 1) / used_tiles, row_bytes = b.col * f.b_size;
            t.next = rows_ahead + first * row_bytes;
            for (int64_t r = first + 1; r < end; ++r)
              for (int64_t o = 0; o < kc * f.b_size; o += 64) __builtin_prefetch(rows_ahead + r * row_bytes + o, 0, 2);
          }
          if (edge_store) {
            t.c = edge, t.ldc = NR;
            if (t.accumulate)
              for (int64_t r = 0; r < mr; ++r) memcpy(edge + r * NR, dst + r * ldo, cols * sizeof(T));
          } else {
            t.c = dst, t.ldc = ldo;
          }
          table_used->fn[mr - 1][vectors - 1](&t);
          if (edge_store)
            for (int64_t r = 0; r < mr; ++r) memcpy(dst + r * ldo, edge + r * NR, cols * sizeof(T));
          next += t.next_step * (kc / 4);
        }
        p += taken;
      }
    }
    if (f.done) f.done();
    if (!partial && !to_c) finish(i0, i1, r0, r1, p0 * NR, min(n, p1 * NR), out, ldo, cm);
  }

  void finish(int64_t i0, int64_t i1, int64_t r0, int64_t r1, int64_t n0, int64_t n1, const T* acc, int64_t ld,
              const Matrix& cm) const {
    if (call->epilogue)
      call->epilogue(call, i0, i1, r0 / f.unit, r1 / f.unit, n0, n1, acc, ld);
    else
      f.store(cm, r0, r1, n0, n1, acc, ld);
  }

  /* Batches of B that differ, and the index of a batch among them. */
  int64_t distinct0() const { return b.batch0 == 0 ? min<int64_t>(b0, 1) : b0; }
  int64_t distinct1() const { return b.batch1 == 0 ? min<int64_t>(b1, 1) : b1; }
  int64_t packed_batch_of(int64_t i0, int64_t i1) const {
    return (b.batch0 == 0 ? 0 : i0) * distinct1() + (b.batch1 == 0 ? 0 : i1) - packed_first_batch;
  }

  /* C of batches of B [q0, q1) and panels [p0, p1). */
  void compute(int64_t q0, int64_t q1, int64_t p0, int64_t p1) const {
    const int64_t d0 = distinct0(), d1 = distinct1();
    const int64_t same0 = b0 / d0, same1 = b1 / d1, same = same0 * same1, batches = (q1 - q0) * same;
    const Grid g = grid(batches, p1 - p0);
    const int64_t per_batch = g.tasks();
    const double work = 2.0 * m * k * (p1 - p0) * kNR<T> * batches;
    const int64_t tasks = batches * per_batch;
    /* A chunk should be worth waking a thread for. */
    const int64_t grain = max<int64_t>(1, min<int64_t>(tasks, (int64_t)(50000.0 * tasks / (work + 1))));
    auto where = [&](int64_t batch, int64_t* i0, int64_t* i1) {
      const int64_t q = q0 + batch / same, r = batch % same;
      *i0 = d0 == b0 ? q / d1 : r / same1;
      *i1 = d1 == b1 ? q % d1 : r % same1;
    };
    const int64_t partial_size = m * panels * kNR<T>;
    T* partials = (T*)call->scratch;
    parallel(call, tasks, grain, [&](int64_t begin, int64_t end, int32_t worker) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t r = i, i0, i1;
        const int64_t split = r % g.splits;
        r /= g.splits;
        const int64_t row = r % g.row_blocks;
        r /= g.row_blocks;
        const int64_t col = r % g.col_groups, batch = r / g.col_groups;
        where(batch, &i0, &i1);
        T* partial = g.splits > 1 ? partials + (batch * g.splits + split) * partial_size : nullptr;
        const int64_t t0 = tiles * row / g.row_blocks, t1 = tiles * (row + 1) / g.row_blocks;
        block(i0, i1, t0, t1, p0 + g.start(col, p1 - p0), p0 + g.start(col + 1, p1 - p0),
              part(0, k, split, g.splits), part(0, k, split + 1, g.splits), partial, worker);
      }
    });
    if (g.splits == 1) return;
    parallel(call, batches * tiles, 1, [&](int64_t begin, int64_t end, int32_t) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t batch = i / tiles, r0 = row_of(i % tiles), r1 = row_of(i % tiles + 1), ld = panels * kNR<T>;
        T* sum = partials + batch * g.splits * partial_size + r0 * ld;
        for (int64_t s = 1; s < g.splits; ++s)
          for (int64_t j = 0; j < (r1 - r0) * ld; ++j) sum[j] += sum[s * partial_size + j];
        int64_t i0, i1;
        where(batch, &i0, &i1);
        Matrix cm = c;
        cm.data += (i0 * c.batch0 + i1 * c.batch1) * f.c_size;
        finish(i0, i1, r0, r1, 0, n, sum, ld, cm);
      }
    });
  }

  /* Packs batches [q0, q1) x panels [p0, p1) of B into scratch. */
  void pack(int64_t q0, int64_t q1, int64_t p0, int64_t p1) const {
    constexpr int NR = kNR<T>;
    const int64_t d1 = distinct1(), units = (q1 - q0) * (p1 - p0), steps = max<int64_t>(1, ceil_div(k, 2 * kKC));
    T* dst = (T*)call->scratch;
    parallel(call, units * steps, 1, [&](int64_t begin, int64_t end, int32_t) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t unit = i / steps, s = i % steps, q = q0 + unit / (p1 - p0), p = p0 + unit % (p1 - p0);
        Matrix bm = b;
        bm.data += (q / d1 * b.batch0 + q % d1 * b.batch1) * f.b_size;
        const int64_t ks = k * s / steps, ke = k * (s + 1) / steps;
        f.load_b(bm, inner, ks, ke, p * NR, min<int64_t>(NR, n - p * NR), dst + (unit * k + ks) * NR);
      }
    });
  }

  int32_t run() {
    if (b0 == 0 || b1 == 0 || m == 0 || n == 0) return 0;
    fold_batches();
    constexpr int NR = kNR<T>;
    panels = ceil_div(n, NR);
    tiles = ceil_div(m, f.mr);
    tile_rows = m / f.unit / tiles, tile_more = m / f.unit % tiles;
    /* Rows of C that are whole pages apart fall into few sets of the caches: blocks of the reduction would find little of
     * what the one before them left there. They are summed in scratch then. */
    const bool crowded = k > size.steps && tiles > 8 && c.row * (int64_t)sizeof(T) % 4096 == 0;
    direct = !call->epilogue && f.c_direct && (c.col == 1 || n == 1) && !crowded;
    const int64_t split = splits(b0 * b1);
    const int64_t need = split > 1 ? split * b0 * b1 * m * panels * NR * (int64_t)sizeof(T) : 0;
    const int64_t own = ThreadScratch<T>(size, f.mr, tiles, panels, k).bytes();
    if (call->thread_scratch_bytes < own || call->scratch_bytes < need) {
      call->api->fail(call, "matmul: scratch is too small");
      return 1;
    }
    const int64_t q = distinct0() * distinct1();
    if (packed) {
      table = f.packed_table;
      packed_size = f.packed_size, packed_steps = f.packed_steps;
      if (direct) higher();
      compute(0, q, 0, panels);
      return 0;
    }
    table = f.table;
    packed_size = sizeof(T);
    in_place = f.b_direct && b.col == 1 && m <= kInPlaceRows && split == 1;
    dots = f.dot && !in_place && b.row == 1 && m <= kDotRows && k >= 64;
    const int64_t repeats = ceil_div(tiles, 2 * size.tiles) * (b0 * b1 / q);
    const int64_t unit = k * NR * (int64_t)sizeof(T), room = unit > 0 ? call->scratch_bytes / unit : 0;
    if (in_place || dots || split > 1 || repeats <= 2 || room < min<int64_t>(panels, 4)) {
      if (!in_place && !dots) taller();
      compute(0, q, 0, panels);
      return 0;
    }
    packed = (const char*)call->scratch;
    if (room >= panels) {
      const int64_t per_round = room / panels;
      packed_batch = panels * unit;
      for (int64_t q0 = 0; q0 < q; q0 += per_round) {
        const int64_t q1 = min(q, q0 + per_round);
        packed_first_batch = q0;
        pack(q0, q1, 0, panels);
        compute(q0, q1, 0, panels);
      }
    } else {
      packed_batch = 0;
      for (int64_t q0 = 0; q0 < q; ++q0)
        for (int64_t p0 = 0; p0 < panels; p0 += room) {
          const int64_t p1 = min(panels, p0 + room);
          packed_first_batch = q0;
          packed_first_panel = p0;
          pack(q0, q0 + 1, p0, p1);
          compute(q0, q0 + 1, p0, p1);
        }
    }
    return 0;
  }

  /* Tasks that pack their panels of B themselves: more rows and fewer columns each, in the same scratch. */
  void taller() {
    const int64_t by = a_stays() ? 4 : 2;
    if (size.tiles * by > kMaxTilesMC || size.cols / by < kNR<T> || size.steps < 2) return;
    size.tiles *= by, size.cols /= by;
    if (!a_stays()) size.steps /= by;
  }

  /* Few columns and a short reduction: more rows for a task, which costs some hundred cycles by itself, in the same scratch. */
  void higher() {
    const int64_t threads = call->api->num_threads(call->run), few = threads == 1 ? 1 : 8 * threads; /* tasks, at least */
    int64_t by = min(min(size.cols / (panels * kNR<T>), size.steps / max<int64_t>(1, k)), kMaxTilesMC / size.tiles);
    by = min(by, tiles / (few * size.tiles));
    if (by > 1) size.tiles *= by, size.cols /= by, size.steps /= by;
  }

  /* A batch dim over which B does not vary is more rows of A, if the strides say so. Epilogues see the batch: not then. */
  void fold_batches() {
    if (call->epilogue) return;
    for (int pass = 0; pass < 2; ++pass) {
      if (b1 > 1 && b.batch1 == 0 && a.batch1 == a.row * (m / f.unit) &&
          c.batch1 == c.row * (m / f.unit)) {
        m *= b1;
        b1 = 1;
      }
      if (b1 == 1) {
        b1 = b0, a.batch1 = a.batch0, b.batch1 = b.batch0, c.batch1 = c.batch0;
        b0 = 1, a.batch0 = b.batch0 = c.batch0 = 0;
      }
    }
  }
};

/* ---- entry ---- */

inline bool describe(const effc_tensor& t, Matrix* out) {
  if (t.rank != 4) return false;
  auto stride = [&](int d) { return t.shape[d] == 1 ? 0 : t.strides[d]; };
  *out = Matrix{(char*)t.data, stride(0), stride(1), t.strides[2], t.strides[3]};
  return true;
}

inline int32_t bad(const effc_call* call, const char* what) {
  call->api->fail(call, "matmul: %s", what);
  return 1;
}

/* in: A (b0,b1,M,K), B (b0,b1,K,N); out: C (b0,b1,M,N), or the epilogue's outputs. Sizes 1 in a batch dim broadcast.
 * attrs: Blocking. */
template <class T>
int32_t matmul(const effc_call* call, Format<T> f) {
  if (call->n_own != 2) return bad(call, "two operands expected");
  const effc_tensor &ta = call->in[0], &tb = call->in[1], &tc = call->out[0];
  Driver<T> d(call, f);
  if (!d.size.read(call, 0, f.mr)) return bad(call, "the sizes of a block are no sizes");
  if (!describe(ta, &d.a) || !describe(tb, &d.b) || !describe(tc, &d.c)) return bad(call, "operands must have rank 4");
  if (ta.shape[3] != tb.shape[2]) return bad(call, "inner sizes differ");
  if (f.adapt) f.adapt(f, d.a, &d.b, ta.shape[3]);
  d.b0 = max(ta.shape[0], tb.shape[0]);
  d.b1 = max(ta.shape[1], tb.shape[1]);
  if (ta.shape[0] == 0 || tb.shape[0] == 0) d.b0 = 0;
  if (ta.shape[1] == 0 || tb.shape[1] == 0) d.b1 = 0;
  d.m = ta.shape[2] * f.unit;
  d.inner = ta.shape[3];
  d.k = ceil_div(d.inner * f.unit, f.step);
  d.n = tb.shape[3];
  return d.run();
}

/* As matmul, but in[1] is a packed constant: rank 1, bytes. attrs: batches, K, N, Blocking; the header must agree. */
template <class T>
int32_t matmul_packed(const effc_call* call, Format<T> f, int packed_dtype) {
  if (call->n_own != 2 || call->n_attr < 6) return bad(call, "two operands and six attributes expected");
  const effc_tensor &ta = call->in[0], &tb = call->in[1], &tc = call->out[0];
  Driver<T> d(call, f);
  if (!d.size.read(call, 3, f.mr)) return bad(call, "the sizes of a block are no sizes");
  if (!describe(ta, &d.a) || !describe(tc, &d.c)) return bad(call, "operands must have rank 4");
  const int64_t batches = call->attr[0], k = call->attr[1], n = call->attr[2];
  if (ta.shape[3] != k) return bad(call, "inner sizes differ");
  if (f.adapt) f.adapt(f, d.a, nullptr, k);
  Header h;
  if (tb.rank != 1 || tb.shape[0] < kHeader) return bad(call, "packed operand is no packed buffer");
  memcpy(&h, tb.data, sizeof h);
  if (memcmp(h.magic, "EFFCPACK", 8) != 0 || h.format != kFormat || h.version != kVersion || h.dtype != (uint32_t)packed_dtype ||
      h.nr != (uint32_t)kNR<T> || h.kr != (uint32_t)(f.step * f.packed_steps) || h.batches != batches || h.k != k || h.n != n)
    return bad(call, "packed operand has another layout");
  if (batches != 1 && batches != ta.shape[0] * ta.shape[1]) return bad(call, "batches do not match");
  d.b0 = ta.shape[0], d.b1 = ta.shape[1];
  d.m = ta.shape[2], d.inner = k, d.k = ceil_div(k, f.step), d.n = n;
  d.b = Matrix{nullptr, batches == 1 ? 0 : d.b1, batches == 1 ? 0 : 1, 0, 0};
  d.packed = (const char*)tb.data + kHeader;
  d.packed_batch = ceil_div(n, kNR<T>) * ceil_div(k, f.step * f.packed_steps) * kNR<T> * f.packed_size;
  return d.run();
}

/* Real numbers: storage S (A and B), accumulators T, result S. */
template <class T, class S>
struct Real {
  static void load_a(const Matrix& a, int64_t, int64_t m0, int64_t m1, int64_t k0, int64_t k1, T* dst, int64_t ld) {
    copy_block<T, S>((const S*)a.data + m0 * a.row + k0 * a.col, a.row, a.col, dst, ld, m1 - m0, k1 - k0);
  }
  static void load_b(const Matrix& b, int64_t, int64_t k0, int64_t k1, int64_t n0, int64_t n, T* dst) {
    constexpr int NR = kNR<T>;
    if (n < NR)
      for (int64_t i = 0; i < k1 - k0; ++i)
        for (int64_t j = n; j < NR; ++j) dst[i * NR + j] = T(0);
    copy_block<T, S>((const S*)b.data + k0 * b.row + n0 * b.col, b.row, b.col, dst, NR, k1 - k0, n);
  }
  template <class O>
  static void store(const Matrix& c, int64_t m0, int64_t m1, int64_t n0, int64_t n1, const T* acc, int64_t ld) {
    for (int64_t i = m0; i < m1; ++i, acc += ld) {
      O* dst = (O*)c.data + i * c.row + n0 * c.col;
      int64_t j = 0;
      if constexpr (__is_same(O, f16))
        for (; c.col == 1 && j + lanes<T> <= n1 - n0; j += lanes<T>) store_narrow(dst + j, load(acc + j));
      if (c.col == 1)
        for (; j < n1 - n0; ++j) dst[j] = convert<O>(acc[j]);
      else
        for (int64_t j = 0; j < n1 - n0; ++j) dst[j * c.col] = convert<O>(acc[j]);
    }
  }
  template <class O>
  static Format<T> format(const Table* table, const Table* packed_table = nullptr, int packed_size = sizeof(T)) {
    constexpr bool same = __is_same(S, T);
    void (*d)(const Tile*, int64_t, int64_t) = nullptr;
    if constexpr (same || __is_same(T, float)) d = dot<T, S>;
    return {1, same, same, __is_same(O, T), sizeof(S), sizeof(S), sizeof(O), load_a, load_b, store<O>,
            table, packed_table, packed_size, d};
  }
};

}  // namespace gemm
}  // namespace effc
#endif
