// What the two layouts of the kernels share: offsets, coefficients of a row, and equation (2) at the one
// class where cancellation would spoil it.
#pragma once
#include <cmath>
#include <cstring>
#include <cstdlib>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "job.h"
#include "math.h"

namespace xent {
namespace XENT_ISA {

struct Position {
  int64_t outer, inner;
};

XENT_INLINE Position position(const Job& job, int64_t row) {
  if (job.inner == 1) return {row, 0};
  return {row / job.inner, row % job.inner};
}

template <class S>
XENT_INLINE S* at(const Strided& x, Position p) {
  return static_cast<S*>(x.data) + p.outer * x.outer + p.inner * x.inner;
}

// A copy that leaves the cache alone, so that memory which is only written is not read first.
template <class S>
XENT_INLINE void stream(S* to, const S* from, int64_t n) {
#if defined(__AVX512F__)
  using V = __m512i;
  const auto move = [](S* a, const S* b) { _mm512_stream_si512(reinterpret_cast<V*>(a), _mm512_loadu_si512(b)); };
#elif defined(__AVX2__)
  using V = __m256i;
  const auto move = [](S* a, const S* b) {
    _mm256_stream_si256(reinterpret_cast<V*>(a), _mm256_loadu_si256(reinterpret_cast<const V*>(b)));
  };
#else
  using V = S;
  const auto move = [](S* a, const S* b) { *a = *b; };
#endif
  constexpr int64_t lanes = sizeof(V) / sizeof(S);
  int64_t i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(to + i) % sizeof(V); ++i) to[i] = from[i];
  for (; i + lanes <= n; i += lanes) move(to + i, from + i);
  for (; i < n; ++i) to[i] = from[i];
}

// Makes what was streamed visible to other threads.
XENT_INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Scratch memory of one call, freed on return.
struct Scratch {
  void* data;
  explicit Scratch(size_t bytes) : data(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// The cotangents of one row and its mass V, in double precision.
struct Coefficients {
  double dl, dx, ds, mass;
  Coefficients(const Job& job, int64_t row) : dl(job.dl[row]), dx(job.dx[row]), ds(job.ds[row]), mass(0) {}
  bool silent() const { return dl == 0 && dx == 0 && ds == 0; }
  double of_p() const { return dl - dx - ds * mass; }  // s − b of (3): what multiplies p in (2)

  // The bracket of (2) at one class of log-probability `log_p`, with 1 − p from expm1.
  double bracket(double log_p, bool is_label, double v) const {
    double p = std::exp(log_p), rest = -std::expm1(log_p);
    const double dense = p > 0.5 ? (v - mass) + mass * rest : v - mass * p;
    return dl * p + dx * (is_label ? rest : -p) + (ds == 0 ? 0.0 : ds * dense);
  }
};

}  // namespace XENT_ISA
}  // namespace xent
