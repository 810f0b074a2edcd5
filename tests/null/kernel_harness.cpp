// Runs one library kernel outside the real runtime: an effc_api with a small thread pool, error text and dyn outputs.
// Built by kernel_harness.py. Modes of parallel_for: 0 chunks in order on the calling thread, 1 chunks in reverse order
// with the worker number cycling (finds kernels that depend on order or on a worker's leftovers), 2 a real thread pool.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "effc_kernel.h"

namespace {

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int w = 1; w < threads; ++w) workers_.emplace_back([this, w] { loop(w); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& t : workers_) t.join();
  }
  void run(int64_t n, int64_t grain, effc_task_fn fn, void* arg) {
    fn_ = fn, arg_ = arg, n_ = n, grain_ = grain;
    next_.store(0), left_.store(threads_ - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    work(0);
    while (left_.load(std::memory_order_acquire) != 0) __builtin_ia32_pause();
  }
  int threads() const { return threads_; }

 private:
  void work(int worker) {
    for (;;) {
      int64_t begin = next_.fetch_add(grain_);
      if (begin >= n_) return;
      fn_(arg_, begin, begin + grain_ < n_ ? begin + grain_ : n_, worker);
    }
  }
  void loop(int worker) {
    int seen = 0;
    for (;;) {
      for (int spin = 0; spin < 20000 && generation_.load(std::memory_order_acquire) == seen; ++spin)
        __builtin_ia32_pause();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
      }
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      work(worker);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }
  int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> generation_{0}, left_{0};
  std::atomic<int64_t> next_{0};
  bool stop_ = false;
  effc_task_fn fn_ = nullptr;
  void* arg_ = nullptr;
  int64_t n_ = 0, grain_ = 1;
};

struct Run {
  int threads, mode;
  Pool* pool;
  char error[512];
  int64_t symbols[16];
  uint64_t seed, counter;
  std::vector<void*> allocations;
};

void parallel_for(void* run, int64_t n, int64_t grain, effc_task_fn fn, void* arg) {
  Run* r = static_cast<Run*>(run);
  if (n <= 0) return;
  if (grain < 1) {
    snprintf(r->error, sizeof r->error, "harness: parallel_for with grain %lld", (long long)grain);
    return;
  }
  if (r->mode == 2 && r->threads > 1 && n > grain) return r->pool->run(n, grain, fn, arg);
  int64_t chunks = (n + grain - 1) / grain;
  for (int64_t c = 0; c < chunks; ++c) {
    int64_t i = r->mode == 1 ? chunks - 1 - c : c;
    int64_t begin = i * grain, end = begin + grain < n ? begin + grain : n;
    fn(arg, begin, end, r->mode == 0 ? 0 : static_cast<int32_t>(c % r->threads));
  }
}

int32_t num_threads(void* run) { return static_cast<Run*>(run)->threads; }


int32_t alloc_out(const effc_call* call, int32_t i, int32_t rank, const int64_t* shape) {
  Run* r = static_cast<Run*>(call->run);
  auto* dims = static_cast<int64_t*>(calloc(2 * EFFC_MAX_RANK, sizeof(int64_t)));
  int64_t count = 1;
  for (int d = rank - 1; d >= 0; --d) {
    dims[d] = shape[d];
    dims[EFFC_MAX_RANK + d] = count;
    count *= shape[d];
  }
  effc_tensor& t = call->out[i];
  t.rank = rank;
  t.shape = dims;
  t.strides = dims + EFFC_MAX_RANK;
  int64_t bytes = count * effc_dtype_size(t.dtype);
  t.data = malloc(bytes > 0 ? bytes : 1);
  memset(t.data, 0xCD, bytes > 0 ? bytes : 1);
  r->allocations.push_back(dims);
  r->allocations.push_back(t.data);
  return 0;
}

void bind_symbol(const effc_call* call, int32_t i, int64_t value) {
  static_cast<Run*>(call->run)->symbols[i] = value;
}

void fail(const effc_call* call, const char* format, ...) {
  Run* r = static_cast<Run*>(call->run);
  va_list args;
  va_start(args, format);
  vsnprintf(r->error, sizeof r->error, format, args);
  va_end(args);
}

uint64_t rng_reserve(void* run, uint64_t n, uint64_t* seed) {
  Run* r = static_cast<Run*>(run);
  *seed = r->seed;
  uint64_t first = r->counter;
  r->counter += n;
  return first;
}

const effc_api kApi = {EFFC_ABI_VERSION, parallel_for, num_threads, alloc_out, bind_symbol, fail, rng_reserve};
Pool* g_pool = nullptr;

}  // namespace

extern "C" {

// Calls fn repeat times; times (if not null) gets the seconds of each call. *run must be freed with harness_free after
// the dyn outputs were read. Returns the kernel's status, -1 if a scratch buffer was overrun.
int32_t harness_call(effc_kernel_fn fn, effc_call* call, int32_t threads, int32_t mode, uint64_t seed, int64_t repeat,
                     double* times, void** run) {
  if (mode == 2 && (!g_pool || g_pool->threads() != threads)) {
    delete g_pool;
    g_pool = new Pool(threads);
  }
  Run* r = new Run{threads, mode, g_pool, {0}, {0}, seed, 0, {}};
  *run = r;
  call->api = &kApi;
  call->run = r;
  const int64_t guard = 64;
  int64_t per = (call->thread_scratch_bytes + 63) / 64 * 64, total = per * threads;
  int64_t shared = (call->scratch_bytes + 63) / 64 * 64;
  char* scratch = static_cast<char*>(aligned_alloc(64, shared + guard));
  char* thread_scratch = static_cast<char*>(aligned_alloc(64, total + guard));
  memset(scratch, 0xA5, shared + guard);  // a kernel must not rely on zeros
  memset(thread_scratch, 0xA5, total + guard);
  call->scratch = scratch;
  call->thread_scratch = thread_scratch;
  call->thread_scratch_bytes = per;
  int32_t status = 0;
  for (int64_t i = 0; i < repeat && status == 0; ++i) {
    auto start = std::chrono::steady_clock::now();
    status = fn(call);
    auto end = std::chrono::steady_clock::now();
    if (times) times[i] = std::chrono::duration<double>(end - start).count();
  }
  for (int64_t i = 0; i < guard; ++i)
    if (static_cast<unsigned char>(scratch[shared + i]) != 0xA5 ||
        static_cast<unsigned char>(thread_scratch[total + i]) != 0xA5) {
      snprintf(r->error, sizeof r->error, "harness: a scratch buffer was overrun");
      status = -1;
      break;
    }
  free(scratch);
  free(thread_scratch);
  if (status == 0 && r->error[0]) status = -1;
  return status;
}

const char* harness_error(void* run) { return static_cast<Run*>(run)->error; }
int64_t harness_symbol(void* run, int32_t i) { return static_cast<Run*>(run)->symbols[i]; }
void harness_free(void* run) {
  Run* r = static_cast<Run*>(run);
  for (void* p : r->allocations) free(p);
  delete r;
}
void harness_shutdown() {
  delete g_pool;
  g_pool = nullptr;
}

}  // extern "C"
