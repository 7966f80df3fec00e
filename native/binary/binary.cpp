// The loss and the gradient of rows (0, z): CMake compiles this file once for each instruction set.
//
// Equation (12) of docs/maths.md in the form of its section 7: with small = σ(−|u|) it is no difference of large
// numbers at either end.
#include "binary.h"

#include "../rows/row.h"
#include "../rows/storage.h"

namespace xent {
namespace XENT_ISA {

// e⁻ᵃ for a ≥ 0, corrected for the rounding of log2(e) in `exp_`: 9 units in the last place at a = 80.
template <class T>
XENT_INLINE T exp_of_minus(T a) {
  constexpr T lost = T(std::is_same_v<T, float> ? 1.3349758e-08 : 1.4109201e-17);  // ln2·(log2(e) − its rounding)
  const T e = exp_(-a), bounded = choose(a < T(1000), a, T(1000));
  return e - e * (bounded * lost);
}

// log1p(e) for 0 ≤ e ≤ 1. In float a Chebyshev fit of log1p(e)/e, of relative error 1e-9, saves a division.
template <class T>
XENT_INLINE T log1p_of_exp(T e, T inverse) {
  if constexpr (std::is_same_v<T, double>) return log1p_(e, inverse);
  constexpr double series[] = {1.0,
                               -0.49999981432554796,
                               0.33332559590210237,
                               -0.2498727042607802,
                               0.1989074485999377,
                               -0.16105680841939557,
                               0.12418411752578365,
                               -0.0824414097427453,
                               0.041477935245150976,
                               -0.013407392513192371,
                               0.002030213806945144};
  T sum = T(series[10]);
#pragma GCC unroll 16
  for (int k = 9; k >= 0; --k) sum = sum * e + T(series[k]);
  return sum * e;
}

template <class S, bool CAP>
class alignas(64) Elements {
  using T = typename ComputeOf<S>::type;
  static constexpr int N = BINARY_BLOCK, TOGETHER = 64;
  using Buffer = T[N];

  const BinaryJob& job;
  const Link<T> phi;
  const int64_t q_bytes;  // bytes of a target
  const char *next_z, *next_q;
  alignas(64) Buffer z = {}, u, q = {}, positive, weight, upstream, small, loss, gradient;

 public:
  explicit Elements(const BinaryJob& job)
      : job(job),
        phi(job.inv_temperature, job.softcap),
        q_bytes(job.targets == BYTES      ? 1
                : job.targets == INTEGERS ? 8
                : job.targets == STORED   ? sizeof(S)
                                          : sizeof(T)) {
    for (auto [cycle, to] : {std::pair(job.positive, positive), {job.weight, weight}, {job.upstream, upstream}})
      std::fill(to, to + N, cycle.data ? *static_cast<const T*>(cycle.data) : T(1));
  }

  void block(int64_t index) {
    const int64_t begin = index * N, n = std::min<int64_t>(N, job.size - begin);
    widen(static_cast<const S*>(job.z) + begin, z, n);
    fetch_targets(begin, n);
    fetch(job.positive, positive, begin, n);
    fetch(job.weight, weight, begin, n);
    next_z = static_cast<const char*>(job.z) + (begin + N) * int64_t(sizeof(S));
    next_q = static_cast<const char*>(job.q) + (begin + N) * q_bytes;
    const int64_t padded = (n + TOGETHER - 1) / TOGETHER * TOGETHER;
    lose(padded);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += double(loss[i]);
    job.sums[index] = sum;
    if (job.losses) std::copy(loss, loss + n, static_cast<T*>(job.losses) + begin);
    if (!job.out) return;
    fetch(job.upstream, upstream, begin, n);
    derive(padded);
    S* out = static_cast<S*>(job.out) + begin;
    if (job.stream) return stream(gradient, out, n);
    narrow(gradient, out, n);
  }

 private:
  // A single value was repeated over a whole block at the start.
  static void fetch(const Cycle& cycle, T* to, int64_t begin, int64_t n) {
    if (!cycle.data || cycle.period == 1) return;
    const T* from = static_cast<const T*>(cycle.data);
    for (int64_t i = 0, at = begin % cycle.period; i < n; at = 0) {
      const int64_t count = std::min(cycle.period - at, n - i);
      std::copy(from + at, from + at + count, to + i);
      i += count;
    }
  }

  void fetch_targets(int64_t begin, int64_t n) {
    if (job.targets == COMPUTED) std::copy_n(static_cast<const T*>(job.q) + begin, n, q);
    if (job.targets == STORED) widen(static_cast<const S*>(job.q) + begin, q, n);
    if (job.targets == BYTES) fetch_labels(static_cast<const uint8_t*>(job.q) + begin, n);
    if (job.targets == INTEGERS) fetch_labels(static_cast<const int64_t*>(job.q) + begin, n);
  }

  template <class L>
  void fetch_labels(const L* labels, int64_t n) {  // NaN for a label other than 0 and 1
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) q[i] = labels[i] == 0 ? T(0) : labels[i] == 1 ? T(1) : nan_<T>();
  }

  // Prefetches the next block during this one; saves 25 to 30% of the time for large arrays.
  XENT_INLINE static void bring(const char* next, int64_t first, int64_t bytes) {
    for (int64_t i = 0; i < TOGETHER * bytes; i += 64) __builtin_prefetch(next + first * bytes + i);
  }

  // (12): V·log1p(e⁻ᵃ) and a = |u| times the mass of the unlikelier class.
  XENT_ONCE void lose(int64_t n) {
    const Link<T> link = phi;
    const T keep = T(job.keep), add = T(job.add), infinity = std::numeric_limits<T>::infinity();
    for (int64_t first = 0; first < n; first += TOGETHER) {
      bring(next_z, first, sizeof(S));
      bring(next_q, first, q_bytes);
#pragma omp simd
      for (int64_t i = first; i < first + TOGETHER; ++i) {
        const T scaled = link.template value<CAP>(z[i]) * link.scale, x = choose(scaled == infinity, nan_<T>(), scaled);
        const T a = choose(x < T(0), -x, x), e = exp_of_minus(a), large = T(1) / (T(1) + e);
        const T p = keep * q[i] + add, v1 = positive[i] * p, v0 = T(1) - p, unlikely = choose(x > T(0), v0, v1);
        const T total = (v0 + v1) * log1p_of_exp(e, large) + only(unlikely != T(0), unlikely * a);
        u[i] = x;
        small[i] = e * large;
        loss[i] = only(weight[i] != T(0), weight[i] * total);
      }
    }
  }

  // The derivative of (12): V·small minus the mass of the unlikelier class.
  XENT_ONCE void derive(int64_t n) {
    const Link<T> link = phi;
    const T keep = T(job.keep), add = T(job.add), scale = T(job.scale);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T p = keep * q[i] + add, v1 = positive[i] * p, v0 = T(1) - p, part = (v0 + v1) * small[i];
      const T bracket = choose(u[i] > T(0), v0 - part, part - v1), factor = scale * upstream[i] * weight[i];
      gradient[i] = only(factor != T(0), factor * link.template slope<CAP>(u[i]) * bracket);
    }
  }
};

template <class S, bool CAP>
void run_blocks(const BinaryJob& job, int64_t begin, int64_t end) {
  Elements<S, CAP> elements(job);
  for (int64_t i = begin; i < end; ++i) elements.block(i);
  if (job.stream) fence();
}

template <class S>
void blocks_of(const BinaryJob& job, int64_t begin, int64_t end) {
  const NoSubnormals zeros;
  job.softcap != 0 ? run_blocks<S, true>(job, begin, end) : run_blocks<S, false>(job, begin, end);
}

template <class S>
bool within(const void* x, int64_t begin, int64_t end, double upper) {
  using T = typename ComputeOf<S>::type;
  using Int = typename Real<T>::Int;
  const double largest = double(std::numeric_limits<T>::max());
  const T most = upper > largest && !std::isinf(upper) ? T(largest) : T(upper);
  alignas(64) T part[BINARY_BLOCK];
  Int outside = 0;
  for (int64_t i = begin; i < end && !outside; i += BINARY_BLOCK) {
    const int64_t n = std::min(BINARY_BLOCK, end - i);
    widen(static_cast<const S*>(x) + i, part, n);
#pragma omp simd reduction(| : outside)
    for (int64_t j = 0; j < n; ++j) outside |= Int(!(part[j] >= T(0))) | Int(!(part[j] <= most));
  }
  return !outside;
}

extern const Binary binary;
const Binary binary = {{blocks_of<double>, blocks_of<float>, blocks_of<Half>, blocks_of<BFloat>},
                       {within<double>, within<float>, within<Half>, within<BFloat>}};

}  // namespace XENT_ISA
}  // namespace xent
