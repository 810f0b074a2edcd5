/* One level of Strassen's algorithm in Winograd's form: seven products of halves instead of eight, for a packed constant B.
 * Halves of the rows, of the panels and of each block of the reduction; Strassen, "Gaussian elimination is not optimal" (1969),
 * Winograd (1971). As in Huang et al., "Strassen's algorithm reloaded" (2016), no product is ever stored: a tile of results is
 * added to the quarters of C that it belongs to. Here its accumulators go through up to three products in turn ("chains"),
 * so that C is written as often as by the ordinary kernel:
 *
 *   S1 = A21 + A22, S2 = S1 - A11, S3 = A11 - A21, S4 = A12 - S2      T1 = B12 - B11, T2 = B22 - T1, T3 = B22 - B12, T4 = B21 - T2
 *   x = A11 B11: C11; x += S2 T2: C12; x += S3 T3: C21, C22           C11 += A12 B21
 *   x = S1 T1: C22; x += S4 B22: C12                                  C21 += A22 T4
 *
 * Sums of A are formed once for a block of rows, those of B for a pair of panels and the rows of a block: both stay in the
 * second level of the cache. A row, a step that have no partner count as 0.
 * The order of additions depends on the shape only, never on threads, as everywhere in gemm.hpp.
 *
 * Thread scratch, mirrored by packing/strassen.py: see bytes(). */
#ifndef EFFC_GEMM_STRASSEN_HPP
#define EFFC_GEMM_STRASSEN_HPP
#include "gemm.hpp"

namespace effc {
namespace gemm {
namespace strassen {

constexpr int64_t kHalf = 288;      /* most steps of half a block of the reduction: a chain's rows of A stay in the first level */
constexpr int64_t kTiles = 17;      /* most tiles of a block of rows of the upper half */
constexpr int64_t kPairs = 24;      /* most pairs of panels of a task, */
constexpr int64_t kFewPairs = 12;   /* and where results of several blocks of the reduction are summed */
constexpr int64_t kLeastPairs = 6;  /* fewest, where threads share: sums of A are formed anew for each task */
constexpr int64_t kLeastRows = 96;  /* fewer rows are left to the ordinary kernel */

/* A product of a tile's rows and a panel, added to the sum so far; where the sum goes then. */
template <class T>
struct Segment {
  const T *a, *b;
  int64_t lda, k; /* bytes; steps */
  T *c, *also;    /* also: null if it goes to c alone */
  bool add;       /* to c and also, else set */
};
template <class T>
struct Chain {
  Segment<T> segment[3];
  int64_t segments;
  bool load; /* the sum starts with what is in c, else with 0 */
  int64_t ldc;
  const char* next; /* what to prefetch: the next panels */
  int64_t next_step;
};

template <class T, int MR>
EFFC_INLINE void put(const Vec<T> (&acc)[MR][kNV], T* c, int64_t ldc, bool add) {
  constexpr int L = lanes<T>;
  if (add) {
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL_ALL
      for (int j = 0; j < kNV; ++j) store(c + i * ldc + j * L, load(c + i * ldc + j * L) + acc[i][j]);
  } else {
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL_ALL
      for (int j = 0; j < kNV; ++j) store(c + i * ldc + j * L, acc[i][j]);
  }
}

template <class T, int MR>
void micro(const Chain<T>* t) {
  constexpr int L = lanes<T>, U = 4;
  Vec<T> acc[MR][kNV];
  const int64_t ldc = t->ldc;
  if (t->load) {
    const T* c = t->segment[0].c;
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL_ALL
      for (int j = 0; j < kNV; ++j) acc[i][j] = load(c + i * ldc + j * L);
  } else {
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i)
      EFFC_UNROLL_ALL
      for (int j = 0; j < kNV; ++j) acc[i][j] = Vec<T>{};
  }
  const Segment<T>*s = t->segment, *const end = s + t->segments;
  for (; s != end; ++s) { /* rows of C are short streams: they come in during the products */
    EFFC_UNROLL_ALL
    for (int i = 0; i < MR; ++i) __builtin_prefetch(s->c + i * ldc, 1, 3);
    if (s->also) {
      EFFC_UNROLL_ALL
      for (int i = 0; i < MR; ++i) __builtin_prefetch(s->also + i * ldc, 1, 3);
    }
  }
  const char* next = t->next;
  const int64_t next_step = t->next_step;
  for (s = t->segment; s != end; ++s) {
    int64_t lda = s->lda, k = s->k;
    const char* p0 = (const char*)s->a;
    const char* p1 = p0 + 3 * lda;
    const T* b = s->b;
    for (; k >= U; k -= U) {
      __asm__("" : "+r"(p0), "+r"(lda)); /* see micro_panel() */
      if constexpr (MR > 3) __asm__("" : "+r"(p1));
      __builtin_prefetch(next, 0, 2);
      next += next_step;
      steps<U, false, T>(acc, p0, p1, lda, b, kNR<T>, 0);
    }
    for (; k > 0; --k) steps<1, false, T>(acc, p0, p1, lda, b, kNR<T>, 0);
    put<T, MR>(acc, s->c, ldc, s->add);
    if (s->also) put<T, MR>(acc, s->also, ldc, s->add);
  }
}

template <class T>
struct Micros {
  void (*fn[kMR])(const Chain<T>*); /* [rows - 1] */
};
template <class T>
constexpr Micros<T> make_micros() {
  return {{micro<T, 1>, micro<T, 2>, micro<T, 3>, micro<T, 4>, micro<T, 5>, micro<T, 6>}};
}

template <class T>
struct Product {
  const effc_call* call;
  const Micros<T>* micros;
  Matrix a, c;    /* of one batch; a.col is 1 */
  const T* b;     /* panels, an even number */
  int64_t m, n, k;
  void (*store_c)(const Matrix&, int64_t m0, int64_t m1, int64_t n0, int64_t n1, const T* acc, int64_t ld);

  static constexpr int NR = kNR<T>, L = lanes<T>;
  int64_t upper, tiles, pairs; /* rows of the upper half, their tiles; pairs of panels */
  int64_t blocks, half;        /* of the reduction; most steps of half a block */
  int64_t row_blocks, col_groups;
  int64_t lda;                 /* elements between rows of sums: an odd number of cache lines */
  bool direct, in_place;       /* results are summed in C; A11, A12, A22 are read in place */

  Product(const effc_call* call_, const Micros<T>* micros_, const Matrix& a_, const T* b_, const Matrix& c_, int64_t m_,
          int64_t n_, int64_t k_)
      : call(call_), micros(micros_), a(a_), c(c_), b(b_), m(m_), n(n_), k(k_) {
    pairs = ceil_div(n, NR) / 2;
    upper = ceil_div(m, 2), tiles = ceil_div(upper, kMR);
    blocks = ceil_div(k, 2 * kHalf), half = ceil_div(ceil_div(k, blocks), 2);
    lda = ceil_div(half * (int64_t)sizeof(T), 64);
    lda = (lda | 1) * 64 / (int64_t)sizeof(T);
    row_blocks = ceil_div(tiles, kTiles);
    const int64_t row = c.row * (int64_t)sizeof(T);
    direct = !call->epilogue && c.col == 1 && m % 2 == 0 && n % (2 * NR) == 0 && row % 4096 != 0;
    in_place = m % 2 == 0 && a.row * (int64_t)sizeof(T) % 4096 != 0;
    const int64_t threads = call->api->num_threads(call->run);
    const int64_t fewest = ceil_div(pairs, blocks > 1 ? kFewPairs : kPairs);
    col_groups = fewest;
    if (threads > 1) { /* the longest share of a thread, in pairs; a task costs what most of a pair does */
      const auto longest = [&](int64_t groups) {
        return ceil_div(row_blocks * groups, threads) * (4 * ceil_div(pairs, groups) + 3);
      };
      for (int64_t groups = fewest + 1; groups <= max(fewest, pairs / kLeastPairs); ++groups)
        if (longest(groups) <= longest(col_groups)) col_groups = groups;
    }
  }

  /* Columns of results in scratch: of one pair, or of a task where several blocks of the reduction add to them. */
  static int64_t columns(int64_t blocks, int64_t pairs) { return 2 * (blocks > 1 ? min(pairs, kFewPairs) : 1) * NR + 16; }
  int64_t bytes() const {
    const int64_t rows = min(tiles, kTiles) * kMR;
    return (int64_t)sizeof(T) * (2 * rows * columns(blocks, pairs) + 7 * rows * lda + 4 * half * NR);
  }
  int64_t row_of(int64_t tile) const { return tile * upper / tiles; }

  /* S1..S4 of rows [r0, r1), and copies of A11, A12, A22 where they are not read in place. */
  void sums_of_a(const T* a0, int64_t h1, int64_t h2, int64_t r0, int64_t r1, T* const (&out)[7]) const {
    for (int64_t r = r0; r < r1; ++r) {
      const bool alone = r + upper >= m;
      const T *a11 = a0 + r * a.row, *a12 = a11 + h1, *a21 = alone ? a11 : a0 + (r + upper) * a.row, *a22 = a21 + h1;
      T* s[7];
      for (int i = 0; i < 7; ++i) s[i] = out[i] + (r - r0) * lda;
      int64_t j = 0;
      for (; !alone && j + L <= h2; j += L) {
        const Vec<T> x11 = load(a11 + j), x12 = load(a12 + j), x21 = load(a21 + j), x22 = load(a22 + j);
        const Vec<T> y1 = x21 + x22, y2 = y1 - x11;
        store(s[0] + j, y1), store(s[1] + j, y2), store(s[2] + j, x11 - x21), store(s[3] + j, x12 - y2);
        if (!in_place) store(s[4] + j, x11), store(s[5] + j, x12), store(s[6] + j, x22);
      }
      for (; j < h1; ++j) {
        const bool step = j < h2;
        const T x11 = a11[j], x12 = step ? a12[j] : T(0), x21 = alone ? T(0) : a21[j], x22 = !alone && step ? a22[j] : T(0);
        const T y1 = x21 + x22, y2 = y1 - x11;
        s[0][j] = y1, s[1][j] = y2, s[2][j] = x11 - x21, s[3][j] = x12 - y2;
        s[4][j] = x11, s[5][j] = x12, s[6][j] = x22;
      }
    }
  }

  /* T1..T4 of two panels, each one after another. */
  void sums_of_b(const T* left, const T* right, int64_t h1, int64_t h2, T* out) const {
    const int64_t size = half * NR, down = h1 * NR;
    int64_t j = 0;
    for (; j < h2 * NR; j += L) {
      const Vec<T> x11 = load(left + j), x12 = load(right + j), x21 = load(left + down + j), x22 = load(right + down + j);
      const Vec<T> y1 = x12 - x11, y2 = x22 - y1;
      store(out + j, y1), store(out + size + j, y2), store(out + 2 * size + j, x22 - x12), store(out + 3 * size + j, x21 - y2);
    }
    for (; j < down; j += L) {
      const Vec<T> x12 = load(right + j), y1 = x12 - load(left + j);
      store(out + j, y1), store(out + size + j, -y1), store(out + 2 * size + j, -x12), store(out + 3 * size + j, y1);
    }
  }

  /* C of rows of tiles [t0, t1) of the upper half and their partners, pairs [p0, p1). */
  void task(int64_t t0, int64_t t1, int64_t p0, int64_t p1, int32_t worker) const {
    const int64_t most = min(tiles, kTiles) * kMR, used = t1 - t0, r0 = row_of(t0), r1 = row_of(t1);
    T* scratch = (T*)(call->thread_scratch + worker * call->thread_scratch_bytes);
    T* sums = scratch + 2 * most * columns(blocks, pairs);
    T* s[7]; /* S1, S2, S3, S4, A11, A12, A22 */
    for (int i = 0; i < 7; ++i) s[i] = sums + i * most * lda;
    T* const t = sums + 7 * most * lda;
    const int64_t ld = direct ? c.row : columns(blocks, p1 - p0), width = (ld - 16) / 2;
    T* const acc = direct ? (T*)c.data + r0 * ld + p0 * NR : scratch;
    const int64_t down = direct ? upper * ld : (r1 - r0) * ld, right = direct ? pairs * NR : width;
    const int64_t below = min(r1 + upper, m), panel = k * NR;
    int64_t bounds[kTiles + 1];
    for (int64_t i = 0; i <= used; ++i) bounds[i] = row_of(t0 + i) - r0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k0 = k * block / blocks, k1 = k * (block + 1) / blocks, h2 = (k1 - k0) / 2, h1 = k1 - k0 - h2;
      const T* a0 = (const T*)a.data + k0;
      sums_of_a(a0, h1, h2, r0, r1, s);
      const T* a11 = in_place ? a0 + r0 * a.row : s[4];
      const T* a12 = in_place ? a11 + h1 : s[5];
      const T* a22 = in_place ? a12 + upper * a.row : s[6];
      const int64_t row = in_place ? a.row : lda, size = half * NR;
      const bool add = block > 0, last = block + 1 == blocks;
      for (int64_t p = p0; p < p1; ++p) {
        const T *left = b + p * panel + k0 * NR, *over = left + pairs * panel;
        sums_of_b(left, over, h1, h2, t);
        /* Two chains prefetch one panel of the next pair, or of the next block. */
        const T* ahead = p + 1 < p1 ? left + panel : b + p0 * panel + (last ? 0 : k1 * NR);
        const int64_t share = ceil_div((h1 + h2) * NR * (int64_t)sizeof(T), 2 * used);
        T* c11 = acc + (direct || blocks > 1 ? (p - p0) * NR : 0);
        T *c12 = c11 + right, *c21 = c11 + down, *c22 = c21 + right;
        const int64_t row_bytes = row * (int64_t)sizeof(T), sum_bytes = lda * (int64_t)sizeof(T);
        const Chain<T> chains[4] = {
            {{{a11, left, row_bytes, h1, c11, nullptr, add},
              {s[1], t + size, sum_bytes, h1, c12, nullptr, add},
              {s[2], t + 2 * size, sum_bytes, h1, c21, c22, add}}, 3, false, ld, nullptr, 0},
            {{{s[0], t, sum_bytes, h1, c22, nullptr, true}, {s[3], over + h1 * NR, sum_bytes, h2, c12, nullptr, true}, {}},
             2, false, ld, nullptr, 0},
            {{{a12, left + h1 * NR, row_bytes, h2, c11, nullptr, false}, {}, {}}, 1, true, ld, nullptr, 0},
            {{{a22, t + 3 * size, row_bytes, h2, c21, nullptr, false}, {}, {}}, 1, true, ld, nullptr, 0},
        };
        for (int chain = 0; chain < 4; ++chain) {
          Chain<T> x = chains[chain];
          int64_t steps = 0;
          for (int64_t j = 0; j < x.segments; ++j) steps += x.segment[j].k / 4;
          x.next_step = ceil_div(share, max<int64_t>(1, steps));
          x.next = (const char*)(ahead + (chain / 2) * pairs * panel) + (chain % 2) * used * share;
          for (int64_t i = 0; i < used; ++i) {
            const int64_t rows = bounds[i + 1] - bounds[i];
            micros->fn[rows - 1](&x);
            for (int64_t j = 0; j < x.segments; ++j) {
              Segment<T>& g = x.segment[j];
              g.a = (const T*)((const char*)g.a + rows * g.lda), g.c += rows * ld;
              if (g.also) g.also += rows * ld;
            }
            x.next += share;
          }
        }
        if (direct || !last) continue;
        for (int q = 0; q < 4; ++q) {
          const int64_t m0 = q / 2 ? r0 + upper : r0, m1 = q / 2 ? below : r1;
          const int64_t n0 = (p + (q % 2 ? pairs : 0)) * NR, n1 = min(n, n0 + NR);
          if (m1 <= m0 || n1 <= n0) continue;
          const T* from = c11 + (q / 2) * down + (q % 2) * right;
          if (call->epilogue)
            call->epilogue(call, 0, 0, m0, m1, n0, n1, from, ld);
          else
            store_c(c, m0, m1, n0, n1, from, ld);
        }
      }
    }
  }

  int32_t run() const {
    if (call->thread_scratch_bytes < bytes()) return bad(call, "scratch is too small");
    parallel(call, row_blocks * col_groups, 1, [&](int64_t begin, int64_t end, int32_t worker) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = i % row_blocks, g = i / row_blocks;
        task(tiles * r / row_blocks, tiles * (r + 1) / row_blocks, pairs * g / col_groups, pairs * (g + 1) / col_groups, worker);
      }
    });
    return 0;
  }
};

/* As matmul_packed of gemm.hpp for real numbers, which it leaves what it is not made for: few rows, batches, an A or a C that is not stored
 * by rows, an odd number of panels. */
template <class T>
int32_t matmul(const effc_call* call, const Micros<T>* micros, const Format<T>& f, int packed_dtype) {
  if (call->n_own != 2 || call->n_attr < 6) return bad(call, "two operands and six attributes expected");
  const effc_tensor &ta = call->in[0], &tb = call->in[1], &tc = call->out[0];
  Matrix a, c;
  if (!describe(ta, &a) || !describe(tc, &c)) return bad(call, "operands must have rank 4");
  const int64_t k = call->attr[1], n = call->attr[2], m = ta.shape[2];
  const bool fits = ta.shape[0] * ta.shape[1] == 1 && call->attr[0] == 1 && a.col == 1 && m >= kLeastRows && k >= 2 &&
                    n > 0 && ceil_div(n, kNR<T>) % 2 == 0 && ta.shape[3] == k;
  Header h{};
  if (fits && tb.rank == 1 && tb.shape[0] >= kHeader) memcpy(&h, tb.data, sizeof h);
  if (!fits || !packed_as(h, packed_dtype, kNR<T>, 1, 1, k, n)) return matmul_packed<T>(call, f, packed_dtype);
  Product<T> p(call, micros, a, (const T*)((const char*)tb.data + kHeader), c, m, n, k);
  p.store_c = f.store;
  return p.run();
}

}  // namespace strassen
}  // namespace gemm
}  // namespace effc
#endif
