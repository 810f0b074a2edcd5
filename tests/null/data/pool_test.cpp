// Exercises the pool through effc_parallel_for: coverage, worker numbers, nesting, two callers at once, fork, a neighbour, latency.
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "effc.h"

static int failures = 0;
#define CHECK(x)                                       \
  do {                                                 \
    if (!(x)) {                                        \
      printf("failed: %s at line %d\n", #x, __LINE__); \
      ++failures;                                      \
    }                                                  \
  } while (0)

struct Job {
  std::vector<std::atomic<int>> hits;
  std::atomic<int> busy[64];
  std::atomic<int> clashes{0}, max_worker{0}, bad_borders{0};
  int64_t n, grain;
  Job(int64_t n, int64_t grain) : hits(size_t(n)), n(n), grain(grain) {
    for (auto& b : busy)
      b = 0;
  }
  static void run(void* arg, int64_t begin, int64_t end, int32_t worker) {
    Job& j = *static_cast<Job*>(arg);
    if (j.busy[worker].fetch_add(1) != 0) ++j.clashes;
    if (begin % j.grain || end > j.n || (end - begin != j.grain && end != j.n) || begin >= end) ++j.bad_borders;
    int seen = j.max_worker.load();
    while (worker > seen && !j.max_worker.compare_exchange_weak(seen, worker)) {
    }
    for (int64_t i = begin; i < end; ++i)
      ++j.hits[size_t(i)];
    j.busy[worker].fetch_sub(1);
  }
  bool good(int threads) {
    for (auto& h : hits)
      if (h != 1) return false;
    return clashes == 0 && bad_borders == 0 && max_worker < threads;
  }
};

static void cover() {
  for (int threads : {1, 2, 3, 8})
    for (int64_t n : {0, 1, 2, 7, 100, 1000})
      for (int64_t grain : {1, 3, 64, 5000}) {
        Job j(n, grain);
        effc_parallel_for(threads, n, grain, Job::run, &j);
        CHECK(j.good(threads));
      }
}

static void stress() {
  for (int i = 0; i < 20000; ++i) {
    Job j(16, 1);
    effc_parallel_for(4, 16, 1, Job::run, &j);
    if (!j.good(4)) {
      CHECK(false);
      return;
    }
    if (i % 2000 == 0) usleep(2000);  // workers go to sleep
  }
}

static void concurrent() {  // the pool serves one caller, the others run serially
  std::vector<std::thread> callers;
  std::atomic<int> bad{0};
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        Job j(20, 1);
        effc_parallel_for(3, 20, 1, Job::run, &j);
        bad += !j.good(3);
      }
    });
  for (auto& c : callers)
    c.join();
  CHECK(bad == 0);
}

static std::atomic<int> inner_hits, inner_clashes;
static void nested() {  // a task that calls parallel_for runs it itself, under its own worker number
  auto outer = [](void*, int64_t, int64_t, int32_t worker) {
    int32_t me = worker;
    auto inner = [](void* arg, int64_t begin, int64_t end, int32_t w) {
      if (w != *static_cast<int32_t*>(arg)) ++inner_clashes;
      inner_hits += int(end - begin);
    };
    effc_parallel_for(4, 100, 7, inner, &me);
  };
  effc_parallel_for(4, 32, 1, outer, nullptr);
  CHECK(inner_hits == 3200 && inner_clashes == 0);
}

static void forked() {
  Job before(64, 1);
  effc_parallel_for(4, 64, 1, Job::run, &before);
  std::atomic<bool> stop{false};
  std::thread busy([&] {  // another thread keeps the pool busy while we fork
    while (!stop) {
      Job j(64, 1);
      effc_parallel_for(4, 64, 1, Job::run, &j);
    }
  });
  for (int i = 0; i < 20; ++i) {
    pid_t child = fork();
    if (child == 0) {
      alarm(20);
      Job j(1000, 1);
      effc_parallel_for(4, 1000, 1, Job::run, &j);
      _exit(j.good(4) ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = true;
  busy.join();
}

static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) * 1e6 + double(t.tv_nsec) * 1e-3;
}

static void latency(int threads) {  // one chunk of 20 us per thread: what the join takes beyond 20 us
  std::vector<double> us;
  for (int i = 0; i < 2000; ++i) {
    double start = now();
    effc_parallel_for(
        threads, threads, 1,
        [](void*, int64_t, int64_t, int32_t) {
          for (double t = now(); now() - t < 20;) {
          }
        },
        nullptr);
    us.push_back(now() - start - 20);
  }
  std::sort(us.begin(), us.end());
  printf("fork-join with %d threads: median %.2f us, 10%% %.2f us\n", threads, us[us.size() / 2], us[us.size() / 10]);
}

// The only thread that the pool has started here, and how often it has gone to sleep.
static int only_worker() {
  int found = 0;
  DIR* tasks = opendir("/proc/self/task");
  while (dirent* d = readdir(tasks))
    if (atoi(d->d_name) > 0 && atoi(d->d_name) != getpid()) found = atoi(d->d_name);
  closedir(tasks);
  return found;
}

static long sleeps(int thread) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/self/task/%d/status", thread);
  FILE* f = fopen(path, "re");
  long n = -1;
  while (f && fgets(line, sizeof line, f)) sscanf(line, "voluntary_ctxt_switches: %ld", &n);
  if (f) fclose(f);
  return n;
}

static void pin(int thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(thread, sizeof set, &set);
}

// Beside a process that wants the same CPU a worker rests, time and again, where it would spin. All chunks are done once.
static int crowded() {
  cpu_set_t all;
  std::vector<int> cpus;
  sched_getaffinity(0, sizeof all, &all);
  for (int c = 0; c < CPU_SETSIZE; ++c)
    if (CPU_ISSET(c, &all)) cpus.push_back(c);
  if (cpus.size() < 2) return 0;
  auto work = [](double seconds) {
    for (double start = now(); now() - start < seconds * 1e6;) {
      Job j(16, 1);
      auto slow = [](void* arg, int64_t begin, int64_t end, int32_t worker) {
        for (double t = now(); now() - t < 50;) {
        }
        Job::run(arg, begin, end, worker);
      };
      effc_parallel_for(2, 16, 1, slow, &j);
      CHECK(j.good(2));
    }
  };
  work(0.05);
  const int worker = only_worker();
  pin(getpid(), cpus[0]);
  pin(worker, cpus[1]);
  pid_t neighbour = fork();
  if (neighbour == 0) {
    pin(0, cpus[1]);
    for (alarm(60);;) {
    }
  }
  long most = 0;
  for (int k = 0; k < 5 && most < 80; ++k) { /* others may keep both CPUs busy for a while */
    const long before = sleeps(worker);
    work(1.5);
    most = std::max(most, sleeps(worker) - before);
  }
  kill(neighbour, SIGKILL);
  waitpid(neighbour, nullptr, 0);
  CHECK(most >= 80);
  return failures;
}

static void apart(int (*what)()) {  // in a process without the threads that the others have started
  pid_t child = fork();
  if (child == 0) _exit(what());
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "all";
  if (!strcmp(what, "latency")) {
    latency(2);
    return 0;
  }
  cover();
  stress();
  concurrent();
  nested();
  forked();
  apart(crowded);
  if (!failures) printf("fine\n");
  return failures != 0;
}
