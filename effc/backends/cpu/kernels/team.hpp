/* Phases that depend on each other, dealt out to the same parts each, within one parallel region.
 *
 * A fork and join for each phase costs about as much as a short phase itself, because many cache lines change hands. Here each
 * part has one line of its own: its thread counts on it the phases that it has begun and those that it has done, and the others read
 * that. Nobody waits for a thread that is not there: a phase of a part that nobody has begun is begun by whoever waits for it. So the
 * result does not depend on how many threads come, nor when, and one thread alone does everything.
 */
#ifndef EFFC_TEAM_HPP
#define EFFC_TEAM_HPP
#include <sched.h>

#include "gemm.hpp"

namespace effc {

class Team {
 public:
  static constexpr int64_t kMaxParts = 64;

  /* Calls body(part, phase) for all parts of phase 0, then of phase 1, and so on. A part sees what all parts wrote in the phases
   * before. Parts stay on their threads, but for those that come late. */
  template <class F>
  static void run(const effc_call* call, int64_t parts, int64_t phases, const F& body) {
    Team team(parts, phases);
    gemm::parallel(call, parts, 1, [&](int64_t begin, int64_t end, int32_t) {
      for (int64_t p = begin; p < end; ++p) team.work(p, body);
    });
  }

 private:
  /* Ticks of the time stamp counter, 2 to 4 a nanosecond: how long a thread that has come may take to begin a phase before another
   * does it (it has lost its CPU then), and how long one waits for a phase that was begun before giving up the CPU. */
  static constexpr uint64_t kLate = 30000, kSpin = 1000000;

  struct alignas(64) Part {
    int64_t begun, done; /* phases */
    int32_t here;
  };

  Team(int64_t parts_, int64_t phases_) : parts(parts_), phases(phases_) {
    for (int64_t p = 0; p < parts; ++p) part[p] = Part{0, 0, 0};
  }

  /* Phase n of part p, unless somebody has begun it. All parts are through with the phases before. */
  template <class F>
  void take(int64_t p, int64_t n, const F& body) {
    int64_t seen = n;
    if (!__atomic_compare_exchange_n(&part[p].begun, &seen, n + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return;
    body(p, n);
    __atomic_store_n(&part[p].done, n + 1, __ATOMIC_RELEASE);
  }

  /* Returns when part p is through with its first n phases; all parts are through with n - 1. */
  template <class F>
  void await(int64_t p, int64_t n, const F& body) {
    uint64_t start = 0;
    while (__atomic_load_n(&part[p].done, __ATOMIC_ACQUIRE) < n) {
      __builtin_ia32_pause();
      const uint64_t now = __builtin_ia32_rdtsc();
      if (start == 0) start = now;
      const bool here = __atomic_load_n(&part[p].here, __ATOMIC_RELAXED);
      if (!here || now - start > kLate) take(p, n - 1, body);
      if (now - start > kSpin) sched_yield();
    }
  }

  template <class F>
  void work(int64_t me, const F& body) {
    __atomic_store_n(&part[me].here, 1, __ATOMIC_RELAXED);
    for (;;) {
      const int64_t n = __atomic_load_n(&part[me].begun, __ATOMIC_ACQUIRE); /* others may have begun some */
      for (int64_t i = 0; i < parts; ++i) await((me + i) % parts, n, body);
      if (n == phases) return;
      take(me, n, body);
    }
  }

  const int64_t parts, phases;
  Part part[kMaxParts];
};

}  // namespace effc
#endif
