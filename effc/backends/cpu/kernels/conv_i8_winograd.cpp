/* Convolutions of bytes with 3x3 windows and stride 1 by Winograd's minimal filtering (Lavin and Gray, "Fast algorithms for
 * convolutional neural networks", 2015), exact: F(M x M, 3 x 3) for M = 2 and 4 in integers.
 *
 * For N = M + 2 values d of a line of the image and three weights g, the M sums are D^-1 A ((G g) * (B d)). A, B and G are integers
 * here, and D is diagonal: its entries are an odd number times powers of two, 2 for M = 2, and 24, 12, 6, 6 for M = 4. In two dims a
 * sum is multiplied by the product of two entries, odd^2 2^s. What is computed modulo 2^32 is therefore odd^2 2^s times the sum; a
 * product with the inverse of odd^2 modulo 2^32 and an arithmetic shift by s give the sum itself, if it lies within 31 - s bits. The
 * packer (packing/int8_winograd.py) proves that of the weights of each output channel, and refuses them otherwise.
 *
 * Zero points are taken off first: |x - zx| <= 255, so transformed pixels are at most 100 * 255 = 25500 (B has rows with a sum of
 * magnitudes of 10), transformed weights 49 * 255 = 12495 (G: 7). Both fit in 16 bits, two products of them in 32, and the sums
 * over the channels (vpmaddwd, vpaddd) may wrap. Padding stands for zx, and is 0.
 *
 * That is 4 or 2.25 multiplications a pixel, in 16 bits, where the direct sum takes 9, in 8 bits, and widens them
 * (dot_i8.hpp).
 *
 * A block is a number of tiles by a number of panels of 16 output channels. The transformed image lies as [position][tile][C] in
 * scratch: in a thread's own, where tasks are blocks of tiles (early layers: many tiles, small weights), or in the call's, where
 * tasks are groups of panels (late layers: few tiles, large weights, which are read once). */
#include "gemm_i8.hpp"

using namespace effc;
using namespace effc::i8;

namespace {
/* As those of effc_qconv, then: tiles and columns of a block; the transformed image is shared by all threads. */
enum { kGroups, kOut, kKernel, kStride = kKernel + 3, kPad = kStride + 3, kDilation = kPad + 3, kSize = kDilation + 3,
       kTiles = kSize + 3, kCols, kShared, kAttrs };

typedef int16_t I16 __attribute__((vector_size(32)));
typedef uint32_t U32 __attribute__((vector_size(32))); /* sums wrap */
constexpr int kLanes = 16;   /* channels that are transformed at a time, and columns of a panel */
constexpr int kMaxTileRows = 6;

/* One-dimensional transforms: N values of the image to N positions, N sums to M results; the power of two in D, and the inverse of
 * its odd part squared. */
template <int M>
struct Minimal;

template <>
struct Minimal<2> {
  static constexpr int shift[2] = {1, 1};
  static constexpr uint32_t inverse = 1;
  EFFC_INLINE void input(const I16* d, I16* v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  EFFC_INLINE void output(const U32* m, U32* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
};

template <>
struct Minimal<4> {
  static constexpr int shift[4] = {3, 2, 1, 1};
  static constexpr uint32_t inverse = 954437177u;
  static_assert(9u * inverse == 1u, "");
  EFFC_INLINE void input(const I16* d, I16* v) {
    const I16 a = d[4] - (d[2] << 2), b = d[3] - (d[1] << 2), c = d[4] - d[2], e = (d[3] - d[1]) << 1;
    v[0] = ((d[0] - d[2]) << 2) + c;
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = (d[5] - d[3]) - (e << 1);
  }
  EFFC_INLINE void output(const U32* m, U32* y) {
    const U32 s = m[1] + m[2], d = m[1] - m[2], t = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + (s << 2) + t;
    y[1] = d + d + e;
    y[2] = s + t;
    y[3] = d + e + e + m[5];
  }
};

/* The packed constant (packing/int8_winograd.py). */
struct Packed {
  struct Header {
    char magic[8];
    uint32_t format, version, tile, c, o, reserved[5];
    uint64_t checksum, reserved2;
  } h;
  const int16_t* data; /* [panel][position][pairs][16][2] */
  int64_t pairs, panels;

  const char* open(const effc_tensor& t) {
    static_assert(sizeof(Header) == kHeader, "");
    if (t.rank != 1 || t.shape[0] < kHeader) return "the packed operand is no packed buffer";
    memcpy(&h, t.data, sizeof h);
    if (memcmp(h.magic, "EFFCPACK", 8) != 0 || h.format != 4 || h.version != 1 || (h.tile != 2 && h.tile != 4))
      return "the packed operand has another layout";
    data = (const int16_t*)((const char*)t.data + kHeader);
    pairs = ceil_div(h.c, 2), panels = ceil_div(h.o, kNR);
    const int64_t positions = (h.tile + 2) * (h.tile + 2);
    return t.shape[0] == kHeader + panels * positions * pairs * kNR * 4 ? nullptr : "the packed operand has another size";
  }
};

/* c[R][16] = a[R][pairs of 16 bits] b[pairs][16][2]. Fetches weights of the next position: `step` bytes a pair from `next` on. */
template <int R>
void micro_pairs(const int16_t* a, int64_t lda, const int16_t* b, int64_t pairs, int32_t* c, int64_t ldc, const char* next,
                 int64_t step) {
  __m256i acc[R][2];
  EFFC_UNROLL_ALL
  for (int i = 0; i < R; ++i) acc[i][0] = acc[i][1] = _mm256_setzero_si256();
  for (int64_t s = 0; s < pairs; ++s, a += 2, b += 2 * kNR) {
    const __m256i w0 = _mm256_loadu_si256((const __m256i*)b), w1 = _mm256_loadu_si256((const __m256i*)(b + kNR));
    __builtin_prefetch(next, 0, 3);
    next += step;
    EFFC_UNROLL_ALL
    for (int i = 0; i < R; ++i) {
      const __m256i x = _mm256_set1_epi32(four((const uint8_t*)(a + i * lda)));
      accumulate(acc[i][0], _mm256_madd_epi16(x, w0));
      accumulate(acc[i][1], _mm256_madd_epi16(x, w1));
    }
  }
  EFFC_UNROLL_ALL
  for (int i = 0; i < R; ++i)
    EFFC_UNROLL_ALL
    for (int j = 0; j < 2; ++j) _mm256_storeu_si256((__m256i*)(c + i * ldc + j * 8), acc[i][j]);
}
typedef void (*MicroPairs)(const int16_t*, int64_t, const int16_t*, int64_t, int32_t*, int64_t, const char*, int64_t);
constexpr MicroPairs kMicro[kMaxTileRows] = {micro_pairs<1>, micro_pairs<2>, micro_pairs<3>,
                                             micro_pairs<4>, micro_pairs<5>, micro_pairs<6>};

struct Conv {
  const effc_call* call;
  const int64_t* a;
  Packed w;
  const uint8_t* x;
  int64_t batch, c, height, width; /* of the image */
  int64_t x_image, x_row, x_col;   /* strides */
  bool is_signed;
  uint8_t zero;
  int64_t out_h, out_w, across, down, tiles; /* of the result; tiles of all images */
  int64_t block, cols;                       /* tiles and columns of a block, at most */
  int64_t v_row, v_step, m_row, m_step;      /* values between tiles and positions, of the transformed image and of the sums */
  int64_t row_blocks, col_blocks;
  int16_t* shared;
  const uint8_t* fill; /* a pixel of padding */
  int64_t first, count; /* the tiles in `shared` */

  int16_t* own(int32_t worker) const { return (int16_t*)(call->thread_scratch + worker * call->thread_scratch_bytes); }
};

struct Place {
  int64_t image, y, x;
};
template <int M>
EFFC_INLINE Place place(const Conv& v, int64_t tile) {
  const int64_t per = v.across * v.down, at = tile % per;
  return {tile / per, at / v.across * M, at % v.across * M};
}

template <bool Signed>
EFFC_INLINE I16 widen(const uint8_t* p, I16 zero) {
  const __m128i x = _mm_loadu_si128((const __m128i*)p);
  return (I16)(Signed ? _mm256_cvtepi8_epi16(x) : _mm256_cvtepu8_epi16(x)) - zero;
}

/* A tile's pixels, 16 channels of them, to the positions from `dst` on. */
template <int M, bool Signed>
EFFC_INLINE void input_vector(const uint8_t* const* px, int64_t c, I16 zero, int16_t* dst, int64_t step) {
  constexpr int N = M + 2;
  I16 tmp[N][N];
  EFFC_UNROLL_ALL
  for (int j = 0; j < N; ++j) {
    I16 d[N], v[N];
    EFFC_UNROLL_ALL
    for (int i = 0; i < N; ++i) d[i] = widen<Signed>(px[i * N + j] + c, zero);
    Minimal<M>::input(d, v);
    EFFC_UNROLL_ALL
    for (int i = 0; i < N; ++i) tmp[i][j] = v[i];
  }
  EFFC_UNROLL_ALL
  for (int i = 0; i < N; ++i) {
    I16 v[N];
    Minimal<M>::input(tmp[i], v);
    EFFC_UNROLL_ALL
    for (int j = 0; j < N; ++j) _mm256_storeu_si256((__m256i*)(dst + (i * N + j) * step + c), (__m256i)v[j]);
  }
}

/* Tiles [t0, t1) of all, from row 0 of `dst` on. */
template <int M, bool Signed>
void input_tiles(const Conv& v, int16_t* dst, int64_t t0, int64_t t1) {
  constexpr int N = M + 2;
  const int16_t z = Signed ? (int16_t)(int8_t)v.zero : (int16_t)v.zero;
  const I16 zero = z - I16{};
  const int64_t whole = v.c / kLanes * kLanes, tail = v.c - whole;
  for (int64_t t = t0; t < t1; ++t, dst += v.v_row) {
    const Place p = place<M>(v, t);
    const uint8_t* image = v.x + p.image * v.x_image;
    const uint8_t* px[N * N];
    for (int i = 0; i < N; ++i) {
      const int64_t y = p.y + i - v.a[kPad + 1];
      for (int j = 0; j < N; ++j) {
        const int64_t x = p.x + j - v.a[kPad + 2];
        px[i * N + j] = y >= 0 && y < v.height && x >= 0 && x < v.width ? image + y * v.x_row + x * v.x_col : v.fill;
      }
    }
    for (int64_t c = 0; c < whole; c += kLanes) input_vector<M, Signed>(px, c, zero, dst, v.v_step);
    if (tail) {
      uint8_t copy[N * N][kLanes];
      const uint8_t* from[N * N];
      for (int i = 0; i < N * N; ++i) {
        memset(copy[i], v.zero, kLanes);
        memcpy(copy[i], px[i] + whole, tail);
        from[i] = copy[i];
      }
      input_vector<M, Signed>(from, 0, zero, dst + whole, v.v_step);
    }
  }
}

/* The sums of a tile, 8 columns of them from `acc` on, to its M x M results, kNC apart. */
template <int M>
EFFC_INLINE void output_vector(const int32_t* acc, int64_t step, int32_t* dst) {
  constexpr int N = M + 2;
  U32 tmp[M][N];
  EFFC_UNROLL_ALL
  for (int j = 0; j < N; ++j) {
    U32 m[N], y[M];
    EFFC_UNROLL_ALL
    for (int i = 0; i < N; ++i) m[i] = (U32)_mm256_loadu_si256((const __m256i*)(acc + (i * N + j) * step));
    Minimal<M>::output(m, y);
    EFFC_UNROLL_ALL
    for (int i = 0; i < M; ++i) tmp[i][j] = y[i];
  }
  EFFC_UNROLL_ALL
  for (int i = 0; i < M; ++i) {
    U32 y[M];
    Minimal<M>::output(tmp[i], y);
    EFFC_UNROLL_ALL
    for (int j = 0; j < M; ++j) {
      __m256i r = (__m256i)y[j];
      if (Minimal<M>::inverse != 1) r = _mm256_mullo_epi32(r, _mm256_set1_epi32((int32_t)Minimal<M>::inverse));
      r = _mm256_srai_epi32(r, Minimal<M>::shift[i] + Minimal<M>::shift[j]);
      _mm256_storeu_si256((__m256i*)(dst + (i * M + j) * kNC), r);
    }
  }
}

void store(const Conv& v, int64_t image, int64_t m, int64_t rows, int64_t n0, int64_t n1, const int32_t* acc) {
  const effc_tensor& out = v.call->out[0];
  const int64_t* s = out.strides;
  for (int64_t i = 0; i < rows; ++i, acc += kNC) {
    int32_t* dst = (int32_t*)out.data + image * s[0] + (m + i) * s[2] + n0 * s[3];
    for (int64_t j = 0; j < n1 - n0; ++j) dst[j * s[3]] = acc[j];
  }
}

/* `count` tiles from tile `first` on, whose transformed image is `x`: the panels [p0, p1). */
template <int M>
void run_columns(const Conv& v, const int16_t* x, int32_t* acc, int64_t first, int64_t count, int64_t p0, int64_t p1) {
  constexpr int positions = (M + 2) * (M + 2);
  const int64_t row_tiles = ceil_div(count, kMaxTileRows), slab = v.w.pairs * kNR * 2, bytes = slab * 2;
  for (int64_t p = p0; p < p1; ++p) {
    const int16_t* b = v.w.data + p * positions * slab;
    for (int k = 0; k < positions; ++k, b += slab)
      for (int64_t t = 0; t < row_tiles; ++t) {
        const int64_t r0 = count * t / row_tiles, rows = count * (t + 1) / row_tiles - r0;
        kMicro[rows - 1](x + k * v.v_step + r0 * v.v_row, v.v_row, b, v.w.pairs,
                         acc + k * v.m_step + r0 * v.m_row + (p - p0) * kNR, v.m_row,
                         (const char*)(b + slab) + bytes * t / row_tiles, 64 / row_tiles);
      }
  }
  const int64_t n0 = p0 * kNR, n1 = min(p1 * kNR, v.w.h.o);
  alignas(64) int32_t plain[M * M * kNC];
  for (int64_t t = 0; t < count; ++t, acc += v.m_row) {
    for (int64_t n = 0; n < n1 - n0; n += 8) output_vector<M>(acc + n, v.m_step, plain + n);
    const Place p = place<M>(v, first + t);
    const int64_t rows = min(M, v.out_h - p.y), width = min(M, v.out_w - p.x);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t m = (p.y + i) * v.out_w + p.x;
      if (v.call->epilogue)
        v.call->epilogue(v.call, p.image, 0, m, m + width, n0, n1, plain + i * M * kNC, kNC);
      else
        store(v, p.image, m, width, n0, n1, plain + i * M * kNC);
    }
  }
}

template <int M, bool Signed>
void own_blocks(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Conv& v = *(const Conv*)arg;
  int16_t* x = v.own(worker);
  int32_t* acc = (int32_t*)(x + (M + 2) * (M + 2) * v.v_step);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t t0 = v.tiles * i / v.row_blocks, t1 = v.tiles * (i + 1) / v.row_blocks;
    input_tiles<M, Signed>(v, x, t0, t1);
    for (int64_t j = 0; j < v.col_blocks; ++j)
      run_columns<M>(v, x, acc, t0, t1 - t0, v.w.panels * j / v.col_blocks, v.w.panels * (j + 1) / v.col_blocks);
  }
}

template <int M, bool Signed>
void shared_input(void* arg, int64_t begin, int64_t end, int32_t) {
  const Conv& v = *(const Conv*)arg;
  input_tiles<M, Signed>(v, v.shared + begin * v.v_row, v.first + begin, v.first + end);
}

template <int M>
void shared_columns(void* arg, int64_t begin, int64_t end, int32_t worker) {
  const Conv& v = *(const Conv*)arg;
  for (int64_t j = begin; j < end; ++j)
    run_columns<M>(v, v.shared, (int32_t*)v.own(worker), v.first, v.count, v.w.panels * j / v.col_blocks,
                   v.w.panels * (j + 1) / v.col_blocks);
}

template <int M, bool Signed>
int32_t run(Conv& v) {
  constexpr int64_t positions = (M + 2) * (M + 2);
  const effc_api* api = v.call->api;
  v.across = ceil_div(v.out_w, M), v.down = ceil_div(v.out_h, M), v.tiles = v.batch * v.across * v.down;
  /* A line more than a row needs: powers of two would fall on few sets of the first cache. */
  v.v_row = ceil_div(v.c, 32) * 32 + 32, v.m_row = v.cols + 16;
  v.v_step = v.block * v.v_row, v.m_step = v.block * v.m_row;
  const int64_t image = positions * v.v_step * 2, sums = positions * v.m_step * 4, pixel = ceil_div(v.c, 64) * 64;
  char* s = (char*)v.call->scratch;
  if (v.call->scratch_bytes < pixel + (v.a[kShared] ? image : 0) ||
      v.call->thread_scratch_bytes < sums + (v.a[kShared] ? 0 : image))
    return bad(v.call, "scratch is too small");
  memset(s, v.zero, pixel);
  v.fill = (const uint8_t*)s, v.shared = (int16_t*)(s + pixel);
  v.row_blocks = ceil_div(v.tiles, v.block), v.col_blocks = ceil_div(v.w.panels, v.cols / kNR);
  /* As many blocks for one thread as for another. */
  const int64_t threads = api->num_threads(v.call->run), want = threads > 1 ? 2 * threads : 1;
  auto even = [&](int64_t blocks, int64_t most) { return max(blocks, min(most, ceil_div(max(blocks, want), threads) * threads)); };
  if (!v.a[kShared]) {
    v.row_blocks = even(v.row_blocks, ceil_div(v.tiles, kMaxTileRows));
    api->parallel_for(v.call->run, v.row_blocks, 1, own_blocks<M, Signed>, &v);
    return 0;
  }
  v.col_blocks = even(v.col_blocks, v.w.panels);
  for (int64_t b = 0; b < v.row_blocks; ++b) {
    v.first = v.tiles * b / v.row_blocks, v.count = v.tiles * (b + 1) / v.row_blocks - v.first;
    api->parallel_for(v.call->run, v.count, max(1, 16384 / (positions * v.c)), shared_input<M, Signed>, &v);
    api->parallel_for(v.call->run, v.col_blocks, 1, shared_columns<M>, &v);
  }
  return 0;
}
}  // namespace

/* in: x [N, C, H, W] u8 or i8 with its channels innermost, the packed weights, zx of x's type, one element; out: i32 (N, 1, pixels, O),
 * or the epilogue's results. attrs: those of effc_qconv, tiles and columns of a block, whether the transformed image is shared. */
EFFC_EXPORT int32_t effc_qconv_winograd(const effc_call* call) {
  if (call->n_own != 3 || call->n_attr < kAttrs) return bad(call, "three operands and more attributes expected");
  const effc_tensor &x = call->in[0], &z = call->in[2];
  const int64_t* a = call->attr;
  if (x.rank != 4 || !is_byte(x) || z.dtype != x.dtype) return bad(call, "wrong operands");
  Conv v;
  memset(&v, 0, sizeof v);
  v.call = call, v.a = a;
  if (const char* what = v.w.open(call->in[1])) return bad(call, what);
  const bool plain = a[kGroups] == 1 && a[kKernel] == 1 && a[kKernel + 1] == 3 && a[kKernel + 2] == 3 && a[kStride + 1] == 1 &&
                     a[kStride + 2] == 1 && a[kDilation + 1] == 1 && a[kDilation + 2] == 1;
  if (!plain || a[kTiles] < 1 || a[kCols] < kNR || a[kCols] > kNC || a[kCols] % kNR)
    return bad(call, "a 3x3 window, stride 1 and no groups expected");
  v.batch = x.shape[0], v.c = x.shape[1], v.height = x.shape[2], v.width = x.shape[3];
  if (v.w.h.c != v.c || v.w.h.o != a[kOut]) return bad(call, "sizes differ from the packed operand's");
  v.x = (const uint8_t*)x.data, v.x_image = x.strides[0], v.x_row = x.strides[2], v.x_col = x.strides[3];
  v.is_signed = x.dtype == EFFC_I8, v.zero = *(const uint8_t*)z.data;
  v.out_h = a[kSize + 1], v.out_w = a[kSize + 2], v.block = a[kTiles], v.cols = a[kCols];
  if (v.batch == 0 || v.out_h <= 0 || v.out_w <= 0 || v.w.h.o == 0) return 0;
  if (v.c > 1 && x.strides[1] != 1) return bad(call, "x must have its channels innermost");
  if (v.w.h.tile == 2) return v.is_signed ? run<2, true>(v) : run<2, false>(v);
  return v.is_signed ? run<4, true>(v) : run<4, false>(v);
}
