/* Element types of kernels: storage structs of the short floats, complex numbers, and conversions between all of them.
 *
 * The conversions are branch-free integer code that the compiler vectorises at any width. Narrowing rounds to nearest,
 * ties to even; NaN stays NaN; overflow goes to infinity; e4m3fn, which has none, saturates (PyTorch 2.13 does, ml_dtypes
 * makes NaN). The types that are only stored do what the op table's `convert` says.
 */
#ifndef EFFC_TYPES_HPP
#define EFFC_TYPES_HPP
#include <stdint.h>

namespace effc {

#define EFFC_INLINE static inline __attribute__((always_inline))

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};
struct f8e4m3 {
  uint8_t bits;
};
struct f8e5m2 {
  uint8_t bits;
};
struct f8e4m3fnuz {
  uint8_t bits;
};
struct f8e5m2fnuz {
  uint8_t bits;
};
struct f8e8m0 {
  uint8_t bits;
};
struct f4e2m1 {
  uint8_t bits;
};
/* An integer of BITS bits in the low ones of a byte; the others are written as 0 and not read. */
template <int BITS, bool SIGNED>
struct short_int {
  uint8_t bits;
};
using int4 = short_int<4, true>;
using uint4 = short_int<4, false>;
using int2 = short_int<2, true>;
using uint2 = short_int<2, false>;
struct cf16 {
  f16 re, im;
};
struct cf32 {
  float re, im;
};
struct cf64 {
  double re, im;
};

/* The bits of x read as a To of the same size. */
template <class To, class From>
EFFC_INLINE To bitcast(From x) {
  static_assert(sizeof(To) == sizeof(From), "bitcast between sizes");
  return __builtin_bit_cast(To, x);
}

/* ---- to float ---- */

EFFC_INLINE float to_f32(f16 h) {
  uint32_t mag = (uint32_t)(h.bits & 0x7fffu) << 13;
  /* The product is exact, for half denormals too: it moves the exponent bias from 15 to 127. */
  uint32_t scaled = bitcast<uint32_t>(bitcast<float>(mag) * 0x1p112f);
  uint32_t r = mag >= 0x0f800000u ? (mag | 0x7f800000u) : scaled;
  return bitcast<float>(r | ((uint32_t)(h.bits & 0x8000u) << 16));
}
EFFC_INLINE float to_f32(bf16 h) { return bitcast<float>((uint32_t)h.bits << 16); }
EFFC_INLINE float to_f32(f8e5m2 h) { return to_f32(f16{(uint16_t)((uint32_t)h.bits << 8)}); }
EFFC_INLINE float to_f32(f8e4m3 h) {
  uint32_t mag = (uint32_t)(h.bits & 0x7fu) << 20;
  uint32_t scaled = bitcast<uint32_t>(bitcast<float>(mag) * 0x1p120f);
  uint32_t r = mag == 0x07f00000u ? 0x7fc00000u : scaled;
  return bitcast<float>(r | ((uint32_t)(h.bits & 0x80u) << 24));
}
/* Without infinities and -0, whose bits are NaN's. The product is exact. */
EFFC_INLINE float to_f32(f8e4m3fnuz h) {
  float r = bitcast<float>((uint32_t)(h.bits & 0x7fu) << 20) * 0x1p119f;
  return bitcast<float>(h.bits == 0x80u ? 0xffc00000u : bitcast<uint32_t>(r) | (uint32_t)(h.bits & 0x80u) << 24);
}
EFFC_INLINE float to_f32(f8e5m2fnuz h) {
  float r = bitcast<float>((uint32_t)(h.bits & 0x7fu) << 21) * 0x1p111f;
  return bitcast<float>(h.bits == 0x80u ? 0xffc00000u : bitcast<uint32_t>(r) | (uint32_t)(h.bits & 0x80u) << 24);
}
EFFC_INLINE float to_f32(f4e2m1 h) {
  float r = bitcast<float>((uint32_t)(h.bits & 0x7u) << 22) * 0x1p126f;
  return bitcast<float>(bitcast<uint32_t>(r) | (uint32_t)(h.bits & 0x8u) << 28);
}
EFFC_INLINE float to_f32(f8e8m0 h) {
  uint32_t b = h.bits;
  return bitcast<float>(b == 0 ? 0x00400000u : b == 0xffu ? 0x7fc00000u : b << 23); /* 2^-127 is a denormal */
}

/* ---- from float ---- */

/* Rounds |x| (as bits `a`) to a float of MBITS mantissa bits whose smallest normal is 2^(1-BIAS); no overflow check.
 * Below that, adding a power of two whose last place is the format's denormal step rounds in one go. */
template <int MBITS, int BIAS>
EFFC_INLINE uint32_t round_short(uint32_t a) {
  constexpr int shift = 23 - MBITS;
  constexpr uint32_t rebias = (uint32_t)(127 - BIAS) << 23;
  constexpr uint32_t min_normal = (uint32_t)(127 + 1 - BIAS) << 23;
  constexpr uint32_t magic = (uint32_t)(127 + 1 - BIAS - MBITS + 23) << 23;
  uint32_t normal = (a + ((1u << (shift - 1)) - 1) + ((a >> shift) & 1u) - rebias) >> shift;
  uint32_t small = bitcast<uint32_t>(bitcast<float>(a) + bitcast<float>(magic)) - magic;
  return a < min_normal ? small : normal;
}

template <class T>
struct from_f32_impl;
template <>
struct from_f32_impl<f16> {
  EFFC_INLINE f16 run(float x) {
    uint32_t b = bitcast<uint32_t>(x), a = b & 0x7fffffffu;
    uint32_t r = round_short<10, 15>(a);
    r = a >= 0x477ff000u ? 0x7c00u : r;
    r = a > 0x7f800000u ? 0x7e00u : r;
    return f16{(uint16_t)(r | ((b >> 16) & 0x8000u))};
  }
};
template <>
struct from_f32_impl<bf16> {
  EFFC_INLINE bf16 run(float x) {
    uint32_t b = bitcast<uint32_t>(x);
    uint32_t r = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    return bf16{(uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : r)};
  }
};
template <>
struct from_f32_impl<f8e5m2> {
  EFFC_INLINE f8e5m2 run(float x) {
    uint32_t b = bitcast<uint32_t>(x), a = b & 0x7fffffffu;
    uint32_t r = round_short<2, 15>(a);
    r = a >= 0x47700000u ? 0x7cu : r;
    r = a > 0x7f800000u ? 0x7fu : r;
    return f8e5m2{(uint8_t)(r | ((b >> 24) & 0x80u))};
  }
};
template <>
struct from_f32_impl<f8e4m3> {
  EFFC_INLINE f8e4m3 run(float x) {
    uint32_t b = bitcast<uint32_t>(x), a = b & 0x7fffffffu;
    uint32_t r = round_short<3, 7>(a);
    r = a >= 0x43e00000u ? 0x7eu : r; /* 448 */
    r = a > 0x7f800000u ? 0x7fu : r;
    return f8e4m3{(uint8_t)(r | ((b >> 24) & 0x80u))};
  }
};
template <int MBITS, int BIAS>
EFFC_INLINE uint8_t round_fnuz(float x) {
  uint32_t b = bitcast<uint32_t>(x), a = b & 0x7fffffffu;
  uint32_t r = round_short<MBITS, BIAS>(a);
  uint32_t s = r == 0 ? 0u : r | ((b >> 24) & 0x80u);
  return (uint8_t)((r > 0x7fu) | (a >= 0x7f800000u) ? 0x80u : s);
}
template <>
struct from_f32_impl<f8e4m3fnuz> {
  EFFC_INLINE f8e4m3fnuz run(float x) { return f8e4m3fnuz{round_fnuz<3, 8>(x)}; }
};
template <>
struct from_f32_impl<f8e5m2fnuz> {
  EFFC_INLINE f8e5m2fnuz run(float x) { return f8e5m2fnuz{round_fnuz<2, 16>(x)}; }
};
template <>
struct from_f32_impl<f4e2m1> {
  EFFC_INLINE f4e2m1 run(float x) {
    uint32_t b = bitcast<uint32_t>(x), a = b & 0x7fffffffu;
    uint32_t r = round_short<1, 1>(a);
    r = r > 7u ? 7u : r;
    r = a > 0x7f800000u ? 8u : r; /* NaN: a zero of the other sign, as ml_dtypes has it */
    return f4e2m1{(uint8_t)(r ^ ((b >> 28) & 0x8u))};
  }
};
template <>
struct from_f32_impl<f8e8m0> {
  EFFC_INLINE f8e8m0 run(float x) { /* half up, but 2^-127, half of the smallest normal, is a value itself */
    uint32_t a = bitcast<uint32_t>(x) & 0x7fffffffu;
    uint32_t r = (a + 0x3fffffu + (a > 0x7fffffu ? 1u : 0u)) >> 23;
    return f8e8m0{(uint8_t)(r > 0xffu ? 0xffu : r)};
  }
};
template <>
struct from_f32_impl<float> {
  EFFC_INLINE float run(float x) { return x; }
};
template <class T>
EFFC_INLINE T from_f32(float x) {
  return from_f32_impl<T>::run(x);
}

/* ---- compute types ---- */

/* A value in registers, and arithmetic on a storage type: float for the short floats, bytes for the short integers, cf32
 * for cf16, else T itself. */
template <class T>
struct compute {
  using type = T;
};
template <>
struct compute<f16> {
  using type = float;
};
template <>
struct compute<bf16> {
  using type = float;
};
template <>
struct compute<f8e4m3> {
  using type = float;
};
template <>
struct compute<f8e5m2> {
  using type = float;
};
template <>
struct compute<f8e4m3fnuz> {
  using type = float;
};
template <>
struct compute<f8e5m2fnuz> {
  using type = float;
};
template <>
struct compute<f8e8m0> {
  using type = float;
};
template <>
struct compute<f4e2m1> {
  using type = float;
};
template <int BITS>
struct compute<short_int<BITS, true>> {
  using type = int8_t;
};
template <int BITS>
struct compute<short_int<BITS, false>> {
  using type = uint8_t;
};
template <>
struct compute<cf16> {
  using type = cf32;
};
template <class T>
using compute_t = typename compute<T>::type;

/* Storage value to compute value. */
template <class T>
EFFC_INLINE T to_compute(T x) {
  return x;
}
EFFC_INLINE float to_compute(f16 x) { return to_f32(x); }
EFFC_INLINE float to_compute(bf16 x) { return to_f32(x); }
EFFC_INLINE float to_compute(f8e4m3 x) { return to_f32(x); }
EFFC_INLINE float to_compute(f8e5m2 x) { return to_f32(x); }
EFFC_INLINE float to_compute(f8e4m3fnuz x) { return to_f32(x); }
EFFC_INLINE float to_compute(f8e5m2fnuz x) { return to_f32(x); }
EFFC_INLINE float to_compute(f8e8m0 x) { return to_f32(x); }
EFFC_INLINE float to_compute(f4e2m1 x) { return to_f32(x); }
template <int BITS>
EFFC_INLINE int8_t to_compute(short_int<BITS, true> x) {
  return (int8_t)((int8_t)(uint8_t)(x.bits << (8 - BITS)) >> (8 - BITS));
}
template <int BITS>
EFFC_INLINE uint8_t to_compute(short_int<BITS, false> x) {
  return (uint8_t)(x.bits & ((1 << BITS) - 1));
}
EFFC_INLINE cf32 to_compute(cf16 x) { return cf32{to_f32(x.re), to_f32(x.im)}; }

/* ---- convert: any type to any type, as a PyTorch cast ---- */

template <class T>
struct is_complex {
  static constexpr bool value = false;
};
template <>
struct is_complex<cf32> {
  static constexpr bool value = true;
};
template <>
struct is_complex<cf64> {
  static constexpr bool value = true;
};
template <class T>
struct real_of {
  using type = T;
};
template <>
struct real_of<cf32> {
  using type = float;
};
template <>
struct real_of<cf64> {
  using type = double;
};
template <class T>
using real_t = typename real_of<T>::type;

/* To real, bool or integer. Floats outside the integer's range give what the machine's conversion gives, wrapped. */
template <class To>
struct convert_impl {
  EFFC_INLINE To real(double x) { return from_real(x); }
  EFFC_INLINE To real(float x) { return from_real(x); }
  template <class I>
  EFFC_INLINE To real(I x) {
    return (To)x;
  }
  template <class F>
  EFFC_INLINE To from_real(F x) {
    if constexpr ((To)0.5 != (To)0)
      return (To)x;
    else if constexpr (sizeof(To) < 4)
      return (To)(int32_t)x;
    else if constexpr (sizeof(To) == 4 && (To)-1 > (To)0)
      return (To)(int64_t)x;
    else if constexpr (sizeof(To) == 8 && (To)-1 > (To)0)
      return x < (F)9223372036854775808.0 ? (To)(int64_t)x : (To)x;
    else
      return (To)x;
  }
};
template <>
struct convert_impl<bool> {
  template <class F>
  EFFC_INLINE bool real(F x) {
    return x != (F)0;
  }
};
#define EFFC_SHORT(T)                                                              \
  template <>                                                                      \
  struct convert_impl<T> {                                                         \
    template <class F>                                                             \
    EFFC_INLINE T real(F x) {                                                      \
      return from_f32<T>((float)x);                                                \
    }                                                                              \
  };
EFFC_SHORT(f16)
EFFC_SHORT(bf16)
EFFC_SHORT(f8e4m3)
EFFC_SHORT(f8e5m2)
EFFC_SHORT(f8e4m3fnuz)
EFFC_SHORT(f8e5m2fnuz)
EFFC_SHORT(f8e8m0)
EFFC_SHORT(f4e2m1)
#undef EFFC_SHORT
template <int BITS, bool SIGNED>
struct convert_impl<short_int<BITS, SIGNED>> {
  template <class F>
  EFFC_INLINE short_int<BITS, SIGNED> real(F x) {
    return {(uint8_t)(convert_impl<uint8_t>::real(x) & ((1 << BITS) - 1))};
  }
};
template <>
struct convert_impl<cf32> {
  template <class F>
  EFFC_INLINE cf32 real(F x) {
    return cf32{(float)x, 0.0f};
  }
};
template <>
struct convert_impl<cf64> {
  template <class F>
  EFFC_INLINE cf64 real(F x) {
    return cf64{(double)x, 0.0};
  }
};
template <>
struct convert_impl<cf16> {
  template <class F>
  EFFC_INLINE cf16 real(F x) {
    return cf16{from_f32<f16>((float)x), f16{0}};
  }
};

/* convert<To>(x): x is a storage or compute value of any type. Complex to real drops the imaginary part; complex to
 * bool asks whether either part is nonzero. */
template <class To, class From>
EFFC_INLINE To convert(From x0) {
  auto x = to_compute(x0);
  if constexpr (is_complex<decltype(x)>::value) {
    if constexpr (__is_same(To, cf32))
      return cf32{(float)x.re, (float)x.im};
    else if constexpr (__is_same(To, cf64))
      return cf64{(double)x.re, (double)x.im};
    else if constexpr (__is_same(To, cf16))
      return cf16{from_f32<f16>((float)x.re), from_f32<f16>((float)x.im)};
    else if constexpr (__is_same(To, bool))
      return (x.re != 0) | (x.im != 0);
    else
      return convert_impl<To>::real(x.re);
  } else {
    return convert_impl<To>::real(x);
  }
}

}  // namespace effc
#endif
