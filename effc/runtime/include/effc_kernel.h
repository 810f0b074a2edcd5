/* effc kernel ABI: what a compiled kernel sees.
 *
 * Every kernel, whether it comes from the library (backends/cpu/kernels) or was generated for one graph, has the
 * signature effc_kernel_fn. It gets strided tensors, integer and float attributes, scratch memory and a table of
 * runtime services; it owns nothing and keeps nothing between calls. Kernels are plain C symbols in the artifact's
 * shared object; the program (see docs/architecture.md) names them.
 */
#ifndef EFFC_KERNEL_H
#define EFFC_KERNEL_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EFFC_ABI_VERSION 1
#define EFFC_MAX_RANK 12

/* Element types: X(name, text name, bytes in memory, also of types of less than a byte). The order is their numbers,
 * which are part of the artifact format: append only. */
#define EFFC_DTYPES(X)                                                                                          \
  X(BOOL, "bool", 1)                                                                                            \
  X(U8, "u8", 1)                                                                                                \
  X(I8, "i8", 1)                                                                                                \
  X(U16, "u16", 2)                                                                                              \
  X(I16, "i16", 2)                                                                                              \
  X(U32, "u32", 4)                                                                                              \
  X(I32, "i32", 4)                                                                                              \
  X(U64, "u64", 8)                                                                                              \
  X(I64, "i64", 8)                                                                                              \
  X(F16, "f16", 2)                                                                                              \
  X(BF16, "bf16", 2)                                                                                            \
  X(F32, "f32", 4)                                                                                              \
  X(F64, "f64", 8)                                                                                              \
  X(F8E4M3, "f8e4m3", 1) /* e4m3fn: no infinities */                                                            \
  X(F8E5M2, "f8e5m2", 1)                                                                                        \
  X(C64, "c64", 8)                                                                                              \
  X(C128, "c128", 16)                                                                                           \
  X(C32, "c32", 4) /* two f16 */                                                                                \
  X(I4, "i4", 1)   /* in the low bits of a byte; so are the next four */                                        \
  X(U4, "u4", 1)                                                                                                \
  X(I2, "i2", 1)                                                                                                \
  X(U2, "u2", 1)                                                                                                \
  X(F4E2M1, "f4e2m1", 1)         /* neither infinities nor NaN */                                               \
  X(F8E4M3FNUZ, "f8e4m3fnuz", 1) /* neither infinities nor -0; bias 8 */                                        \
  X(F8E5M2FNUZ, "f8e5m2fnuz", 1) /* the same; bias 16 */                                                        \
  X(F8E8M0, "f8e8m0", 1)         /* powers of two: neither sign, zero nor infinities */

typedef enum effc_dtype {
#define EFFC_DTYPE_CODE(name, text, size) EFFC_##name,
  EFFC_DTYPES(EFFC_DTYPE_CODE)
#undef EFFC_DTYPE_CODE
  EFFC_NUM_DTYPES
} effc_dtype;

/* Bytes of an element in memory. */
static inline int32_t effc_dtype_size(int32_t dtype) {
#define EFFC_DTYPE_SIZE(name, text, size) size,
  static const int8_t sizes[] = {EFFC_DTYPES(EFFC_DTYPE_SIZE)};
#undef EFFC_DTYPE_SIZE
  return sizes[dtype];
}

/* A strided view. Strides are in elements and may be 0 (broadcast) or negative (flip).
 * An absent optional operand has data == NULL and rank == -1. A zero-sized tensor may have data == NULL, rank >= 0. */
typedef struct effc_tensor {
  void* data;
  int32_t dtype;
  int32_t rank;
  const int64_t* shape;
  const int64_t* strides;
} effc_tensor;

struct effc_call;

/* Work on items [begin, end); worker is in [0, num_threads) and no two concurrent calls share it. */
typedef void (*effc_task_fn)(void* arg, int64_t begin, int64_t end, int32_t worker);

typedef struct effc_api {
  int32_t abi_version;
  /* Splits [0, n) into chunks of `grain` items (the last one shorter) and runs them on the pool; returns when all are
   * done. Which thread takes which chunk is not defined, chunk borders are: results must depend on neither. */
  void (*parallel_for)(void* run, int64_t n, int64_t grain, effc_task_fn fn, void* arg);
  /* Threads parallel_for may use in this run. */
  int32_t (*num_threads)(void* run);
  /* Allocates output i, declared "dyn" in the program, and fills in its data, shape and (contiguous) strides. 0 on success. */
  int32_t (*alloc_out)(const struct effc_call* call, int32_t i, int32_t rank, const int64_t* shape);
  /* Binds a data-dependent symbol; i counts the instruction's "bind" list. */
  void (*bind_symbol)(const struct effc_call* call, int32_t i, int64_t value);
  /* Reports an error in the data (an index out of range, a singular matrix). The kernel then returns nonzero. */
  void (*fail)(const struct effc_call* call, const char* format, ...);
  /* The next 64-bit Philox counter block of this session: reserves n counters, returns the first; *seed gets the seed. */
  uint64_t (*rng_reserve)(void* run, uint64_t n, uint64_t* seed);
} effc_api;

/* A fused epilogue: called by contraction kernels (matmul, conv) on each finished tile of accumulators.
 * The box is rows [m0, m1), columns [n0, n1) of batch (b0, b1); acc points at element (m0, n0), row stride ld elements,
 * in the kernel's accumulation dtype (f32 for f16/bf16/f32, f64 for f64, i32 or i64 for integers). It reads the extra operands
 * call->in[call->n_own ...] and writes call->out[*]; all of those have rank 4 (b0, b1, m, n). acc may alias out. */
typedef void (*effc_epilogue_fn)(const struct effc_call* call, int64_t b0, int64_t b1, int64_t m0, int64_t m1,
                                 int64_t n0, int64_t n1, const void* acc, int64_t ld);

typedef struct effc_call {
  const effc_api* api;
  void* run;                /* opaque: pass to parallel_for, num_threads, rng_reserve */
  int32_t n_in, n_own;      /* inputs; the first n_own are the kernel's own operands, the rest the epilogue's */
  int32_t n_out;
  int32_t n_attr, n_fattr;
  const effc_tensor* in;
  effc_tensor* out;
  const int64_t* attr;      /* integer attributes, dims already evaluated */
  const double* fattr;      /* float attributes */
  void* scratch;            /* scratch_bytes, 64-byte aligned, shared by the call's threads */
  int64_t scratch_bytes;
  char* thread_scratch;     /* num_threads blocks of thread_scratch_bytes, each 64-byte aligned */
  int64_t thread_scratch_bytes;
  effc_epilogue_fn epilogue; /* NULL: store the accumulators converted to the output dtype */
} effc_call;

typedef int32_t (*effc_kernel_fn)(const effc_call* call); /* 0 on success */

#ifdef __cplusplus
}
#endif
#endif
