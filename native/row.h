// What the two layouts of the kernels share: offsets, coefficients of a row, and equation (2) at the one
// class where cancellation would spoil it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <cstdlib>

#if defined(__SSE2__)
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

// How many elements before `to` its line of memory begins.
template <class S>
XENT_INLINE int64_t into_line(const S* to) {
  return int64_t(reinterpret_cast<uintptr_t>(to) % 64 / sizeof(S));
}

// Between 16 bits and float, many at once. Compilers do not find a processor's instructions for half precision,
// and to do without them takes as long as exp.
template <class S, class T>
XENT_INLINE void widen(const S* from, T* to, int64_t n) {
  int64_t whole = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, Half>) {
    whole = n / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16)
      _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)(from + i))));
  }
#elif defined(__F16C__)
  if constexpr (std::is_same_v<S, Half>) {
    whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
  }
#endif
#pragma omp simd
  for (int64_t i = whole; i < n; ++i) to[i] = load(from[i]);
}

template <class S, class T>
XENT_INLINE void narrow(const T* from, S* to, int64_t n) {
  int64_t whole = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, Half>) {
    whole = n / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16)
      _mm256_storeu_si256((__m256i*)(to + i), _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from + i), 0));
  }
#elif defined(__F16C__)
  if constexpr (std::is_same_v<S, Half>) {
    whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8)
      _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
  }
#endif
#pragma omp simd
  for (int64_t i = whole; i < n; ++i) to[i] = store<S>(from[i]);
}

// to[i] = store(f(i)), whole lines of them past the cache, so that memory which is only written is not read first.
template <class S, class F>
XENT_INLINE void stream(S* to, int64_t n, F f) {
  constexpr int64_t line = 64 / sizeof(S);
  int64_t i = 0;
  for (; i < n && into_line(to + i); ++i) to[i] = store<S>(f(i));
  for (; i + line <= n; i += line) {
    alignas(64) S part[line];
    decltype(f(i)) value[line];  // apart: in one loop of two widths compilers choose a poor one
#pragma omp simd
    for (int64_t j = 0; j < line; ++j) value[j] = f(i + j);
    narrow(value, part, line);
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(part));
#elif defined(__AVX2__)
    const __m256i* halves = reinterpret_cast<const __m256i*>(part);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), _mm256_load_si256(halves));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i) + 1, _mm256_load_si256(halves + 1));
#else
    std::memcpy(to + i, part, sizeof part);
#endif
  }
  for (; i < n; ++i) to[i] = store<S>(f(i));
}

// A class whose element is known more exactly than by the formula for all.
template <class T>
struct Exact {
  int64_t at = -1;
  T value = 0;
};

// out[i] = f(i) over the stretch of [first, last) that begins at `begin`. Past the cache it is moved back to whole
// lines of the output, and staged where an exact element replaces one: a line is not to be touched twice.
template <int64_t STRETCH, class S, class T, class F>
XENT_INLINE void emit(S* out, int64_t first, int64_t last, int64_t begin, bool past_cache, const Exact<T> (&exact)[2],
                      F f) {
  const int64_t past = past_cache ? into_line(out + begin) : 0;
  const int64_t end = begin + STRETCH < last ? begin + STRETCH - past : last;
  begin = begin > first ? begin - past : first;
  const auto inside = [=](const Exact<T>& x) { return x.at >= begin && x.at < end; };
  const bool replaces = inside(exact[0]) || inside(exact[1]);
  if (past_cache && !replaces) return stream(out + begin, end - begin, [=](int64_t i) { return f(begin + i); });
  T stage[STRETCH + 64 / sizeof(S)], *to = stage;
  if constexpr (std::is_same_v<S, T>) to = past_cache ? stage : out + begin;
#pragma omp simd
  for (int64_t i = 0; i < end - begin; ++i) to[i] = f(begin + i);
  for (const Exact<T>& x : exact)
    if (inside(x)) to[x.at - begin] = x.value;
  if (past_cache) return stream(out + begin, end - begin, [&](int64_t i) { return stage[i]; });
  if constexpr (!std::is_same_v<S, T>) narrow(stage, out + begin, end - begin);
}

// Values side by side become one, halves upon halves.
template <int N, class A, class F>
XENT_INLINE A fold(A* part, F f) {
  if constexpr (N == 1) return part[0];
  for (int j = 0; j < N / 2; ++j) part[j] = f(part[j], part[j + N / 2]);
  return fold<(N + 1) / 2>(part, f);
}

// Makes what was streamed visible to other threads.
XENT_INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// While it lives, results that are subnormal become 0 on this thread, as exp_ has it of probabilities: on them some
// processors take a hundred cycles (a Xeon, logits of deviation 20: 5.8 ns an element against 1.2).
struct NoSubnormals {
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();
  NoSubnormals() { _mm_setcsr(before | 0x8000); }  // flush to zero; what is read stays: halves are read as such
  ~NoSubnormals() { _mm_setcsr(before); }
#else
  NoSubnormals() {}
#endif
  NoSubnormals(const NoSubnormals&) = delete;
  NoSubnormals& operator=(const NoSubnormals&) = delete;
};

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
