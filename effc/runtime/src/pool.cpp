// Fork-join pool. A job is published in one 64-bit word (epoch, open bit, number of workers inside), so that a worker
// that wakes late finds the job closed and goes back to sleep: the caller never waits for a thread that has not
// started. Chunks are dealt out in equal contiguous ranges, one per thread, and stolen when a thread's own range is
// used up: the same thread sees the same part of the data from kernel to kernel, and slow threads do not hold up the
// join.
//
// One that another process drives off its CPU in the middle of a chunk does: for milliseconds, until it is its turn again.
// Once the caller has found a thread so, that one takes part for less than a turn and then sleeps, time and again: who
// asks for less than its share of a CPU is let finish, and while it sleeps the others do its chunks. If it is the caller
// that is driven off, a thread makes way for it: sleeps, so that the caller finds a free CPU when it wakes from a moment's
// sleep, and goes on on another one.
#include "pool.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace effc_rt {
namespace {

constexpr int kMaxThreads = 256;
// Time stamp ticks (2 to 4 a nanosecond) that a thread spins before it sleeps: longer than the gap between two kernels, and than
// what a caller in Python does between two runs; waking a sleeper costs the first kernel of a run as much as it takes.
constexpr uint64_t kSpinTicks = 1000000;
// Nanoseconds. A thread that has not run for kLook of a join was driven off its CPU. Where that happens twice within kSoon (on a
// quiet machine it does some times a second), it works for kTurn, less than a scheduler's time slice (1.4 to 4 ms on two
// CPUs), and rests for kRest, until kLeast have passed without; each time that it happens again soon after, twice as long,
// at most kMost.
constexpr int64_t kLook = 100000, kSoon = 30000000, kTurn = 1000000, kRest = 1500000, kLeast = 20000000, kMost = 320000000;

inline uint64_t ticks() { return __builtin_ia32_rdtsc(); }
inline void pause() { __builtin_ia32_pause(); }

void futex_wait(std::atomic<uint32_t>* word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void futex_wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

int64_t nanoseconds(clockid_t clock) {
  timespec t;
  return clock_gettime(clock, &t) == 0 ? int64_t(t.tv_sec) * 1000000000 + t.tv_nsec : -1;
}

struct alignas(64) Range {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// Whether another process is in a thread's way; of who looks.
struct Crowd {
  int64_t found_at = 0, until = 0, span = kLeast;  // last off its CPU; when that is over, and how long it lasts

  // It was found off its CPU: whether that is no accident.
  bool found(int64_t now) {
    const bool again = found_at && now - found_at < kSoon;
    found_at = now;
    if (!again) return false;
    const int64_t since = now - until;  // negative while it lasts
    span = since > 4 * kSoon ? kLeast : since > 0 ? std::min(kMost, 2 * span) : span;
    until = now + span;
    return true;
  }
};

// A thread that the pool has started.
struct alignas(64) Member {
  std::atomic<bool> inside{false};        // in a job
  std::atomic<int64_t> crowded_until{0};  // 0: no other process in its way
  clockid_t clock = 0;                    // of the time that it has run
  Crowd crowd;                            // the callers'
  int64_t awake_since = 0;                // its own; while crowded
  bool moved = false;                     // to a part of the CPUs that it may use
  cpu_set_t allowed;
};

constexpr uint64_t kOpen = uint64_t(1) << 31, kInside = kOpen - 1;

thread_local int t_worker = -1;  // >= 0 while this thread runs a task
thread_local clockid_t t_clock = 0;  // of the time that this thread has run, once it was a caller

struct Pool {
  std::mutex busy;  // held for the length of one fork-join
  int workers = 0;  // threads started, not counting callers
  bool fork_handler = false;
  alignas(64) std::atomic<uint64_t> state{0};   // epoch << 32 | open | inside
  alignas(64) std::atomic<uint32_t> signal{0};  // changes with each job; sleepers wait on it
  std::atomic<uint32_t> sleepers{0};
  // The job; written before `state` opens it.
  int threads = 0;
  int64_t n = 0, grain = 0;
  effc_task_fn fn = nullptr;
  void* arg = nullptr;
  Range ranges[kMaxThreads];
  Member members[kMaxThreads];
  std::atomic<clockid_t> caller_clock{0};
  std::atomic<int> caller_cpu{-1};
  std::atomic<bool> make_way{false};  // the caller is to sleep for a moment
  Crowd caller;                       // the first thread's

  // Between jobs, where another process wants the CPU.
  void rest(Member& m) {
    int64_t now = nanoseconds(CLOCK_MONOTONIC);
    if (now > m.crowded_until.load(std::memory_order_relaxed)) {
      m.crowded_until.store(0, std::memory_order_relaxed);
      m.awake_since = 0;
      if (m.moved) sched_setaffinity(0, sizeof m.allowed, &m.allowed);
      m.moved = false;
      return;
    }
    if (m.awake_since == 0) m.awake_since = now;
    if (now - m.awake_since < kTurn) return;
    timespec t = {0, kRest};
    nanosleep(&t, nullptr);
    leave_to_caller(m);
    m.awake_since = nanoseconds(CLOCK_MONOTONIC);
  }

  // Who wakes may be put where the caller runs.
  void leave_to_caller(Member& m) {
    const int cpu = caller_cpu.load(std::memory_order_relaxed);
    if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getcpu() != cpu) return;
    if (!m.moved && sched_getaffinity(0, sizeof m.allowed, &m.allowed) != 0) return;
    cpu_set_t others = m.allowed;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) m.moved = true;
  }

  // Called while some are inside and nothing is left to do: finds those that do not run.
  void look() {
    int64_t ran[kMaxThreads], began = nanoseconds(CLOCK_MONOTONIC), now;
    for (int w = 1; w < threads; ++w)
      ran[w] = members[w].inside.load(std::memory_order_relaxed) ? nanoseconds(members[w].clock) : -1;
    do {
      pause();
      now = nanoseconds(CLOCK_MONOTONIC);
    } while (now - began < kLook && (state.load(std::memory_order_relaxed) & kInside));
    if (now - began < kLook) return;
    for (int w = 1; w < threads; ++w) {
      Member& m = members[w];
      if (ran[w] < 0 || !m.inside.load(std::memory_order_relaxed) || nanoseconds(m.clock) - ran[w] >= kLook / 4) continue;
      if (m.crowd.found(now)) m.crowded_until.store(m.crowd.until, std::memory_order_relaxed);
    }
  }

  // Called by the first of the threads where nothing is left of job `seen` but what the caller has begun: whether that one
  // does not run, time and again.
  bool look_at_caller(Member& m, uint64_t seen) {
    auto waits = [&] {
      const uint64_t s = state.load(std::memory_order_relaxed);
      return (s & kOpen) && s >> 32 == seen;
    };
    const clockid_t clock = caller_clock.load(std::memory_order_relaxed);
    if (!waits()) return false;
    const int64_t ran = nanoseconds(clock), began = nanoseconds(CLOCK_MONOTONIC);
    int64_t now = began;
    for (; now - began < kLook && waits(); now = nanoseconds(CLOCK_MONOTONIC))
      pause();
    const int64_t runs = nanoseconds(clock);
    if (!waits() || now - began < kLook || ran < 0 || runs < 0 || runs - ran >= kLook / 4 || !caller.found(now)) return false;
    m.crowded_until.store(std::max(caller.until, m.crowded_until.load(std::memory_order_relaxed)), std::memory_order_relaxed);
    return true;
  }

  void work(int me) {
    int before = t_worker;
    t_worker = me;
    for (int k = 0; k < threads; ++k) {
      Range& r = ranges[(me + k) % threads];
      for (;;) {
        if (r.next.load(std::memory_order_relaxed) >= r.end) break;
        int64_t c = r.next.fetch_add(1, std::memory_order_relaxed);
        if (c >= r.end) break;
        fn(arg, c * grain, std::min(n, (c + 1) * grain), me);
      }
    }
    t_worker = before;
  }

  void run(int me) {
    uint64_t seen = 0;
    Member& m = members[me];
    for (;;) {
      if (m.crowded_until.load(std::memory_order_relaxed)) rest(m);
      uint64_t s = state.load(std::memory_order_acquire);
      if (!((s & kOpen) && (s >> 32) != seen)) {
        bool found = false;
        for (uint64_t t0 = ticks(); !found && ticks() - t0 < kSpinTicks;) {
          pause();
          s = state.load(std::memory_order_acquire);
          found = (s & kOpen) && (s >> 32) != seen;
        }
        if (!found && me == 1 && look_at_caller(m, seen)) {
          make_way.store(true, std::memory_order_relaxed);
          m.awake_since = 1;  // to rest at once
          continue;
        }
        if (!found) {
          sleepers.fetch_add(1, std::memory_order_seq_cst);
          uint32_t ticket = signal.load(std::memory_order_seq_cst);
          s = state.load(std::memory_order_seq_cst);
          if (!((s & kOpen) && (s >> 32) != seen)) futex_wait(&signal, ticket);
          sleepers.fetch_sub(1, std::memory_order_seq_cst);
          m.awake_since = 0;
          continue;
        }
      }
      // Enter, unless the job was closed in between.
      if (!state.compare_exchange_weak(s, s + 1, std::memory_order_acq_rel)) continue;
      seen = s >> 32;
      m.inside.store(true, std::memory_order_relaxed);
      if (me < threads) work(me);
      m.inside.store(false, std::memory_order_relaxed);
      state.fetch_sub(1, std::memory_order_release);
    }
  }

  static void* entry(void* p) {
    auto* start = static_cast<std::pair<Pool*, int>*>(p);
    Pool* pool = start->first;
    int me = start->second;
    delete start;
    pool->run(me);
    return nullptr;
  }

  // Called with `busy` held. Fewer threads than asked for is not an error: the work is the same.
  void grow(int want) {
    want = std::min(want, kMaxThreads - 1);
    if (workers >= want) return;
    if (!fork_handler) {
      fork_handler = true;
      pthread_atfork([] { instance().busy.lock(); }, [] { instance().busy.unlock(); }, [] { instance().forked(); });
    }
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    while (workers < want) {
      pthread_t thread;
      auto* start = new std::pair<Pool*, int>(this, workers + 1);
      if (pthread_create(&thread, &attr, entry, start) != 0) {
        delete start;
        break;
      }
      ++workers;
      if (pthread_getcpuclockid(thread, &members[workers].clock) != 0) members[workers].clock = -1;
    }
    pthread_attr_destroy(&attr);
  }

  void forked() {  // in the child: no worker exists any more; they are started again at the next job
    workers = 0;
    sleepers.store(0);
    state.store(0);
    for (Member& m : members) {
      m.inside.store(false);
      m.crowded_until.store(0);
      m.crowd = Crowd();
      m.awake_since = 0;
      m.moved = false;
    }
    t_worker = -1;
    t_clock = 0;
    busy.unlock();
  }

  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: workers may outlive static destructors
    return *pool;
  }
};

}  // namespace

namespace {

// CPUs' worth of time that a container's control group grants, rounded up; INT_MAX without a limit.
int quota() {
  double limit = -1, period = 1;
  if (FILE* f = fopen("/sys/fs/cgroup/cpu.max", "re")) {  // version 2: "max 100000" or "200000 100000"
    if (fscanf(f, "%lf %lf", &limit, &period) != 2) limit = -1;
    fclose(f);
  } else if (FILE* g = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re")) {  // version 1; -1 means none
    if (fscanf(g, "%lf", &limit) != 1) limit = -1;
    fclose(g);
    if (FILE* h = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re")) {
      if (fscanf(h, "%lf", &period) != 1) limit = -1;
      fclose(h);
    }
  }
  if (limit <= 0 || period <= 0 || limit / period > kMaxThreads) return INT_MAX;
  return std::max(1, int((limit + period - 1) / period));
}

}  // namespace

int default_threads() {
  if (const char* env = getenv("EFFC_NUM_THREADS")) {
    char* end = nullptr;
    long n = strtol(env, &end, 10);
    if (end != env && *end == 0 && n > 0) return int(std::min<long>(n, kMaxThreads));
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
  return std::min({cpus, quota(), kMaxThreads});
}

void parallel_for(int threads, int64_t n, int64_t grain, effc_task_fn fn, void* arg) {
  if (n <= 0) return;
  if (grain <= 0) grain = 1;
  int64_t chunks = (n - 1) / grain + 1;
  int worker = t_worker < 0 ? 0 : t_worker;
  Pool& pool = Pool::instance();
  if (threads <= 1 || chunks == 1 || t_worker >= 0 || !pool.busy.try_lock()) {
    // The chunk borders are the same as in parallel.
    int before = t_worker;
    t_worker = worker;
    for (int64_t c = 0; c < chunks; ++c)
      fn(arg, c * grain, std::min(n, (c + 1) * grain), worker);
    t_worker = before;
    return;
  }
  int active = int(std::min<int64_t>(std::min(threads, kMaxThreads), chunks));
  pool.grow(active - 1);
  pool.threads = active;
  pool.n = n;
  pool.grain = grain;
  pool.fn = fn;
  pool.arg = arg;
  for (int t = 0; t < active; ++t) {
    pool.ranges[t].next.store(chunks * t / active, std::memory_order_relaxed);
    pool.ranges[t].end = chunks * (t + 1) / active;
  }
  if (pool.make_way.load(std::memory_order_relaxed)) {
    pool.make_way.store(false, std::memory_order_relaxed);
    timespec t = {0, 20000};
    nanosleep(&t, nullptr);
  }
  pool.caller_cpu.store(sched_getcpu(), std::memory_order_relaxed);
  if (t_clock == 0 && pthread_getcpuclockid(pthread_self(), &t_clock) != 0) t_clock = -1;
  pool.caller_clock.store(t_clock, std::memory_order_relaxed);
  uint64_t epoch = (pool.state.load(std::memory_order_relaxed) >> 32) + 1;
  if ((epoch & 0xFFFFFFFFu) == 0) epoch = 1;  // 0 is what a new worker has seen
  pool.state.store(epoch << 32 | kOpen, std::memory_order_seq_cst);
  pool.signal.fetch_add(1, std::memory_order_seq_cst);
  if (pool.sleepers.load(std::memory_order_seq_cst) > 0) futex_wake_all(&pool.signal);
  pool.work(0);
  uint64_t s = pool.state.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  bool looked = false;
  for (uint64_t t0 = ticks(); s & kInside;) {
    if (ticks() - t0 < kSpinTicks) {
      pause();
    } else if (!looked) {
      looked = true;
      pool.look();
    } else {
      sched_yield();  // more threads than CPUs: let the one we wait for run
    }
    s = pool.state.load(std::memory_order_acquire);
  }
  pool.busy.unlock();
}

}  // namespace effc_rt
