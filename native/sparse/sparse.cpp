// A CSR matrix times a dense one: CMake compiles this file once for each instruction set.
//
// The sums of a row stay in registers in the loop over its entries. Each entry reads one row of the dense
// matrix, which memory bandwidth limits: it is prefetched some entries ahead. A sum is made in the order of the
// entries, whatever the vector length.
#include "sparse.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../rows/row.h"

namespace xent {
namespace XENT_ISA {

#if defined(__AVX512F__)
constexpr int WIDE = 64;  // bytes of a vector
#elif defined(__AVX2__)
constexpr int WIDE = 32;
#else
constexpr int WIDE = 16;
#endif
constexpr int TOGETHER = 4;               // vectors of sums in registers
constexpr int64_t AHEAD = 16, LINE = 64;  // entries; bytes

template <class T, int N>
using Lanes __attribute__((vector_size(N * sizeof(T)))) = T;

// Sums [first, …) of one row, in Q vectors of N; the last vector ends where the row ends and may overlap the one
// before. Entry `last` is the last one whose column is known to be in range.
template <class T, class I, int N, int Q>
XENT_INLINE void sums(const SparseJob& job, int64_t begin, int64_t end, int64_t last, int64_t first, T* out) {
  const T* entry = static_cast<const T*>(job.entries);
  const I* column = static_cast<const I*>(job.columns);
  const T* dense = static_cast<const T*>(job.dense);
  const int64_t C = job.num_scores;
  int64_t place[Q];
  for (int q = 0; q < Q; ++q) place[q] = std::min(first + q * N, C - N);
  Lanes<T, N> sum[Q] = {};
  for (int64_t j = begin; j < end; ++j) {
    const char* later = reinterpret_cast<const char*>(dense + int64_t(column[std::min(j + AHEAD, last)]) * C + first);
    for (int64_t byte = 0; byte < int64_t(Q * N * sizeof(T)); byte += LINE) __builtin_prefetch(later + byte);
    const T* row = dense + int64_t(column[j]) * C;
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      Lanes<T, N> x;
      std::memcpy(&x, row + place[q], sizeof x);
      sum[q] += entry[j] * x;
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) std::memcpy(out + place[q], &sum[q], sizeof sum[q]);
}

template <class T, class I, int N>
void rows_of(const SparseJob& job, int64_t begin, int64_t end) {
  if constexpr (N > 1)
    if (job.num_scores < N) return rows_of<T, I, N / 2>(job, begin, end);
  const I* starts = static_cast<const I*>(job.starts);
  const int64_t C = job.num_scores, last = int64_t(starts[end]) - 1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t from = int64_t(starts[i]), to = int64_t(starts[i + 1]);
    T* out = static_cast<T*>(job.out) + i * C;
    for (int64_t first = 0; first < C; first += TOGETHER * N) {
      const int64_t vectors = (C - first + N - 1) / N;
      if (vectors >= 4) sums<T, I, N, 4>(job, from, to, last, first, out);
      else if (vectors == 3) sums<T, I, N, 3>(job, from, to, last, first, out);
      else if (vectors == 2) sums<T, I, N, 2>(job, from, to, last, first, out);
      else sums<T, I, N, 1>(job, from, to, last, first, out);
    }
  }
}

template <class I>
bool starts_rise(const void* starts, int64_t rows, int64_t entries) {
  const I* start = static_cast<const I*>(starts);
  int64_t falls = 0;
#pragma omp simd reduction(| : falls)
  for (int64_t i = 0; i < rows; ++i) falls |= int64_t(start[i + 1] < start[i]);
  return !falls && start[0] == 0 && int64_t(start[rows]) <= entries;
}

// As unsigned numbers negative columns are above all others.
template <class I>
bool columns_within(const void* columns, int64_t begin, int64_t end, int64_t width) {
  using U = std::make_unsigned_t<I>;
  const I* column = static_cast<const I*>(columns);
  U most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t j = begin; j < end; ++j) most = U(column[j]) > most ? U(column[j]) : most;
  return begin == end || (most <= U(std::numeric_limits<I>::max()) && int64_t(most) < width);
}

// The columns are checked just before they are used, so that they are in the cache then.
template <class T, class I>
bool products(const SparseJob& job, int64_t begin, int64_t end) {
  const I* starts = static_cast<const I*>(job.starts);
  if (!columns_within<I>(job.columns, int64_t(starts[begin]), int64_t(starts[end]), job.num_columns)) return false;
  rows_of<T, I, WIDE / int(sizeof(T))>(job, begin, end);
  return true;
}

extern const Sparse sparse;
const Sparse sparse = {
    {{products<double, int64_t>, products<double, int32_t>}, {products<float, int64_t>, products<float, int32_t>}},
    {starts_rise<int64_t>, starts_rise<int32_t>},
    {columns_within<int64_t>, columns_within<int32_t>}};

}  // namespace XENT_ISA
}  // namespace xent
