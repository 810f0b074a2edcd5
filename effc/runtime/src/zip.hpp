// Reads the artifact's zip container: stored entries only, the whole file mapped, every offset checked.
#pragma once
#include <string>
#include <vector>

#include "common.hpp"

namespace effc_rt {

struct Mapping {  // a read-only private mapping of a whole file
  const uint8_t* data = nullptr;
  int64_t size = 0;
  uint64_t device = 0, inode = 0;  // of the file
  void release();                  // unmaps it
  explicit Mapping(const char* path);  // throws Error
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();
};

struct ZipEntry {
  std::string path;
  int64_t offset = 0, size = 0;  // of the data, in the file
  uint32_t crc32 = 0;
};

// The entries of the central directory. Throws Error for anything but a well-formed zip of stored entries whose paths
// are relative and stay inside, are unique, and whose data do not overlap (including zip64).
std::vector<ZipEntry> read_zip(const uint8_t* data, int64_t size);

uint32_t crc32(const uint8_t* data, int64_t size);

}  // namespace effc_rt
