// XXH3, 64 bits, seed 0 (the published specification: github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
#pragma once
#include <cstddef>
#include <cstdint>

namespace effc_rt {
uint64_t xxh3_64(const void* data, size_t size);
}
