// Format: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14-4.3.16 (ends).
#include "zip.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace effc_rt {

Mapping::Mapping(const char* path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("cannot open '%s': %s", path, strerror(errno));
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    close(fd);
    fail("'%s' is not a regular file", path);
  }
  size = st.st_size;
  device = uint64_t(st.st_dev);
  inode = uint64_t(st.st_ino);
  if (size < 22) {
    close(fd);
    fail("'%s' is not an effc artifact: %lld bytes are too few", path, static_cast<long long>(size));
  }
  void* p = mmap(nullptr, size_t(size), PROT_READ, MAP_PRIVATE, fd, 0);
  int error = errno;
  close(fd);
  if (p == MAP_FAILED) fail("cannot map '%s': %s", path, strerror(error));
  data = static_cast<const uint8_t*>(p);
}

Mapping::~Mapping() { release(); }

void Mapping::release() {
  if (data) munmap(const_cast<uint8_t*>(data), size_t(size));
  data = nullptr;
}

namespace {

template <class T>
T read(const uint8_t* p) {  // x86-64 is little-endian, as zip is
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}

[[noreturn]] void broken(const char* what) { fail("the artifact is damaged or not an effc artifact: %s", what); }

void check_path(const std::string& path) {
  bool ok = !path.empty() && path[0] != '/' && path.find('\\') == std::string::npos &&
            path.find('\0') == std::string::npos && path.find(':') == std::string::npos;
  for (size_t start = 0; ok && start <= path.size();) {
    size_t stop = std::min(path.find('/', start), path.size());
    std::string part = path.substr(start, stop - start);
    ok = !part.empty() && part != "." && part != "..";
    start = stop + 1;
  }
  if (!ok) fail("the artifact is refused: entry path '%s' is not a plain relative path", path.substr(0, 80).c_str());
}

}  // namespace

std::vector<ZipEntry> read_zip(const uint8_t* data, int64_t size) {
  // We write no archive comment, so the end record is at the very end: anything else is a truncated or appended file.
  if (size < 22) broken("too short");
  int64_t end = size - 22;
  if (read<uint32_t>(data + end) != 0x06054b50 || read<uint16_t>(data + end + 20) != 0)
    broken("no end-of-directory record at its end (is the file cut short?)");
  if (read<uint16_t>(data + end + 4) != 0 || read<uint16_t>(data + end + 6) != 0) broken("multi-disk zip");
  uint64_t count = read<uint16_t>(data + end + 10), dir_size = read<uint32_t>(data + end + 12),
           dir = read<uint32_t>(data + end + 16);
  if (read<uint16_t>(data + end + 8) != count) broken("entry counts differ");
  int64_t dir_end = end;
  if (end >= 20 && read<uint32_t>(data + end - 20) == 0x07064b50) {  // zip64 locator
    uint64_t at = read<uint64_t>(data + end - 20 + 8);
    if (at > uint64_t(end - 20) || uint64_t(end - 20) - at < 56 || read<uint32_t>(data + at) != 0x06064b50)
      broken("zip64 end record");
    if (read<uint64_t>(data + at + 24) != read<uint64_t>(data + at + 32)) broken("entry counts differ");
    count = read<uint64_t>(data + at + 32);
    dir_size = read<uint64_t>(data + at + 40);
    dir = read<uint64_t>(data + at + 48);
    dir_end = int64_t(at);
  }
  if (dir > uint64_t(dir_end) || dir_size != uint64_t(dir_end) - dir) broken("directory out of place");
  if (count > dir_size / 46) broken("entry count");

  std::vector<ZipEntry> entries;
  uint64_t p = dir;
  for (uint64_t k = 0; k < count; ++k) {
    if (uint64_t(dir_end) - p < 46 || read<uint32_t>(data + p) != 0x02014b50) broken("directory entry");
    const uint8_t* h = data + p;
    uint64_t name_len = read<uint16_t>(h + 28), extra_len = read<uint16_t>(h + 30),
             comment_len = read<uint16_t>(h + 32);
    if (uint64_t(dir_end) - p - 46 < name_len + extra_len + comment_len) broken("directory entry");
    ZipEntry e;
    e.path.assign(reinterpret_cast<const char*>(h + 46), name_len);
    check_path(e.path);
    if (read<uint16_t>(h + 8) & 1) broken("encrypted entry");
    if (read<uint16_t>(h + 10) != 0) fail("the artifact is refused: entry '%s' is compressed", e.path.c_str());
    e.crc32 = read<uint32_t>(h + 16);
    uint64_t packed = read<uint32_t>(h + 20), plain = read<uint32_t>(h + 24), local = read<uint32_t>(h + 42);
    // zip64 extra field: only the saturated fields are present, in this order.
    for (uint64_t x = 0; x + 4 <= extra_len;) {
      const uint8_t* field = h + 46 + name_len + x;
      uint64_t len = read<uint16_t>(field + 2);
      if (x + 4 + len > extra_len) broken("extra field");
      if (read<uint16_t>(field) == 1) {
        uint64_t q = 0;
        for (uint64_t* slot : {&plain, &packed, &local}) {
          if (*slot != 0xFFFFFFFFu) continue;
          if (q + 8 > len) broken("zip64 field");
          *slot = read<uint64_t>(field + 4 + q);
          q += 8;
        }
      }
      x += 4 + len;
    }
    if (packed != plain) broken("stored entry with two sizes");
    if (local > dir || dir - local < 30 || read<uint32_t>(data + local) != 0x04034b50) broken("local header");
    uint64_t local_name = read<uint16_t>(data + local + 26), local_extra = read<uint16_t>(data + local + 28);
    uint64_t start = local + 30 + local_name + local_extra;
    if (start > dir || plain > dir - start) broken("entry runs past the end");
    if (local_name != name_len || memcmp(data + local + 30, e.path.data(), name_len) != 0)
      broken("local and central names differ");
    e.offset = int64_t(start);
    e.size = int64_t(plain);
    entries.push_back(std::move(e));
    p += 46 + name_len + extra_len + comment_len;
  }
  if (p != uint64_t(dir_end)) broken("directory size");

  std::vector<const ZipEntry*> order;
  for (const ZipEntry& e : entries)
    order.push_back(&e);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->offset < b->offset; });
  for (size_t k = 1; k < order.size(); ++k)
    if (order[k - 1]->offset + order[k - 1]->size > order[k]->offset - 30) broken("entries overlap");
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->path < b->path; });
  for (size_t k = 1; k < order.size(); ++k)
    if (order[k - 1]->path == order[k]->path)
      fail("the artifact is refused: duplicate entry '%s'", order[k]->path.c_str());
  return entries;
}

uint32_t crc32(const uint8_t* data, int64_t size) {
  // Slicing-by-8 (Kounavis and Berry, 2005), tables made at first use.
  static const auto table = [] {
    std::array<std::array<uint32_t, 256>, 8> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k)
        c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
      t[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; ++i)
      for (int k = 1; k < 8; ++k)
        t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 255];
    return t;
  }();
  uint32_t c = ~0u;
  for (; size >= 8; size -= 8, data += 8) {
    uint64_t w = read<uint64_t>(data) ^ c;
    c = table[7][w & 255] ^ table[6][(w >> 8) & 255] ^ table[5][(w >> 16) & 255] ^ table[4][(w >> 24) & 255] ^
        table[3][(w >> 32) & 255] ^ table[2][(w >> 40) & 255] ^ table[1][(w >> 48) & 255] ^ table[0][w >> 56];
  }
  for (; size > 0; --size, ++data)
    c = table[0][(c ^ *data) & 255] ^ (c >> 8);
  return ~c;
}

}  // namespace effc_rt
