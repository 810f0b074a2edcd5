#include "far.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "common.hpp"

namespace effc_rt {

namespace {

constexpr int64_t kAtOnce = int64_t(1) << 30;  // Linux moves at most 2 GiB less a page in one call
constexpr int64_t kAhead = int64_t(1) << 20;    // what one request for reading ahead is for: Linux cuts longer ones off
constexpr long kTmpfs = 0x01021994, kRamfs = long(0x858458f6);

// $TMPDIR, else the folder for large temporary files, which lies on a disk where /tmp may not.
std::string folders(const char** list) {
  const char* named = getenv("TMPDIR");
  list[0] = named && *named ? named : "/var/tmp";
  list[1] = named && *named ? nullptr : "/tmp";
  return list[1] ? std::string(list[0]) + " or " + list[1] : list[0];
}

int open_in(const char* folder) {
  int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) return fd;
  std::string path = std::string(folder) + "/effc-XXXXXX";  // a file system that knows no files without names
  fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd >= 0) unlink(path.c_str());
  return fd;
}

}  // namespace

void FarCounts::report(effc_spill* out) const {
  out->spills = spills;
  out->spill_bytes = spilled;
  out->refills = refills;
  out->refill_bytes = refilled;
  out->ns = ns;
  out->files = files;
  out->file_bytes = file_bytes;
  out->in_memory = in_memory;
  out->ahead_bytes = ahead;
}

Far::~Far() {
  if (fd_ >= 0) close(fd_);
}

void Far::open_file(FarCounts& counts) {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  const char* list[2];
  std::string where = folders(list);
  for (const char* folder : list)
    if (folder && fd_ < 0) fd_ = open_in(folder);
  if (fd_ < 0)
    fail("cannot make a file in %s for what arena_budget leaves no room for: %s (TMPDIR names another folder)",
         where.c_str(), strerror(errno));
  pid_ = getpid();
  counts.files.fetch_add(1, std::memory_order_relaxed);
  struct statfs fs;
  if (fstatfs(fd_, &fs) == 0 && (long(fs.f_type) == kTmpfs || long(fs.f_type) == kRamfs)) counts.in_memory = 1;
  // Blocks are taken now: a run must not be the one to find the disk full.
  if (bytes_ > 0 && fallocate(fd_, 0, 0, bytes_) != 0) {
    int error = errno;
    if ((error != EOPNOTSUPP && error != ENOSYS) || ftruncate(fd_, bytes_) != 0) {
      close(fd_);
      fd_ = -1;
      fail("cannot take %lld bytes in %s for what arena_budget leaves no room for: %s (TMPDIR names another folder)",
           static_cast<long long>(bytes_), where.c_str(), strerror(error));
    }
  }
  g_allocs.fetch_add(1, std::memory_order_relaxed);
}

void Far::reserve(int64_t bytes, FarCounts& counts) {
  if (bytes <= bytes_ && fd_ >= 0 && pid_ == getpid()) return;
  bytes_ = std::max(bytes, bytes_);
  open_file(counts);
  for (int64_t seen = counts.file_bytes; seen < bytes_ && !counts.file_bytes.compare_exchange_weak(seen, bytes_);) {
  }
}

void Far::mine(FarCounts& counts) {
  if (fd_ < 0 || pid_ != getpid()) open_file(counts);
}

void Far::write(int64_t at, const char* data, int64_t bytes) {
  for (int64_t done = 0; done < bytes;) {
    ssize_t n = pwrite(fd_, data + done, size_t(std::min(kAtOnce, bytes - done)), at + done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("cannot write %lld bytes to the temporary file: %s", static_cast<long long>(bytes), strerror(errno));
    done += n;
  }
}

void Far::read(int64_t at, char* data, int64_t bytes) {
  for (int64_t done = 0; done < bytes;) {
    ssize_t n = pread(fd_, data + done, size_t(std::min(kAtOnce, bytes - done)), at + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot read from the temporary file: %s", strerror(errno));
    if (n == 0) fail("cannot read from the temporary file: it ends too early");
    done += n;
  }
}

int64_t Far::ahead(int64_t at, int64_t bytes) {
  int64_t asked = 0;
  for (int64_t done = 0; asks_ && done < bytes; done += kAhead) {
    int64_t piece = std::min(kAhead, bytes - done);
    // Looking for pages that are there costs a sixth of copying them, so two are tried for all. What is least recently
    // used goes first, which is pieces as a whole.
    for (int64_t probe : {int64_t(0), piece / 2}) {
      char byte;
      iovec to = {&byte, 1};
      if (preadv2(fd_, &to, 1, at + done + probe, RWF_NOWAIT) == 1) continue;
      if (errno != EAGAIN) {  // a file system, or a kernel, that does not tell: reading is as it would be without
        asks_ = errno == EINTR;
        break;
      }
      if (posix_fadvise(fd_, at + done, piece, POSIX_FADV_WILLNEED) == 0) asked += piece;
      break;
    }
  }
  return asked;
}

}  // namespace effc_rt
