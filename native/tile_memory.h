// A tile of LANES rows between memory, in any strides, and scratch, class by class.
#pragma once
#include "row.h"

namespace xent {
namespace XENT_ISA {

template <class S, bool CAP, int LANES>
class TileMemory {
 protected:
  using T = typename ComputeOf<S>::type;

  const Job& job;
  const int64_t K;
  Position start{0, 0};
  int64_t first = 0;
  int lanes = 0;       // rows of this tile; the rest of the LANES idle
  bool affine = true;  // the rows are evenly spaced

  explicit TileMemory(const Job& job) : job(job), K(job.classes) {}

  void select(int64_t begin, int64_t end) {
    first = begin;
    lanes = int(end - begin);
    start = position(job, begin);
    affine = job.inner == 1 || start.inner + lanes <= job.inner;
  }

  // A full tile whose rows are neighbours in memory.
  bool planar(const Strided& x) const { return affine && lanes == LANES && step(x) == 1; }
  int64_t step(const Strided& x) const { return job.inner == 1 ? x.outer : x.inner; }

  template <class To>
  To* lane(const Strided& x, int j) const {
    if (j >= lanes) j = 0;
    return affine ? at<To>(x, start) + j * step(x) : at<To>(x, position(job, first + j));
  }

  // to = f(x), class by class; idle lanes repeat the first row.
  template <class From, class F>
  void gather(const Strided& x, T* to, F f) const {
    const From* from = at<From>(x, start);
    if (planar(x)) {
      for (int64_t k = 0; k < K; ++k) {
        const From* source = from + k * x.cls;
        T* target = to + k * LANES;
#pragma omp simd
        for (int j = 0; j < LANES; ++j) target[j] = f(load(source[j]));
      }
      return;
    }
    if (std::is_same_v<From, T> && affine && lanes == LANES && x.cls == 1 && K >= 4)
      transpose(reinterpret_cast<const T*>(from), step(x), 1, to, 1, LANES);
    else
      for (int j = 0; j < LANES; ++j) {
        const From* source = lane<From>(x, j);
        for (int64_t k = 0; k < K; ++k) to[k * LANES + j] = load(source[k * x.cls]);
      }
    if constexpr (CAP)
      for (int64_t k = 0; k < K; ++k) {
        T* u = to + k * LANES;
#pragma omp simd
        for (int j = 0; j < LANES; ++j) u[j] = f(u[j]);
      }
  }

  // The output from scratch, class by class.
  void scatter(const T* e) const {
    const Strided& x = job.out;
    S* to = at<S>(x, start);
    if (planar(x)) {
      for (int64_t k = 0; k < K; ++k) {
        S* target = to + k * x.cls;
        const T* from = e + k * LANES;
#pragma omp simd
        for (int j = 0; j < LANES; ++j) target[j] = store<S>(from[j]);
      }
      return;
    }
    if (std::is_same_v<S, T> && affine && lanes == LANES && x.cls == 1 && K >= 4)
      return transpose(e, 1, LANES, reinterpret_cast<T*>(to), step(x), 1);
    for (int j = 0; j < lanes; ++j) {
      S* target = lane<S>(x, j);
      for (int64_t k = 0; k < K; ++k) target[k * x.cls] = store<S>(e[k * LANES + j]);
    }
  }

  // to(j, k) = from(j, k) for LANES rows j and K ≥ 4 classes k in 4 × 4 blocks, where one side has
  // consecutive rows and the other consecutive classes; the last block of classes overlaps its neighbour.
  void transpose(const T* from, int64_t from_row, int64_t from_class, T* to, int64_t to_row, int64_t to_class) const {
    typedef T V __attribute__((vector_size(4 * sizeof(T))));
    const int64_t from_line = from_row == 1 ? from_class : from_row, to_line = to_row == 1 ? to_class : to_row;
    for (int64_t j = 0; j < LANES; j += 4)
      for (int64_t k = 0;; k = k + 8 <= K ? k + 4 : K - 4) {
        const T* source = from + j * from_row + k * from_class;
        T* target = to + j * to_row + k * to_class;
        V a, b, c, d;
        std::memcpy(&a, source, sizeof a);
        std::memcpy(&b, source + from_line, sizeof b);
        std::memcpy(&c, source + 2 * from_line, sizeof c);
        std::memcpy(&d, source + 3 * from_line, sizeof d);
        const V ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        const V ba = __builtin_shufflevector(a, b, 2, 6, 3, 7), dc = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        a = __builtin_shufflevector(ab, cd, 0, 1, 4, 5), b = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
        c = __builtin_shufflevector(ba, dc, 0, 1, 4, 5), d = __builtin_shufflevector(ba, dc, 2, 3, 6, 7);
        std::memcpy(target, &a, sizeof a);
        std::memcpy(target + to_line, &b, sizeof b);
        std::memcpy(target + 2 * to_line, &c, sizeof c);
        std::memcpy(target + 3 * to_line, &d, sizeof d);
        if (k + 4 >= K) break;
      }
  }

  // While this tile computes, memory brings a K-th of the next one and of where this one will be written:
  // prefetchers do not follow K planes at once (a 21-class image, one thread: 1.23 → 1.15 ns an element).
  XENT_INLINE void prefetch(int64_t k) const {
    if (!affine) return;
    const S* next = at<S>(job.z, start) + LANES * step(job.z) + k * (job.z.cls == 1 ? LANES : job.z.cls);
    for (size_t i = 0; i < LANES; i += 64 / sizeof(S)) __builtin_prefetch(next + i);
    if (!job.out.data) return;
    const S* out = at<S>(job.out, start) + k * (job.out.cls == 1 ? LANES : job.out.cls);
    for (size_t i = 0; i < LANES; i += 64 / sizeof(S)) __builtin_prefetch(out + i, 1);
  }
};

}  // namespace XENT_ISA
}  // namespace xent
