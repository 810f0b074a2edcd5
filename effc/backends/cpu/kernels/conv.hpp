/* Direct convolution and transposed convolution, 1 to 3 spatial dims, groups: an implicit GEMM of output pixels by output
 * channels. No im2col matrix is made; a microkernel reads input rows through pointers.
 *
 * Rows are output pixels of all images; a tile is up to 12 rows by 1..4 vectors of output channels, its accumulators in
 * registers. The reduction runs over k = (tap, channel), taps in row-major order of the kernel window. A tile reads its
 * input in one of three ways:
 *   rows     x has its channels innermost: one pointer per row and run of channels; taps outside the image read a row of
 *            zeros, and taps that are outside for the whole tile are skipped. Inside the image, neighbouring taps that are
 *            contiguous in memory form one run.
 *   offsets  any strides, tile wholly inside the image: one pointer per row, one offset per k; of a row of the image all
 *            such tiles in one call, whose pixels lie at equal distances.
 *   patch    any strides at the image's border: the k values of each row are gathered first.
 *   lines    a pointwise convolution of stride 1 of x with its channels innermost: rows lie at equal distances, nothing is
 *            listed. x's channels may have a scale each (kScale): then a block scales the weights of a panel, which are fewer.
 * Groups of few channels have short sums, so that listing rows for each would take as long as these. What is listed, for rows,
 * is then used for a range of groups, one after the other. Groups of 2, 4 or 8 channels in and as many out, fewer than a vector
 * has lanes, are taken as many at a time as it has room for (micro_groups), if their weights are packed so.
 *
 * A transposed convolution gathers: an output pixel's class (its position modulo the stride) decides which taps reach
 * it. The pixels of a class are those of a plain convolution of stride 1 with these taps, mirrored; tiles are made of them, and
 * the reduction runs over these taps alone.
 *
 * Weights are packed in panels: [group][panel][k][nv * lanes], where groups that share vectors count as one, the last panel of a group with as many vectors as are
 * needed, unused lanes zero (packing/conv.py). Blocking parameters come in as attributes, so that the choice is made,
 * and can be looked at, in lower/conv.py.
 */
#ifndef EFFC_CONV_HPP
#define EFFC_CONV_HPP
#include <string.h>

#include "conv_micro.hpp"
#include "effc_kernel.h"

namespace effc {
namespace conv {

/* Attribute numbers; see lower/conv.py, which writes them. */
enum Attr {
  kPacked = 0,      /* in[1] is packed (else it is packed into scratch) */
  kTransposed = 1,  /* transposed convolution */
  kCopyX = 2,       /* scratch has room for x with channels innermost in the compute type: copy it there first */
  kGroups = 3,
  kOut = 4,         /* output channels of all groups */
  kKernel = 5,      /* 3 each: depth, height, width */
  kStride = 8,
  kPad = 11,        /* low side */
  kDilation = 14,
  kSpatial = 17,    /* output size */
  kNv = 20,         /* vectors per panel */
  kBlockRows = 21,  /* rows, channels and reduction length of a block */
  kBlockCols = 22,
  kBlockK = 23,
  kSteps = 24,      /* what the kernel does after the sum: bits of Step */
  kAttrs = 25
};

/* The operands that steps need follow x and w in this order; clamp's bounds are the float attributes. kActivate: then the call's
 * epilogue, a function of one value, in place (conv_dw.hpp; no step of conv_kernel). kScale: before the sum, the channels of x are
 * scaled by an operand [N or 1, C] that follows the others (conv_kernel, where rows are taken as lines). */
enum Step { kAddBias = 1, kAddResidual = 2, kClamp = 4, kActivate = 8, kScale = 16 };

struct Tap {
  int32_t at[3]; /* position in the image from the pixel's origin on; of a transposed convolution: the origin of its class */
  int32_t cls;   /* the only class of pixels that it reaches */
  int64_t offset; /* elements from the origin on */
};

template <class T>
struct Conv {
  const effc_call* call;
  const int64_t* a;
  const T* x;
  int64_t xs[5]; /* strides: n, c, d, h, w */
  int64_t batch, channels, groups, cg, out, og, taps, k, pixels, in[3];
  int64_t sp[3], st[3], pad[3]; /* output size, stride, low padding; a pointwise convolution may be seen as one long row */
  int64_t run; /* contiguous k values inside the image */
  bool innermost, direct, transposed;
  bool lines; /* pointwise, rows [n * line, (n + 1) * line) at equal distances: see run_lines */
  bool grouped; /* what is listed is used for all groups of a block */
  int shared;   /* channels of groups that share vectors, of which `groups` counts the vectors; or 0 */
  int64_t between; /* channels from one group to the next */
  bool lists; /* there is scratch to list a block's rows */
  T* own;     /* row 0 of where results come to lie when others have seen to them, to be claimed meanwhile; or null */
  int64_t own_image, own_pixel;
  int64_t line;
  const T* bias;
  const effc_tensor *result, *residual; /* rank 4: (N, 1, pixels, O) */
  const T* scale;                       /* of x's channels, or null */
  int64_t scale_step;                   /* from image to image */
  bool clamp;
  T lo, hi;
  int nv, panels, mr;
  const T* packed;
  int64_t group_elems; /* packed elements per group */
  const T* zeros;
  Tap* tap;
  int64_t* offsets;
  int64_t rows, tiles, block_k, row_blocks, col_blocks; /* tiles of rows; col_blocks per group */
  int64_t block_tiles, segs; /* at most: of a block of rows, and segments of a tile */
  bool cols_outer;
};

constexpr int kHeaderGroups = 6; /* groups in words of 32 bits of packed data's header: packing/conv.py */
constexpr int64_t kFewWeights = 256 * 1024; /* bytes of all weights that stay in L2 beside the rest */

EFFC_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
EFFC_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
EFFC_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
EFFC_INLINE int64_t align64(int64_t bytes) { return (bytes + 63) & ~(int64_t)63; }

/* Calls f with a value of the storage type of dtype; false if it is none of the real types. */
template <class F>
inline bool with_real(int32_t dtype, F f) {
  switch (dtype) {
    case EFFC_BOOL: f(bool()); return true;
    case EFFC_U8: f(uint8_t()); return true;
    case EFFC_I8: f(int8_t()); return true;
    case EFFC_U16: f(uint16_t()); return true;
    case EFFC_I16: f(int16_t()); return true;
    case EFFC_U32: f(uint32_t()); return true;
    case EFFC_I32: f(int32_t()); return true;
    case EFFC_U64: f(uint64_t()); return true;
    case EFFC_I64: f(int64_t()); return true;
    case EFFC_F16: f(f16()); return true;
    case EFFC_BF16: f(bf16()); return true;
    case EFFC_F32: f(float()); return true;
    case EFFC_F64: f(double()); return true;
    case EFFC_F8E4M3: f(f8e4m3()); return true;
    case EFFC_F8E5M2: f(f8e5m2()); return true;
    default: return false;
  }
}

/* Strides of a rank 3..5 tensor as n, c, d, h, w; missing spatial dims come first and have size 1. */
inline void spatial_view(const effc_tensor& t, int64_t* shape, int64_t* strides) {
  int missing = 5 - t.rank;
  for (int i = 0; i < 5; ++i) {
    int from = i < 2 ? i : i - missing;
    bool real = i < 2 || from >= 2;
    shape[i] = real ? t.shape[from] : 1;
    strides[i] = real ? t.strides[from] : 0;
  }
}

/* ---- copies before the main loop ---- */

template <class T>
struct CopyArg {
  const effc_tensor* src;
  int64_t shape[5], strides[5];
  T* dst;
};

/* x to channels innermost in the compute type; items are image rows (n, d, h). */
template <class T>
void copy_rows(void* arg, int64_t begin, int64_t end, int32_t) {
  const CopyArg<T>& c = *(const CopyArg<T>*)arg;
  const int64_t channels = c.shape[1], width = c.shape[4], sc = c.strides[1], sw = c.strides[4];
  with_real(c.src->dtype, [&](auto tag) {
    using From = decltype(tag);
    for (int64_t r = begin; r < end; ++r) {
      int64_t h = r % c.shape[3], nd = r / c.shape[3];
      const From* p =
          (const From*)c.src->data + nd / c.shape[2] * c.strides[0] + nd % c.shape[2] * c.strides[2] + h * c.strides[3];
      T* q = c.dst + r * width * channels;
      if (sc == 1) {
        for (int64_t w = 0; w < width; ++w)
          for (int64_t ch = 0; ch < channels; ++ch) q[w * channels + ch] = convert<T>(p[w * sw + ch]);
      } else {
        /* Blocks of 16 channels keep a cache line of the result and 16 input lines in L1. */
        for (int64_t c0 = 0; c0 < channels; c0 += 16) {
          int64_t c1 = min64(c0 + 16, channels);
          for (int64_t w = 0; w < width; ++w)
            for (int64_t ch = c0; ch < c1; ++ch) q[w * channels + ch] = convert<T>(p[w * sw + ch * sc]);
        }
      }
    }
  });
}

template <class T>
struct PackArg {
  const Conv<T>* conv;
  const effc_tensor* w;
  T* dst;
};

/* Weights to panels; items are (group, panel). Layout: see packing/conv.py. */
template <class T>
void pack_panels(void* arg, int64_t begin, int64_t end, int32_t) {
  const PackArg<T>& a = *(const PackArg<T>*)arg;
  const Conv<T>& v = *a.conv;
  constexpr int lanes = Simd<T>::lanes;
  int64_t shape[5], st[5];
  spatial_view(*a.w, shape, st);
  with_real(a.w->dtype, [&](auto tag) {
    using From = decltype(tag);
    for (int64_t item = begin; item < end; ++item) {
      int64_t g = item / v.panels, p = item % v.panels, wide = v.nv * lanes;
      int64_t n0 = p * wide, width = min64(wide, (v.og - n0 + lanes - 1) / lanes * lanes);
      T* q = a.dst + g * v.group_elems + p * wide * v.k;
      for (int64_t t = 0; t < v.taps; ++t) {
        const int64_t *ks = v.a + kKernel, at = t / (ks[1] * ks[2]) * st[2] + t / ks[2] % ks[1] * st[3] + t % ks[2] * st[4];
        for (int64_t c = 0; c < v.cg; ++c)
          for (int64_t n = 0; n < width; ++n) {
            int64_t o = n0 + n;
            int64_t first = v.transposed ? g * v.cg + c : g * v.og + o, second = v.transposed ? o : c;
            *q++ = o < v.og ? convert<T>(((const From*)a.w->data)[first * st[0] + second * st[1] + at]) : T(0);
          }
      }
    }
  });
}

/* ---- the main loop ---- */

/* Rows of x for a tile: its pixels, and for the block's range of k the segments with their row pointers. nseg: -1 for offsets,
 * -2 where the values are gathered. */
template <class T>
struct Tile {
  int64_t p0, nseg;
  int mr;
  Seg* segs;
  const T** rows;
};

/* Scratch of one thread, of which only what is used has room. */
template <class T>
struct Work {
  T* acc;           /* block_tiles * mr rows of block_cols, unless results are stored where they belong */
  T* patch;         /* mr * k, when cg < 8 or x is not channels-innermost */
  Tile<T>* tiles;   /* block_tiles + 2 */
  Pixel<T>* pixels; /* block_tiles * mr */
  Seg* segs;        /* segs per tile */
  const T** rows;   /* segs * block_tiles * mr */
};

/* Bytes of the parts of a Work: results, and what is listed of a block's rows. Mirrored by Shape.blocks() in packing/conv.py. */
template <class T>
int64_t acc_bytes(const Conv<T>& v) {
  return v.direct ? 0 : v.block_tiles * v.mr * v.a[kBlockCols] * (int64_t)sizeof(T);
}
template <class T>
int64_t patch_bytes(const Conv<T>& v) {
  return (v.cg < 8 && !v.grouped) || !v.innermost ? align64(v.mr * v.k * (int64_t)sizeof(T)) : 0;
}
template <class T>
int64_t scaled_bytes(const Conv<T>& v) {
  return v.scale ? v.block_k * v.nv * EFFC_VLEN : 0;
}
template <class T>
int64_t list_bytes(const Conv<T>& v) {
  const int64_t tile = sizeof(Tile<T>) + v.segs * sizeof(Seg), row = sizeof(Pixel<T>) + v.segs * 8;
  return (v.block_tiles + 2) * tile + v.block_tiles * v.mr * row + patch_bytes(v);
}

template <class T>
Work<T> carve(const Conv<T>& v, char* p) {
  Work<T> w;
  const int64_t rows = v.block_tiles * v.mr, tiles = v.block_tiles + 2;
  w.acc = (T*)p, p += acc_bytes(v);
  w.patch = (T*)p, p += patch_bytes(v);
  w.tiles = (Tile<T>*)p, p += tiles * (int64_t)sizeof(Tile<T>);
  w.pixels = (Pixel<T>*)p, p += rows * (int64_t)sizeof(Pixel<T>);
  w.segs = (Seg*)p, p += tiles * v.segs * (int64_t)sizeof(Seg);
  w.rows = (const T**)p;
  return w;
}

EFFC_INLINE bool inside(int64_t i, int64_t n) { return (uint64_t)i < (uint64_t)n; }

/* Element offset of tap t for a pixel; false when it falls outside the image. */
template <class T>
EFFC_INLINE bool tap_offset(const Conv<T>& v, const Pixel<T>& px, const Tap& t, int64_t* offset) {
  *offset = px.base + t.offset;
  return px.inside || (inside(px.at[0] + t.at[0], v.in[0]) && inside(px.at[1] + t.at[1], v.in[1]) &&
                       inside(px.at[2] + t.at[2], v.in[2]));
}

EFFC_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

/* The taps that reach the pixels of a class: n of a dim, `period` apart. A plain convolution has one class. */
struct Class {
  int64_t id, residue[3], first[3], period[3], n[3], taps;
  const int64_t* kernel;

  template <class T>
  Class(const Conv<T>& v, int64_t id) : id(id), taps(1), kernel(v.a + kKernel) {
    for (int d = 2; d >= 0; --d) {
      const int64_t s = v.transposed ? v.a[kStride + d] : 1, dilation = v.a[kDilation + d];
      residue[d] = id % s, id /= s;
      period[d] = 1;
      while (period[d] * dilation % s) ++period[d];
      first[d] = 0;
      while (first[d] < period[d] && first[d] * dilation % s != residue[d]) ++first[d];
      n[d] = first[d] < period[d] ? max64(0, (kernel[d] - first[d] + period[d] - 1) / period[d]) : 0;
      taps *= n[d];
    }
  }
  /* The weights' row of step k of its reduction. */
  int64_t row(int64_t k, int64_t cg) const { return taps ? tap(k / cg) * cg + k % cg : 0; }
  /* Its tap number i. */
  int64_t tap(int64_t i) const {
    const int64_t z = i / (n[1] * n[2]), y = i / n[2] % n[1], x = i % n[2];
    return ((first[0] + z * period[0]) * kernel[1] + first[1] + y * period[1]) * kernel[2] + first[2] + x * period[2];
  }
};

template <class T>
EFFC_INLINE const T* residual_row(const Conv<T>& v, int64_t b, int64_t m, int64_t n) {
  const effc_tensor& t = *v.residual;
  return (const T*)t.data + b * t.strides[0] + m * t.strides[2] + n;
}

/* What is listed of a class's inner pixels: each, the first of those of a row, whose number is `inside`, or none. */
enum Inner { kEach, kRows, kNone };

/* Lists the pixels [m, m_end) of image b of a plain convolution: those whose window is inside from *first on, all or with kRows
 * the first of a row's, the others up to *last. `acc`: where the first one's results go, unless they go to the result itself. */
template <class T>
void list_image(const Conv<T>& v, int64_t b, int64_t m, int64_t m_end, Inner list, T* acc, int64_t ld, int64_t n0, Pixel<T>** first,
                Pixel<T>** last) {
  const int64_t *sp = v.sp, *a = v.a;
  const int64_t stride = v.st[2], step = stride * v.xs[4];
  const effc_tensor& out = *v.result;
  int64_t ow = m % sp[2], oh = m / sp[2] % sp[1], od = m / (sp[1] * sp[2]);
  /* output columns [lo, hi) have all their taps inside the row */
  const int64_t reach = (a[kKernel + 2] - 1) * a[kDilation + 2];
  Pixel<T>*front = *first, *back = *last;
  T* c = v.direct ? (T*)out.data + b * out.strides[0] + m * out.strides[2] + n0 : acc;
  const int64_t c_step = v.direct ? out.strides[2] : ld;
  const T* r = v.residual ? residual_row(v, b, m, n0) : nullptr;
  const int64_t r_step = v.residual ? v.residual->strides[2] : 0;
  while (m < m_end) {
    const int64_t id = od * v.st[0] - v.pad[0], ih = oh * v.st[1] - v.pad[1];
    int64_t iw = ow * stride - v.pad[2];
    const bool in = id >= 0 && id + (a[kKernel] - 1) * a[kDilation] < v.in[0] && ih >= 0 &&
                    ih + (a[kKernel + 1] - 1) * a[kDilation + 1] < v.in[1];
    int64_t base = b * v.xs[0] + id * v.xs[2] + ih * v.xs[3] + iw * v.xs[4];
    const int64_t end = min64(m_end, m + sp[2] - ow), beyond = v.in[2] - reach;
    if (list == kRows && in) { /* the pixels before, one for all inner ones, the pixels after */
      auto put = [&](Pixel<T>* q, int64_t at, int64_t inside) {
        q->base = base + at * step, q->c = c + at * c_step, q->r = r + at * r_step;
        q->at[0] = (int32_t)id, q->at[1] = (int32_t)ih, q->at[2] = (int32_t)(iw + at * stride), q->inside = (int32_t)inside;
      };
      const int64_t n = end - m, low = iw < 0 ? min64(n, ceil_div(-iw, stride)) : 0;
      const int64_t high = max64(low, min64(n, ceil_div(beyond - iw, stride)));
      for (int64_t at = 0; at < low; ++at) put(--back, at, 0);
      if (high > low) put(front++, low, high - low);
      for (int64_t at = high; at < n; ++at) put(--back, at, 0);
      c += n * c_step, r += n * r_step, m = end;
    }
    for (; m < end; ++m) {
      const bool all = in & (iw >= 0) & (iw < beyond);
      Pixel<T>* q = all ? front++ : --back;
      q->base = base, q->c = c, q->r = r;
      q->at[0] = (int32_t)id, q->at[1] = (int32_t)ih, q->at[2] = (int32_t)iw;
      q->inside = all;
      base += step, iw += stride, c += c_step, r += r_step;
    }
    ow = 0;
    if (++oh == sp[1]) oh = 0, ++od;
  }
  *first = front, *last = back;
}

/* As list_image, for the pixels of a class of a transposed convolution in rows [r0, r1), of all images. */
template <class T>
int64_t list_class(const Conv<T>& v, Work<T>& w, int64_t r0, int64_t r1, const Class& cls, Inner list, T* acc, int64_t ld, int64_t n0,
                   int64_t* inner) {
  const int64_t *sp = v.sp, *s = v.st;
  const effc_tensor& out = *v.result;
  int64_t low[3], high[3]; /* origins between have all their taps inside */
  for (int d = 0; d < 3; ++d) {
    const int64_t dilation = v.a[kDilation + d], last = cls.first[d] + (cls.n[d] - 1) * cls.period[d];
    low[d] = cls.n[d] ? last * dilation / s[d] : INT64_MIN;
    high[d] = cls.n[d] ? v.in[d] + cls.first[d] * dilation / s[d] : INT64_MAX;
  }
  auto all = [&](int d, int64_t u) { return u >= low[d] && u < high[d]; };
  Pixel<T>*front = w.pixels, *end = w.pixels + (r1 - r0), *back = end;
  for (int64_t r = r0; r < r1;) { /* a row of the result, or the part of it that is asked for */
    const int64_t b = r / v.pixels, m = r - b * v.pixels, ow = m % sp[2], stop = min64(sp[2], ow + r1 - r);
    const int64_t qd = m / (sp[1] * sp[2]) + v.pad[0], qh = m / sp[2] % sp[1] + v.pad[1];
    const int64_t ud = floor_div(qd, s[0]), uh = floor_div(qh, s[1]), m0 = m - ow;
    if (qd - ud * s[0] == cls.residue[0] && qh - uh * s[1] == cls.residue[1]) {
      int64_t u = floor_div(ow + v.pad[2] - cls.residue[2] + s[2] - 1, s[2]);
      const int64_t base = b * v.xs[0] + ud * v.xs[2] + uh * v.xs[3], r_row = r - ow;
      const bool in = list != kNone && all(0, ud) && all(1, uh);
      const Pixel<T>* const row = front; /* its inner pixels follow each other */
      for (int64_t o = u * s[2] + cls.residue[2] - v.pad[2]; o < stop; o += s[2], ++u) {
        const bool whole = in && all(2, u);
        if (whole && list == kRows && front > row) {
          ++front[-1].inside;
          continue;
        }
        Pixel<T>* q = whole ? front++ : --back;
        q->base = base + u * v.xs[4];
        q->at[0] = (int32_t)ud, q->at[1] = (int32_t)uh, q->at[2] = (int32_t)u, q->inside = whole;
        q->c = v.direct ? (T*)out.data + b * out.strides[0] + (m0 + o) * out.strides[2] + n0 : acc + (r_row + o - r0) * ld;
        q->r = v.residual ? residual_row(v, b, m0 + o, n0) : nullptr;
      }
    }
    r += stop - ow;
  }
  *inner = front - w.pixels;
  while (back < end) *front++ = *back++;
  return front - w.pixels;
}

/* Lists the pixels of rows [r0, r1) whose class is `cls`: those whose window is inside first, *inner of them. The others of
 * several images, of a plain convolution, come pixel-major, so that the rows of a tile share taps. */
template <class T>
int64_t list_pixels(const Conv<T>& v, Work<T>& w, int64_t r0, int64_t r1, const Class& cls, Inner list, T* acc, int64_t ld,
                    int64_t n0, int64_t* inner) {
  const int64_t* sp = v.sp;
  const int64_t b0 = r0 / v.pixels, b1 = (r1 - 1) / v.pixels;
  if (v.transposed) return list_class(v, w, r0, r1, cls, list, acc, ld, n0, inner);
  Pixel<T>*front = w.pixels, *const stop = w.pixels + (r1 - r0), *back = stop;
  for (int64_t b = b0; b <= b1; ++b) {
    const int64_t from = max64(r0, b * v.pixels), to = min64(r1, (b + 1) * v.pixels);
    list_image(v, b, from - b * v.pixels, to - b * v.pixels, list, acc + (from - r0) * ld, ld, n0, &front, &back);
  }
  *inner = front - w.pixels;
  if (b0 == b1 || list != kEach) { /* what is gathered shares nothing */
    while (back < stop) *front++ = *back++;
    return front - w.pixels;
  }
  const effc_tensor& out = *v.result;
  int64_t at[3] = {0, 0, 0};
  for (int64_t m = 0; m < v.pixels && back < stop; ++m) {
    Pixel<T> px;
    int64_t base = 0;
    bool in = true;
    for (int d = 0; d < 3; ++d) {
      int64_t i0 = at[d] * v.st[d] - v.pad[d];
      px.at[d] = (int32_t)i0;
      base += i0 * v.xs[2 + d];
      in = in && i0 >= 0 && i0 + (v.a[kKernel + d] - 1) * v.a[kDilation + d] < v.in[d];
    }
    px.inside = in;
    for (int64_t b = b0; b <= b1 && !in; ++b) {
      int64_t r = b * v.pixels + m;
      if (r < r0 || r >= r1) continue;
      px.base = base + b * v.xs[0];
      px.c = v.direct ? (T*)out.data + b * out.strides[0] + m * out.strides[2] + n0 : acc + (r - r0) * ld;
      px.r = v.residual ? residual_row(v, b, m, n0) : nullptr;
      *front++ = px;
    }
    if (++at[2] == sp[2]) {
      at[2] = 0;
      if (++at[1] == sp[1]) at[1] = 0, ++at[0];
    }
  }
  return front - w.pixels;
}

/* Builds segments and row pointers of k range [k0, k1) for `mr` pixels; returns the number of segments. The range counts the
 * class's taps alone, the segments all of them, as the weights lie. */
template <class T>
int64_t build_rows(const Conv<T>& v, Seg* segs, const T** rows, const Pixel<T>* px, int mr, int64_t k0, int64_t k1, const Class& cls,
                   int64_t channel0, bool inside_all) {
  int64_t n = 0;
  const int64_t run = v.transposed ? v.cg : v.run;
  for (int64_t k = k0; k < k1;) {
    const int64_t i = k / v.cg, c = k - i * v.cg, t = v.transposed ? cls.tap(i) : i;
    const int64_t len = inside_all ? min64(run - k % run, k1 - k) : min64(v.cg - c, k1 - k);
    const Tap& tap = v.tap[t];
    k += len;
    bool any = inside_all;
    if (inside_all) {
      const T* p = v.x + tap.offset + channel0 + c;
      for (int j = 0; j < mr; ++j) rows[j] = p + px[j].base;
    } else {
      for (int j = 0; j < mr; ++j) {
        int64_t o;
        bool ok = tap_offset(v, px[j], tap, &o);
        rows[j] = ok ? v.x + o + channel0 + c : v.zeros;
        any = any || ok;
      }
    }
    if (!any) continue;
    segs[n].k = t * v.cg + c, segs[n].len = len, ++n;
    rows += mr;
  }
  return n;
}

/* Gathers all k values of `mr` pixels; taps outside, and of other classes, give zeros. */
template <class T>
void build_patch(const Conv<T>& v, Work<T>& w, const Pixel<T>* px, int mr, const Class& cls, int64_t channel0) {
  for (int i = 0; i < mr; ++i) {
    T* q = w.patch + i * v.k;
    for (int64_t t = 0; t < v.taps; ++t) {
      int64_t o;
      if (v.tap[t].cls != cls.id) {
        for (int64_t c = 0; c < v.cg; ++c) *q++ = T(0);
      } else if (tap_offset(v, px[i], v.tap[t], &o)) {
        const T* p = v.x + o + channel0 * v.xs[1];
        for (int64_t c = 0; c < v.cg; ++c) *q++ = p[c * v.xs[1]];
      } else {
        for (int64_t c = 0; c < v.cg; ++c) *q++ = T(0);
      }
    }
  }
}

/* Rows [r0, r1) of the block's accumulators to the epilogue, or converted to the output. */
template <class T>
void finish(const Conv<T>& v, const T* acc, int64_t ld, int64_t r0, int64_t r1, int64_t n0, int64_t n1) {
  while (r0 < r1) {
    int64_t b = r0 / v.pixels, m0 = r0 - b * v.pixels, m1 = min64(v.pixels, m0 + r1 - r0);
    if (v.call->epilogue) {
      v.call->epilogue(v.call, b, 0, m0, m1, n0, n1, acc, ld);
    } else {
      const effc_tensor& out = *v.result;
      with_real(out.dtype, [&](auto tag) {
        using To = decltype(tag);
        for (int64_t m = m0; m < m1; ++m) {
          To* q = (To*)out.data + b * out.strides[0] + m * out.strides[2];
          for (int64_t n = n0; n < n1; ++n) q[n * out.strides[3]] = convert<To>(acc[(m - m0) * ld + n - n0]);
        }
      });
    }
    acc += (m1 - m0) * ld;
    r0 += m1 - m0;
  }
}

/* One panel of a block, for a range of k: what its tiles have in common. */
template <class T>
struct Panel {
  const T* weights;
  const typename Micro<T>::Rows* rows;
  const typename Micro<T>::Offsets* offsets;
  const typename Micro<T>::OnLines* lines;
  const typename Micro<T>::OnStrides* strides;
  int nv;

  inline auto* of(const Lines<T>&) const { return lines; }
  inline auto* of(const OwnLines<T>&) const { return MicroTable<T>::table.own_lines[nv - 1]; }

  int64_t k0, k1;
  bool skip_empty; /* a tile without taps in this range of k leaves what is there as it is */
  Sink<T> sink;

  /* Columns from n on of the columns [c0, c1) of group g, for the range [from, to) of a reduction of k steps. */
  Panel(const Conv<T>& v, int64_t g, int64_t c0, int64_t c1, int64_t n, int64_t from, int64_t to, int64_t k) : k0(from), k1(to) {
    constexpr int lanes = Simd<T>::lanes;
    const int64_t valid = min64(v.nv * lanes, c1 - n);
    nv = (int)ceil_div(valid, lanes);
    weights = v.packed + g * v.group_elems + n * v.k;
    rows = MicroTable<T>::table.rows[nv - 1], offsets = MicroTable<T>::table.offsets[nv - 1];
    lines = MicroTable<T>::table.lines[nv - 1], strides = MicroTable<T>::table.strides[nv - 1];
    const bool last = k1 >= k;
    skip_empty = k0 > 0 && !last;
    sink = {nullptr, n - c0, v.direct ? valid - (nv - 1) * lanes : lanes, v.bias ? v.bias + g * v.og + n : nullptr,
            k0 > 0,  last,   v.residual != nullptr, v.clamp, v.lo, v.hi};
    if (v.grouped && nv == 1 && v.cg % 8 == 0) rows = MicroTable<T>::table.eights;
    if (v.shared) rows = MicroTable<T>::table.groups[__builtin_ctz(v.shared) - 1];
    if (v.grouped) sink.from = g * v.between, sink.at += v.direct ? g * v.og : 0;
  }

  /* The weights that are worked on after this panel's, whose range of k begins in row `from`: the next panel's, the first one's
   * next range of k, from row `to` on (-1: there is none), or the next block's first panel. */
  const T* next(const Conv<T>& v, int64_t c0, int64_t c1, int64_t n, int64_t from, int64_t to) const {
    const int64_t wide = v.nv * Simd<T>::lanes;
    if (n + wide < c1) return weights + wide * v.k + from * wide;
    return to >= 0 ? weights + (c0 - n) * v.k + to * wide : weights + wide * v.k;
  }

  inline void run(const Conv<T>& v, const Tile<T>& tile, const Pixel<T>* pixels, const char* next, int64_t step) {
    if (tile.nseg == 0 && skip_empty) return;
    sink.px = pixels + tile.p0;
    if (tile.nseg < 0)
      offsets[tile.mr - 1](v.offsets, k0, k1, tile.rows, weights, next, step, &sink);
    else
      rows[tile.mr - 1](tile.segs, tile.nseg, tile.rows, weights, next, step, &sink);
  }
};

/* Rows that lie at equal distances in all that they touch, of a pointwise convolution of stride 1 with its channels
 * innermost: all of them, or those of an image, or those of a row of the image (seen as one row if it is one). */
template <class T>
int64_t line_of(const Conv<T>& v) {
  auto follows = [&](const effc_tensor& t) { return t.strides[0] == v.pixels * t.strides[2]; };
  if (v.sp[2] < v.pixels) return v.sp[2];
  const bool all = !v.scale && v.xs[0] == v.pixels * v.xs[4] && (!v.direct || follows(*v.result)) && (!v.residual || follows(*v.residual));
  return v.batch == 1 || all ? v.rows : v.pixels;
}

/* Whether a block's rows are taken as lines: short ones would leave tiles of few pixels. */
template <class T>
bool by_lines(const Conv<T>& v, int64_t r0, int64_t r1) {
  return v.lines && (r0 / v.line == (r1 - 1) / v.line || v.line >= 8 * v.mr || !v.lists);
}

/* `count` pixels at equal distances, k steps, in tiles of nearly equal size: `more` of them have a row more than the rest.
 * Meanwhile `bytes` of the next weights are fetched. micro(rows, pixels, tiles, next, step) makes tiles of so many rows. */
template <class T, class L, class F>
inline void run_tiles(const Conv<T>& v, L to, int64_t count, int64_t k, const char* next, int64_t bytes, F micro) {
  const int64_t tiles = ceil_div(count, v.mr), each = count / tiles, more = count % tiles, done = more * (each + 1);
  const int64_t step = ceil_div(bytes, max64(1, tiles * k));
  if (more) micro(each + 1, to, more, next, step);
  to.skip(done);
  micro(each, to, tiles - more, next + bytes * more / tiles, step);
}

/* A panel's `count` pixels at equal distances, k steps that follow each other in x. */
template <class T, class L>
void run_line(const Conv<T>& v, const Panel<T>& panel, const L& to, int64_t count, int64_t k, const T* weights, const char* next,
              int64_t bytes) {
  run_tiles(v, to, count, k, next, bytes, [&](int64_t rows, const L& from, int64_t tiles, const char* ahead, int64_t step) {
    panel.of(from)[rows - 1](from, tiles, k, weights, ahead, step, &panel.sink);
  });
}

/* The inner pixels of `rows` rows of a plain convolution's image, listed in w. */
template <class T>
void run_strides(const Conv<T>& v, const Work<T>& w, int64_t rows, const Panel<T>& panel, int64_t channel0, int64_t ld, const T* next,
                 int64_t at) {
  const int64_t wide = panel.nv * Simd<T>::lanes, k = panel.k1 - panel.k0, bytes = k * wide * (int64_t)sizeof(T);
  const int64_t c_step = v.direct ? v.result->strides[2] : ld;
  for (int64_t i = 0; i < rows; ++i) {
    const Pixel<T>& px = w.pixels[i];
    const Lines<T> to = {v.x + px.base + channel0 * v.xs[1], px.c + at, v.residual ? px.r + at : px.c, v.st[2] * v.xs[4], c_step,
                         v.residual ? v.residual->strides[2] : 0};
    run_tiles(v, to, px.inside, k, (const char*)next + bytes * i / rows, bytes / rows,
              [&](int64_t n, Lines<T> from, int64_t tiles, const char* ahead, int64_t step) {
                panel.strides[n - 1](from, tiles, v.offsets + panel.k0, k, panel.weights + panel.k0 * wide, ahead, step, &panel.sink);
              });
  }
}

/* The same for `rows` rows of pixels of a class of a transposed convolution that one tap reaches, listed in w. */
template <class T>
void run_rows(const Conv<T>& v, const Work<T>& w, const Class& cls, int64_t rows, const Panel<T>& panel, int64_t channel0, int64_t ld,
              const T* next, int64_t at) {
  const int64_t wide = panel.nv * Simd<T>::lanes, k = panel.k1 - panel.k0, bytes = k * wide * (int64_t)sizeof(T);
  const T* weights = panel.weights + cls.row(panel.k0, v.cg) * wide;
  const int64_t from = v.tap[cls.tap(0)].offset + channel0 + panel.k0, c_step = v.direct ? v.result->strides[2] : ld;
  for (int64_t i = 0; i < rows; ++i) {
    const Pixel<T>& px = w.pixels[i];
    Lines<T> to = {v.x + px.base + from, px.c + at, v.residual ? px.r + at : px.c, v.xs[4], c_step * v.st[2], 0};
    if (v.residual) to.r_step = v.residual->strides[2] * v.st[2];
    run_line(v, panel, to, px.inside, k, weights, (const char*)next + bytes * i / rows, bytes / rows);
  }
}

/* The panel's weights of its range of k, scaled as the channels of image `b` are, to `to`. */
template <class T>
const T* scale_panel(const Conv<T>& v, const Panel<T>& panel, int64_t b, T* to) {
  typedef typename Simd<T>::vec V;
  const T *scale = v.scale + b * v.scale_step, *w = panel.weights + panel.k0 * panel.nv * Simd<T>::lanes;
  T* q = to;
  for (int64_t k = panel.k0; k < panel.k1; ++k) {
    const V by = V{} + scale[k];
    for (int j = 0; j < panel.nv; ++j, w += Simd<T>::lanes, q += Simd<T>::lanes) Simd<T>::store(q, Simd<T>::load(w) * by);
  }
  return to;
}

template <class T>
void run_lines(const Conv<T>& v, Work<T>& w, int64_t g, int64_t c0, int64_t c1, int64_t r0, int64_t r1) {
  using S = Simd<T>;
  const int64_t wide = v.nv * S::lanes, ld = ceil_div(c1 - c0, S::lanes) * S::lanes, n0 = g * v.og + c0;
  const effc_tensor& out = *v.result;
  auto line = [&](int64_t r) { /* from row r on */
    const int64_t b = r / v.pixels, m = r - b * v.pixels, row = m / v.sp[2];
    const T* x = v.x + b * v.xs[0] + row / v.sp[1] * v.xs[2] + row % v.sp[1] * v.xs[3] + (m - row * v.sp[2]) * v.xs[4];
    T* c = v.direct ? (T*)out.data + b * out.strides[0] + m * out.strides[2] + n0 : w.acc + (r - r0) * ld;
    return OwnLines<T>{{x + g * v.cg * v.xs[1], c, v.residual ? residual_row(v, b, m, n0) : c /* not read */,
                        v.xs[4], v.direct ? out.strides[2] : ld, v.residual ? v.residual->strides[2] : 0},
                       v.own ? v.own + b * v.own_image + m * v.own_pixel + n0 : nullptr, v.own_pixel};
  };
  const OwnLines<T> first = line(r0);
  const int64_t end0 = min64(r1, r0 - r0 % v.line + v.line);
  for (int64_t k0 = 0; k0 == 0 || k0 < v.k; k0 += v.block_k) {
    const int64_t k1 = min64(k0 + v.block_k, v.k);
    const int64_t bytes = (k1 - k0) * wide * (int64_t)sizeof(T);
    for (int64_t n = c0; n < c1; n += wide) {
      Panel<T> panel(v, g, c0, c1, n, k0, k1, v.k);
      const char* next = (const char*)panel.next(v, c0, c1, n, k0, k1 < v.k ? k1 : -1);
      const T* weights = panel.weights + k0 * panel.nv * S::lanes;
      int64_t scaled = -1; /* the image for which they are */
      for (int64_t r = r0, end = end0; r < r1; r = end, end = min64(r1, r + v.line)) {
        OwnLines<T> to = r == r0 ? first : line(r);
        to.x += k0, to.c += n - c0, to.r += n - c0;
        const bool one = end0 == r1;
        if (v.scale && scaled != r / v.pixels) scaled = r / v.pixels, weights = scale_panel(v, panel, scaled, w.patch);
        auto run = [&](const auto& pixels) {
          run_line(v, panel, pixels, end - r, k1 - k0, weights, one ? next : next + bytes * (r - r0) / (r1 - r0),
                   one ? bytes : bytes * (end - r) / (r1 - r0));
        };
        if (k0 == 0 && to.own)
          to.own += n - c0, run(to);
        else
          run((const Lines<T>&)to);
      }
    }
  }
  if (!v.direct) finish(v, w.acc, ld, r0, r1, n0, n0 + c1 - c0);
}

template <class T>
void run_block(const Conv<T>& v, Work<T>& w, int64_t g, int64_t c0, int64_t c1, int64_t r0, int64_t r1) {
  using S = Simd<T>;
  if (r1 <= r0) return;
  if (by_lines(v, r0, r1)) return run_lines(v, w, g, c0, c1, r0, r1);
  const int64_t wide = v.nv * S::lanes, ld = ceil_div(c1 - c0, S::lanes) * S::lanes, n0 = g * v.og + c0;
  const int64_t channel0 = g * v.cg, room = v.segs;
  const bool patches = v.cg < 8 || !v.innermost, runs = v.innermost && (v.transposed || v.run >= 8);
  int64_t classes = v.transposed ? v.a[kStride] * v.a[kStride + 1] * v.a[kStride + 2] : 1;
  for (int64_t id = 0; id < classes; ++id) {
    const Class cls(v, id);
    /* Short rows would leave tiles of few pixels. */
    const bool one = v.transposed && cls.taps == 1 && !patches && v.in[2] >= 8 * v.mr;
    const bool strides = !v.transposed && !runs && v.sp[2] >= 8 * v.mr, lines = one || strides;
    int64_t inner, count = list_pixels(v, w, r0, r1, cls, lines ? kRows : patches ? kNone : kEach, w.acc, ld, n0, &inner);
    if (!count) continue;
    const int64_t k = patches ? v.k : cls.taps * v.cg, parts = max64(1, ceil_div(k, v.block_k));
    const int64_t block_k = v.transposed ? max64(1, ceil_div(k, parts)) : v.block_k;
    const int64_t inner_tiles = lines ? 0 : ceil_div(inner, v.mr), tiles = inner_tiles + ceil_div(count - inner, v.mr);
    for (int64_t t = 0; t < tiles; ++t) {
      const bool in = t < inner_tiles;
      const int64_t u = in ? t : t - inner_tiles, n = in ? inner_tiles : tiles - inner_tiles, first = in ? 0 : inner;
      const int64_t total = in ? inner : count - inner, p0 = first + u * total / n, p1 = first + (u + 1) * total / n;
      w.tiles[t].p0 = p0, w.tiles[t].mr = (int)(p1 - p0);
      w.tiles[t].segs = w.segs + t * room, w.tiles[t].rows = w.rows + p0 * room;
    }
    for (int64_t k0 = 0; k0 == 0 || k0 < k; k0 += block_k) {
      const int64_t k1 = min64(k0 + block_k, k);
      const int64_t from = patches ? k0 : cls.row(k0, v.cg), to = k1 == k ? -1 : patches ? k1 : cls.row(k1, v.cg);
      for (int64_t t = 0; t < tiles; ++t) {
        Tile<T>& tile = w.tiles[t];
        const Pixel<T>* px = w.pixels + tile.p0;
        const bool all = t < inner_tiles;
        if (all && !runs) {
          tile.nseg = -1;
          for (int i = 0; i < tile.mr; ++i) tile.rows[i] = v.x + px[i].base + channel0 * v.xs[1];
        } else if (all || !patches) {
          tile.nseg = build_rows(v, tile.segs, tile.rows, px, tile.mr, k0, k1, cls, channel0, all);
        } else {
          tile.nseg = -2;
        }
      }
      const int64_t plain = patches ? inner_tiles : tiles;
      /* A panel's part of this range of k stays in L1 while it passes over the tiles. What comes next: the following panel,
       * the first one's next range of k, or the next block's first panel. Every tile fetches its share of that: all of it at
       * once would be more than memory delivers, and the loads of the tile would wait behind it. */
      const int64_t bytes = (k1 - k0) * wide * (int64_t)sizeof(T), step = ceil_div(wide * (int64_t)sizeof(T), max64(1, plain));
      for (int64_t n = c0; n < c1; n += wide) {
        Panel<T> panel(v, g, c0, c1, n, k0, k1, k);
        const T* next = panel.next(v, c0, c1, n, from, to);
        if (one) run_rows(v, w, cls, inner, panel, channel0, ld, next, n - c0);
        if (strides) run_strides(v, w, inner, panel, channel0, ld, next, n - c0);
        for (int64_t t = 0; t < plain; ++t) panel.run(v, w.tiles[t], w.pixels, (const char*)next + bytes * t / plain, step);
      }
      for (int64_t t = plain; t < tiles; ++t) {
        Tile<T>& tile = w.tiles[t];
        if (k0 == 0 || tiles > plain + 1) build_patch(v, w, w.pixels + tile.p0, tile.mr, cls, channel0);
        tile.nseg = 1, tile.segs[0].k = k0, tile.segs[0].len = k1 - k0;
        for (int i = 0; i < tile.mr; ++i) tile.rows[i] = w.patch + i * v.k + k0;
        for (int64_t n = c0; n < c1; n += wide) Panel<T>(v, g, c0, c1, n, k0, k1, k).run(v, tile, w.pixels, (const char*)v.packed, 0);
      }
    }
  }
  if (!v.direct) finish(v, w.acc, ld, r0, r1, n0, n0 + c1 - c0);
}

/* Groups [g0, g1) of rows [r0, r1), listed once. */
template <class T>
void run_groups(const Conv<T>& v, Work<T>& w, int64_t g0, int64_t g1, int64_t r0, int64_t r1) {
  using S = Simd<T>;
  if (r1 <= r0) return;
  const int64_t wide = v.nv * S::lanes, ld = ceil_div(v.og, S::lanes) * S::lanes, room = v.segs;
  const Class cls(v, 0);
  int64_t inner, tiles = 0;
  const int64_t count = list_pixels(v, w, r0, r1, cls, kEach, w.acc, ld, 0, &inner);
  for (int in = 1; in >= 0; --in) {
    const int64_t first = in ? 0 : inner, total = in ? inner : count - inner, n = ceil_div(total, v.mr);
    for (int64_t u = 0; u < n; ++u, ++tiles) {
      Tile<T>& tile = w.tiles[tiles];
      tile.p0 = first + u * total / n, tile.mr = (int)(first + (u + 1) * total / n - tile.p0);
      tile.segs = w.segs + tiles * room, tile.rows = w.rows + tile.p0 * room;
      tile.nseg = build_rows(v, tile.segs, tile.rows, w.pixels + tile.p0, tile.mr, 0, v.k, cls, 0, in);
    }
  }
  const int64_t step = ceil_div(wide * (int64_t)sizeof(T), max64(1, tiles)), bytes = v.k * wide * (int64_t)sizeof(T);
  for (int64_t g = g0; g < g1; ++g) {
    for (int64_t n = 0; n < v.og; n += wide) {
      Panel<T> panel(v, g, 0, v.og, n, 0, v.k, v.k);
      const char* next = (const char*)panel.next(v, 0, v.og, n, 0, -1);
      for (int64_t t = 0; t < tiles; ++t) panel.run(v, w.tiles[t], w.pixels, next + bytes * t / tiles, step);
    }
    if (!v.direct) finish(v, w.acc, ld, r0, r1, g * v.og, (g + 1) * v.og);
  }
}

template <class T>
void run_blocks(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Conv<T>& v = *(const Conv<T>*)arg;
  Work<T> w = carve(v, v.call->thread_scratch + worker * v.call->thread_scratch_bytes);
  for (int64_t i = begin; i < end && v.grouped; ++i) {
    const int64_t part = v.cols_outer ? i / v.row_blocks : i % v.col_blocks, row = v.cols_outer ? i % v.row_blocks : i / v.col_blocks;
    run_groups(v, w, v.groups * part / v.col_blocks, v.groups * (part + 1) / v.col_blocks, v.tiles * row / v.row_blocks * v.mr,
               min64(v.tiles * (row + 1) / v.row_blocks * v.mr, v.rows));
  }
  if (v.grouped) return;
  const int64_t cols = v.groups * v.col_blocks;
  for (int64_t i = begin; i < end; ++i) {
    int64_t col = v.cols_outer ? i / v.row_blocks : i % cols, row = v.cols_outer ? i % v.row_blocks : i / cols;
    const int64_t g = col / v.col_blocks, part = col % v.col_blocks, wide = v.nv * Simd<T>::lanes;
    const int64_t c0 = v.panels * part / v.col_blocks * wide, c1 = v.panels * (part + 1) / v.col_blocks * wide;
    const int64_t r0 = v.tiles * row / v.row_blocks * v.mr, r1 = v.tiles * (row + 1) / v.row_blocks * v.mr;
    run_block(v, w, g, c0, min64(c1, v.og), r0, min64(r1, v.rows));
  }
}

/* A few more blocks than asked for, if that gives every thread the same number of them. */
inline void even_out(int64_t threads, int64_t groups, int64_t panels, int64_t tiles, int64_t* cols, int64_t* rows) {
  auto share = [&](int64_t c, int64_t r) { /* the busiest thread's part, in 1/64 */
    const int64_t n = c * r * groups;
    return ceil_div(n, threads) * 64 * threads / n;
  };
  int64_t best = share(*cols, *rows);
  const int64_t c0 = *cols, r0 = *rows;
  for (int64_t more = 1; more < threads && best > 65; ++more) {
    if (c0 + more <= panels && share(c0 + more, r0) < best) best = share(c0 + more, r0), *cols = c0 + more, *rows = r0;
    if (r0 + more <= tiles && share(c0, r0 + more) < best) best = share(c0, r0 + more), *cols = c0, *rows = r0 + more;
  }
}

/* Reads the attributes `a` and the operands: x [N, C, *S], w (packed or not), and where the result goes. `s`: what is left
 * of the call's scratch, for taps, zeros, offsets, [copy of x], [packed weights]; the new rest is returned. */
template <class T>
char* set_up(Conv<T>& v, const effc_call* call, const int64_t* a, const effc_tensor& x, const effc_tensor& w, const effc_tensor& out,
             char* s) {
  memset(&v, 0, sizeof v);
  v.call = call, v.a = a, v.result = &out;
  int64_t shape[5];
  spatial_view(x, shape, v.xs);
  v.batch = shape[0], v.channels = shape[1], v.groups = a[kGroups], v.out = a[kOut];
  v.cg = v.channels / v.groups, v.og = v.out / v.groups;
  for (int d = 0; d < 3; ++d) v.in[d] = shape[2 + d];
  if (a[kPacked]) {
    const int64_t packed = ((const uint32_t*)w.data)[kHeaderGroups];
    if (packed < v.groups) v.shared = (int)v.cg, v.groups = packed, v.og = v.out / packed;
  }
  v.between = v.channels / v.groups;
  v.taps = a[kKernel] * a[kKernel + 1] * a[kKernel + 2];
  v.k = v.taps * v.cg;
  v.pixels = a[kSpatial] * a[kSpatial + 1] * a[kSpatial + 2];
  v.transposed = a[kTransposed] != 0;
  v.rows = v.batch * v.pixels;
  if (v.rows <= 0 || v.og <= 0) return s;
  v.nv = (int)a[kNv];
  constexpr int lanes = Simd<T>::lanes;
  v.panels = (int)ceil_div(v.og, v.nv * lanes);
  v.group_elems = ceil_div(v.og, lanes) * lanes * v.k;
  v.mr = max_rows(v.nv);
  v.block_k = v.k > a[kBlockK] ? a[kBlockK] : max64(v.k, 1);

  v.tap = (Tap*)s, s += align64(v.taps * (int64_t)sizeof(Tap));
  T* zeros = (T*)s;
  s += align64(v.channels * (int64_t)sizeof(T));
  v.offsets = (int64_t*)s, s += align64(v.k * 8);
  for (int64_t c = 0; c < v.channels; ++c) zeros[c] = T(0);
  v.zeros = zeros;
  v.x = (const T*)x.data;
  if (a[kCopyX]) {
    CopyArg<T> arg;
    arg.src = &x, arg.dst = (T*)s;
    spatial_view(x, arg.shape, arg.strides);
    v.x = (const T*)s;
    int64_t n = 1;
    const int order[5] = {1, 4, 3, 2, 0};
    for (int i = 0; i < 5; ++i) v.xs[order[i]] = n, n *= shape[order[i]];
    s += align64(n * (int64_t)sizeof(T));
    int64_t lines = shape[0] * shape[2] * shape[3];
    call->api->parallel_for(call->run, lines, max64(1, 16384 / max64(1, shape[1] * shape[4])), copy_rows<T>, &arg);
  }
  v.innermost = v.xs[1] == 1 || v.channels == 1;
  int64_t t = 0;
  for (int64_t d = 0; d < a[kKernel]; ++d)
    for (int64_t h = 0; h < a[kKernel + 1]; ++h)
      for (int64_t u = 0; u < a[kKernel + 2]; ++u, ++t) {
        Tap& tap = v.tap[t];
        const int64_t at[3] = {d * a[kDilation], h * a[kDilation + 1], u * a[kDilation + 2]};
        tap.cls = 0, tap.offset = 0;
        for (int i = 0; i < 3; ++i) {
          const int64_t s = v.transposed ? a[kStride + i] : 1;
          tap.at[i] = (int32_t)(v.transposed ? -(at[i] / s) : at[i]);
          tap.cls = (int32_t)(tap.cls * s + at[i] % s), tap.offset += tap.at[i] * v.xs[2 + i];
        }
        for (int64_t c = 0; c < v.cg; ++c) v.offsets[t * v.cg + c] = tap.offset + c * v.xs[1];
      }
  v.run = v.cg;
  for (int d = 2; d >= 0 && v.groups == 1; --d) {
    if (a[kKernel + d] == 1) continue;
    if (v.xs[2 + d] * a[kDilation + d] != v.run) break;
    v.run *= a[kKernel + d];
  }

  if (a[kPacked]) {
    v.packed = (const T*)((const char*)w.data + kHeader);
  } else {
    PackArg<T> arg = {&v, &w, (T*)s};
    v.packed = (const T*)s;
    s += align64(v.groups * v.group_elems * (int64_t)sizeof(T));
    call->api->parallel_for(call->run, v.groups * v.panels, 1, pack_panels<T>, &arg);
  }

  constexpr bool is_float = __is_same(T, float) || __is_same(T, double);
  const bool same = is_float ? out.dtype == (__is_same(T, float) ? EFFC_F32 : EFFC_F64) : out.dtype <= EFFC_I64;
  for (int d = 0; d < 3; ++d) v.sp[d] = a[kSpatial + d], v.st[d] = a[kStride + d], v.pad[d] = a[kPad + d];
  bool one_row = v.taps == 1 && !v.transposed;
  for (int d = 0; d < 3; ++d) one_row = one_row && v.st[d] == 1 && v.pad[d] == 0 && v.sp[d] == v.in[d];
  const int64_t row = v.xs[4] * v.in[2];
  if (one_row && (v.in[1] == 1 || v.xs[3] == row) && (v.in[0] == 1 || v.xs[2] == row * v.in[1])) {
    v.sp[2] = v.in[2] = v.pixels;
    v.sp[0] = v.sp[1] = v.in[0] = v.in[1] = 1;
  }
  v.lines = one_row && v.innermost;
  v.direct = !call->epilogue && same && (out.strides[3] == 1 || v.out == 1);
  return s;
}

/* What the kernel does after the sum: operands from in[*operand] on, clamp's bounds from fattr[*limits] on. False if they do
 * not fit. */
template <class T>
bool take_steps(Conv<T>& v, int* operand, int* limits) {
  const effc_call* call = v.call;
  const int64_t steps = v.a[kSteps] & ~(int64_t)kScale;
  if (!steps) return true;
  if (*operand + (steps & kAddBias) + ((steps & kAddResidual) != 0) > call->n_own) return false;
  if (steps & kAddBias) v.bias = (const T*)call->in[(*operand)++].data;
  if (steps & kAddResidual) v.residual = &call->in[(*operand)++];
  v.clamp = (steps & kClamp) != 0;
  if (v.clamp) {
    if (call->n_fattr < *limits + 2) return false;
    v.lo = (T)call->fattr[*limits], v.hi = (T)call->fattr[*limits + 1], *limits += 2;
  }
  return v.direct && (!v.residual || v.residual->strides[3] == 1 || v.out == 1);
}

/* The scale of x's channels, if there is one. False if it does not fit. */
template <class T>
bool take_scale(Conv<T>& v, int* operand) {
  if (!(v.a[kSteps] & kScale)) return true;
  if (*operand >= v.call->n_own || !v.lines || v.groups != 1) return false;
  const effc_tensor& t = v.call->in[(*operand)++];
  v.scale = (const T*)t.data, v.scale_step = t.shape[0] > 1 ? t.strides[0] : 0;
  return t.dtype == (__is_same(T, float) ? EFFC_F32 : EFFC_F64) && (t.strides[1] == 1 || v.channels == 1);
}

/* Settles how rows are divided and taken, for a thread's scratch of `bytes`; false if these are too few. To be called when it
 * is known where results go. */
template <class T>
bool take_scratch(Conv<T>& v, int64_t bytes) {
  if (v.rows <= 0 || v.og <= 0) return true;
  v.tiles = ceil_div(v.rows, v.mr), v.block_tiles = min64(v.tiles, max64(1, v.a[kBlockRows] / v.mr));
  /* Runs of channels that a range of k meets, of which the first and the last may be parts. */
  /* Of taps inside the image: neighbours are one run where there are no groups. */
  v.grouped = !v.transposed && v.innermost && (v.shared || (v.groups > 1 && v.cg >= 4 && !v.lines)) && v.k <= v.block_k &&
              v.og <= v.a[kBlockCols];
  if (v.grouped) v.lines = false;
  const int64_t unit = v.cg < 8 && !v.grouped ? 8 : v.cg;
  v.segs = min64(v.taps, (v.block_k + unit - 2) / unit + 1);
  v.line = v.lines ? line_of(v) : 0;
  const int64_t room = bytes - acc_bytes(v) - scaled_bytes(v);
  v.lists = !v.scale && list_bytes(v) <= room;
  return room >= 0 && (v.lines || v.lists) && (!v.shared || v.grouped);
}

/* Where several threads run: the result's lines are claimed while the sums are made that go elsewhere first. Not where an operand
 * lies there too. */
template <class T>
void claim_result(Conv<T>& v, const effc_tensor& out) {
  const effc_call* call = v.call;
  if (call->api->num_threads(call->run) < 2 || out.dtype != (__is_same(T, float) ? EFFC_F32 : EFFC_F64) || out.strides[3] != 1) return;
  /* From a tensor's first byte to the one after its last. */
  auto span = [](const effc_tensor& t, const char** low, const char** high) {
    int64_t first = 0, last = 0, size = effc_dtype_size(t.dtype);
    for (int d = 0; d < t.rank; ++d) (t.strides[d] < 0 ? first : last) += (t.shape[d] - 1) * t.strides[d];
    *low = (const char*)t.data + first * size, *high = (const char*)t.data + (last + 1) * size;
  };
  const char *low, *high, *from, *to;
  span(out, &low, &high);
  for (int i = 0; i < call->n_in; ++i) {
    span(call->in[i], &from, &to);
    if (from < high && low < to) return;
  }
  v.own = (T*)out.data, v.own_image = out.strides[0], v.own_pixel = out.strides[2];
}

/* The kernel: in x [N, C, *S], w (packed or not), then the epilogue's; out rank 4 (N, 1, pixels, O). */
template <class T>
int32_t conv_kernel(const effc_call* call) {
  if (call->n_attr < kAttrs || call->n_own < 2 || call->n_out < 1) {
    call->api->fail(call, "conv: wrong number of operands or attributes");
    return 1;
  }
  Conv<T> v;
  const int64_t* a = call->attr; /* an epilogue's come last */
  set_up(v, call, a, call->in[0], call->in[1], call->out[0], (char*)call->scratch);
  if (v.rows <= 0 || v.og <= 0) return 0;
  int operand = 2, limits = 0;
  if (!take_steps(v, &operand, &limits) || !take_scale(v, &operand) || (a[kSteps] && operand != call->n_own)) {
    call->api->fail(call, "conv: bias, residual, clamp and scale need a plain result, pixels in lines and their operands");
    return 1;
  }
  if (!take_scratch(v, call->thread_scratch_bytes)) {
    call->api->fail(call, "conv: groups that cannot share vectors, or %lld bytes of scratch for a thread are too few", (long long)call->thread_scratch_bytes);
    return 1;
  }
  const int64_t wide = v.nv * Simd<T>::lanes;

  /* Blocks of tiles by panels of nearly equal size, no larger than the scratch allows: a few for every thread, and as
   * many for one thread as for another. */
  v.row_blocks = ceil_div(v.tiles, v.block_tiles);
  const int64_t across = v.grouped ? v.groups : v.panels, groups = v.grouped ? 1 : v.groups; /* parts of columns, and of what */
  v.col_blocks = v.grouped ? 1 : ceil_div(v.panels, max64(1, a[kBlockCols] / wide));
  const int64_t threads = call->api->num_threads(call->run), want = threads > 1 ? 4 * threads : 1;
  if (!v.direct) claim_result(v, call->out[0]);
  /* Each block lists its rows anew and reads its weights anew: where those stay in L2, rows are divided first. */
  const bool rows_first = !v.lines && v.group_elems * v.groups * (int64_t)sizeof(T) <= kFewWeights;
  while (v.row_blocks * v.col_blocks * groups < want && (v.col_blocks < across || v.row_blocks < v.tiles)) {
    const bool rows = v.col_blocks == across || (rows_first && v.tiles >= 4 * v.row_blocks);
    int64_t& split = rows ? v.row_blocks : v.col_blocks;
    split = min64(2 * split, rows ? v.tiles : across);
  }
  even_out(threads, groups, across, v.tiles, &v.col_blocks, &v.row_blocks);
  /* The bigger operand is walked once: weights if columns are the outer loop, the image otherwise. */
  v.cols_outer = v.group_elems * v.groups > v.batch * v.channels * v.in[0] * v.in[1] * v.in[2];
  int64_t blocks = v.row_blocks * v.col_blocks * groups;
  call->api->parallel_for(call->run, blocks, max64(1, blocks / (want * 2)), run_blocks<T>, &v);
  return 0;
}

}  // namespace conv
}  // namespace effc
#endif
