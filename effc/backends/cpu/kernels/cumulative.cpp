// Running sums, products, extrema, log-sum-exps and linear recurrences along one dim.
//
// Operands are dense and seen as [outer, n, inner]. A task carries the states of up to kCols neighbouring columns along
// n; sums and products of few long lines go in blocks of fixed size (totals, their prefix, then each block from its
// start), so that the result does not depend on threads.
#include <math.h>

#include "move.hpp"

using namespace effc;

namespace {

constexpr int64_t kCols = 64;
constexpr int64_t kLine = 1 << 14;  // block of a long line

struct Shape {
  int64_t outer, n, inner;
  Shape(const effc_tensor& x, int dim) : outer(span(x, 0, dim)), n(x.shape[dim]), inner(span(x, dim + 1, x.rank)) {}
};

/* For every column: State s = init(column); then step(s, position, j) for j = 0 .. n-1 (or backwards). */
template <class State, class Init, class Step>
void scan(const effc_call* call, const Shape& z, bool reverse, int64_t cost, Init init, Step step) {
  const int64_t parts = (z.inner + kCols - 1) / kCols;
  if (z.n == 0) return;
  if (z.inner == 1) {  // four lines at once, so that their chains of operations overlap
    constexpr int64_t kLines = 4;
    pfor(call, (z.outer + kLines - 1) / kLines, grain_for(z.n * kLines * cost), [&](int64_t b, int64_t e, int32_t) {
      for (int64_t item = b; item < e; ++item) {
        const int64_t o = item * kLines, left = z.outer - o;
        State s[kLines];
        for (int64_t l = 0; l < kLines && l < left; ++l) s[l] = init(o + l);
        if (left >= kLines) {
          State s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3];
          for (int64_t k = 0; k < z.n; ++k) {
            const int64_t j = reverse ? z.n - 1 - k : k, at = o * z.n + j;
            step(s0, at, j), step(s1, at + z.n, j), step(s2, at + 2 * z.n, j), step(s3, at + 3 * z.n, j);
          }
        } else {
          for (int64_t l = 0; l < left; ++l) {
            State t = s[l];
            for (int64_t k = 0; k < z.n; ++k) {
              const int64_t j = reverse ? z.n - 1 - k : k;
              step(t, (o + l) * z.n + j, j);
            }
          }
        }
      }
    });
    return;
  }
  pfor(call, z.outer * parts, grain_for(z.n * (z.inner < kCols ? z.inner : kCols) * cost),
       [&](int64_t b, int64_t e, int32_t) {
         State s[kCols];
         for (int64_t item = b; item < e; ++item) {
           const int64_t o = item / parts, c0 = item % parts * kCols,
                         cols = z.inner - c0 < kCols ? z.inner - c0 : kCols;
           for (int64_t c = 0; c < cols; ++c) s[c] = init(o * z.inner + c0 + c);
           for (int64_t k = 0; k < z.n; ++k) {
             const int64_t j = reverse ? z.n - 1 - k : k, at = (o * z.n + j) * z.inner + c0;
             for (int64_t c = 0; c < cols; ++c) step(s[c], at + c, j);
           }
         }
       });
}

/* The type that sums are carried in. */
template <class T>
struct Accumulator {
  using type = compute_t<T>;
};
template <>
struct Accumulator<float> {
  using type = double;
};
template <>
struct Accumulator<cf32> {
  using type = cf64;
};

template <class T>
EFFC_INLINE T add(T a, T b) {
  return (T)(a + b);
}
template <class T>
EFFC_INLINE T mul(T a, T b) {
  return (T)(a * b);
}
EFFC_INLINE uint16_t mul(uint16_t a, uint16_t b) { return (uint16_t)((uint32_t)a * b); }
EFFC_INLINE cf32 add(cf32 a, cf32 b) { return {a.re + b.re, a.im + b.im}; }
EFFC_INLINE cf64 add(cf64 a, cf64 b) { return {a.re + b.re, a.im + b.im}; }
EFFC_INLINE cf32 mul(cf32 a, cf32 b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
EFFC_INLINE cf64 mul(cf64 a, cf64 b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

template <bool Product, class T>
void run_sum(const effc_call* call) {
  using A = typename Accumulator<T>::type;
  const Shape z(call->in[0], (int)call->attr[0]);
  const T* x = (const T*)call->in[0].data;
  T* out = (T*)call->out[0].data;
  const A one = convert<A>(Product ? 1 : 0);
  auto join = [](A a, A b) {
    if constexpr (Product)
      return mul(a, b);
    else
      return add(a, b);
  };
  if (z.inner == 1 && z.outer < 8 && z.n >= 4 * kLine) {
    A* totals = (A*)call->scratch;
    const int64_t blocks = (z.n + kLine - 1) / kLine;
    for (int64_t o = 0; o < z.outer; ++o, x += z.n, out += z.n) {
      pfor(call, blocks, 1, [&](int64_t b, int64_t e, int32_t) {
        for (int64_t k = b; k < e; ++k) {
          A s[8];
          for (int l = 0; l < 8; ++l) s[l] = one;
          const int64_t end = (k + 1) * kLine < z.n ? (k + 1) * kLine : z.n;
          int64_t i = k * kLine;
          for (; i + 8 <= end; i += 8)
            for (int l = 0; l < 8; ++l) s[l] = join(s[l], convert<A>(x[i + l]));
          for (; i < end; ++i) s[0] = join(s[0], convert<A>(x[i]));
          for (int l = 4; l > 0; l /= 2)
            for (int k2 = 0; k2 < l; ++k2) s[k2] = join(s[k2], s[k2 + l]);
          totals[k] = s[0];
        }
      });
      A run = one;
      for (int64_t k = 0; k < blocks; ++k) {
        const A t = totals[k];
        totals[k] = run;
        run = join(run, t);
      }
      pfor(call, blocks, 1, [&](int64_t b, int64_t e, int32_t) {
        for (int64_t k = b; k < e; ++k) {
          A s = totals[k];
          for (int64_t i = k * kLine; i < (k + 1) * kLine && i < z.n; ++i) {
            s = join(s, convert<A>(x[i]));
            out[i] = convert<T>(s);
          }
        }
      });
    }
    return;
  }
  scan<A>(
      call, z, false, 1, [=](int64_t) { return one; },
      [=](A& s, int64_t at, int64_t) {
        s = join(s, convert<A>(x[at]));
        out[at] = convert<T>(s);
      });
}

template <bool Product>
int32_t sums(const effc_call* call) {
  const int32_t dtype = call->in[0].dtype;
  auto run = [&](auto z) { run_sum<Product, decltype(z)>(call); };
  if (dtype >= EFFC_U8 && dtype <= EFFC_I64) {  // wrapping: one unsigned type of each size serves
    switch (elem_size(dtype)) {
      case 1:
        return run(uint8_t{}), 0;
      case 2:
        return run(uint16_t{}), 0;
      case 4:
        return run(uint32_t{}), 0;
      default:
        return run(uint64_t{}), 0;
    }
  }
  return by_dtype<kFloat | kShort | kComplex>(dtype, run) ? 0 : bad_dtype(call, Product ? "cumprod" : "cumsum", dtype);
}

template <bool Largest>
int32_t extrema(const effc_call* call) {
  const Shape z(call->in[0], (int)call->attr[0]);
  auto run = [&](auto t) {
    using T = decltype(t);
    struct State {
      T value;
      int64_t at;
    };
    const T* x = (const T*)call->in[0].data;
    T* values = (T*)call->out[0].data;
    int64_t* indices = (int64_t*)call->out[1].data;
    scan<State>(
        call, z, false, 2, [](int64_t) { return State{T{}, -1}; },
        [=](State& s, int64_t at, int64_t j) {
          const auto a = to_compute(x[at]), b = to_compute(s.value);
          const bool better = Largest ? a >= b : a <= b;
          if (s.at < 0 || a != a || (b == b && better)) s = State{x[at], j};
          values[at] = s.value;
          indices[at] = s.at;
        });
  };
  const int32_t dtype = call->in[0].dtype;
  return by_dtype<kReal>(dtype, run) ? 0 : bad_dtype(call, Largest ? "cummax" : "cummin", dtype);
}

/* log(exp(a) + exp(b)) */
template <class T>
EFFC_INLINE T log_add_exp(T a, T b) {
  if (a != a || b != b) return a + b;
  const T low = a < b ? a : b, high = a < b ? b : a;
  if (low == high && isinf(low)) return low;
  return (T)(high + log1p(exp(low - high)));
}
inline cf64 log_add_exp(cf64 a, cf64 b) {
  if (a.re != a.re || a.im != a.im || b.re != b.re || b.im != b.im) return {NAN, NAN};
  const cf64 low = a.re < b.re ? a : b, high = a.re < b.re ? b : a;
  if (low.re == high.re && isinf(low.re)) {
    if (low.re < 0) return b;
    const double re = cos(a.im) + cos(b.im), im = sin(a.im) + sin(b.im);  // two infinite terms: their directions add
    return {INFINITY, atan2(im, re)};
  }
  const double size = exp(low.re - high.re), turn = low.im - high.im;
  const double re = size * cos(turn), im = size == 0 ? 0 : size * sin(turn);
  return {high.re + 0.5 * log1p(2 * re + re * re + im * im), high.im + atan2(im, 1 + re)};
}

}  // namespace

// in: x dense; out: dense, may be x's storage. attr: dim. scratch: 16 bytes per 16384 elements of a line, rounded up.
EFFC_EXPORT int32_t effc_cumsum(const effc_call* call) { return sums<false>(call); }
EFFC_EXPORT int32_t effc_cumprod(const effc_call* call) { return sums<true>(call); }

// in: x dense; out: values (may be x's storage), indices (i64), dense. attr: dim.
EFFC_EXPORT int32_t effc_cummax(const effc_call* call) { return extrema<true>(call); }
EFFC_EXPORT int32_t effc_cummin(const effc_call* call) { return extrema<false>(call); }

// in: x dense; out: dense, may be x's storage. attr: dim.
EFFC_EXPORT int32_t effc_logcumsumexp(const effc_call* call) {
  const Shape z(call->in[0], (int)call->attr[0]);
  auto run = [&](auto t) {
    using T = decltype(t);
    using A = typename Accumulator<T>::type;
    const T* x = (const T*)call->in[0].data;
    T* out = (T*)call->out[0].data;
    scan<A>(
        call, z, false, 32, [](int64_t) { return convert<A>(-INFINITY); },
        [=](A& s, int64_t at, int64_t j) {
          s = j == 0 ? convert<A>(x[at]) : log_add_exp(s, convert<A>(x[at]));
          out[at] = convert<T>(s);
        });
  };
  const int32_t dtype = call->in[0].dtype;
  return by_dtype<kFloat | kShort | kComplex>(dtype, run) ? 0 : bad_dtype(call, "logcumsumexp", dtype);
}

// h[t] = a[t]*h[t-1] + x[t]. in: a, x, init?, dense; out: all h, dense, may be a's or x's storage. attrs: dim, reverse.
EFFC_EXPORT int32_t effc_linear_recurrence(const effc_call* call) {
  const Shape z(call->in[1], (int)call->attr[0]);
  const effc_tensor& init = call->in[2];
  auto run = [&](auto t) {
    using T = decltype(t);
    using C = compute_t<T>;
    const T *a = (const T*)call->in[0].data, *x = (const T*)call->in[1].data,
            *first = absent(init) ? nullptr : (const T*)init.data;
    T* out = (T*)call->out[0].data;
    scan<C>(
        call, z, call->attr[1] != 0, 2, [=](int64_t column) { return first ? to_compute(first[column]) : C{}; },
        [=](C& s, int64_t at, int64_t) {
          s = add(mul(to_compute(a[at]), s), to_compute(x[at]));
          out[at] = convert<T>(s);
        });
  };
  const int32_t dtype = call->in[1].dtype;
  const bool ok = by_dtype<kFloat | kComplex>(dtype, run) || (dtype == EFFC_F16 && (run(f16{}), true)) ||
                  (dtype == EFFC_BF16 && (run(bf16{}), true));
  return ok ? 0 : bad_dtype(call, "linear_recurrence", dtype);
}
