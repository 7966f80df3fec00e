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

  // The output passes by the cache: as planes of whole lines, or as rows without gaps.
  const bool stream_planes, stream_rows;

  explicit TileMemory(const Job& job)
      : job(job),
        K(job.classes),
        stream_planes(job.stream && step(job.out) == 1 && whole_lines(job.out.cls) && whole_lines(job.out.outer) &&
                      reinterpret_cast<uintptr_t>(job.out.data) % sizeof(S) == 0),
        stream_rows(std::is_same_v<S, T> && job.stream && job.out.cls == 1 && step(job.out) == K) {}

  static bool whole_lines(int64_t stride) { return stride * int64_t(sizeof(S)) % 64 == 0; }

  void select(int64_t begin, int64_t end) {
    first = begin;
    lanes = int(end - begin);
    start = position(job, begin);
    affine = job.inner == 1 || start.inner + lanes <= job.inner;
    // The next labels, and where this tile's log-probabilities will go: a few lines at a time, which no prefetcher
    // foresees (2,000,000 rows of 10: 3% of loss and gradient, 6% of the loss).
    for (int j = 0; j < LANES; j += 8) {
      if (job.labels) __builtin_prefetch(job.labels + first + LANES + j);
      if (job.log_prob) __builtin_prefetch(job.log_prob + first + j, 1);
    }
  }

  // Where the tile that begins at `row` ends: a short one brings those after it to whole lines of the output.
  int64_t last(int64_t row, int64_t end) const {
    int64_t rows = LANES;
    if (stream_planes) {
      const size_t past = reinterpret_cast<uintptr_t>(at<S>(job.out, position(job, row))) % 64;
      if (past) rows = int64_t((64 - past) / sizeof(S));
    }
    return row + rows < end ? row + rows : end;
  }

  // A full tile whose rows are neighbours in memory.
  bool planar(const Strided& x) const { return affine && lanes == LANES && step(x) == 1; }
  // A full tile of evenly spaced rows of consecutive classes.
  bool full_rows(const Strided& x) const { return affine && lanes == LANES && x.cls == 1 && K >= 4; }
  int64_t together(const Strided& x) const { return step(x) == K ? LANES : 1; }  // rows without gaps
  int64_t step(const Strided& x) const { return job.inner == 1 ? x.outer : x.inner; }

  template <class To>
  To* lane(const Strided& x, int j) const {
    if (j >= lanes) j = 0;
    return affine ? at<To>(x, start) + j * step(x) : at<To>(x, position(job, first + j));
  }

  // to = f(x), class by class; idle lanes repeat the first row. `spare` (K, LANES) may be overwritten.
  template <class From, class F>
  void gather(const Strided& x, T* to, T* spare, F f) const {
    const From* from = at<From>(x, start);
    if (planar(x)) {
      for (int64_t k = 0; k < K; ++k) widen(from + k * x.cls, to + k * LANES, LANES);
    } else if (std::is_same_v<From, T> && full_rows(x)) {
      transpose<true>(reinterpret_cast<const T*>(from), step(x), to);
    } else if (full_rows(x)) {
      for (int64_t j = 0; j < LANES; j += together(x)) {
        const From* source = from + j * step(x);
        T* target = spare + j * K;
        widen(source, target, together(x) * K);
      }
      transpose<true>(spare, K, to);
    } else {
      for (int j = 0; j < LANES; ++j) {
        const From* source = lane<From>(x, j);
        for (int64_t k = 0; k < K; ++k) to[k * LANES + j] = load(source[k * x.cls]);
      }
    }
    if constexpr (CAP)
      for (int64_t k = 0; k < K; ++k) {
        T* u = to + k * LANES;
#pragma omp simd
        for (int j = 0; j < LANES; ++j) u[j] = f(u[j]);
      }
  }

  // One class of the output, of a planar tile.
  XENT_INLINE void put_plane(int64_t k, const T* from) const {
    S* to = at<S>(job.out, start) + k * job.out.cls;
    if (stream_planes) return stream(to, LANES, [from](int64_t j) { return from[j]; });
    narrow(from, to, LANES);
  }

  // The output from scratch, class by class; `spare` (K, LANES) may be overwritten.
  void scatter(const T* e, T* spare) const {
    const Strided& x = job.out;
    if (planar(x)) {
      for (int64_t k = 0; k < K; ++k) put_plane(k, e + k * LANES);
      return;
    }
    if (full_rows(x)) {
      S* to = at<S>(x, start);
      const bool direct = std::is_same_v<S, T> && !stream_rows;
      direct ? transpose<false>(reinterpret_cast<T*>(to), step(x), e) : transpose<false>(spare, K, e);
      if (stream_rows)
        return stream(to, K * LANES, [spare](int64_t i) { return spare[i]; });
      for (int64_t j = 0; j < LANES && !direct; j += together(x)) {
        S* target = to + j * step(x);
        const T* source = spare + j * K;
        narrow(source, target, together(x) * K);
      }
      return;
    }
    for (int j = 0; j < lanes; ++j) {
      S* target = lane<S>(x, j);
      for (int64_t k = 0; k < K; ++k) target[k * x.cls] = store<S>(e[k * LANES + j]);
    }
  }

  // LANES rows of K ≥ 4 consecutive classes to or from lines (K, LANES), in blocks of 8 rows × 4 classes: two
  // 4 × 4 transpositions side by side. The last block of classes overlaps its neighbour.
  template <bool TO_LINES>
  void transpose(std::conditional_t<TO_LINES, const T*, T*> rows, int64_t step,
                 std::conditional_t<TO_LINES, T*, const T*> lines) const {
    typedef T Half __attribute__((vector_size(4 * sizeof(T))));
    typedef T Block __attribute__((vector_size(8 * sizeof(T))));
    const int64_t classes = K;
    for (int64_t j = 0; j < LANES; j += 8)
      for (int64_t k = 0;; k = k + 8 <= classes ? k + 4 : classes - 4) {
        const auto row = rows + j * step + k, other = row + 4 * step;
        const auto line = lines + k * LANES + j;
        Block m[4];
        for (int i = 0; i < 4; ++i)
          if constexpr (TO_LINES) {
            Half one, two;
            std::memcpy(&one, row + i * step, sizeof one);
            std::memcpy(&two, other + i * step, sizeof two);
            m[i] = __builtin_shufflevector(one, two, 0, 1, 2, 3, 4, 5, 6, 7);
          } else {
            std::memcpy(&m[i], line + i * LANES, sizeof m[i]);
          }
        const Block ab = __builtin_shufflevector(m[0], m[1], 0, 8, 1, 9, 4, 12, 5, 13);
        const Block cd = __builtin_shufflevector(m[2], m[3], 0, 8, 1, 9, 4, 12, 5, 13);
        const Block ba = __builtin_shufflevector(m[0], m[1], 2, 10, 3, 11, 6, 14, 7, 15);
        const Block dc = __builtin_shufflevector(m[2], m[3], 2, 10, 3, 11, 6, 14, 7, 15);
        m[0] = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13);
        m[1] = __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
        m[2] = __builtin_shufflevector(ba, dc, 0, 1, 8, 9, 4, 5, 12, 13);
        m[3] = __builtin_shufflevector(ba, dc, 2, 3, 10, 11, 6, 7, 14, 15);
        for (int i = 0; i < 4; ++i)
          if constexpr (TO_LINES) {
            std::memcpy(line + i * LANES, &m[i], sizeof m[i]);
          } else {
            const Half one = __builtin_shufflevector(m[i], m[i], 0, 1, 2, 3);
            const Half two = __builtin_shufflevector(m[i], m[i], 4, 5, 6, 7);
            std::memcpy(row + i * step, &one, sizeof one);
            std::memcpy(other + i * step, &two, sizeof two);
          }
        if (k + 4 >= classes) break;
      }
  }

  // While this tile computes, memory brings the next one, and where this one will be written unless that is
  // past the cache: prefetchers do not follow K planes at once. A few lines with each class: bursts wait.
  template <int ROWS>
  XENT_INLINE void prefetch(int64_t k, int j) const {
    if (!affine) return;
    const S* next = at<S>(job.z, start) + LANES * step(job.z) + k * (job.z.cls == 1 ? LANES : job.z.cls) + j;
    for (size_t i = 0; i < ROWS; i += 64 / sizeof(S)) __builtin_prefetch(next + i);
    if (!job.out.data || stream_planes || stream_rows) return;
    const S* out = at<S>(job.out, start) + k * (job.out.cls == 1 ? LANES : job.out.cls) + j;
    for (size_t i = 0; i < ROWS; i += 64 / sizeof(S)) __builtin_prefetch(out + i, 1);
  }
};

}  // namespace XENT_ISA
}  // namespace xent
