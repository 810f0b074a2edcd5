// Small kernels for the runtime's tests: plain loops over the kernel ABI.
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <string>

#include "effc_kernel.h"

#define KERNEL extern "C" __attribute__((visibility("default"))) int32_t

static int64_t count(const effc_tensor& t) {
  int64_t n = 1;
  for (int i = 0; i < t.rank; ++i)
    n *= t.shape[i];
  return n;
}

// Offset in elements of the i-th element in row-major order of `shape`.
static int64_t offset(const effc_tensor& t, const effc_tensor& like, int64_t i) {
  int64_t at = 0;
  for (int d = like.rank - 1; d >= 0; --d) {
    at += i % like.shape[d] * t.strides[d];
    i /= like.shape[d];
  }
  return at;
}

static float get(const effc_tensor& t, const effc_tensor& like, int64_t i) {
  return static_cast<const float*>(t.data)[offset(t, like, i)];
}
static float& at(const effc_tensor& t, int64_t i) { return static_cast<float*>(t.data)[offset(t, t, i)]; }

// out = in0 + in1 (f32, equal shapes, any strides), in parallel.
KERNEL t_add(const effc_call* c) {
  auto body = [](void* arg, int64_t begin, int64_t end, int32_t) {
    auto* call = static_cast<const effc_call*>(arg);
    for (int64_t i = begin; i < end; ++i)
      at(call->out[0], i) = get(call->in[0], call->out[0], i) + get(call->in[1], call->out[0], i);
  };
  c->api->parallel_for(c->run, count(c->out[0]), 16, body, const_cast<effc_call*>(c));
  return 0;
}

// out = in * fattr[0] + attr[0]
KERNEL t_scale(const effc_call* c) {
  int64_t n = count(c->out[0]);
  for (int64_t i = 0; i < n; ++i)
    at(c->out[0], i) = get(c->in[0], c->out[0], i) * float(c->fattr[0]) + float(c->attr[0]);
  return 0;
}

// out = in; puts what lies in $TMPDIR's files without names out of the page cache, as a kernel short of memory does.
KERNEL t_evict(const effc_call* c) {
  const char* folder = getenv("TMPDIR");
  DIR* open = opendir("/proc/self/fd");
  if (!folder || !open) return 1;
  while (dirent* entry = readdir(open)) {
    char path[4096];
    ssize_t n = readlinkat(dirfd(open), entry->d_name, path, sizeof path - 1);
    if (n < 0 || std::string(path, size_t(n)).rfind(folder, 0) != 0) continue;
    if (std::string(path, size_t(n)).find("(deleted)") == std::string::npos) continue;
    int fd = atoi(entry->d_name);
    if (fdatasync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) return 2;
  }
  closedir(open);
  int64_t n = count(c->out[0]);
  for (int64_t i = 0; i < n; ++i)
    at(c->out[0], i) = get(c->in[0], c->out[0], i);
  return 0;
}

// out (f32, rank r) = row sums of in (rank r + 1), through scratch and per-thread scratch.
KERNEL t_sum_last(const effc_call* c) {
  if (c->scratch_bytes < 64 || c->thread_scratch_bytes < 64) {
    c->api->fail(c, "no scratch: %d %d", int(c->scratch_bytes), int(c->thread_scratch_bytes));
    return 1;
  }
  if ((reinterpret_cast<uintptr_t>(c->scratch) | reinterpret_cast<uintptr_t>(c->thread_scratch)) % 64) {
    c->api->fail(c, "scratch is not aligned");
    return 1;
  }
  memset(c->scratch, 0xFF, size_t(c->scratch_bytes));
  memset(c->thread_scratch, 0xFF, size_t(c->thread_scratch_bytes) * size_t(c->api->num_threads(c->run)));
  auto body = [](void* arg, int64_t begin, int64_t end, int32_t worker) {
    auto* call = static_cast<const effc_call*>(arg);
    auto* sum = reinterpret_cast<double*>(call->thread_scratch + worker * call->thread_scratch_bytes);
    int64_t last = call->in[0].shape[call->in[0].rank - 1];
    for (int64_t i = begin; i < end; ++i) {
      *sum = 0;
      for (int64_t k = 0; k < last; ++k)
        *sum += get(call->in[0], call->in[0], i * last + k);
      at(call->out[0], i) = float(*sum);
    }
  };
  c->api->parallel_for(c->run, count(c->out[0]), 1, body, const_cast<effc_call*>(c));
  return 0;
}

// out0 (i64, dyn) = indices where in (f32, rank 1) is not 0; binds its length if attr[0].
KERNEL t_nonzero(const effc_call* c) {
  int64_t n = count(c->in[0]), k = 0;
  for (int64_t i = 0; i < n; ++i)
    k += get(c->in[0], c->in[0], i) != 0;
  if (c->attr[0]) c->api->bind_symbol(c, 0, k);
  if (c->api->alloc_out(c, 0, 1, &k)) return 1;
  k = 0;
  for (int64_t i = 0; i < n; ++i)
    if (get(c->in[0], c->in[0], i) != 0) static_cast<int64_t*>(c->out[0].data)[k++] = i;
  return 0;
}

// out (f32) = in0[in1[i]]
KERNEL t_take(const effc_call* c) {
  int64_t n = count(c->in[1]);
  for (int64_t i = 0; i < n; ++i) {
    int64_t k = static_cast<const int64_t*>(c->in[1].data)[i];
    if (k < 0 || k >= c->in[0].shape[0]) {
      c->api->fail(c, "index %lld is out of range for size %lld", static_cast<long long>(k),
                   static_cast<long long>(c->in[0].shape[0]));
      return 1;
    }
    static_cast<float*>(c->out[0].data)[i] = static_cast<const float*>(c->in[0].data)[k * c->in[0].strides[0]];
  }
  return 0;
}

// out (bool, rank 0) = in0 < in1 (f32 scalars)
KERNEL t_less(const effc_call* c) {
  *static_cast<bool*>(c->out[0].data) = *static_cast<float*>(c->in[0].data) < *static_cast<float*>(c->in[1].data);
  return 0;
}

// out (u64, n) = seed, first counter of each of two reservations of 10
KERNEL t_random(const effc_call* c) {
  auto* out = static_cast<uint64_t*>(c->out[0].data);
  out[1] = c->api->rng_reserve(c->run, 10, &out[0]);
  out[2] = c->api->rng_reserve(c->run, 10, nullptr);
  return 0;
}

// out (f32 scalar) = the fused epilogue's view of one tile holding 7: exercises epilogue and n_own.
KERNEL t_tile(const effc_call* c) {
  float acc = 7;
  if (!c->epilogue || c->n_in - c->n_own != 1) return 3;
  c->epilogue(c, 0, 0, 0, 1, 0, 1, &acc, 1);
  return 0;
}
extern "C" __attribute__((visibility("default"))) void t_epilogue(const effc_call* c, int64_t, int64_t, int64_t,
                                                                  int64_t, int64_t, int64_t, const void* acc, int64_t) {
  *static_cast<float*>(c->out[0].data) = *static_cast<const float*>(acc) * *static_cast<float*>(c->in[c->n_own].data);
}

KERNEL t_status(const effc_call* c) { return int32_t(c->attr[0]); }

// out (f32, n): absent optional operands have rank -1
KERNEL t_optional(const effc_call* c) {
  *static_cast<float*>(c->out[0].data) = c->in[1].rank == -1 && !c->in[1].data ? 1.0f : 0.0f;
  return 0;
}
