// The process's thread pool: one fork-join at a time, the caller takes part.
#pragma once
#include <cstdint>

#include "effc_kernel.h"

namespace effc_rt {

// CPUs this process may use: EFFC_NUM_THREADS if set to a positive number, else the size of the affinity mask, or what
// the control group grants if that is less.
int default_threads();

// Runs fn over [0, n) in chunks of `grain` on at most `threads` threads, and returns when all are done. Runs serially
// on the caller when the pool serves another run, when called from inside a task, or when there is one chunk only.
void parallel_for(int threads, int64_t n, int64_t grain, effc_task_fn fn, void* arg);

}  // namespace effc_rt
