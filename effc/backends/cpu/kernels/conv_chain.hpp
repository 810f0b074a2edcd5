/* A convolution, a depthwise convolution of its result and a pointwise convolution of that one's, as one kernel: the inverted
 * bottleneck of MobileNetV2 (Sandler et al., 2018) and EfficientNet, and the stem that precedes the first one. What is between
 * them is many times larger than input and result, and never leaves the cache of the core that makes it.
 *
 * A thread makes steps of several output rows, from top to bottom: the step's depthwise rows in a buffer, then the step's
 * output. The first two convolutions are done for a block of channels after the other, and of a block a few rows at a time: the
 * rows of the first one's result that a window reaches are a ring, which stays in L1 while the step's rows pass through it. What
 * the ring holds at a step's end, the next step finds in L2: the first buffer is [block][row][column][channel of the block]. Rows
 * that two threads' windows share are made twice. Each element is summed in the order in which the kernels conv.hpp and
 * conv_dw.hpp sum it: the result is theirs, bit for bit.
 *
 * Without a first convolution the depthwise one reads x itself. A chain may end in the depthwise convolution, where something needs
 * all of its result (squeeze and excite): then its rows go where they belong, a block of channels passes over a whole step before
 * the next one, and all of them use one ring. A convolution's activation, if it is more than a clamp, is the call's
 * epilogue and runs in place on what was just made, as after the kernels alone.
 *
 * Where images are small and channels many, the weights are what is large, and each thread would read all of them. There the
 * first two convolutions are a kernel of their own (pair_kernel), which deals channels: a thread makes a few channels of a
 * whole image, and the depthwise convolution of them from its own L1, where two kernels would wait for each other and each
 * core would fetch what the other one made.
 */
#ifndef EFFC_CONV_CHAIN_HPP
#define EFFC_CONV_CHAIN_HPP
#include "conv_dw.hpp"

namespace effc {
namespace conv {

/* Attributes; see lower/conv_chain.py. After them those of each convolution (Attr of conv.hpp). */
enum ChainAttr {
  kChainFirst = 0, /* there is a first convolution */
  kChainRows = 1,  /* most output rows of a step */
  kChainKept = 2,  /* rows of the first buffer, a ring */
  kChainCols = 3,  /* channels that the first two convolutions make at a time: whole panels of the first */
  kChainWork = 4,  /* bytes of a convolution's own thread scratch */
  kChainPart = 5,  /* most rows of a step that a block of channels makes at a time */
  kChainLast = 6,  /* there is a pointwise convolution */
  kChainAttrs = 7
};

/* What a thread's first buffer holds: rows [first, end) of an image; image -1: nothing. On a cache line of its own. */
struct alignas(64) Kept {
  int64_t image, first, end;
};

template <class T>
struct Chain {
  const effc_call* call;
  int64_t stage;     /* number of the depthwise convolution: the first is the one before, the pointwise one that after */
  bool acts[3];      /* which of them have an activation */
  bool first, last;           /* whether there are such convolutions */
  bool plain, strided;        /* the first one's pixels go through chain_lines, chain_strides */
  Conv<T> wide, narrow; /* the first convolution, the pointwise one */
  Depthwise<T> dw;
  int64_t rows, steps, part, kept_rows, cols, work_bytes; /* rows of a step, steps of an image, channels of a block */
  int64_t height, width;                      /* of the first convolution's result (without one, of x) */
  Kept* kept;
};

/* Channels [c0, c1) of rows of a convolution's result (pixels [r0, r1) of all images) to `out`: as many columns and pixels at
 * a time as its scratch takes. */
template <class T>
void chain_rows(const Conv<T>& v, const effc_tensor& out, char* scratch, int64_t c0, int64_t c1, int64_t r0, int64_t r1) {
  Conv<T> mine = v;
  mine.result = &out;
  Work<T> w = carve(mine, scratch);
  const int64_t most = mine.block_tiles * mine.mr, parts = ceil_div(r1 - r0, most), tiles = ceil_div(r1 - r0, mine.mr);
  const int64_t wide = mine.nv * Simd<T>::lanes, cols = max64(1, mine.a[kBlockCols] / wide) * wide;
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t from = r0 + tiles * p / parts * mine.mr, to = min64(r1, r0 + tiles * (p + 1) / parts * mine.mr);
    for (int64_t c = c0; c < c1; c += cols) run_block(mine, w, 0, c, min64(c + cols, c1), from, to);
  }
}

/* The same for pixels [m0, m1) of an image where they lie at equal distances and a panel takes all its steps at once: nothing
 * is set up. Pixel m0 goes to `c`, `ld` apart. */
template <class T>
void chain_lines(const Conv<T>& v, T* c, int64_t ld, int64_t c0, int64_t c1, int64_t image, int64_t m0, int64_t m1) {
  const int64_t wide = v.nv * Simd<T>::lanes;
  for (int64_t n = c0; n < c1; n += wide) {
    const Panel<T> panel(v, 0, c0, c1, n, 0, v.k, v.k);
    const Lines<T> to = {v.x + image * v.xs[0] + m0 * v.xs[4], c + (n - c0), c, v.xs[4], ld, 0};
    run_line(v, panel, to, m1 - m0, v.k, panel.weights, (const char*)panel.next(v, c0, c1, n, 0, -1),
             v.k * wide * (int64_t)sizeof(T));
  }
}

/* Columns of a convolution's result outside of [lo, hi) have a window that leaves the row. */
template <class T>
void chain_inner(const Conv<T>& v, int64_t* lo, int64_t* hi) {
  const int64_t width = v.sp[2], room = v.in[2] - 1 - (v.a[kKernel + 2] - 1) * v.a[kDilation + 2] + v.pad[2];
  *lo = v.pad[2] > 0 ? min64(width, ceil_div(v.pad[2], v.st[2])) : 0;
  *hi = room < 0 ? *lo : max64(*lo, min64(width, room / v.st[2] + 1));
}

/* Whether chain_strides can make rows of this convolution's result: of few channels, or channels that lie apart, and few columns
 * at the borders. */
template <class T>
bool chain_strided(const Conv<T>& v) {
  if (v.rows <= 0 || v.og <= 0) return false;
  int64_t lo, hi;
  chain_inner(v, &lo, &hi);
  const bool patches = v.cg < 8 || !v.innermost, runs = v.innermost && v.run >= 8;
  const bool rows = v.sp[1] == v.a[kSpatial + 1] && v.sp[2] == v.a[kSpatial + 2]; /* else it is seen as one long row */
  return rows && patches && !runs && !v.lines && v.groups == 1 && v.a[kKernel] == 1 && v.k <= v.block_k && lo + v.sp[2] - hi <= v.mr;
}

/* Rows [r0, r0 + n) of an image, panels of channels [c0, c1), row r0 to `c`, its pixels `ld` apart: inner pixels of a row lie at
 * equal distances, whose steps outside of the image above or below are left out; those at the left and right border are gathered.
 * What run_block lists for a block, and gathers for each row that is cut or outside, is more than the sums of a part of a step. */
template <class T>
void chain_strides(const Conv<T>& v, char* scratch, T* c, int64_t ld, int64_t c0, int64_t c1, int64_t image, int64_t r0, int64_t n) {
  const int64_t *a = v.a, width = v.sp[2], wide = v.nv * Simd<T>::lanes, rows = a[kKernel + 1], cols = a[kKernel + 2];
  const int64_t x_step = v.st[2] * v.xs[4], bytes = v.k * wide * (int64_t)sizeof(T), dh = a[kDilation + 1], dw = a[kDilation + 2];
  int64_t lo, hi;
  chain_inner(v, &lo, &hi);
  const int64_t borders = lo + width - hi;
  for (int64_t p = c0; p < c1; p += wide) {
    const Panel<T> panel(v, 0, c0, c1, p, 0, v.k, v.k);
    const char* next = (const char*)panel.next(v, c0, c1, p, 0, -1);
    for (int64_t i = 0; i < n && hi > lo; ++i) {
      const int64_t at = (r0 + i) * v.st[1] - v.pad[1], room = v.in[1] - at;
      const int64_t h0 = at < 0 ? min64(rows, ceil_div(-at, dh)) : 0, h1 = min64(rows, max64(h0, room > 0 ? ceil_div(room, dh) : 0));
      const int64_t from = h0 * cols * v.cg, k = (h1 - h0) * cols * v.cg;
      const T* x = v.x + image * v.xs[0] + at * v.xs[3] + lo * x_step - v.pad[2] * v.xs[4];
      const Lines<T> to = {x, c + (i * width + lo) * ld + (p - c0), c, x_step, ld, 0};
      run_tiles(v, to, hi - lo, k, next + bytes * i / n, bytes / n,
                [&](int64_t m, Lines<T> line, int64_t tiles, const char* ahead, int64_t step) {
                  panel.strides[m - 1](line, tiles, v.offsets + from, k, panel.weights + from * panel.nv * Simd<T>::lanes, ahead,
                                       step, &panel.sink);
                });
    }
  }
  if (!borders) return;
  T* const patch = carve(v, scratch).patch;
  for (int64_t i0 = 0, m; i0 < n; i0 += m) { /* as many rows as the patch has room for */
    m = min64(n - i0, v.mr / borders);
    T* q = patch;
    for (int64_t i = i0; i < i0 + m; ++i)
      for (int64_t j = 0; j < borders; ++j) {
        const int64_t ih = (r0 + i) * v.st[1] - v.pad[1], iw = (j < lo ? j : hi + j - lo) * v.st[2] - v.pad[2];
        const T* x = v.x + image * v.xs[0] + ih * v.xs[3] + iw * v.xs[4];
        for (int64_t h = 0; h < rows; ++h)
          for (int64_t w = 0; w < cols; ++w, q += v.cg) {
            const bool in = inside(ih + h * dh, v.in[1]) && inside(iw + w * dw, v.in[2]);
            const T* from = x + h * dh * v.xs[3] + w * dw * v.xs[4];
            for (int64_t ch = 0; ch < v.cg; ++ch) q[ch] = in ? from[ch * v.xs[1]] : T(0);
          }
      }
    for (int64_t p = c0; p < c1; p += wide) {
      const Panel<T> panel(v, 0, c0, c1, p, 0, v.k, v.k);
      for (int64_t j = 0; j < borders; ++j) {
        const int64_t col = j < lo ? j : hi + j - lo;
        const Lines<T> to = {patch + j * v.k, c + (i0 * width + col) * ld + (p - c0), c, borders * v.k, width * ld, 0};
        run_line(v, panel, to, m, v.k, panel.weights, (const char*)panel.weights, 0);
      }
    }
  }
}

/* Where row 0 of an image would be if `data` held rows from `row` on, for a tensor of pixels (N, 1, pixels, channels). */
template <class T>
effc_tensor chain_window(const effc_tensor& like, T* data, int64_t row, int64_t width, int64_t channels, int64_t* strides) {
  effc_tensor t = like;
  strides[0] = strides[1] = 0, strides[2] = channels, strides[3] = 1;
  t.strides = strides;
  t.data = data - row * width * channels;
  return t;
}

/* Attributes `a` and operands of the depthwise convolution of images of this size; what is missing, or null. Its x is another's. */
template <class T>
const char* take_depthwise(Depthwise<T>& dw, const effc_call* call, const int64_t* a, int64_t height, int64_t width, int* operand,
                           int* limits) {
  dw.call = call, dw.a = a, dw.direct = true;
  dw.channels = a[kOut], dw.taps = a[kKernel + 1] * a[kKernel + 2];
  dw.in[0] = 1, dw.in[1] = height, dw.in[2] = width;
  if (*operand >= call->n_own) return "the depthwise weights are missing";
  dw.w = (const T*)((const char*)call->in[(*operand)++].data + kHeader);
  if (a[kSteps] & kAddBias) {
    if (*operand >= call->n_own) return "the depthwise bias is missing";
    dw.bias = (const T*)call->in[(*operand)++].data;
  }
  dw.clamp = (a[kSteps] & kClamp) != 0;
  if (dw.clamp) {
    if (call->n_fattr < *limits + 2) return "the depthwise limits are missing";
    dw.limit[0] = (T)call->fattr[*limits], dw.limit[1] = (T)call->fattr[*limits + 1], *limits += 2;
  }
  return nullptr;
}

/* Channels [c0, c1) of output rows [o0, o1), result row o0 at `q`, whose pixels and rows are `ld` and `out_line` apart. `rows`:
 * channel 0 of a ring of `ring` rows, in which row r of the image is row r % ring. */
template <class T>
void chain_depthwise(const Depthwise<T>& dw, const T* rows, int64_t ring, int64_t o0, int64_t o1, int64_t c0, int64_t c1, T* q,
                     int64_t ld, int64_t out_line) {
  const int64_t *a = dw.a, height = dw.in[1], dil = a[kDilation + 1], kernel = a[kKernel + 1];
  ring = max64(1, ring); /* of an empty image nothing is read */
  DwRow<T> row[kDwGroup];
  /* Each row's first one inside the image and its place in the ring follow from the row before: divisions would take as long as
   * the sums of some pixels. */
  auto below = [&](int64_t at) { return at < 0 ? min64(kernel, dil == 1 ? -at : ceil_div(-at, dil)) : 0; };
  int64_t last = max64(0, o0 * a[kStride + 1] - a[kPad + 1]), slot = last % ring;
  for (int64_t o = o0, n; o < o1; o += n) {
    n = min64(o1 - o, kDwGroup);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = (o + i) * a[kStride + 1] - a[kPad + 1], room = height - at;
      row[i].d0 = 0, row[i].d1 = 1;
      row[i].h0 = below(at);
      row[i].h1 = min64(kernel, max64(row[i].h0, dil == 1 ? room : ceil_div(room, dil)));
      const int64_t first = at + row[i].h0 * dil; /* no rows at all: not read */
      for (slot += first - last, last = first; slot >= ring; slot -= ring) continue;
      for (; slot < 0; slot += ring) continue;
      row[i].x = rows + (slot - row[i].h0 * dil) * dw.xs[3] - a[kPad + 2] * dw.xs[4];
      row[i].wrap = row[i].h0 + (dil == 1 ? ring - slot : ceil_div(ring - slot, dil)), row[i].back = ring * dw.xs[3];
    }
    dw_channels<T, Simd<T>::lanes>(dw, row, n, 0, a[kSpatial + 2], c0, c1, q + (o - o0) * out_line, ld, out_line);
  }
}

/* The rows of the first result that the ring lacks for output rows [o0, o1), as those that it holds from then on; *make0 is the
 * first of them. The oldest rows make room. */
template <class T>
Kept chain_reach(const Chain<T>& v, const Kept& kept, int64_t image, int64_t o0, int64_t o1, int64_t* make0) {
  const int64_t *a = v.dw.a, reach = (a[kKernel + 1] - 1) * a[kDilation + 1] + 1;
  const int64_t i0 = max64(0, min64(v.height, o0 * a[kStride + 1] - a[kPad + 1]));
  const int64_t i1 = max64(i0, min64(v.height, (o1 - 1) * a[kStride + 1] - a[kPad + 1] + reach));
  Kept now = kept;
  if (now.image != image || i0 < now.first || i0 > now.end) now = {image, i0, i0};
  *make0 = now.end;
  now.first = max64(now.first, i1 - v.kept_rows), now.end = max64(now.end, i1);
  return now;
}

/* Row `row` on of a call's second result, the sums of the pixels of each row of image `image`: of `rows` rows of `width` pixels at
 * p, `ld` apart, channels [c0, c1). In four sums, whose order is the same whatever is done at a time. */
template <class T>
void sum_rows(const effc_call* call, const T* p, int64_t image, int64_t row, int64_t rows, int64_t width, int64_t ld, int64_t c0,
              int64_t c1) {
  if (call->n_out < 2) return;
  const effc_tensor& out = call->out[1];
  T* to = (T*)out.data + image * out.strides[0] + row * out.strides[2];
  auto sum = [&](auto tag, const T* from, T* q) __attribute__((always_inline)) {
    typedef decltype(tag) V;
    typedef V U __attribute__((aligned(alignof(T)), may_alias));
    V acc[4] = {V{}, V{}, V{}, V{}};
    int64_t i = 0;
    for (; i + 4 <= width; i += 4, from += 4 * ld)
      EFFC_UNROLL
      for (int j = 0; j < 4; ++j) acc[j] += *(const U*)(from + j * ld);
    for (int j = 0; i < width; ++i, ++j, from += ld) acc[j] += *(const U*)from;
    *(U*)q = (acc[0] + acc[1]) + (acc[2] + acc[3]);
  };
  constexpr int lanes = Simd<T>::lanes;
  for (int64_t r = 0; r < rows; ++r, p += width * ld, to += out.strides[2]) {
    int64_t c = c0;
    for (; c + lanes <= c1; c += lanes) sum(typename Simd<T>::vec(), p + (c - c0), to + c);
    for (; c < c1; ++c) sum(T(), p + (c - c0), to + c);
  }
}

/* The sums of rows that have no pixels. */
template <class T>
int32_t sum_nothing(const effc_call* call) {
  if (call->n_out < 2) return 0;
  const effc_tensor& out = call->out[1];
  for (int64_t n = 0; n < out.shape[0]; ++n)
    for (int64_t r = 0; r < out.shape[2]; ++r)
      for (int64_t c = 0; c < out.shape[3]; ++c) ((T*)out.data)[n * out.strides[0] + r * out.strides[2] + c * out.strides[3]] = T(0);
  return 0;
}

template <class T>
void chain_step(const Chain<T>& v, int64_t image, int64_t o0, int64_t o1, Kept& kept, char* scratch) {
  const int64_t *a = v.dw.a, channels = v.dw.channels, width = a[kSpatial + 2], area = v.kept_rows * v.width;
  int64_t strides[4];
  T* made = (T*)(scratch + v.work_bytes);
  const effc_tensor& out = v.call->out[0];
  T* const result = (T*)out.data + image * out.strides[0] + o0 * width * out.strides[2];
  T* const deep = v.last ? made + (v.first ? area * channels : 0) : result;
  const int64_t deep_ld = v.last ? channels : out.strides[2];

  const int64_t blocks = max64(1, channels / v.cols), parts = v.first ? ceil_div(o1 - o0, v.part) : 1;
  Kept ring = kept;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t c0 = block * v.cols, c1 = block + 1 == blocks ? channels : c0 + v.cols, wide = c1 - c0;
    Depthwise<T> dw = v.dw;
    if (v.first) dw.xs[4] = wide, dw.xs[3] = v.width * wide;
    ring = kept;
    if (!v.last) ring.image = -1; /* it holds another block's */
    T* const held = made + (v.last ? area * c0 : 0);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = o0 + (o1 - o0) * part / parts, to = o0 + (o1 - o0) * (part + 1) / parts;
      const T* rows; /* of the ring, or of the image, at channel 0 */
      if (v.first) {
        T* mine = held - c0;
        int64_t make0;
        ring = chain_reach(v, ring, image, from, to, &make0);
        for (int64_t r = make0, n; r < ring.end; r += n) {
          const int64_t slot = r % v.kept_rows, base = image * v.height;
          n = min64(ring.end - r, v.kept_rows - slot);
          T* const at = held + slot * v.width * wide;
          if (v.plain) {
            chain_lines(v.wide, at, wide, c0, c1, image, r * v.width, (r + n) * v.width);
          } else if (v.strided) {
            chain_strides(v.wide, scratch, at, wide, c0, c1, image, r, n);
          } else {
            const effc_tensor t = chain_window(out, mine + slot * v.width * wide, r, v.width, wide, strides);
            chain_rows(v.wide, t, scratch, c0, c1, (base + r) * v.width, (base + r + n) * v.width);
          }
          if (v.acts[0]) activate(v.call, 0, at, n * v.width, wide, wide);
        }
        rows = mine;
      } else {
        rows = v.dw.x + image * v.dw.xs[0];
      }
      T* q = deep + (from - o0) * width * deep_ld + c0;
      chain_depthwise(dw, rows, v.first ? v.kept_rows : v.height, from, to, c0, c1, q, deep_ld, width * deep_ld);
      if (v.acts[v.stage]) activate(v.call, v.stage, q, (to - from) * width, wide, deep_ld);
      if (!v.last) sum_rows(v.call, q, image, from, to - from, width, deep_ld, c0, c1);
    }
  }
  if (!v.last) return;
  kept = ring;

  Conv<T> narrow = v.narrow;
  narrow.x = deep - o0 * width * channels; /* pixel m of the image is at m * channels */
  const int64_t base = image * narrow.pixels;
  chain_rows(narrow, out, scratch, 0, narrow.og, base + o0 * width, base + o1 * width);
  if (v.acts[v.stage + 1]) activate(v.call, v.stage + 1, result, (o1 - o0) * width, narrow.og, out.strides[2]);
}

template <class T>
void chain_steps(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Chain<T>& v = *(const Chain<T>*)arg;
  char* scratch = v.call->thread_scratch + worker * v.call->thread_scratch_bytes;
  const int64_t height = v.dw.a[kSpatial + 1];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t o0 = i % v.steps * v.rows;
    chain_step(v, i / v.steps, o0, min64(o0 + v.rows, height), v.kept[worker], scratch);
  }
}

/* Rows of a step, `most` or fewer: as many as leave the busiest thread the fewest rows. */
inline int64_t chain_share(int64_t images, int64_t height, int64_t most, int64_t threads) {
  int64_t best = max64(1, most), least = -1;
  for (int64_t rows = best; rows > 0 && threads > 1; --rows) {
    const int64_t busiest = ceil_div(images * ceil_div(height, rows), threads) * rows;
    if (least < 0 || busiest < least) least = busiest, best = rows;
  }
  return best;
}

/* The kernel: in x [N, C, H, W]; then of each convolution its packed weights and its steps' operands; out (N, 1, pixels, O),
 * channels innermost, and of one that ends in the depthwise convolution the sums of its rows (N, 1, height, O), if they are asked
 * for. Float attributes: the bounds of the clamps, in order. What a thread's scratch holds: see plan_of in
 * passes/fuse/chains.py. */
template <class T>
int32_t chain_kernel(const effc_call* call) {
  auto bad = [&](const char* what) {
    call->api->fail(call, "conv chain: %s", what);
    return 1;
  };
  if (call->n_attr < kChainAttrs || call->n_out < 1 || call->n_out > 1 + !call->attr[kChainLast]) return bad("wrong number of results or attributes");
  Chain<T> v;
  memset(&v, 0, sizeof v);
  v.call = call, v.first = call->attr[kChainFirst] != 0, v.last = call->attr[kChainLast] != 0;
  const int stages = v.first + 1 + v.last;
  v.rows = call->attr[kChainRows], v.kept_rows = call->attr[kChainKept], v.cols = call->attr[kChainCols];
  v.work_bytes = call->attr[kChainWork], v.part = max64(1, call->attr[kChainPart]);
  if (call->n_attr < kChainAttrs + kAttrs * stages || call->n_own < 1 + stages) return bad("wrong number of operands or attributes");
  const effc_tensor &x = call->in[0], &out = call->out[0];
  char* s = (char*)call->scratch;
  v.kept = (Kept*)s;
  const int64_t threads = call->api->num_threads(call->run);
  s += threads * (int64_t)sizeof(Kept);
  for (int64_t t = 0; t < threads; ++t) v.kept[t].image = -1;
  int operand = 1, limits = 0;
  const int64_t* a = call->attr + kChainAttrs;
  int64_t shape[5], strides[5];
  spatial_view(x, shape, strides);
  effc_call plain = *call; /* as the convolutions see it: what follows their steps is done here */
  plain.epilogue = nullptr;
  v.stage = v.first;
  for (int i = 0; i < stages; ++i) {
    v.acts[i] = (a[i * kAttrs + kSteps] & kActivate) != 0;
    if (v.acts[i] && !call->epilogue) return bad("an activation is missing");
  }

  if (v.first) {
    s = set_up(v.wide, &plain, a, x, call->in[operand++], out, s);
    v.wide.direct = true;
    if (!take_steps(v.wide, &operand, &limits)) return bad("steps of the first convolution");
    v.height = a[kSpatial + 1], v.width = a[kSpatial + 2];
    if (!take_scratch(v.wide, v.work_bytes)) return bad("scratch of the first convolution");
    v.plain = v.wide.lines && v.wide.line >= v.wide.pixels && v.wide.k <= v.wide.block_k;
    v.strided = chain_strided(v.wide);
    a += kAttrs;
  } else {
    v.height = shape[3], v.width = shape[4];
  }

  Depthwise<T>& dw = v.dw;
  if (const char* missing = take_depthwise(dw, call, a, v.height, v.width, &operand, &limits)) return bad(missing);
  dw.x = (const T*)x.data, dw.batch = shape[0];
  if (v.first) {
    dw.xs[1] = 1; /* the others depend on the block */
  } else {
    memcpy(dw.xs, strides, sizeof dw.xs);
    if (dw.xs[1] != 1 && dw.channels != 1) return bad("x must have its channels innermost");
  }
  dw_columns(dw);
  a += kAttrs;

  effc_tensor between = x;
  int64_t size[4] = {shape[0], dw.channels, dw.a[kSpatial + 1], dw.a[kSpatial + 2]};
  int64_t step[4] = {0, 1, size[3] * dw.channels, dw.channels};
  if (v.last) { /* it reads the second buffer, one row of pixels */
    between.rank = 4, between.shape = size, between.strides = step, between.dtype = out.dtype;
    if (operand >= call->n_own) return bad("the pointwise weights are missing");
    s = set_up(v.narrow, &plain, a, between, call->in[operand++], out, s);
    if (!v.narrow.direct || v.narrow.taps != 1 || !take_steps(v.narrow, &operand, &limits) || operand != call->n_own)
      return bad("steps of the pointwise convolution");
    if (!take_scratch(v.narrow, v.work_bytes)) return bad("scratch of the pointwise convolution");
  } else if (operand != call->n_own || (out.strides[3] != 1 && dw.channels != 1)) {
    return bad("operands or strides of the result");
  }

  const int64_t height = dw.a[kSpatial + 1];
  if (shape[0] * height * dw.a[kSpatial + 2] <= 0 || out.shape[3] <= 0) return sum_nothing<T>(call);
  v.rows = chain_share(shape[0], height, v.rows, threads);
  v.steps = ceil_div(height, v.rows);
  call->api->parallel_for(call->run, shape[0] * v.steps, 1, chain_steps<T>, &v);
  return 0;
}

/* ---- the first two convolutions alone, by channels ---- */

/* Attributes; after them those of both convolutions. */
enum PairAttr {
  kPairCols = 0, /* most channels that a thread makes at a time: whole panels of the first convolution */
  kPairWork = 1, /* bytes of the first convolution's thread scratch */
  kPairAttrs = 2
};

template <class T>
struct Pair {
  const effc_call* call;
  Conv<T> wide;
  Depthwise<T> dw;
  int64_t blocks, work_bytes; /* blocks of channels */
  bool acts[2];               /* which have an activation */
};

/* Items: (image, block of channels), those of an image together. */
template <class T>
void pair_blocks(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Pair<T>& v = *(const Pair<T>*)arg;
  char* scratch = v.call->thread_scratch + worker * v.call->thread_scratch_bytes;
  T* made = (T*)(scratch + v.work_bytes);
  const effc_tensor& out = v.call->out[0];
  const int64_t panel = v.wide.nv * Simd<T>::lanes, *sp = v.dw.a + kSpatial, pixels = v.dw.in[1] * v.dw.in[2];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / v.blocks, block = i % v.blocks, ld = out.strides[2];
    const int64_t c0 = v.wide.panels * block / v.blocks * panel;
    const int64_t c1 = min64(v.dw.channels, v.wide.panels * (block + 1) / v.blocks * panel), wide = c1 - c0;
    int64_t strides[4];
    const effc_tensor t = chain_window(out, made - c0, 0, v.dw.in[2], wide, strides);
    chain_rows(v.wide, t, scratch, c0, c1, image * pixels, (image + 1) * pixels);
    if (v.acts[0]) activate(v.call, 0, made, pixels, wide, wide);
    Depthwise<T> dw = v.dw;
    dw.xs[4] = wide, dw.xs[3] = v.dw.in[2] * wide;
    T* const q = (T*)out.data + image * out.strides[0] + c0;
    chain_depthwise(dw, made - c0, v.dw.in[1], 0, sp[1], c0, c1, q, ld, sp[2] * ld);
    if (v.acts[1]) activate(v.call, 1, q, sp[1] * sp[2], wide, ld);
    sum_rows(v.call, q, image, 0, sp[1], sp[2], ld, c0, c1);
  }
}

/* Blocks of at most `most` panels: the fewest of which no thread makes more than its share, or else those whose busiest thread has
 * the least. */
inline int64_t pair_share(int64_t images, int64_t panels, int64_t most, int64_t threads) {
  int64_t best = ceil_div(panels, max64(1, most)), least = -1;
  for (int64_t blocks = best; blocks <= panels; ++blocks) {
    const int64_t busiest = ceil_div(images * blocks, threads) * ceil_div(panels, blocks);
    if (least < 0 || busiest < least) least = busiest, best = blocks;
  }
  return best;
}

/* The kernel: in x [N, C, H, W]; then of both convolutions the packed weights and their steps' operands; out (N, 1, pixels, O),
 * channels innermost, and the sums of its rows, if they are asked for. Float attributes: the bounds of the clamps, in order. The
 * image is that of the two kernels, bit for bit. */
template <class T>
int32_t pair_kernel(const effc_call* call) {
  auto bad = [&](const char* what) {
    call->api->fail(call, "conv pair: %s", what);
    return 1;
  };
  if (call->n_attr < kPairAttrs + 2 * kAttrs || call->n_out < 1 || call->n_out > 2 || call->n_own < 3) return bad("wrong number of operands or attributes");
  Pair<T> v;
  memset(&v, 0, sizeof v);
  v.call = call, v.work_bytes = call->attr[kPairWork];
  int operand = 1, limits = 0;
  const effc_tensor &x = call->in[0], &out = call->out[0];
  const int64_t *a = call->attr + kPairAttrs, *first = a;
  effc_call plain = *call; /* as the convolutions see it: what follows their steps is done here */
  plain.epilogue = nullptr;
  for (int i = 0; i < 2; ++i) {
    v.acts[i] = (a[i * kAttrs + kSteps] & kActivate) != 0;
    if (v.acts[i] && !call->epilogue) return bad("an activation is missing");
  }
  set_up(v.wide, &plain, a, x, call->in[operand++], out, (char*)call->scratch);
  v.wide.direct = true;
  if (!take_steps(v.wide, &operand, &limits) || v.wide.residual) return bad("steps of the first convolution");
  if (!take_scratch(v.wide, v.work_bytes)) return bad("scratch of the first convolution");
  a += kAttrs;
  if (const char* missing = take_depthwise(v.dw, call, a, first[kSpatial + 1], first[kSpatial + 2], &operand, &limits)) return bad(missing);
  if (operand != call->n_own || v.dw.channels != first[kOut]) return bad("operands or channels that do not fit");
  if (out.strides[3] != 1 && v.dw.channels != 1) return bad("the result must have its channels innermost");
  v.dw.xs[1] = 1; /* the others depend on the block */
  dw_columns(v.dw);
  if (x.shape[0] * a[kSpatial + 1] * a[kSpatial + 2] * v.dw.channels <= 0) return sum_nothing<T>(call);
  /* A block's channels of the result come to lie where the other threads have read the last ones. */
  if (a[kStride + 1] == 1 && a[kStride + 2] == 1 && v.wide.pixels == a[kSpatial + 1] * a[kSpatial + 2]) claim_result(v.wide, out);
  const int64_t panel = v.wide.nv * Simd<T>::lanes;
  v.blocks = pair_share(x.shape[0], v.wide.panels, call->attr[kPairCols] / panel, call->api->num_threads(call->run));
  call->api->parallel_for(call->run, x.shape[0] * v.blocks, 1, pair_blocks<T>, &v);
  return 0;
}

}  // namespace conv
}  // namespace effc
#endif
