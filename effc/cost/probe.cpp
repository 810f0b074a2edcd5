// Measures what this machine can do: peak fused multiply-adds in float32 and read bandwidth from memory.
//   probe THREADS MEGABYTES   prints one JSON object
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif
typedef float vec __attribute__((vector_size(kBytes)));

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static std::atomic<float> sink;

// Twelve independent chains hide the latency of two FMA units; 16 registers are enough for them on AVX2.
// The empty asm statements keep the accumulators in registers and the iterations apart.
#define CHAINS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define LOAD(i) vec a##i = state[i];
#define STEP(i) a##i = a##i * x + y;
#define STORE(i) state[i] = a##i;

constexpr int kSteps = 20000;

__attribute__((noinline)) static void fma_steps(vec* state, float fx, float fy) {
  vec x = vec{} + fx, y = vec{} + fy;
  CHAINS(LOAD)
  for (int r = 0; r < kSteps; ++r) {
    CHAINS(STEP)
    asm volatile("" : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5));
    asm volatile("" : "+v"(a6), "+v"(a7), "+v"(a8), "+v"(a9), "+v"(a10), "+v"(a11));
  }
  CHAINS(STORE)
}

static double fma_loop(double seconds) {
  vec state[12] = {};
  double start = now(), flops = 0;
  do {
    fma_steps(state, 0.999f, 1e-3f);
    flops += double(kSteps) * 12 * 2 * (kBytes / 4);
  } while (now() - start < seconds);
  double elapsed = now() - start;
  for (auto& v : state) sink = sink + v[0];
  return flops / elapsed;
}

static double read_loop(const char* data, size_t n, double seconds) {
  typedef int64_t ivec __attribute__((vector_size(kBytes), aligned(8)));
  double start = now(), bytes = 0;
  int64_t total = 0;
  do {
    ivec s[8] = {};
    const ivec* p = reinterpret_cast<const ivec*>(data);
    for (size_t i = 0; i + 8 <= n / kBytes; i += 8)
      for (int k = 0; k < 8; ++k) s[k] += p[i + k];
    for (auto& v : s) total += v[0];
    bytes += double(n);
  } while (now() - start < seconds);
  double elapsed = now() - start;
  sink = float(total);
  return bytes / elapsed;
}

template <class F>
static double together(int threads, F f) {
  std::vector<double> rate(threads);
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back([&, t] { rate[t] = f(t); });
  for (auto& t : pool) t.join();
  double sum = 0;
  for (double r : rate) sum += r;
  return sum;
}

int main(int argc, char** argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1;
  size_t each = size_t(argc > 2 ? atoi(argv[2]) : 256) * 1024 * 1024 / threads;
  std::vector<std::vector<char>> data(threads);
  for (auto& d : data) d.assign(each, 1);
  double flops = 0, bytes = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {  // the best of five: others may use the machine
    double f = together(threads, [](int) { return fma_loop(0.15); });
    double b = together(threads, [&](int t) { return read_loop(data[t].data(), each, 0.15); });
    if (f > flops) flops = f;
    if (b > bytes) bytes = b;
  }
  printf("{\"threads\": %d, \"vector_bytes\": %d, \"gflops\": %.1f, \"gbytes\": %.2f}\n", threads, kBytes, flops / 1e9, bytes / 1e9);
}
