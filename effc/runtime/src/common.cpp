#include "common.hpp"

#include <sys/mman.h>
#include <time.h>

namespace effc_rt {

std::atomic<uint64_t> g_allocs{0};

std::string format_v(const char* fmt, va_list args) {
  va_list again;
  va_copy(again, args);
  int n = vsnprintf(nullptr, 0, fmt, args);
  std::string text(n < 0 ? 0 : size_t(n), '\0');
  if (n > 0) vsnprintf(&text[0], size_t(n) + 1, fmt, again);
  va_end(again);
  return text;
}

std::string format(const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  std::string text = format_v(fmt, args);
  va_end(args);
  return text;
}

void fail(const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  std::string text = format_v(fmt, args);
  va_end(args);
  throw Error(text);
}

int dtype_from_name(const std::string& name) {
  for (int i = 0; i < kNumDtypes; ++i)
    if (name == kDtypes[i].name) return i;
  fail("unknown dtype '%s'", name.substr(0, 40).c_str());
}

// Fewer faults and TLB misses; refusal by the kernel is harmless.
void prefer_huge_pages(void* data, int64_t bytes) {
  uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kHugePage * kHugePage;
  if (bytes > 0 && last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

void* alloc_bytes(int64_t bytes) {
  if (bytes < 0 || bytes > (int64_t(1) << 46)) fail("cannot allocate %lld bytes", static_cast<long long>(bytes));
  bool huge = bytes >= 2 * kHugePage;
  int64_t align = huge ? kHugePage : 64;
  int64_t size = bytes == 0 ? align : (bytes + align - 1) / align * align;
  void* p = nullptr;
  if (posix_memalign(&p, size_t(align), size_t(size)) != 0)
    fail("out of memory: cannot allocate %lld bytes", static_cast<long long>(bytes));
  if (huge) prefer_huge_pages(p, size);
  g_allocs.fetch_add(1, std::memory_order_relaxed);
  return p;
}

void free_bytes(void* p) { free(p); }

int64_t row_major(int rank, const int64_t* shape, int64_t* strides) {
  int64_t n = 1;
  for (int i = rank - 1; i >= 0; --i) {
    strides[i] = n;
    n = mul(n, shape[i] > 0 ? shape[i] : 1);
  }
  for (int i = 0; i < rank; ++i)
    if (shape[i] == 0) return 0;
  return n;
}

bool is_row_major(int rank, const int64_t* shape, const int64_t* strides) {
  int64_t n = 1;
  bool same = true;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] == 0) return true;
    if (shape[i] != 1 && strides[i] != n) same = false;
    n *= shape[i];
  }
  return same;
}

namespace {

// Elements move through memcpy of a constant size: the caller's addresses need not be aligned.
template <int kSize>
void copy_loop(int rank, const int64_t* shape, char* dst, const int64_t* ds, const char* src, const int64_t* ss) {
  if (rank == 0) {
    memcpy(dst, src, kSize);
    return;
  }
  int64_t n = shape[0];
  if (rank == 1) {
    int64_t a = ds[0], b = ss[0];
    if (a == 1 && b == 1) {
      memcpy(dst, src, size_t(n) * kSize);
    } else {
      for (int64_t i = 0; i < n; ++i)
        memcpy(dst + i * a * kSize, src + i * b * kSize, kSize);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i)
    copy_loop<kSize>(rank - 1, shape + 1, dst + i * ds[0] * kSize, ds + 1, src + i * ss[0] * kSize, ss + 1);
}

}  // namespace

void copy_strided(int rank, const int64_t* shape, int itemsize, void* dst, const int64_t* dst_strides, const void* src,
                  const int64_t* src_strides) {
  // Merge neighbouring dims that are contiguous on both sides, so that the inner loop is as long as it can be.
  int64_t n[EFFC_MAX_RANK], d[EFFC_MAX_RANK], s[EFFC_MAX_RANK];
  int r = 0;
  for (int i = 0; i < rank; ++i) {
    if (shape[i] == 0) return;
    if (shape[i] == 1) continue;
    if (r > 0 && d[r - 1] == dst_strides[i] * shape[i] && s[r - 1] == src_strides[i] * shape[i]) {
      n[r - 1] *= shape[i];
      d[r - 1] = dst_strides[i];
      s[r - 1] = src_strides[i];
    } else {
      n[r] = shape[i];
      d[r] = dst_strides[i];
      s[r++] = src_strides[i];
    }
  }
  char* to = static_cast<char*>(dst);
  const char* from = static_cast<const char*>(src);
  switch (itemsize) {
    case 1: return copy_loop<1>(r, n, to, d, from, s);
    case 2: return copy_loop<2>(r, n, to, d, from, s);
    case 4: return copy_loop<4>(r, n, to, d, from, s);
    case 8: return copy_loop<8>(r, n, to, d, from, s);
    default: return copy_loop<16>(r, n, to, d, from, s);
  }
}

std::string shape_text(int rank, const int64_t* shape) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i)
    text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (rank == 1 ? ",)" : ")");
}

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

}  // namespace effc_rt
