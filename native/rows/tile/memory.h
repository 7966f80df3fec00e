// Copies of a tile of rows between memory, in any strides, and scratch memory, class by class.
#pragma once
#include "../row.h"
#include "../storage.h"

namespace xent {
namespace XENT_ISA {

template <class T, int LANES>
class TileMemory {
 protected:
  const Job& job;
  const int64_t K, size;  // classes; bytes of an element
  Position start{0, 0};
  int64_t first = 0;
  int lanes = 0;       // rows of this tile; the other lanes are idle
  bool affine = true;  // the rows are evenly spaced

  // Whether the output bypasses the cache: planes of whole lines, or contiguous rows.
  const bool stream_planes, stream_rows;

  explicit TileMemory(const Job& job)
      : job(job),
        K(job.classes),
        size(ELEMENT_BYTES[job.storage]),
        stream_planes(job.stream && step(job.out) == 1 && whole_lines(job.out.cls) && whole_lines(job.out.outer) &&
                      reinterpret_cast<uintptr_t>(job.out.data) % size_t(size) == 0),
        stream_rows(size == sizeof(T) && job.stream && job.out.cls == 1 && step(job.out) == K) {}

  bool whole_lines(int64_t stride) const { return stride * size % 64 == 0; }

  // f(j) for each lane, including idle ones.
  template <class F>
  XENT_INLINE static void each_lane(F f) {
#pragma omp simd
    for (int j = 0; j < LANES; ++j) f(j);
  }

  void select(int64_t begin, int64_t end) {
    first = begin;
    lanes = int(end - begin);
    start = position(job, begin);
    affine = job.inner == 1 || start.inner + lanes <= job.inner;
    // Prefetches the next labels and this tile's log-probabilities: a few lines, which hardware prefetchers do not
    // predict (2,000,000 rows of 10 classes: 3% of loss and gradient, 6% of the loss).
    for (int j = 0; j < LANES; j += 8) {
      if (job.labels) __builtin_prefetch(job.labels + first + LANES + j);
      if (job.log_prob) __builtin_prefetch(job.log_prob + first + j, 1);
    }
  }

  // The end of the tile that begins at `row`: a short tile aligns the following ones to lines of the output.
  int64_t last(int64_t row, int64_t end) const {
    int64_t rows = LANES;
    if (stream_planes) {
      const int64_t past = reinterpret_cast<uintptr_t>(at(job.out, position(job, row), job.storage)) % 64;
      if (past) rows = (64 - past) / size;
    }
    return row + rows < end ? row + rows : end;
  }

  // Whether the tile is full and its rows are neighbours in memory.
  bool planar(const Strided& x) const { return affine && lanes == LANES && step(x) == 1; }
  // Whether the tile is full, of evenly spaced rows with consecutive classes.
  bool full_rows(const Strided& x) const { return affine && lanes == LANES && x.cls == 1 && K >= 4; }
  int64_t together(const Strided& x) const { return step(x) == K ? LANES : 1; }  // contiguous rows
  int64_t step(const Strided& x) const { return job.inner == 1 ? x.outer : x.inner; }

  template <class S>
  S* lane(const Strided& x, int j) const {
    if (j >= lanes) j = 0;
    return affine ? at<S>(x, start) + j * step(x) : at<S>(x, position(job, first + j));
  }

  // to = x, class by class; idle lanes repeat the first row. `spare` (K, LANES) may be overwritten.
  XENT_ONCE void gather(const Strided& x, Storage storage, T* to, T* spare) const {
    by_storage<T>(storage, [&](auto element) {
      using S = decltype(element);
      const S* from = at<S>(x, start);
      if (planar(x)) {
        for (int64_t k = 0; k < K; ++k) widen(from + k * x.cls, to + k * LANES, LANES);
      } else if (full_rows(x)) {
        if constexpr (std::is_same_v<S, T>) return transpose<true>(from, step(x), to);
        for (int64_t j = 0; j < LANES; j += together(x)) widen(from + j * step(x), spare + j * K, together(x) * K);
        transpose<true>(spare, K, to);
      } else {
        for (int j = 0; j < LANES; ++j) {
          const S* source = lane<S>(x, j);
          for (int64_t k = 0; k < K; ++k) to[k * LANES + j] = load(source[k * x.cls]);
        }
      }
    });
  }

  // The output of class k of a planar tile lies `plane_step` bytes after that of class k − 1.
  char* planes() const { return at(job.out, start, job.storage); }
  int64_t plane_step() const { return job.out.cls * size; }
  XENT_ONCE static void put_plane(Storage storage, bool past_cache, const T* from, char* to) {
    write(storage, from, to, LANES, past_cache);
  }

  // The output from scratch, class by class; `spare` (K, LANES) may be overwritten.
  XENT_ONCE void scatter(const T* e, T* spare) const {
    const Strided& x = job.out;
    if (planar(x)) {
      char* to = planes();
      for (int64_t k = 0; k < K; ++k) put_plane(job.storage, stream_planes, e + k * LANES, to + k * plane_step());
    } else if (full_rows(x)) {
      char* to = at(x, start, job.storage);
      if (size == sizeof(T) && !stream_rows) return transpose<false>(reinterpret_cast<T*>(to), step(x), e);
      transpose<false>(spare, K, e);
      for (int64_t j = 0; j < LANES; j += together(x))
        write(job.storage, spare + j * K, to + j * step(x) * size, together(x) * K, stream_rows);
    } else {
      by_storage<T>(job.storage, [&](auto element) {
        using S = decltype(element);
        for (int j = 0; j < lanes; ++j) {
          S* target = lane<S>(x, j);
          for (int64_t k = 0; k < K; ++k) target[k * x.cls] = store<S>(e[k * LANES + j]);
        }
      });
    }
  }

  // LANES rows of K ≥ 4 consecutive classes to or from lines (K, LANES), in blocks of 8 rows × 4 classes: two
  // 4 × 4 transpositions side by side. The last block of classes overlaps its neighbour.
  template <bool TO_LINES>
  XENT_ONCE void transpose(std::conditional_t<TO_LINES, const T*, T*> rows, int64_t step,
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

  // Prefetches the next tile during this one, and this one's output unless it bypasses the cache: hardware
  // prefetchers do not follow K planes at once. A few lines with each class, since bursts stall.
  template <int ROWS>
  class Ahead {
    static constexpr int LINES = (ROWS * int(sizeof(T)) + 63) / 64;  // of T; twice the same where elements are halves
    struct Planes {
      const char* at;  // null: no prefetch
      int64_t step;
    };
    Planes next, vector, out;
    const int gap;

    template <int WRITE>
    XENT_INLINE void prefetch(Planes& x) const {
      if (!x.at) return;
      for (int i = 0; i < LINES; ++i) __builtin_prefetch(x.at + i * gap, WRITE);
      x.at += x.step;
    }

   public:
    // For ROWS rows from lane j on.
    Ahead(const TileMemory& tile, int j) : gap(64 * int(tile.size) / int(sizeof(T))) {
      const auto planes = [&](const Strided& x, int64_t rows, bool wanted) {
        const char* from = at(x, tile.start, tile.job.storage) + (rows * tile.step(x) + j) * tile.size;
        return Planes{wanted && x.data && tile.affine ? from : nullptr, (x.cls == 1 ? LANES : x.cls) * tile.size};
      };
      next = planes(tile.job.z, LANES, true);
      vector = planes(tile.job.vector, LANES, true);
      out = planes(tile.job.out, 0, !tile.stream_planes && !tile.stream_rows);
    }
    XENT_INLINE void prefetch() {
      prefetch<0>(next);
      prefetch<0>(vector);
      prefetch<1>(out);
    }
  };
};

}  // namespace XENT_ISA
}  // namespace xent
