#include "far.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "common.hpp"

namespace effc_rt {

namespace {

constexpr int64_t kAtOnce = int64_t(1) << 30;  // Linux moves at most 2 GiB less a page in one call
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

}  // namespace effc_rt
