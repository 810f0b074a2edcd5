// Weights that do not stay in memory: read from the artifact into a window, ahead of the instructions that use them.
//
// The compiler decides everything (backends/cpu/streaming.py): which segments stay, where in the window each of the
// others is placed for which instruction, and after which instruction its place is free. Here a few threads follow that
// list. Runs of one model take turns: there is one window and one arena.
#pragma once
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "effc.h"
#include "program.hpp"
#include "zip.hpp"

namespace effc_rt {

class Streamer {
 public:
  // `memory` is the manifest's entry of that name; `file` is the artifact as it was mapped for loading.
  Streamer(const Json& memory, const char* path, const Mapping& file);
  ~Streamer();
  Streamer(const Streamer&) = delete;

  // A streamed segment at these bytes of the file, with the checksums of its chunks.
  void add(int segment, int64_t file_offset, int64_t nbytes, int64_t chunk, std::vector<uint64_t> sums,
           const std::string* path);
  // Reads what stays in memory, makes window and arena. Throws Error.
  void start(const Json& memory);

  // Held for the length of a run.
  std::unique_lock<std::mutex> turn();
  char* arena() const { return arena_; }
  int64_t arena_bytes() const { return sizes_.arena; }
  int threads() const { return threads_; }
  char* window() const { return window_; }
  // A segment that stays in memory, or NULL.
  const char* resident(int segment) const;
  bool streams(int segment) const { return size_t(segment) < segments_.size() && segments_[size_t(segment)].here; }
  // Throws Error unless a place in the window fits a segment, and what is read of its rows fits their buffer.
  void check_load(const StreamLoad& load) const;
  void check_rows(int segment) const;

  // With the turn held, around the instructions of a run:
  void begin(const Program& program);
  void need(const Program& program, size_t step);  // waits for the weights of an instruction; throws Error
  void done(size_t step);
  void end() noexcept;  // also after an error: the reader is idle when it returns

  // Copies bytes [from, from + bytes) of a segment, wherever they are. Throws Error. For the instruction "rows".
  void copy(int segment, int64_t from, int64_t bytes, char* to);
  void count_rows(int64_t rows) { counts_.rows += uint64_t(rows); }
  void report(effc_stream* out) const;

 private:
  struct Segment {
    int64_t at = 0, nbytes = 0, chunk = 0;
    std::vector<uint64_t> sums;
    std::unique_ptr<std::atomic<uint8_t>[]> checked;
    const std::string* path = nullptr;
    const char* resident = nullptr;
    bool here = false;
  };
  struct Counts {  // of the turn's holder and the reader; read by report()
    std::atomic<uint64_t> runs{0}, pieces{0}, bytes{0}, rows{0}, row_bytes{0}, waits{0}, wait_ns{0}, run_ns{0},
        chunks_checked{0};
  };

  void read(const Segment& s, int64_t from, int64_t bytes, char* to);  // to has room for whole pages
  void check(Segment& s, size_t chunk, const char* data);
  void load(const StreamLoad& load);
  void reader();
  char* allocate(int64_t bytes);
  int64_t chunk_bytes(const Segment& s, size_t chunk) const;

  std::vector<Segment> segments_;
  int fd_ = -1;
  std::atomic<bool> direct_{false};
  bool prefetch_ = true;
  effc_stream sizes_{};
  int64_t row_buffer_ = 0;
  int threads_ = 0;
  char *window_ = nullptr, *resident_ = nullptr, *arena_ = nullptr, *chunk_buffer_ = nullptr;
  std::vector<char*> owned_;
  Counts counts_;
  std::mutex* turn_ = new std::mutex;  // a child of fork() gets another one

  // The reader's side.
  std::mutex lock_;
  std::condition_variable to_reader_, to_runner_;
  std::vector<pthread_t> threads_reading_;
  int pid_ = 0;  // of the process that these are good in
  bool reading_ = false;  // the threads were started
  bool quit_ = false, cancel_ = false, failed_ = false;
  int busy_ = 0;                // loads being read
  size_t next_ = 0;             // the load that is read next
  std::vector<uint8_t> there_;  // which loads have been read
  std::string error_;
  const Program* job_ = nullptr;
  std::atomic<size_t> loaded_{0}, completed_{0};
  std::atomic<int> readers_waiting_{0};
  std::atomic<bool> runner_waits_{false};
  uint64_t begun_ = 0;
};

}  // namespace effc_rt
