// A place outside of memory for what the arena has no room for: a file without a name, which the kernel may write to
// its disk whenever memory is short. One for each context, so that runs beside each other do not meet there.
#pragma once
#include <atomic>
#include <cstdint>

#include "effc.h"

namespace effc_rt {

// Of all contexts of a model together.
struct FarCounts {
  std::atomic<uint64_t> spills{0}, spilled{0}, refills{0}, refilled{0}, ns{0}, files{0}, ahead{0};
  std::atomic<int64_t> file_bytes{0};
  std::atomic<int32_t> in_memory{0};
  void report(effc_spill* out) const;
};

class Far {
 public:
  Far() = default;
  Far(const Far&) = delete;
  ~Far();
  // Room for so many bytes, whatever was there before. Throws Error where there is no folder or no space for it.
  void reserve(int64_t bytes, FarCounts& counts);
  // A child of fork() shares its parent's file: it gets one of its own. At the start of a run.
  void mine(FarCounts& counts);
  void write(int64_t at, const char* data, int64_t bytes);
  void read(int64_t at, char* data, int64_t bytes);
  // Has the kernel read what of this is no longer in the page cache, without waiting. The bytes asked for.
  int64_t ahead(int64_t at, int64_t bytes);

 private:
  void open_file(FarCounts& counts);
  int fd_ = -1, pid_ = 0;
  bool asks_ = true;  // the file system says what is in the page cache
  int64_t bytes_ = 0;
};

}  // namespace effc_rt
