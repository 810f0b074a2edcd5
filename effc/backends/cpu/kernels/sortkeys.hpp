/* Keys for sorting: any real dtype as unsigned integers in the same order (NaN largest, -0 equal to 0), with their
 * indices. */
#ifndef EFFC_SORTKEYS_HPP
#define EFFC_SORTKEYS_HPP
#include <algorithm>

#include "move.hpp"

namespace effc {
namespace {

struct Item32 {
  uint32_t key, index;
  using Key = uint32_t;
};
struct Item64 {
  uint64_t key, index;
  using Key = uint64_t;
};

inline bool wide_keys(int32_t dtype) { return elem_size(dtype) == 8; }
inline bool is_float(int32_t dtype) {
  return dtype == EFFC_F16 || dtype == EFFC_BF16 || dtype == EFFC_F32 || dtype == EFFC_F64 || dtype == EFFC_F8E4M3 ||
         dtype == EFFC_F8E5M2;
}

/* The bits of a NaN's key (and of no other float's). */
template <class Item>
constexpr typename Item::Key kNanKey = ~(typename Item::Key)0;

/* Sign-magnitude bits of a float of this width to an ordered integer. */
template <class U>
EFFC_INLINE U float_key(U bits, bool nan) {
  constexpr U sign = (U)1 << (8 * sizeof(U) - 1);
  const U plain = bits == sign ? (U)0 : bits;
  const U key = (plain & sign) ? (U)~plain : (U)(plain | sign);
  return nan ? (U) ~(U)0 : key;
}
template <class T>
EFFC_INLINE uint64_t key_of(T v) {
  if constexpr (sizeof(T) == 8 && (T)-1 < (T)1)
    return (uint64_t)v ^ ((uint64_t)1 << 63);
  else if constexpr ((T)-1 < (T)1)
    return (uint32_t)((int32_t)v) ^ 0x80000000u;
  else
    return (uint64_t)v;
}
EFFC_INLINE uint64_t key_of(bool v) { return v ? 1 : 0; }
EFFC_INLINE uint64_t key_of(float v) { return float_key(bitcast<uint32_t>(v), v != v); }
EFFC_INLINE uint64_t key_of(double v) { return float_key(bitcast<uint64_t>(v), v != v); }
EFFC_INLINE uint64_t key_of(f16 v) { return key_of(to_f32(v)); }
EFFC_INLINE uint64_t key_of(bf16 v) { return key_of(to_f32(v)); }
EFFC_INLINE uint64_t key_of(f8e4m3 v) { return key_of(to_f32(v)); }
EFFC_INLINE uint64_t key_of(f8e5m2 v) { return key_of(to_f32(v)); }

/* Items of the n elements at p, `step` elements apart; the keys complemented for descending order. */
template <class Item>
void load_items(const effc_tensor& x, int64_t offset, int64_t step, int64_t n, bool descending, Item* items) {
  const typename Item::Key flip = descending ? ~(typename Item::Key)0 : 0;
  by_dtype<kReal>(x.dtype, [&](auto z) {
    using T = decltype(z);
    if constexpr ((sizeof(T) == 8) == (sizeof(Item) == 16)) {
      const T* p = (const T*)x.data + offset;
      for (int64_t i = 0; i < n; ++i)
        items[i] = Item{(typename Item::Key)((typename Item::Key)key_of(p[i * step]) ^ flip), (typename Item::Key)i};
    }
  });
}

struct ByKey {
  template <class Item>
  EFFC_INLINE bool less(const Item& a, const Item& b) {
    return a.key < b.key;
  }
  template <class Item>
  bool operator()(const Item& a, const Item& b) const {
    return less(a, b);
  }
};
struct ByKeyAndIndex {
  template <class Item>
  bool operator()(const Item& a, const Item& b) const {
    return a.key < b.key || (a.key == b.key && a.index < b.index);
  }
};

/* Stable sort of items whose indices ascend. `spare`: room for n items. Least significant digit first, 8 bits a pass;
 * passes in which all items share the digit are left out. */
template <class Item>
void sort_stable(Item* items, Item* spare, int64_t n) {
  constexpr int kPasses = (int)sizeof(typename Item::Key);
  if (n < 128 * kPasses) {
    std::sort(items, items + n, ByKeyAndIndex{});
    return;
  }
  int64_t count[kPasses][256] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int p = 0; p < kPasses; ++p) ++count[p][(items[i].key >> (8 * p)) & 255];
  Item *from = items, *to = spare;
  for (int p = 0; p < kPasses; ++p) {
    int64_t* c = count[p];
    if (c[(items[0].key >> (8 * p)) & 255] == n) continue;
    int64_t start = 0;
    for (int d = 0; d < 256; ++d) {
      const int64_t k = c[d];
      c[d] = start;
      start += k;
    }
    for (int64_t i = 0; i < n; ++i) to[c[(from[i].key >> (8 * p)) & 255]++] = from[i];
    std::swap(from, to);
  }
  if (from != items) memcpy(items, from, (size_t)n * sizeof(Item));
}

/* f(Item{}) with the item type for a dtype's keys. */
template <class F>
inline void with_items(int32_t dtype, F&& f) {
  wide_keys(dtype) ? f(Item64{}) : f(Item32{});
}

}  // namespace
}  // namespace effc
#endif
