// Shared basics of effc_rt: the error type, dtype table, checked arithmetic and counted memory.
#pragma once
#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "effc_kernel.h"

namespace effc_rt {

// Every failure inside effc_rt is an Error; api.cpp turns it into a status code and effc_last_error().
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string format_v(const char* fmt, va_list args);
std::string format(const char* fmt, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail(const char* fmt, ...) __attribute__((format(printf, 1, 2)));

struct DtypeInfo {
  const char* name;
  int32_t size;
};
#define EFFC_DTYPE_INFO(name, text, size) {text, size},
constexpr int kNumDtypes = EFFC_NUM_DTYPES;
constexpr DtypeInfo kDtypes[kNumDtypes] = {EFFC_DTYPES(EFFC_DTYPE_INFO)};
#undef EFFC_DTYPE_INFO
int dtype_from_name(const std::string& name);  // throws Error

// Sizes come from files and callers: all arithmetic on them is checked.
inline int64_t add(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_add_overflow(a, b, &r)) fail("a size overflows 64 bits");
  return r;
}
inline int64_t sub(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_sub_overflow(a, b, &r)) fail("a size overflows 64 bits");
  return r;
}
inline int64_t mul(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_mul_overflow(a, b, &r)) fail("a size overflows 64 bits");
  return r;
}
inline int64_t align64(int64_t n) { return add(n, 63) & ~int64_t(63); }

// Memory for arenas, copies and results. Every call is counted, so that tests can assert that a warm run makes none.
extern std::atomic<uint64_t> g_allocs;
constexpr int64_t kHugePage = int64_t(2) << 20;
void prefer_huge_pages(void* data, int64_t bytes);  // what of it is whole such pages; a hint
void* alloc_bytes(int64_t bytes);  // 64-byte aligned, never NULL for bytes == 0; throws Error naming the size
void free_bytes(void* p);

struct Buffer {  // grow-only, contents not kept
  void* data = nullptr;
  int64_t size = 0;
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free_bytes(data); }
  char* reserve(int64_t bytes) {
    if (bytes > size || !data) {
      free_bytes(data);
      data = nullptr;
      size = 0;
      data = alloc_bytes(bytes);
      size = bytes;
    }
    return static_cast<char*>(data);
  }
};

// Row-major strides of `shape`, in elements; returns the number of elements.
int64_t row_major(int rank, const int64_t* shape, int64_t* strides);
bool is_row_major(int rank, const int64_t* shape, const int64_t* strides);
// Copies a strided tensor; both sides have `shape` and `itemsize` and do not overlap.
void copy_strided(int rank, const int64_t* shape, int itemsize, void* dst, const int64_t* dst_strides, const void* src,
                  const int64_t* src_strides);
std::string shape_text(int rank, const int64_t* shape);
uint64_t now_ns();  // of a clock that only goes forward

}  // namespace effc_rt
