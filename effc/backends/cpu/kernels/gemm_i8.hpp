/* Sums of products of bytes with zero points, for matrices and convolutions:
 *
 *   c[m][n] = sum over k of (a[m][k] - za[m]) (b[k][n] - zb[n]),   32 bits modulo 2^32, exact
 *
 * a is u8 or i8, b a constant that packing/int8.py has laid out, or one that pack_i8.hpp lays out in scratch: signed bytes in panels (dot_i8.hpp), with the sums of its
 * columns and its zero points. With a' = a as unsigned bytes (i8 + 128, and za + 128 with it) the sum is
 *
 *   sum a' b  -  za' * sum(b - zb)  -  zb * sum a'
 *
 * The first term is the micro-kernel's; the accumulators start from the others, or where K takes several blocks, and a
 * column has a zero point at all, get the third at the end.
 *
 * A task is a block of rows of one batch by a group of panels. Rows of A are read where they are, if they are unsigned bytes
 * side by side; else a loader copies the block's as unsigned bytes into thread scratch, kKC steps at a time: rows of a matrix,
 * or the windows of a convolution, whose padding is za. Results go through the epilogue (scale, bias, activation, rounding to
 * bytes: a generated loop) or are stored as they are.
 */
#ifndef EFFC_GEMM_I8_HPP
#define EFFC_GEMM_I8_HPP
#include "dot_i8.hpp"
#include "effc_kernel.h"

namespace effc {
namespace i8 {

constexpr int64_t kMC = 96;    /* rows of a task; a multiple of every kRows */
constexpr int64_t kNC = 256;   /* columns of a task */
constexpr int64_t kKC = 512;   /* steps of a block; its panel stays in L1, expanded and beside the next one */
constexpr int64_t kLda = kKC + 64; /* not a multiple of 4096, so that rows do not share cache sets */
constexpr int64_t kHeader = 64;
/* Mirrored by packing/int8.py. */
constexpr int64_t kThreadScratch = kMC * kNC * 4 + kMC * kLda + 2 * kKC * kNR + kMC * 4;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* The packed constant: its header, and where its sections start. Each section starts at a multiple of 64 bytes. */
struct Weights {
  struct Header {
    char magic[8];
    uint32_t format, version, nr, split, has_zeros, extras;
    int32_t groups, k, n, reserved;
    uint64_t checksum, reserved2;
  } h;
  int64_t panels, steps;   /* of a group: panels, and k padded to kAlign */
  bool one_zero = false;   /* all columns have the same zero point */
  const int32_t *sums;     /* [groups][panels * 16]: sum of b - zb */
  const int32_t *zeros;    /* the same shape */
  const int8_t *data;      /* [groups][panels][steps / 4][16][4] */
  const uint8_t *form;     /* [groups][panels]: Form of dot_i8.hpp */
  const int32_t *shifts;   /* [groups][panels * 16]: what the sums of panels of magnitudes lack; else 0 */
  const uint16_t *order = nullptr; /* [groups][panels][steps / 4]: of ordered panels, within a block of steps */
  const uint8_t *counts = nullptr; /* [groups][panels][blocks][2]: quads and pairs of their blocks */
  const uint32_t *starts = nullptr, *ends; /* [groups][panels][2]: each vector's extras; null: there are none */
  const uint32_t *where;   /* [extras] */
  const int8_t *extra;     /* [extras][8][4] */

  /* Null, or what is wrong with it. */
  const char* open(const effc_tensor& t) {
    if (t.rank != 1 || t.shape[0] < kHeader) return "the packed operand is no packed buffer";
    const char* p = (const char*)t.data;
    memcpy(&h, p, sizeof h);
    static_assert(sizeof(Header) == kHeader, "");
    if (memcmp(h.magic, "EFFCPACK", 8) != 0 || h.format != 3 || h.version != 5 || h.nr != kNR)
      return "the packed operand has another layout";
    if (kSplit && !h.split) return "the packed operand was made for a machine with VNNI";
    if (!kSplit && h.split) return "the packed operand was made for a machine without VNNI";
    panels = ceil_div(h.n, kNR), steps = ceil_div(h.k, kAlign) * kAlign;
    const char* end = p + t.shape[0];
    p += kHeader;
    auto take = [&](int64_t bytes) {
      const char* at = p;
      p += ceil_div(bytes, 64) * 64;
      return at;
    };
    sums = (const int32_t*)take(h.groups * panels * kNR * 4);
    zeros = (const int32_t*)take(h.groups * panels * kNR * 4);
    data = (const int8_t*)take(h.groups * panels * steps * kNR);
    form = (const uint8_t*)take(h.split ? h.groups * panels : 0);
    shifts = (const int32_t*)take(h.split ? h.groups * panels * kNR * 4 : 0);
    order = (const uint16_t*)take(h.split ? h.groups * panels * (steps / kGroup) * 2 : 0);
    counts = (const uint8_t*)take(h.split ? h.groups * panels * ceil_div(steps, kKC) * 2 : 0);
    starts = (const uint32_t*)take(h.split ? (h.groups * panels * 2 + 1) * 4 : 0), ends = starts + 1;
    where = (const uint32_t*)take((int64_t)h.extras * 4);
    extra = (const int8_t*)take((int64_t)h.extras * 32);
    return p == end ? nullptr : "the packed operand has another size";
  }
};

/* dst = src as unsigned bytes; flip is 0 for u8, 0x80 for i8. */
template <int N>
EFFC_INLINE void copy_vector(uint8_t* dst, const uint8_t* src, uint8_t flip) {
  typedef uint8_t V __attribute__((vector_size(N), aligned(1), may_alias));
  *(V*)dst = *(const V*)src ^ flip;
}
EFFC_INLINE void copy_bytes(uint8_t* dst, const uint8_t* src, int64_t n, uint8_t flip) {
  /* Runs are short and of any length: the last vector overlaps the one before. */
  if (n >= 32) {
    for (int64_t i = 0; i + 32 < n; i += 32) copy_vector<32>(dst + i, src + i, flip);
    copy_vector<32>(dst + n - 32, src + n - 32, flip);
  } else if (n >= 16) {
    copy_vector<16>(dst, src, flip), copy_vector<16>(dst + n - 16, src + n - 16, flip);
  } else if (n >= 8) {
    copy_vector<8>(dst, src, flip), copy_vector<8>(dst + n - 8, src + n - 8, flip);
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i] = src[i] ^ flip;
  }
}

/* Rows of A where they are: unsigned bytes, `stride` bytes apart. */
struct InPlace {
  const uint8_t* first; /* null: they must be copied */
  int64_t stride;
};

/* L (a loader) has:
 *   void rows(int64_t b0, int64_t b1, int64_t group, int64_t m0, int64_t m1, int64_t k0, int64_t k1, uint8_t* dst) const
 *     dst[m - m0][k - k0], rows kLda apart
 *   InPlace in_place(int64_t b0, int64_t b1, int64_t group, int64_t m0) const
 *     all steps of the rows from m0 on
 *   int32_t zero(int64_t b0, int64_t b1, int64_t m) const     za of a row, as an unsigned byte
 *   bool one_zero() const     whether it is the same for all rows of a batch */
template <class L>
struct Driver {
  const effc_call* call;
  const L& loader;
  const Weights& w;
  int64_t b0, b1, m; /* batches, rows of one */
  const effc_tensor& out; /* rank 4 (b0, b1, m, groups * n), i32 if there is no epilogue */
  int64_t slot0 = 0, slot1 = 0; /* which group of the weights a batch has: its own plus b0 * slot0 + b1 * slot1 */

  int64_t row_blocks = 0, col_groups = 0;

  void task(int64_t i0, int64_t i1, int64_t group, int64_t r0, int64_t r1, int64_t p0, int64_t p1, int32_t worker) const {
    static constexpr Table table = make_table();
    char* scratch = call->thread_scratch + worker * call->thread_scratch_bytes;
    int32_t* acc = (int32_t*)scratch;
    uint8_t* a = (uint8_t*)(acc + kMC * kNC);
    int8_t* expanded = (int8_t*)(a + kMC * kLda); /* a block of a panel of magnitudes */
    uint32_t* row_sums = (uint32_t*)(expanded + 2 * kKC * kNR);
    const int64_t slot = group + i0 * slot0 + i1 * slot1;
    const int64_t rows = r1 - r0, cols = (p1 - p0) * kNR, first = (slot * w.panels + p0) * kNR;
    const int32_t* sums = w.sums + first;
    const int32_t* zeros = w.zeros + first;
    const int32_t* shifts = kSplit ? w.shifts + first : nullptr;
    const int64_t blocks = ceil_div(w.steps, kKC), lines = w.steps / kAlign;
    for (int64_t i = 0; i < rows; ++i) row_sums[i] = 0;
    /* Tiles read whole strides of steps and of rows, which must be there; sums want a copy. */
    InPlace at{nullptr, 0};
    if (!w.h.has_zeros && w.h.k % kSteps == 0 && rows % kWholeRows == 0) at = loader.in_place(i0, i1, group, r0);
    /* A block of steps, equal parts of whole lines: the rows' bytes, and their sums where columns have zero points. */
    auto load = [&](int64_t ks, int64_t ke) {
      if (at.first) return;
      const int64_t k1 = min(ke, w.h.k);
      loader.rows(i0, i1, group, r0, r1, ks, k1, a);
      for (int64_t i = 0; i < rows && k1 < ke; ++i) memset(a + i * kLda + (k1 - ks), 0, ke - k1);
      for (int64_t i = 0; i < rows && w.h.has_zeros; ++i) {
        uint32_t s = 0;
        for (int64_t k = 0; k < k1 - ks; ++k) s += a[i * kLda + k];
        row_sums[i] += s;
      }
    };
    const bool early = blocks == 1; /* all is known before the products */
    if (early) load(0, w.steps);
    const bool one = loader.one_zero(), alike = one && !w.h.has_zeros; /* all rows start from the same sums */
    alignas(64) int32_t start[kNC];
    auto first_sums = [&](uint32_t z) {
      for (int64_t j = 0; j < cols; ++j) start[j] = (int32_t)((kSplit ? (uint32_t)shifts[j] : 0u) - z * (uint32_t)sums[j]);
    };
    if (one && rows > 0) first_sums((uint32_t)loader.zero(i0, i1, r0));
    for (int64_t i = 0; i < rows && !alike; ++i) {
      if (!one) first_sums((uint32_t)loader.zero(i0, i1, r0 + i));
      int32_t* row = acc + i * cols;
      const uint32_t s = row_sums[i];
      if (w.one_zero) /* of columns */
        for (int64_t j = 0; j < cols; ++j) row[j] = (int32_t)((uint32_t)start[j] - s * (uint32_t)zeros[0]);
      else
        for (int64_t j = 0; j < cols; ++j) row[j] = (int32_t)((uint32_t)start[j] - s * (uint32_t)zeros[j]);
    }
    if (blocks == 0) memset(acc, 0, rows * cols * 4);
    begin();
    for (int64_t kb = 0; kb < blocks; ++kb) {
      const int64_t ks = lines * kb / blocks * kAlign, ke = lines * (kb + 1) / blocks * kAlign;
      if (!early) load(ks, ke);
      for (int64_t p = p0; p < p1;) {
        const int64_t taken = min(kPanels, p1 - p), panel = slot * w.panels + p;
        Tile t;
        t.ldc = cols, t.steps = min(ke, ceil_div(w.h.k, kSteps) * kSteps) - ks, t.first_group = ks / kGroup;
        t.panel_stride = w.steps * kNR;
        t.b = w.data + panel * w.steps * kNR + ks * kNR;
        const uint8_t form = kSplit ? w.form[panel] : (uint8_t)kPairs;
        const bool fresh = alike && kb == 0;
        const uint8_t* from = at.first ? at.first + ks : a;
        t.lda = at.first ? at.stride : kLda;
        t.ld_from = fresh ? 0 : cols;
        if (kSplit && form == kOrdered) {
          const uint8_t* counts = w.counts + (panel * blocks + kb) * 2;
          t.order = w.order + (panel * w.steps + ks) / kGroup, t.quads = counts[0], t.pairs = counts[1];
        }
        if (kSplit && w.starts)
          for (int v = 0; v < 2; ++v) {
            const uint32_t begin = w.starts[panel * 2 + v], end = w.ends[panel * 2 + v];
            const uint32_t lo = bound(begin, end, (uint32_t)(ks / kGroup)), hi = bound(lo, end, (uint32_t)(ke / kGroup));
            t.extra[v] = Extras{w.where + lo, w.extra + (int64_t)lo * 32, (int64_t)hi - lo};
          }
        /* Few rows use weights up faster than they come from memory: each tile fetches its share of the next panel's. */
        const bool last = p + taken >= p1; /* then the first panel's next block, if there is one */
        const int8_t* next = last ? w.data + ((slot * w.panels + p0) * w.steps + ke) * kNR : t.b + taken * t.panel_stride;
        const int64_t bytes = last && kb + 1 == blocks ? 0 : taken * t.steps * kNR;
        const int64_t most = Table::most_rows(form);
        const bool many = kSplit && has_magnitudes(form) && rows > 2 * most;
        if constexpr (kSplit)
          if (many) expand_magnitudes(form, t.b, t.steps, expanded), t.b = expanded;
        for (int64_t i = 0; i < rows;) {
          const int64_t mr = tile_rows(rows - i, most);
          for (int64_t at = bytes * i / rows / 64 * 64; at < bytes * (i + mr) / rows; at += 64) __builtin_prefetch(next + at, 0, 3);
          t.a = from + i * t.lda, t.c = acc + i * cols + (p - p0) * kNR;
          t.from = fresh ? start + (p - p0) * kNR : t.c;
          table.of(form, mr, taken, many)(&t);
          i += mr;
        }
        p += taken;
      }
    }
    end();
    if (w.h.has_zeros && !early)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j)
          acc[i * cols + j] = (int32_t)((uint32_t)acc[i * cols + j] - row_sums[i] * (uint32_t)zeros[j]);
    const int64_t n0 = group * w.h.n + p0 * kNR, n1 = group * w.h.n + min(w.h.n, p1 * kNR);
    if (call->epilogue)
      call->epilogue(call, i0, i1, r0, r1, n0, n1, acc, cols);
    else
      store(i0, i1, r0, r1, n0, n1, acc, cols);
  }

  void store(int64_t i0, int64_t i1, int64_t m0, int64_t m1, int64_t n0, int64_t n1, const int32_t* acc, int64_t ld) const {
    const int64_t* s = out.strides;
    for (int64_t m = m0; m < m1; ++m, acc += ld) {
      int32_t* dst = (int32_t*)out.data + i0 * s[0] + i1 * s[1] + m * s[2] + n0 * s[3];
      if (s[3] == 1)
        memcpy(dst, acc, (n1 - n0) * 4);
      else
        for (int64_t j = 0; j < n1 - n0; ++j) dst[j * s[3]] = acc[j];
    }
  }

  /* The first of the extras [lo, hi) whose group is not below `group`. */
  uint32_t bound(uint32_t lo, uint32_t hi, uint32_t group) const {
    while (lo < hi) {
      const uint32_t mid = (lo + hi) / 2;
      if (w.where[mid] < group)
        lo = mid + 1;
      else
        hi = mid;
    }
    return lo;
  }

  int32_t run() {
    if (b0 == 0 || b1 == 0 || m == 0 || w.h.n == 0 || w.h.groups == 0) return 0;
    if (call->thread_scratch_bytes < kThreadScratch) {
      call->api->fail(call, "int8 product: scratch is too small");
      return 1;
    }
    const int64_t batches = b0 * b1 * w.h.groups, threads = call->api->num_threads(call->run);
    row_blocks = ceil_div(m, kMC), col_groups = ceil_div(w.panels, kNC / kNR);
    /* Enough tasks for the threads: thinner blocks of columns first (rows are copied anew for each), then of rows. */
    const int64_t want = threads > 1 ? 4 * threads : 1, count = batches * row_blocks * col_groups;
    if (count < want) col_groups = min(ceil_div(w.panels, kPanels), max(col_groups, col_groups * ceil_div(want, count)));
    if (batches * row_blocks * col_groups < threads) row_blocks = min(ceil_div(m, kRows), row_blocks * threads);
    const int64_t tasks = batches * row_blocks * col_groups;
    const double work = (double)batches * m * w.h.k * w.panels * kNR;
    const int64_t grain = max(1, min(tasks, (int64_t)(100000.0 * tasks / (work + 1))));
    call->api->parallel_for(
        call->run, tasks, grain,
        [](void* arg, int64_t begin, int64_t end, int32_t worker) {
          const Driver& d = *(const Driver*)arg;
          for (int64_t i = begin; i < end; ++i) {
            int64_t r = i;
            const int64_t row = r % d.row_blocks;
            r /= d.row_blocks;
            const int64_t col = r % d.col_groups;
            r /= d.col_groups;
            const int64_t group = r % d.w.h.groups, batch = r / d.w.h.groups;
            d.task(batch / d.b1, batch % d.b1, group, d.m * row / d.row_blocks, d.m * (row + 1) / d.row_blocks,
                   d.w.panels * col / d.col_groups, d.w.panels * (col + 1) / d.col_groups, worker);
          }
        },
        (void*)this);
    return 0;
  }
};

inline int32_t bad(const effc_call* call, const char* what) {
  call->api->fail(call, "int8 product: %s", what);
  return 1;
}
inline bool is_byte(const effc_tensor& t) { return t.dtype == EFFC_U8 || t.dtype == EFFC_I8; }
/* What turns a byte of this type into an unsigned one. */
inline uint8_t flip_of(const effc_tensor& t) { return t.dtype == EFFC_I8 ? 0x80 : 0; }

}  // namespace i8
}  // namespace effc
#endif
