#include "stream.hpp"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "exec.hpp"
#include "xxh3.hpp"

namespace effc_rt {

namespace {

constexpr int64_t kPage = 4096;               // what direct reads ask of offsets, sizes and addresses
constexpr int64_t kRead = int64_t(4) << 20;   // bytes asked for at once: a device needs no more to be busy
constexpr int kReaders = 2;                   // one asks while the other's answer comes
constexpr int64_t kMaxChunk = int64_t(4) << 20;

int64_t pages(int64_t n) { return add(n, kPage - 1) & ~(kPage - 1); }

bool off(const char* name) {
  const char* value = getenv(name);
  return value && strcmp(value, "0") == 0;
}

int64_t size_of(const Json& j, const char* key) {
  int64_t n = j.integer(key);
  if (n < 0 || n > int64_t(1) << 46) fail("the manifest's 'memory' is malformed: %s out of range", key);
  return n;
}

}  // namespace

Streamer::Streamer(const Json& memory, const char* path, const Mapping& file) {
  sizes_.budget = size_of(memory, "budget");
  sizes_.arena = size_of(memory, "arena");
  sizes_.window = size_of(memory, "window");
  sizes_.resident = size_of(memory, "resident");
  threads_ = int(std::max<int64_t>(1, std::min<int64_t>(memory.integer("threads"), 256)));
  prefetch_ = !off("EFFC_STREAM_PREFETCH");
  // Direct reads go past the page cache: the kernel need not copy, and memory holds no second copy of the weights.
  if (!off("EFFC_STREAM_DIRECT")) fd_ = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
  direct_ = fd_ >= 0;
  if (fd_ < 0) fd_ = open(path, O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) fail("cannot open '%s': %s", path, strerror(errno));
  struct stat st;
  bool same = fstat(fd_, &st) == 0 && file.device == uint64_t(st.st_dev) && file.inode == uint64_t(st.st_ino) &&
              file.size == int64_t(st.st_size);
  if (!same) {
    close(fd_);
    fail("'%s' was replaced while it was loaded: load it again", path);
  }
  pid_ = getpid();
  row_buffer_ = memory.find("row_buffer") ? size_of(memory, "row_buffer") : 0;
}

Streamer::~Streamer() {
  if (reading_ && pid_ == getpid()) {
    {
      std::lock_guard<std::mutex> guard(lock_);
      quit_ = true;
      to_reader_.notify_all();
    }
    for (pthread_t thread : threads_reading_)
      pthread_join(thread, nullptr);
  }
  for (char* p : owned_)
    free_bytes(p);
  if (fd_ >= 0) close(fd_);
  delete turn_;
}

char* Streamer::allocate(int64_t bytes) {
  // Page-aligned, for direct reads. In huge pages where it is large: a request then has few pieces, and a virtual disk
  // takes twice the time for the many of small pages.
  bool huge = bytes >= 2 * kHugePage;
  void* p = nullptr;
  if (posix_memalign(&p, size_t(huge ? kHugePage : kPage), size_t(std::max(pages(bytes), kPage))) != 0)
    fail("out of memory: cannot allocate %lld bytes", static_cast<long long>(bytes));
  if (huge) prefer_huge_pages(p, pages(bytes));
  g_allocs.fetch_add(1, std::memory_order_relaxed);
  owned_.push_back(static_cast<char*>(p));
  return static_cast<char*>(p);
}

void Streamer::add(int segment, int64_t file_offset, int64_t nbytes, int64_t chunk, std::vector<uint64_t> sums,
                   const std::string* path) {
  if (file_offset % kPage) fail("the artifact is damaged: '%s' is not aligned", path->c_str());
  if (chunk > kMaxChunk || chunk % kPage) fail("the artifact is damaged: '%s' has chunks of odd size", path->c_str());
  if (segments_.size() <= size_t(segment)) segments_.resize(size_t(segment) + 1);
  Segment& s = segments_[size_t(segment)];
  s.at = file_offset;
  s.nbytes = nbytes;
  s.chunk = chunk;
  s.checked = std::make_unique<std::atomic<uint8_t>[]>(sums.size());
  for (size_t k = 0; k < sums.size(); ++k)
    s.checked[k] = 0;
  s.sums = std::move(sums);
  s.path = path;
  s.here = true;
}

void Streamer::start(const Json& memory) {
  const Json::List<Json>& list = memory.array("stays");
  int64_t total = 0;
  std::vector<Segment*> stays;
  for (const Json& item : list) {
    if (!item.is_int() || item.i < 0 || size_t(item.i) >= segments_.size() || !segments_[size_t(item.i)].here)
      fail("the manifest's 'memory' is malformed: an unknown segment");
    Segment& s = segments_[size_t(item.i)];
    stays.push_back(&s);
    total = effc_rt::add(total, pages(s.nbytes));
  }
  resident_ = allocate(total);
  int64_t at = 0;
  for (Segment* s : stays) {
    read(*s, 0, s->nbytes, resident_ + at);
    for (size_t k = 0; k < s->sums.size(); ++k)
      check(*s, k, resident_ + at + int64_t(k) * s->chunk);
    s->resident = resident_ + at;
    at += pages(s->nbytes);
  }
  window_ = allocate(sizes_.window);
  arena_ = static_cast<char*>(alloc_bytes(sizes_.arena));
  owned_.push_back(arena_);
  if (row_buffer_ > 0) chunk_buffer_ = allocate(row_buffer_);
}

std::unique_lock<std::mutex> Streamer::turn() {
  {
    std::lock_guard<std::mutex> guard(short_lock());
    if (pid_ != getpid()) {
      // In a child of fork() there is no reader, and whoever held the turn is not here. Weights are then read when they
      // are needed.
      turn_ = new std::mutex;
      pid_ = getpid();
      prefetch_ = prefetch_ && !reading_;
      reading_ = false;
      readers_waiting_ = 0;
    }
  }
  return std::unique_lock<std::mutex>(*turn_);
}

const char* Streamer::resident(int segment) const {
  return size_t(segment) < segments_.size() ? segments_[size_t(segment)].resident : nullptr;
}

void Streamer::check_load(const StreamLoad& l) const {
  if (!streams(l.segment) || l.at < 0 || l.at % kPage || l.at > sizes_.window ||
      pages(segments_[size_t(l.segment)].nbytes) > sizes_.window - l.at)
    fail("the manifest's program is malformed: weights that do not fit the window");
}

void Streamer::check_rows(int segment) const {
  if (!streams(segment) || row_buffer_ < segments_[size_t(segment)].chunk + 2 * kPage)
    fail("the manifest's program is malformed: rows that do not fit their buffer");
}

int64_t Streamer::chunk_bytes(const Segment& s, size_t chunk) const {
  return std::min(s.chunk, s.nbytes - int64_t(chunk) * s.chunk);
}

void Streamer::check(Segment& s, size_t chunk, const char* data) {
  if (s.checked[chunk].load(std::memory_order_relaxed)) return;
  if (xxh3_64(data, size_t(chunk_bytes(s, chunk))) != s.sums[chunk])
    fail("the artifact is damaged: the checksum of '%s' does not match", s.path->c_str());
  s.checked[chunk].store(1, std::memory_order_relaxed);
  counts_.chunks_checked.fetch_add(1, std::memory_order_relaxed);
}

void Streamer::read(const Segment& s, int64_t from, int64_t bytes, char* to) {
  int64_t want = direct_ ? pages(bytes) : bytes;
  for (int64_t done = 0; done < bytes;) {
    int64_t ask = std::min(kRead, want - done);
    ssize_t n = pread(fd_, to + done, size_t(ask), s.at + from + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EINVAL && direct_) {  // a file system that takes the flag but not the reads
      int flags = fcntl(fd_, F_GETFL);
      if (flags < 0 || fcntl(fd_, F_SETFL, flags & ~O_DIRECT) != 0)
        fail("cannot read '%s' from the artifact: %s", s.path->c_str(), strerror(errno));
      direct_ = false;
      want = bytes;
      continue;
    }
    if (n < 0) fail("cannot read '%s' from the artifact: %s", s.path->c_str(), strerror(errno));
    if (n == 0)
      fail("cannot read '%s' from the artifact: the file ends too early (was it cut short while in use?)",
           s.path->c_str());
    done += n;
  }
  if (!direct_) posix_fadvise(fd_, s.at + from, bytes, POSIX_FADV_DONTNEED);
}

void Streamer::load(const StreamLoad& l) {
  Segment& s = segments_[size_t(l.segment)];
  read(s, 0, s.nbytes, window_ + l.at);
  for (size_t k = 0; k < s.sums.size(); ++k)
    check(s, k, window_ + l.at + int64_t(k) * s.chunk);
  counts_.pieces.fetch_add(1, std::memory_order_relaxed);
  counts_.bytes.fetch_add(uint64_t(s.nbytes), std::memory_order_relaxed);
}

void Streamer::begin(const Program& program) {
  counts_.runs.fetch_add(1, std::memory_order_relaxed);
  begun_ = now_ns();
  loaded_.store(0);
  completed_.store(0);
  if (program.loads.empty() || !prefetch_) return;
  std::lock_guard<std::mutex> guard(lock_);
  if (!reading_) {
    // Signals are for the threads of the program that runs the model.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    threads_reading_.clear();
    for (int k = 0; k < kReaders && !error; ++k) {
      pthread_t thread;
      auto start = [](void* self) -> void* {
        static_cast<Streamer*>(self)->reader();
        return nullptr;
      };
      error = pthread_create(&thread, nullptr, start, this);
      if (!error) threads_reading_.push_back(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    reading_ = !threads_reading_.empty();
    if (!reading_) fail("cannot start the threads that read weights: %s", strerror(error));
  }
  there_.assign(program.loads.size(), 0);
  next_ = 0;
  job_ = &program;
  cancel_ = failed_ = false;
  to_reader_.notify_all();
}

void Streamer::need(const Program& program, size_t step) {
  size_t want = program.needs[step];
  if (loaded_.load(std::memory_order_acquire) >= want) return;
  counts_.waits.fetch_add(1, std::memory_order_relaxed);
  uint64_t start = now_ns();
  if (!prefetch_) {
    for (size_t k = loaded_.load(std::memory_order_relaxed); k < want; ++k)
      load(program.loads[k]);
    loaded_.store(want);
  } else {
    std::unique_lock<std::mutex> guard(lock_);
    runner_waits_.store(true);
    while (loaded_.load() < want && !failed_)
      to_runner_.wait(guard);
    runner_waits_.store(false);
    if (failed_) fail("%s", error_.c_str());
  }
  counts_.wait_ns.fetch_add(now_ns() - start, std::memory_order_relaxed);
}

void Streamer::done(size_t step) {
  completed_.store(step + 1);
  if (readers_waiting_.load()) {
    std::lock_guard<std::mutex> guard(lock_);
    to_reader_.notify_all();
  }
}

void Streamer::end() noexcept {
  if (reading_) {
    std::unique_lock<std::mutex> guard(lock_);
    cancel_ = true;
    job_ = nullptr;
    to_reader_.notify_all();
    while (busy_)
      to_runner_.wait(guard);
  }
  counts_.run_ns.fetch_add(now_ns() - begun_, std::memory_order_relaxed);
}

// Takes loads in their order. Several threads keep the device busy: one asks while another's answer comes.
void Streamer::reader() {
  std::unique_lock<std::mutex> guard(lock_);
  while (!quit_) {
    bool wanted = job_ && !cancel_ && !failed_ && next_ < job_->loads.size();
    if (!wanted) {
      to_reader_.wait(guard);
      continue;
    }
    const StreamLoad& l = job_->loads[next_];
    readers_waiting_.fetch_add(1);
    bool free = completed_.load() >= size_t(l.after);
    if (!free) to_reader_.wait(guard);
    readers_waiting_.fetch_sub(1);
    if (!free) continue;  // the job may be another one by now
    size_t k = next_++;
    ++busy_;
    guard.unlock();
    std::string error;
    try {
      load(l);
    } catch (const std::exception& e) {
      error = e.what();
    }
    guard.lock();
    --busy_;
    if (error.empty()) {
      there_[k] = 1;
      size_t ready = loaded_.load();
      while (ready < there_.size() && there_[ready])
        ++ready;
      loaded_.store(ready);
    } else if (!failed_) {
      failed_ = true;
      error_ = error;
    }
    if (runner_waits_.load() || cancel_) to_runner_.notify_all();
  }
}

void Streamer::copy(int segment, int64_t from, int64_t bytes, char* to) {
  Segment& s = segments_[size_t(segment)];
  if (s.resident) {
    memcpy(to, s.resident + from, size_t(bytes));
    return;
  }
  counts_.row_bytes.fetch_add(uint64_t(bytes), std::memory_order_relaxed);
  for (int64_t done = 0; done < bytes;) {  // chunk by chunk: one that was never checked is read whole
    size_t k = size_t((from + done) / s.chunk);
    int64_t start = int64_t(k) * s.chunk, end = start + chunk_bytes(s, k);
    int64_t lo = from + done, hi = std::min(end, from + bytes);
    bool fresh = !s.checked[k].load(std::memory_order_relaxed);
    int64_t first = fresh ? start : lo & ~(kPage - 1);
    read(s, first, (fresh ? end : hi) - first, chunk_buffer_);
    if (fresh) check(s, k, chunk_buffer_);
    memcpy(to + done, chunk_buffer_ + (lo - first), size_t(hi - lo));
    done += hi - lo;
  }
}

void Streamer::report(effc_stream* out) const {
  *out = sizes_;
  out->direct = direct_;
  out->prefetch = prefetch_;
  out->runs = counts_.runs;
  out->pieces = counts_.pieces;
  out->bytes = counts_.bytes;
  out->rows = counts_.rows;
  out->row_bytes = counts_.row_bytes;
  out->waits = counts_.waits;
  out->wait_ns = counts_.wait_ns;
  out->run_ns = counts_.run_ns;
  out->chunks_checked = counts_.chunks_checked;
}

}  // namespace effc_rt
