// Conversions between storage and compute types, vectorised, and stores that bypass the cache.
#pragma once
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../math.h"
#include "job.h"

namespace xent {
namespace XENT_ISA {

constexpr int64_t MOST_IN_LINE = 32;  // elements of a line of memory

// The number of elements between the start of the cache line of `to` and `to`.
template <class S>
XENT_INLINE int64_t into_line(const S* to) {
  return int64_t(reinterpret_cast<uintptr_t>(to) % 64 / sizeof(S));
}

// Conversions between 16 bits and float, vectorised by hand: compilers do not use the processor's instructions for
// half precision, and conversion without them takes as long as exp.
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

// Streaming stores of whole cache lines: a line written this way is not read first.
XENT_INLINE void stream_line(void* to, const void* from) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX2__)
  const __m256i* halves = static_cast<const __m256i*>(from);
  const __m256i first = _mm256_loadu_si256(halves), second = _mm256_loadu_si256(halves + 1);
  _mm256_stream_si256(static_cast<__m256i*>(to), first);
  _mm256_stream_si256(static_cast<__m256i*>(to) + 1, second);
#else
  std::memcpy(to, from, 64);
#endif
}

// Stores one cache line, bypassing the cache.
template <class S, class T>
XENT_INLINE void stream(const T* from, S* to) {
  if constexpr (std::is_same_v<S, T>) {
    stream_line(to, from);
  } else {
    constexpr int64_t line = 64 / sizeof(S);
    alignas(64) S part[line];
    narrow(from, part, line);
    stream_line(to, part);
  }
}

// As `narrow`, with whole cache lines bypassing the cache.
template <class S, class T>
XENT_INLINE void stream(const T* from, S* to, int64_t n) {
  constexpr int64_t line = 64 / sizeof(S);
  int64_t i = 0;
  for (; i < n && into_line(to + i); ++i) to[i] = store<S>(from[i]);
  for (; i + line <= n; i += line) stream(from + i, to + i);
  for (; i < n; ++i) to[i] = store<S>(from[i]);
}

// Makes what was streamed visible to other threads.
XENT_INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// f(S()) for the storage type S; T is its compute type.
template <class T, class F>
XENT_INLINE auto by_storage(Storage storage, F f) {
  if constexpr (std::is_same_v<T, double>) return f(double());
  else if (storage == F16) return f(Half());
  else if (storage == BF16) return f(BFloat());
  else return f(float());
}

template <class T>
constexpr Storage stored_as() {
  return std::is_same_v<T, double> ? F64 : F32;
}

template <class T>
XENT_INLINE T load(Storage storage, const void* from) {
  return by_storage<T>(storage, [from](auto s) { return T(load(*static_cast<const decltype(s)*>(from))); });
}

// n elements in T: in place, or converted into `room` if they are stored in fewer bits.
template <class T>
XENT_ONCE const T* widened(Storage storage, const char* from, T* room, int64_t n) {
  if (storage == stored_as<T>()) return reinterpret_cast<const T*>(from);
  by_storage<T>(storage, [=](auto s) { widen(reinterpret_cast<const decltype(s)*>(from), room, n); });
  return room;
}

// f(x), where x[0] to x[n − 1] are the elements in a type that a loop can widen as it reads; halves are first
// converted into `room`. (Converting bfloat16 first, too, makes its gradients 10% slower.)
template <class T, class F>
XENT_INLINE void readable(Storage storage, const char* from, T* room, int64_t n, F f) {
  if constexpr (std::is_same_v<T, float>)
    if (storage == BF16) return f(reinterpret_cast<const BFloat*>(from));
  f(static_cast<const T*>(widened(storage, from, room, n)));
}

template <class T>
XENT_INLINE void write(Storage storage, const T* from, char* to, int64_t n, bool past_cache) {
  by_storage<T>(storage, [=](auto s) {
    using S = decltype(s);
    if (past_cache) return stream(from, reinterpret_cast<S*>(to), n);
    narrow(from, reinterpret_cast<S*>(to), n);
  });
}

}  // namespace XENT_ISA
}  // namespace xent
