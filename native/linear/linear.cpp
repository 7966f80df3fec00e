// A linear model in one read of its features: CMake compiles this file once for each instruction set.
//
// A block of rows stays in the level-2 cache while its logits and its part of the gradient are computed. K is small
// beside D, so both products run along the features: tiles of ROWS rows × some classes in registers for the logits, of
// some classes × DEPTH vectors of features for the gradient. Nothing is padded to a width of K.
#include "linear.h"

#include <type_traits>
#include <utility>

#include "../rows/row.h"

namespace xent {
namespace XENT_ISA {

extern const Kernels kernels;

#if defined(__AVX512F__)
constexpr int VECTOR = 64, TILE = 6;  // bytes; classes of a tile, by the number of registers
#elif defined(__AVX2__)
constexpr int VECTOR = 32, TILE = 3;
#elif defined(__aarch64__)
constexpr int VECTOR = 16, TILE = 6;
#else
constexpr int VECTOR = 16, TILE = 3;
#endif
constexpr int ROWS = 4, DEPTH = 4;

template <class T>
constexpr int LANES = VECTOR / sizeof(T) < 4 ? 4 : VECTOR / sizeof(T);
template <class T>
constexpr int CLASSES = TILE * VECTOR / int(LANES<T> * sizeof(T));
template <class T, int N>
using Vector __attribute__((vector_size(N * sizeof(T)))) = T;

template <class V, class T>
XENT_INLINE void fetch(V& v, const T* from) {
  std::memcpy(&v, from, sizeof v);
}

// Sums over the lanes of four vectors, by transposing and adding groups of four lanes.
template <class T, size_t... I>
XENT_INLINE void lane_sums(const Vector<T, LANES<T>> (&x)[4], T (&sum)[4], std::index_sequence<I...>) {
  using V = Vector<T, LANES<T>>;
  constexpr int N = LANES<T>;
  const auto halves = [](const V& a, const V& b, V& to) {
    const V lo = __builtin_shufflevector(a, b, int(I % 2 * N + I / 4 * 4 + I % 4 / 2)...);
    const V hi = __builtin_shufflevector(a, b, int(I % 2 * N + I / 4 * 4 + I % 4 / 2 + 2)...);
    to = lo + hi;
  };
  V ab, cd;
  halves(x[0], x[1], ab), halves(x[2], x[3], cd);
  const V lo = __builtin_shufflevector(ab, cd, int(I % 4 / 2 * N + I / 4 * 4 + I % 2)...);
  const V hi = __builtin_shufflevector(ab, cd, int(I % 4 / 2 * N + I / 4 * 4 + I % 2 + 2)...);
  const V all = lo + hi;
  using Four = Vector<T, 4>;
  Four total = __builtin_shufflevector(all, all, 0, 1, 2, 3);
  if constexpr (N >= 8) total += __builtin_shufflevector(all, all, 4, 5, 6, 7);
  if constexpr (N >= 16) total += __builtin_shufflevector(all, all, 8, 9, 10, 11);
  if constexpr (N >= 16) total += __builtin_shufflevector(all, all, 12, 13, 14, 15);
  std::memcpy(sum, &total, sizeof total);
}

// S: type of the features; T: of the arithmetic.
template <class S, class T>
class Pass {
  static constexpr int N = LANES<T>;
  using V = Vector<T, N>;

  const LinearJob& job;
  const int64_t D, padded, block;
  const int64_t last;   // the start of a row's last vector, which may overlap the one before
  const bool in_place;  // whether the features need no conversion
  T *x, *z, *r;         // of a block: features (block, padded), logits and those of the vector (K, block)
  const T** row;        // (block,)
  int32_t* flag;        // (block,)
  const char *next = nullptr, *stop = nullptr;  // the next block, to be prefetched
  int lines = 0;                                // lines prefetched at each step of a tile

 public:
  Pass(const LinearJob& job, void* scratch)
      : job(job),
        D(job.num_features),
        padded(job.padded),
        block(job.block),
        last(D > N ? D - N : 0),
        in_place(usable(job)),
        x(static_cast<T*>(scratch)),
        z(x + (in_place ? 0 : block * padded)),
        r(z + job.rows.classes * block),
        row(reinterpret_cast<const T**>(r + job.rows.classes * block)),
        flag(reinterpret_cast<int32_t*>(row + block)) {
    if (!in_place) std::memset(x, 0, size_t(block * padded) * sizeof(T));
  }

  static size_t scratch_bytes(const LinearJob& job) {
    const int64_t elements = (usable(job) ? 0 : job.block * job.padded) + 2 * job.rows.classes * job.block;
    return size_t(elements) * sizeof(T) + size_t(job.block) * (sizeof(T*) + sizeof(int32_t));
  }

  bool run(int64_t begin, int64_t end, double* sums) {
    for (int64_t first = begin; first < end; first += block) {
      const int64_t n = end - first < block ? end - first : block;
      bring(first, n);
      look_ahead(first);
      scores(n, job.weight, job.bias, z);
      if (job.op == HVP) scores(n, job.vector, job.vector_bias, r);
      if (!kernels.rows(part(first, n), job.op, 0, n)) return false;
      if (job.op == STATS) continue;
      accumulate(used(n), sums);
    }
    return true;
  }

 private:
  static bool usable(const LinearJob& job) {
    return std::is_same_v<S, T> && job.features.cls == 1 && job.num_features >= N;
  }
  const S* source(int64_t i) const { return static_cast<const S*>(job.features.data) + i * job.features.outer; }

  // The processor's prefetchers start at a block's first use, so that its products would wait for memory.
  // Prefetching it evenly during the products of the block before costs almost nothing.
  void look_ahead(int64_t first) {
    const bool dense = job.features.cls == 1 && job.features.outer == D;
    next = dense && first + block < job.rows.rows() ? reinterpret_cast<const char*>(source(first + block)) : nullptr;
    const int64_t left = job.rows.rows() - first - block;
    stop = next + (next ? (left < block ? left : block) * D * int64_t(sizeof(S)) : 0);
    const int64_t tiles = (job.num_scores + CLASSES<T> - 1) / CLASSES<T>;
    const int64_t products = tiles * (job.op == STATS ? 1 : job.op == HVP ? 3 : 2);
    lines = int((ROWS * N * int64_t(sizeof(S)) / 64 + products - 1) / products);
  }

  XENT_INLINE void ask(const char*& at, const char* end, int count) const {
    for (int i = 0; i < count && at < end; ++i, at += 64) __builtin_prefetch(at, 0, 2);
  }

  // The block's rows, converted unless they are used in place.
  void bring(int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) row[i] = in_place ? reinterpret_cast<const T*>(source(first + i)) : x + i * padded;
    if (in_place) return;
    using From = Vector<S, N>;
    const int64_t step = job.features.cls;
    for (int64_t i = 0; i < n; ++i) {
      const S* from = source(first + i);
      T* to = x + i * padded;
      if (step != 1 || D < N) {
        for (int64_t d = 0; d < D; ++d) to[d] = T(from[d * step]);
        continue;
      }
      for (int64_t d = 0;; d = d + N < last ? d + N : last) {
        From some;
        fetch(some, from + d);
        const V wide = __builtin_convertvector(some, V);
        std::memcpy(to + d, &wide, sizeof wide);
        if (d == last) break;
      }
    }
  }

  // The job of the row kernels for this block: class-major, the gradient overwrites the logits.
  Job part(int64_t first, int64_t n) const {
    Job p = job.rows;
    p.storage = sizeof(T) == 8 ? F64 : F32;
    p.outer = n;
    p.z = {z, 1, 0, block};
    p.out = job.op == STATS ? Strided{} : p.z;
    p.vector = job.op == HVP ? Strided{r, 1, 0, block} : Strided{};
    if (p.dense.data) p.dense.data = static_cast<T*>(p.dense.data) + first * p.dense.outer;
    if (p.labels) p.labels += first;
    for (Column* c : {&p.dl, &p.dx, &p.ds, &p.ddl, &p.ddx})
      if (c->data) c->data += first;
    for (double** s : {&p.lse, &p.log_prob, &p.dense_log_prob, &p.mass, &p.entropy})
      if (*s) *s += first;
    if (p.argmax) p.argmax += first;
    return p;
  }

  // Classes in tiles of nearly equal size.
  template <class F>
  void tiles(F f) const {
    const int64_t count = (job.num_scores + CLASSES<T> - 1) / CLASSES<T>;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t c = job.num_scores * i / count;
      f(c, job.num_scores * (i + 1) / count - c);
    }
  }

  void scores(int64_t n, const void* weight, const void* bias, T* logits) {
    T* to = logits + job.zero_classes() * block;
    std::memset(logits, 0, size_t(job.zero_classes() * block) * sizeof(T));
    tiles([&](int64_t c, int64_t size) {
      const T* w = static_cast<const T*>(weight) + c * padded;
      const T* b = bias ? static_cast<const T*>(bias) + c : nullptr;
      by_size<1>(size, [&](auto tile) {
        constexpr int C = decltype(tile)::value;
        int64_t i = 0;
        for (; i + ROWS <= n; i += ROWS) score_tile<ROWS, C>(row + i, w, b, to + c * block + i);
        for (; i < n; ++i) score_tile<1, C>(row + i, w, b, to + c * block + i);
      });
    });
  }

  template <int C, class F>
  static void by_size(int64_t size, F f) {
    if (size == C) return f(std::integral_constant<int, C>());
    if constexpr (C < CLASSES<T>) by_size<C + 1>(size, f);
  }

  template <int R, int C>
  XENT_INLINE void score_tile(const T* const* rows, const T* w, const T* bias, T* to) {
    const char *ahead = next, *const end = stop;
    const int count = lines;
    const T* from[R];
    for (int i = 0; i < R; ++i) from[i] = rows[i];
    V sum[C][ROWS] = {};
    for (int64_t d = 0; d < padded; d += N) {
      V xs[R];
      for (int i = 0; i < R; ++i) fetch(xs[i], from[i] + (d < last ? d : last));
      for (int c = 0; c < C; ++c) {
        V ws;
        fetch(ws, w + c * padded + d);
        for (int i = 0; i < R; ++i) sum[c][i] += ws * xs[i];
      }
      ask(ahead, end, count);
    }
    next = ahead;
    for (int c = 0; c < C; ++c) {
      T total[ROWS];
      lane_sums<T>(sum[c], total, std::make_index_sequence<N>());
      for (int i = 0; i < R; ++i) to[c * block + i] = total[i] + (bias ? bias[c] : T(0));
    }
  }

  // Removes rows whose gradient is 0, so that the values of ignored rows are not read. Returns the number of the
  // other rows, compacted in `row` and z.
  int64_t used(int64_t n) {
    const int64_t K = job.rows.classes;
    for (int64_t i = 0; i < n; ++i) flag[i] = 0;
    for (int64_t k = 0; k < K; ++k) {
      const T* g = z + k * block;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) flag[i] |= int32_t(g[i] != T(0));
    }
    int64_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = 0; i < n; ++i) count += flag[i];
    if (count == n) return n;
    count = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!flag[i]) continue;
      if (count < i) {
        row[count] = row[i];
        for (int64_t k = 0; k < K; ++k) z[k * block + count] = z[k * block + i];
      }
      ++count;
    }
    return count;
  }

  void accumulate(int64_t n, double* sums) {
    const T* g = z + job.zero_classes() * block;
    int64_t d = 0;
    for (; d + DEPTH * N <= padded; d += DEPTH * N) accumulate_at<DEPTH>(n, g, d, sums);
    for (; d + 2 * N <= padded; d += 2 * N) accumulate_at<2>(n, g, d, sums);
    for (; d < padded; d += N) accumulate_at<1>(n, g, d, sums);
    double* dbias = sums + job.num_scores * padded;
    for (int64_t c = 0; c < job.num_scores; ++c) {
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; ++i) sum += double(g[c * block + i]);
      dbias[c] += sum;
    }
  }

  template <int Q>
  void accumulate_at(int64_t n, const T* g, int64_t d, double* sums) {
    tiles([&](int64_t c, int64_t size) {
      by_size<1>(size, [&](auto tile) {
        constexpr int C = decltype(tile)::value;
        gradient_tile<Q, C>(n, g + c * block, d, sums + c * padded + d);
      });
    });
  }

  template <int Q, int C>
  XENT_INLINE void gradient_tile(int64_t n, const T* g, int64_t d, double* to) {
    const char *ahead = next, *const end = stop;
    const int count = lines;
    V sum[C][Q] = {};
    int64_t at[Q];
    for (int q = 0; q < Q; ++q) at[q] = d + q * N < last ? d + q * N : last;
    for (int64_t i = 0; i < n; ++i) {
      const T* from = row[i];
      V xs[Q];
      for (int q = 0; q < Q; ++q) fetch(xs[q], from + at[q]);
      for (int c = 0; c < C; ++c)
        for (int q = 0; q < Q; ++q) sum[c][q] += g[c * block + i] * xs[q];
      ask(ahead, end, count);
    }
    next = ahead;
    for (int c = 0; c < C; ++c)
      for (int q = 0; q < Q; ++q) {
        T part[N];
        std::memcpy(part, &sum[c][q], sizeof part);
#pragma omp simd
        for (int i = 0; i < N; ++i) to[c * padded + q * N + i] += double(part[i]);
      }
  }
};

template <class S, class T>
bool piece(const LinearJob& job, int64_t begin, int64_t end, void* scratch, double* sums) {
  const NoSubnormals zeros;
  return Pass<S, T>(job, scratch).run(begin, end, sums);
}

template <class S, class T>
constexpr Linear of() {
  return {LANES<T>, Pass<S, T>::scratch_bytes, piece<S, T>};
}

extern const Linear linear[WIDTHS];
const Linear linear[WIDTHS] = {of<float, float>(), of<float, double>(), of<double, double>()};

}  // namespace XENT_ISA
}  // namespace xent
