// Random numbers from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// A call reserves a range of 64-bit counters; word k of its stream is lane k % 4 of counter first + k / 4. Elements own
// fixed words, so results do not depend on threads. Rejection methods count their tries in the counter's upper half.
#include <math.h>

#include <algorithm>

#include "math_float.hpp"
#include "move.hpp"

using namespace effc;

namespace {

struct Block {
  uint32_t w[4];
};

EFFC_INLINE Block philox(uint64_t counter, uint64_t high, uint64_t seed) {
  uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = (uint32_t)high, c3 = (uint32_t)(high >> 32);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1, c3 = (uint32_t)p0, c0 = n0, c2 = n2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return Block{{c0, c1, c2, c3}};
}

EFFC_INLINE uint64_t join(const uint32_t* w) { return ((uint64_t)w[1] << 32) | w[0]; }
/* In [0, 1), 53 bits. */
EFFC_INLINE double unit(const uint32_t* w) { return (double)(join(w) >> 11) * 0x1p-53; }
/* In (0, 1). */
EFFC_INLINE double open_unit(const uint32_t* w) { return ((double)(join(w) >> 12) + 0.5) * 0x1p-52; }
EFFC_INLINE double normal(const uint32_t* w) {
  return sqrt(-2 * log(((double)w[0] + 0.5) * 0x1p-32)) * cos(6.283185307179586 * ((double)w[1] * 0x1p-32));
}
/* With 64 bits for radius and angle each: what f64 needs. */
EFFC_INLINE double normal_wide(const uint32_t* w) {
  return sqrt(-2 * log(open_unit(w))) * cos(6.283185307179586 * unit(w + 2));
}

/* The call's stream. */
struct Stream {
  uint64_t seed = 0, first = 0;
  Stream(const effc_call* call, int64_t counters) {
    if (counters > 0) first = call->api->rng_reserve(call->run, (uint64_t)counters, &seed);
  }
};

constexpr int64_t kBlocks = 256;  // counters per task

/* Writes results [at, at + n) of the output, converted. */
template <class V>
__attribute__((noinline)) bool store(const effc_tensor& out, int64_t at, const V* values, int64_t n) {
  return by_dtype<kReal>(out.dtype, [&](auto z) {
    using T = decltype(z);
    T* dst = (T*)out.data + at;
    for (int64_t i = 0; i < n; ++i) dst[i] = convert<T>(values[i]);
  });
}

/* out[i] = g(i, words), of type V, for every element, with `Words` (1, 2 or 4) words each. */
template <int Words, class V, class G>
int32_t fill(const effc_call* call, G&& g) {
  constexpr int64_t kItems = kBlocks * 4 / Words;
  const effc_tensor& out = call->out[0];
  const int64_t n = numel(out), counters = (n * Words + 3) / 4;
  if (!store(out, 0, (const V*)nullptr, 0)) return bad_dtype(call, "random", out.dtype);
  const Stream stream(call, counters);
  pfor(call, (counters + kBlocks - 1) / kBlocks, 4, [&](int64_t b, int64_t e, int32_t) {
    Block words[kBlocks];
    V values[kItems];
    for (int64_t k = b; k < e; ++k) {
      for (int64_t i = 0; i < kBlocks; ++i)
        words[i] = philox(stream.first + (uint64_t)(k * kBlocks + i), 0, stream.seed);
      const uint32_t* w = words[0].w;
      const int64_t m = n - k * kItems < kItems ? n - k * kItems : kItems;
      for (int64_t i = 0; i < m; ++i) values[i] = g(k * kItems + i, w + i * Words);
      store(out, k * kItems, values, m);
    }
  });
  return 0;
}

/* The unbounded sequence of one element, for rejection methods. */
struct Sequence {
  uint64_t counter, high, seed;
  Block block;
  int used = 4;
  Sequence(const Stream& s, int64_t i) : counter(s.first + (uint64_t)i), high(0), seed(s.seed) {}
  const uint32_t* two() {
    if (used > 2) block = philox(counter, ++high, seed), used = 0;
    used += 2;
    return block.w + used - 2;
  }
  double uniform() { return open_unit(two()); }
  double gauss() { return normal(two()); }
};

/* f(i, sequence) for i in [0, n). */
template <class F>
void draw_sequences(const effc_call* call, int64_t n, F&& f) {
  const Stream stream(call, n);
  pfor(call, n, 512, [&](int64_t b, int64_t e, int32_t) {
    for (int64_t i = b; i < e; ++i) {
      Sequence s(stream, i);
      f(i, s);
    }
  });
}

double as_double(const effc_tensor& t, int64_t i) {
  double v = 0;
  by_dtype<kFloat | kShort>(t.dtype, [&](auto z) { v = (double)to_compute(((const decltype(z)*)t.data)[i]); });
  return v;
}
void store_double(const effc_tensor& t, int64_t i, double v) { store(t, i, &v, 1); }

/* Poisson: products of uniforms below a rate of 10, above it Hormann's PTRS ("The transformed rejection method for
 * generating Poisson random variables", 1993). */
double poisson(Sequence& s, double rate) {
  if (!(rate > 0)) return 0;
  if (rate < 10) {
    const double limit = exp(-rate);
    double product = s.uniform();
    int64_t k = 0;
    while (product > limit) product *= s.uniform(), ++k;
    return (double)k;
  }
  const double root = sqrt(rate), b = 0.931 + 2.53 * root, a = -0.059 + 0.02483 * b,
               inverse = 1.1239 + 1.1328 / (b - 3.4), v_r = 0.9277 - 3.6224 / (b - 2);
  for (;;) {
    const double u = s.uniform() - 0.5, v = s.uniform(), us = 0.5 - fabs(u),
                 k = floor((2 * a / us + b) * u + rate + 0.43);
    if (us >= 0.07 && v <= v_r) return k;
    if (k < 0 || (us < 0.013 && v > us)) continue;
    if (log(v) + log(inverse) - log(a / (us * us) + b) <= -rate + k * log(rate) - lgamma(k + 1)) return k;
  }
}

/* Gamma: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000. */
double gamma_of(Sequence& s, double alpha) {
  double scale = 1;
  if (alpha <= 0) return 0;
  if (alpha < 1) scale = pow(s.uniform(), 1 / alpha), alpha += 1;
  const double d = alpha - 1.0 / 3, c = 1 / sqrt(9 * d);
  for (;;) {
    const double x = s.gauss(), t = 1 + c * x;
    if (t <= 0) continue;
    const double v = t * t * t;
    if (log(s.uniform()) < 0.5 * x * x + d - d * v + d * log(v)) return scale * d * v;
  }
}

/* Stirling's tail of log k!. */
double stirling_tail(double k) {
  const double z = (k + 1) * (k + 1);
  return k < 10 ? lgamma(k + 1) - ((k + 0.5) * log(k + 1) - (k + 1) + 0.9189385332046727)
                : (1.0 / 12 - (1.0 / 360 - 1.0 / 1260 / z) / z) / (k + 1);
}

/* Binomial: sums of geometric gaps when the mean is below 10, else Hormann's BTRS ("The generation of binomial random
 * variates", 1993). */
double binomial(Sequence& s, double n, double p) {
  if (!(n > 0) || !(p > 0)) return 0;
  if (p >= 1) return n;
  if (p > 0.5) return n - binomial(s, n, 1 - p);
  if (n * p < 10) {
    const double step = log1p(-p);
    double sum = 0;
    for (int64_t k = 0;; ++k) {
      sum += ceil(log(s.uniform()) / step);
      if (sum > n) return (double)k;
    }
  }
  const double spread = sqrt(n * p * (1 - p)), b = 1.15 + 2.53 * spread, a = -0.0873 + 0.0248 * b + 0.01 * p,
               c = n * p + 0.5, v_r = 0.92 - 4.2 / b;
  const double alpha = (2.83 + 5.1 / b) * spread, r = p / (1 - p), m = floor((n + 1) * p);
  for (;;) {
    const double u = s.uniform() - 0.5;
    double v = s.uniform();
    const double us = 0.5 - fabs(u), k = floor((2 * a / us + b) * u + c);
    if (us >= 0.07 && v <= v_r) return k;
    if (k < 0 || k > n) continue;
    v = log(v * alpha / (a / (us * us) + b));
    const double bound = (m + 0.5) * log((m + 1) / (r * (n - m + 1))) + (n + 1) * log((n - m + 1) / (n - k + 1)) +
                         (k + 0.5) * log(r * (n - k + 1) / (k + 1)) + stirling_tail(m) + stirling_tail(n - m) -
                         stirling_tail(k) - stirling_tail(n - k);
    if (v <= bound) return k;
  }
}

}  // namespace

// out: floats in [lo, hi). fattrs: lo, hi.
EFFC_EXPORT int32_t effc_rand_uniform(const effc_call* call) {
  const int32_t dtype = call->out[0].dtype;
  const double lo = call->fattr[0], hi = call->fattr[1];
  // As many bits as the type holds exactly, so that no draw rounds up to hi in the usual [0, 1).
  const int bits = dtype == EFFC_F64    ? 52
                   : dtype == EFFC_F32  ? 24
                   : dtype == EFFC_F16  ? 11
                   : dtype == EFFC_BF16 ? 8
                                        : 3;
  const double step = ldexp(hi - lo, -bits), top = hi - step / 2;
  if (dtype == EFFC_F64)
    return fill<2, double>(call, [=](int64_t, const uint32_t* w) {
      const double v = lo + (double)(join(w) >> 12) * step;
      return v < hi ? v : lo;
    });
  return fill<1, double>(call, [=](int64_t, const uint32_t* w) {
    const double v = lo + (double)(w[0] >> (32 - bits)) * step;
    return v < top ? v : lo;
  });
}

// out: floats. fattrs: mean, std.
EFFC_EXPORT int32_t effc_rand_normal(const effc_call* call) {
  const double mean = call->fattr[0], std = call->fattr[1];
  if (call->out[0].dtype == EFFC_F64)
    return fill<4, double>(call, [=](int64_t, const uint32_t* w) { return mean + std * normal_wide(w); });
  const float m = (float)mean, sd = (float)std;
  return fill<2, float>(call, [=](int64_t, const uint32_t* w) {  // branch-free: the compiler vectorises it
    const float radius = __builtin_sqrtf(-2 * fm::log(((float)w[0] + 0.5f) * 0x1p-32f));
    return m + sd * radius * fm::cos(6.2831853f * ((float)(int32_t)w[1] * 0x1p-32f));
  });
}

// out: any real dtype. fattrs: mean, std of the logarithm.
EFFC_EXPORT int32_t effc_log_normal(const effc_call* call) {
  const double mean = call->fattr[0], std = call->fattr[1];
  return fill<4, double>(call, [=](int64_t, const uint32_t* w) { return exp(mean + std * normal_wide(w)); });
}

// out: any real dtype, integers in [lo, hi). attrs: lo, hi.
EFFC_EXPORT int32_t effc_rand_int(const effc_call* call) {
  const effc_tensor& out = call->out[0];
  const int64_t lo = call->attr[0];
  const uint64_t range = (uint64_t)call->attr[1] - (uint64_t)lo;
  if (numel(out) > 0 && call->attr[1] <= lo) {
    call->api->fail(call, "rand_int: [%lld, %lld) is empty", (long long)lo, (long long)call->attr[1]);
    return 1;
  }
  return fill<2, int64_t>(call, [=](int64_t, const uint32_t* w) {
    return (int64_t)((uint64_t)lo + (uint64_t)(((unsigned __int128)join(w) * range) >> 64));
  });
}

// out: any real dtype. fattr: rate.
EFFC_EXPORT int32_t effc_exponential(const effc_call* call) {
  const double rate = call->fattr[0];
  return fill<2, double>(call, [=](int64_t, const uint32_t* w) { return -log(open_unit(w)) / rate; });
}

// out: any real dtype, 1, 2, ... fattr: p in (0, 1].
EFFC_EXPORT int32_t effc_geometric(const effc_call* call) {
  const double p = call->fattr[0], step = log1p(-p);
  return fill<2, double>(
      call, [=](int64_t, const uint32_t* w) { return p >= 1 ? 1.0 : fmax(1.0, ceil(log(open_unit(w)) / step)); });
}

// out: any real dtype. fattrs: median, scale.
EFFC_EXPORT int32_t effc_cauchy(const effc_call* call) {
  const double median = call->fattr[0], scale = call->fattr[1];
  return fill<2, double>(
      call, [=](int64_t, const uint32_t* w) { return median + scale * tan(3.141592653589793 * (open_unit(w) - 0.5)); });
}

// in: p dense float; out: 0 or 1 in any real dtype, p's shape.
EFFC_EXPORT int32_t effc_bernoulli(const effc_call* call) {
  const effc_tensor& p = call->in[0];
  const int64_t n = numel(p);
  int32_t failed = 0;
  double bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = as_double(p, i);
    if (!(v >= 0 && v <= 1)) failed = 1, bad = v;
  }
  if (failed) {
    call->api->fail(call, "bernoulli: probability %g is not in [0, 1]", bad);
    return 1;
  }
  return fill<2, double>(call, [&](int64_t i, const uint32_t* w) { return unit(w) < as_double(p, i) ? 1 : 0; });
}

// in: rates dense float; out: counts, same dtype.
EFFC_EXPORT int32_t effc_poisson(const effc_call* call) {
  const effc_tensor& rate = call->in[0];
  for (int64_t i = 0, n = numel(rate); i < n; ++i)
    if (!(as_double(rate, i) >= 0)) {
      call->api->fail(call, "poisson: rate %g is not a number >= 0", as_double(rate, i));
      return 1;
    }
  draw_sequences(call, numel(rate),
                 [&](int64_t i, Sequence& s) { store_double(call->out[0], i, poisson(s, as_double(rate, i))); });
  return 0;
}

// in: alpha dense float; out: same dtype.
EFFC_EXPORT int32_t effc_gamma(const effc_call* call) {
  const effc_tensor& alpha = call->in[0];
  draw_sequences(call, numel(alpha), [&](int64_t i, Sequence& s) {
    const double a = as_double(alpha, i);
    store_double(call->out[0], i, a != a ? a : fmax(gamma_of(s, a), 1e-38));
  });
  return 0;
}

// in: count, prob dense float of one shape; out: same dtype.
EFFC_EXPORT int32_t effc_binomial(const effc_call* call) {
  const effc_tensor &count = call->in[0], &prob = call->in[1];
  draw_sequences(call, numel(count), [&](int64_t i, Sequence& s) {
    store_double(call->out[0], i, binomial(s, floor(as_double(count, i)), as_double(prob, i)));
  });
  return 0;
}

// in: weights dense [.., n]; out: i64 [.., samples]. attr: replacement. thread_scratch: 16n bytes.
EFFC_EXPORT int32_t effc_multinomial(const effc_call* call) {
  const effc_tensor &weights = call->in[0], &out = call->out[0];
  const bool replacement = call->attr[0] != 0;
  const int64_t n = weights.shape[weights.rank - 1], k = out.shape[out.rank - 1],
                rows = span(weights, 0, weights.rank - 1);
  if (!replacement && k > n) {
    call->api->fail(call, "multinomial: %lld samples without replacement from %lld", (long long)k, (long long)n);
    return 1;
  }
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    bool ok = true;
    for (int64_t i = 0; i < n; ++i) {
      const double w = as_double(weights, r * n + i);
      ok = ok && w >= 0 && w < INFINITY;
      sum += w;
    }
    if (!ok || !(sum > 0)) {
      call->api->fail(call, "multinomial: weights of row %lld must be finite, >= 0 and not all 0", (long long)r);
      return 1;
    }
  }
  struct Entry {
    double key;
    int64_t index;
  };
  const int64_t per_row = replacement ? k : n;
  const Stream stream(call, rows * per_row);
  pfor(call, rows, 1, [&](int64_t b, int64_t e, int32_t worker) {
    Entry* entries = (Entry*)(call->thread_scratch + worker * call->thread_scratch_bytes);
    for (int64_t r = b; r < e; ++r) {
      int64_t* to = (int64_t*)out.data + r * k;
      auto uniform = [&](int64_t i) {
        const Block w = philox(stream.first + (uint64_t)(r * per_row + i), 0, stream.seed);
        return open_unit(w.w);
      };
      if (replacement) {
        double sum = 0;
        int64_t last = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double w = as_double(weights, r * n + i);
          sum += w;
          entries[i] = Entry{sum, i};
          last = w > 0 ? i : last;
        }
        for (int64_t i = 0; i < k; ++i) {
          const double u = uniform(i) * sum;
          const Entry* at =
              std::upper_bound(entries, entries + n, u, [](double v, const Entry& x) { return v < x.key; });
          to[i] = std::min((int64_t)(at - entries), last);
        }
      } else {  // the k first arrivals of exponential clocks
        for (int64_t i = 0; i < n; ++i) {
          const double w = as_double(weights, r * n + i);
          entries[i] = Entry{w > 0 ? -log(uniform(i)) / w : INFINITY, i};
        }
        std::partial_sort(entries, entries + k, entries + n,
                          [](const Entry& p, const Entry& q) { return p.key < q.key; });
        for (int64_t i = 0; i < k; ++i) to[i] = entries[i].index;
      }
    }
  });
  return 0;
}

// out: a permutation of 0 .. n-1 in any integer or float dtype. scratch: 8n bytes.
EFFC_EXPORT int32_t effc_randperm(const effc_call* call) {
  const effc_tensor& out = call->out[0];
  const int64_t n = numel(out);
  int64_t* p = (int64_t*)call->scratch;
  const Stream stream(call, n);
  for (int64_t i = 0; i < n; ++i) p[i] = i;
  for (int64_t i = n - 1; i > 0; --i) {
    const Block w = philox(stream.first + (uint64_t)i, 0, stream.seed);
    std::swap(p[i], p[(int64_t)(((unsigned __int128)join(w.w) * (uint64_t)(i + 1)) >> 64)]);
  }
  return store(out, 0, p, n) ? 0 : bad_dtype(call, "randperm", out.dtype);
}
