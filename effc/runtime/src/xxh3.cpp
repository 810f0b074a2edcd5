#include "xxh3.hpp"

#include <cstring>

namespace effc_rt {
namespace {

constexpr uint64_t kP32_1 = 0x9E3779B1u, kP32_2 = 0x85EBCA77u, kP32_3 = 0xC2B2AE3Du;
constexpr uint64_t kP64_1 = 0x9E3779B185EBCA87u, kP64_2 = 0xC2B2AE3D27D4EB4Fu, kP64_3 = 0x165667B19E3779F9u,
                   kP64_4 = 0x85EBCA77C2B2AE63u, kP64_5 = 0x27D4EB2F165667C5u;
constexpr uint64_t kMx1 = 0x165667919E3779F9u, kMx2 = 0x9FB21C651E98DF25u;

constexpr size_t kSecretSize = 192;
alignas(64) constexpr unsigned char kSecret[kSecretSize] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

using Bytes = const unsigned char*;

inline uint64_t r64(Bytes p) {
  uint64_t v;
  memcpy(&v, p, 8);
  return v;
}
inline uint32_t r32(Bytes p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}
inline uint64_t rotl(uint64_t v, int k) { return (v << k) | (v >> (64 - k)); }
inline uint64_t fold(uint64_t a, uint64_t b) {
  unsigned __int128 m = static_cast<unsigned __int128>(a) * b;
  return uint64_t(m) ^ uint64_t(m >> 64);
}
inline uint64_t avalanche64(uint64_t h) {
  h ^= h >> 33;
  h *= kP64_2;
  h ^= h >> 29;
  h *= kP64_3;
  return h ^ (h >> 32);
}
inline uint64_t avalanche3(uint64_t h) {
  h ^= h >> 37;
  h *= kMx1;
  return h ^ (h >> 32);
}
inline uint64_t mix16(Bytes in, Bytes secret) { return fold(r64(in) ^ r64(secret), r64(in + 8) ^ r64(secret + 8)); }

// One 64-byte stripe into the eight lanes.
inline void stripe(uint64_t* acc, Bytes in, Bytes secret) {
  for (int i = 0; i < 8; ++i) {
    uint64_t value = r64(in + 8 * i), key = value ^ r64(secret + 8 * i);
    acc[i ^ 1] += value;
    acc[i] += (key & 0xFFFFFFFFu) * (key >> 32);
  }
}

uint64_t hash_long(Bytes in, size_t n) {
  alignas(64) uint64_t acc[8] = {kP32_3, kP64_1, kP64_2, kP64_3, kP64_4, kP32_2, kP64_5, kP32_1};
  constexpr size_t kStripes = (kSecretSize - 64) / 8, kBlock = 64 * kStripes;
  size_t blocks = (n - 1) / kBlock;
  for (size_t b = 0; b < blocks; ++b) {
    for (size_t s = 0; s < kStripes; ++s)
      stripe(acc, in + b * kBlock + s * 64, kSecret + s * 8);
    for (int i = 0; i < 8; ++i) {
      uint64_t a = acc[i];
      a ^= a >> 47;
      a ^= r64(kSecret + kSecretSize - 64 + 8 * i);
      acc[i] = a * kP32_1;
    }
  }
  size_t rest = (n - 1 - blocks * kBlock) / 64;
  for (size_t s = 0; s < rest; ++s)
    stripe(acc, in + blocks * kBlock + s * 64, kSecret + s * 8);
  stripe(acc, in + n - 64, kSecret + kSecretSize - 64 - 7);
  uint64_t h = n * kP64_1;
  for (int i = 0; i < 4; ++i)
    h += fold(acc[2 * i] ^ r64(kSecret + 11 + 16 * i), acc[2 * i + 1] ^ r64(kSecret + 11 + 16 * i + 8));
  return avalanche3(h);
}

}  // namespace

uint64_t xxh3_64(const void* data, size_t n) {
  Bytes in = static_cast<Bytes>(data);
  Bytes s = kSecret;
  if (n == 0) return avalanche64(r64(s + 56) ^ r64(s + 64));
  if (n <= 3) {
    uint32_t combined = uint32_t(in[0]) << 16 | uint32_t(in[n >> 1]) << 24 | in[n - 1] | uint32_t(n) << 8;
    return avalanche64(uint64_t(combined) ^ (r32(s) ^ r32(s + 4)));
  }
  if (n <= 8) {
    uint64_t value = r32(in + n - 4) + (uint64_t(r32(in)) << 32), h = value ^ (r64(s + 8) ^ r64(s + 16));
    h ^= rotl(h, 49) ^ rotl(h, 24);
    h *= kMx2;
    h ^= (h >> 35) + n;
    h *= kMx2;
    return h ^ (h >> 28);
  }
  if (n <= 16) {
    uint64_t lo = r64(in) ^ (r64(s + 24) ^ r64(s + 32)), hi = r64(in + n - 8) ^ (r64(s + 40) ^ r64(s + 48));
    return avalanche3(n + __builtin_bswap64(lo) + hi + fold(lo, hi));
  }
  if (n <= 128) {
    uint64_t h = n * kP64_1;
    for (int i = int((n - 1) / 32); i >= 0; --i) {
      h += mix16(in + 16 * i, s + 32 * i);
      h += mix16(in + n - 16 * (i + 1), s + 32 * i + 16);
    }
    return avalanche3(h);
  }
  if (n <= 240) {
    uint64_t h = n * kP64_1;
    for (int i = 0; i < 8; ++i)
      h += mix16(in + 16 * i, s + 16 * i);
    h = avalanche3(h);
    for (int i = 8; i < int(n / 16); ++i)
      h += mix16(in + 16 * i, s + 16 * (i - 8) + 3);
    h += mix16(in + n - 16, s + 136 - 17);
    return avalanche3(h);
  }
  return hash_long(in, n);
}

}  // namespace effc_rt
