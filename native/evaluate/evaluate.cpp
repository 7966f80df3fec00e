// Per-row results of labels and predictions, for a block in the level-2 cache: with many classes along one row,
// with few classes across 64 rows. 16-bit numbers are widened first.
#include "evaluate.h"

#include <algorithm>

#include "../rows/tile/memory.h"

namespace xent {
namespace XENT_ISA {

// At this number of classes both layouts take the same time; measured: float32 100 to 150.
constexpr int64_t MANY_CLASSES = 256;
constexpr int LANES = 64;

// Σ (p − e_y)² from e^(u − top) of the label, the sums of e^(u − top) and of its square over the classes but the
// likeliest, and p of the likeliest: a sum of terms that are not negative, so that nothing cancels near certainty.
template <class T>
XENT_INLINE T brier_of(T own, T rest, T squares, T p) {
  const T other = (T(1) - own) + rest;
  return (other * other + (T(1) - own * own) + squares) * p * p;
}

// The same from p of the label and the sum of the squares of all p.
XENT_INLINE double brier_of(double own, double squares) { return (1 - own) * (1 - own) + (squares - own * own); }

// Along one row, W classes at a time; `tail` has the last classes, padded with −inf.
template <class S, class T, bool PROBABILITIES>
class Along {
  static constexpr bool same = std::is_same_v<S, T>;
  using Int = typename Real<T>::Int;
  static constexpr int W = 32;
  static constexpr int64_t FLUSH = 256 * W;  // classes summed in T before the sum goes into a double
  const Block& block;
  const int64_t K, whole;  // the number of classes, and of those before the tail
  T* const room;           // for a widened row
  alignas(64) T tail[W];

 public:
  Along(const Block& block, T* room) : block(block), K(block.classes), whole(K / W * W), room(room) {
    for (T& none : tail) none = -std::numeric_limits<T>::infinity();
  }

  void row(const S* stored, int64_t i) {
    const int64_t y = block.labels[i];
    std::memcpy(tail, read(stored, whole, K - whole), size_t(K - whole) * sizeof(T));
    const T top = rank(stored, y < 0 ? S{} : stored[y], block.above[i]);
    const T* z = room;
    if constexpr (same) z = stored;
    const int64_t at = place_of(z, top);
    block.predicted[i] = int32_t(at);
    if constexpr (PROBABILITIES) {
      const double own = y < 0 ? 0.0 : double(z[y]);
      block.loss[i] = 0.0 - std::log(own);
      block.confidence[i] = top;
      const Pair mass = sum(z, -1, [](T p) { return only(!(p == -std::numeric_limits<T>::infinity()), p); });
      block.mass[i] = mass.first;
      block.brier[i] = brier_of(own, mass.second);
      block.lowest[i] = least(z);
    } else {
      Pair rest = sum(z, at, [top](T u) { return exp_(u - top); });
      if (!((top - top) == T(0))) rest.first = nan_<double>();
      block.loss[i] = y < 0 ? 0.0 : double(z[y]) - double(top);
      block.confidence[i] = rest.first;
      block.brier[i] = rest.second;
    }
  }

  // The results of all rows from those of `row`, vectorised: −log p = log1p(rest) − (own − top).
  XENT_ONCE void finish() const {
    if constexpr (PROBABILITIES) return;
    double *loss = block.loss, *confidence = block.confidence, *brier = block.brier;
#pragma omp simd
    for (int64_t i = 0; i < block.rows; ++i) {
      const double rest = confidence[i], p = 1 / (1 + rest), gap = loss[i];
      brier[i] = brier_of(exp_(gap), rest, brier[i], p);
      loss[i] = log1p_(rest, p) - gap;
      confidence[i] = p;
    }
  }

 private:
  // Elements [first, first + n) of a row; a 16-bit row is widened into `room`.
  XENT_INLINE const T* read(const S* stored, int64_t first, int64_t n) const {
    if constexpr (same) return stored + first;
    widen(stored + first, room + first, n);
    return room + first;
  }

  // The maximum, and the number of classes above the label's, of a row that is widened on the way. NaN if the first
  // element is NaN; other NaNs are ignored.
  XENT_ONCE T rank(const S* stored, const S label, int32_t& above) const {
    T top[W], own = T(load(label)), first = T(load(stored[0]));
    Int more[W] = {};
    for (T& each : top) each = first;
    const auto compare = [&](const T* u) {
#pragma omp simd
      for (int j = 0; j < W; ++j) {
        top[j] = u[j] > top[j] ? u[j] : top[j];
        more[j] += u[j] > own;
      }
    };
    for (int64_t k = 0; k < whole; k += W) compare(read(stored, k, W));
    compare(tail);
    T highest = top[0];
    Int all = 0;
#pragma omp simd reduction(max : highest) reduction(+ : all)
    for (int j = 0; j < W; ++j) highest = top[j] > highest ? top[j] : highest, all += more[j];
    above = int32_t(all);
    return highest;
  }

  // The first class of this logit, 0 of NaN. To look for it afterwards, half a row on average, takes less than to keep
  // the place of each maximum.
  XENT_INLINE int64_t place_of(const T* z, const T value) const {
    int64_t k = 0;
    for (Int found = 0; k < whole; k += W) {
#pragma omp simd reduction(| : found)
      for (int j = 0; j < W; ++j) found |= Int(z[k + j] == value);
      if (found) break;
    }
    for (int64_t end = k < whole ? k + W : K; k < end; ++k)
      if (z[k] == value) return k;
    return 0;
  }

  struct Run {
    const T* z;
    int64_t classes;
  };
  struct Pair {
    double first = 0, second = 0;
  };

  // The sums of f(z[k]) and of its square without class `at`, which the tail then lacks if it was there.
  template <class F>
  XENT_ONCE Pair sum(const T* z, const int64_t at, F f) {
    T some[W];  // the classes around `at`
    const int64_t hole = at < 0 || at >= whole ? whole : at / W * W;
    if (hole < whole) std::memcpy(some, z + hole, sizeof some);
    if (at >= 0) (hole < whole ? some[at - hole] : tail[at - whole]) = -std::numeric_limits<T>::infinity();
    const int64_t after = hole < whole ? hole + W : whole;
    const Run runs[] = {{z, hole}, {some, after - hole}, {z + after, whole - after}, {tail, K - whole}};
    Pair total;
    T part[W] = {}, square[W] = {};
    const auto flush = [&] {
      T first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
      for (int j = 0; j < W; ++j) first += part[j], second += square[j], part[j] = square[j] = 0;
      total.first += double(first), total.second += double(second);
    };
    for (const Run& run : runs)
      for (int64_t k = 0; k < run.classes;) {
        for (const int64_t end = std::min(k + FLUSH, run.classes); k < end; k += W)
#pragma omp simd
          for (int j = 0; j < W; ++j) {
            const T value = f(run.z[k + j]);
            part[j] += value, square[j] += value * value;
          }
        if (k < run.classes) flush();
      }
    flush();
    return total;
  }

  XENT_ONCE T least(const T* z) const {
    T lowest = z[0];
#pragma omp simd reduction(min : lowest)
    for (int64_t k = 0; k < K; ++k) lowest = z[k] < lowest ? z[k] : lowest;
    return lowest;
  }
};

// Across LANES rows.
template <class T, bool PROBABILITIES>
class Across : TileMemory<T, LANES> {
  using Memory = TileMemory<T, LANES>;
  using Int = typename Real<T>::Int;
  using Memory::K, Memory::first, Memory::lanes;
  static constexpr int CHUNK = 32;  // rows whose sums stay in registers
  const Block& block;
  T* const w;
  alignas(64) T own[LANES], top[LANES], sum[LANES], squares[LANES], lowest[LANES];
  alignas(64) Int at[LANES], above[LANES];

 public:
  Across(const Block& block, const Job& job, T* scratch) : Memory(job), block(block), w(scratch) {}

  // Rows [begin, end) of the job; `place` is the first one's position in the block.
  void rows(int64_t begin, int64_t end, int64_t place) {
    this->select(begin, end);
    this->gather(this->job.z, this->job.storage, w, w + K * LANES);
    for (int j = 0; j < LANES; ++j) {
      const int64_t y = block.labels[place + (j < lanes ? j : 0)];
      own[j] = w[(y < 0 ? 0 : y) * LANES + j];
    }
    for (int j = 0; j < LANES; j += CHUNK) sweep(j);
    report(place);
  }

 private:
  XENT_ONCE void sweep(const int j0) {
    const T *u = w + j0, *label = own + j0;
    T high[CHUNK], low[CHUNK], part[CHUNK] = {}, square[CHUNK] = {};
    Int place[CHUNK] = {}, more[CHUNK] = {};
    for (int j = 0; j < CHUNK; ++j) high[j] = low[j] = u[j];
    for (int64_t k = 0; k < K; ++k)
#pragma omp simd
      for (int j = 0; j < CHUNK; ++j) {
        const T value = u[k * LANES + j];
        const Int higher = -Int(value > high[j]);
        place[j] = (Int(k) & higher) | (place[j] & ~higher);
        high[j] = value > high[j] ? value : high[j];
        more[j] += value > label[j];
        if constexpr (PROBABILITIES) {
          low[j] = value < low[j] ? value : low[j];
          part[j] += value;
          square[j] += value * value;
        }
      }
    for (int64_t k = 0; k < K && !PROBABILITIES; ++k)
#pragma omp simd
      for (int j = 0; j < CHUNK; ++j) {
        const T value = only(place[j] != Int(k), exp_(u[k * LANES + j] - high[j]));
        part[j] += value, square[j] += value * value;
      }
    for (int j = 0; j < CHUNK; ++j) {
      top[j0 + j] = high[j], lowest[j0 + j] = low[j], sum[j0 + j] = part[j], squares[j0 + j] = square[j];
      at[j0 + j] = place[j], above[j0 + j] = more[j];
    }
  }

  XENT_ONCE void report(int64_t place) {
    if constexpr (PROBABILITIES) {
      put(block.loss + place, [&](int j) { return 0.0 - std::log(double(own[j])); });
      put(block.confidence + place, [&](int j) { return double(top[j]); });
      put(block.brier + place, [&](int j) { return brier_of(double(own[j]), double(squares[j])); });
      put(block.mass + place, [&](int j) { return double(sum[j]); });
      put(block.lowest + place, [&](int j) { return double(lowest[j]); });
    } else {
      alignas(64) T loss[LANES], confidence[LANES], brier[LANES];
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        const T rest = choose((top[j] - top[j]) == T(0), sum[j], nan_<T>()), p = T(1) / (T(1) + rest);
        loss[j] = T(0) - ((own[j] - top[j]) - log1p_(rest, p));
        confidence[j] = p;
        brier[j] = brier_of(exp_(own[j] - top[j]), rest, squares[j], p);
      }
      put(block.brier + place, [&](int j) { return double(brier[j]); });
      put(block.loss + place, [&](int j) { return double(loss[j]); });
      put(block.confidence + place, [&](int j) { return double(confidence[j]); });
    }
    put(block.predicted + place, [&](int j) { return int32_t(at[j]); });
    put(block.above + place, [&](int j) { return int32_t(above[j]); });
  }

  template <class A, class F>
  void put(A* to, F value) const {
    for (int j = 0; j < lanes && lanes < LANES; ++j) to[j] = value(j);
    if (lanes < LANES) return;
#pragma omp simd
    for (int j = 0; j < LANES; ++j) to[j] = value(j);
  }
};

template <class S, bool PROBABILITIES>
bool evaluate(const Block& block) {
  using T = typename ComputeOf<S>::type;
  constexpr bool same = std::is_same_v<S, T>;
  const S* outputs = static_cast<const S*>(block.outputs);
  const int64_t K = block.classes, together = K >= MANY_CLASSES ? 1 : LANES;
  Scratch scratch(size_t(3 * together * K) * sizeof(T));
  if (!scratch.data) return false;
  T *memory = static_cast<T*>(scratch.data), *widened = memory + 2 * together * K;
  Along<S, T, PROBABILITIES> along(block, widened);
  Job job;
  job.storage = stored_as<T>();
  job.outer = block.rows, job.inner = 1, job.classes = K;
  job.z = {const_cast<void*>(block.outputs), K, 0, 1};
  if (!same) job.z.data = widened, job.outer = LANES;
  Across<T, PROBABILITIES> across(block, job, memory);
  if (together == 1) {
    for (int64_t i = 0; i < block.rows; ++i) along.row(outputs + i * K, i);
    along.finish();
    return true;
  }
  for (int64_t i = 0; i < block.rows; i += LANES) {
    const int64_t n = block.rows - i < LANES ? block.rows - i : LANES;
    if constexpr (!same) widen(outputs + i * K, widened, n * K);
    across.rows(same ? i : 0, same ? i + n : n, i);
  }
  return true;
}

typedef double Four __attribute__((vector_size(4 * sizeof(double))));

XENT_INLINE void add(double* sums, double a, double b, double c, double d) {
  Four four;
  std::memcpy(&four, sums, sizeof four);
  four += Four{a, b, c, d};
  std::memcpy(sums, &four, sizeof four);
}

bool fold(const Block& whole, Sums& sums) {
  const Block block = whole;  // a copy: stores in the loop could alias a reference
  const int64_t classes = sums.classes, bins = sums.bins, top_k = sums.top_k;
  double *const by_class = sums.by_class, *const by_bin = sums.by_bin, *const guessed = sums.guessed;
  const double shift = sums.shift;
  int64_t unlabelled = 0, undefined = 0, first_undefined = -1;
  for (int64_t i = 0; i < block.rows; ++i) {
    const int64_t y = block.labels[i], guess = block.predicted[i];
    const double loss = block.loss[i], confidence = block.confidence[i];
    if (y < 0) {
      ++unlabelled;
    } else if (y >= classes || uint64_t(guess) >= uint64_t(classes)) {
      return false;
    } else if (loss != loss) {
      if (!undefined++) first_undefined = i;
    } else {
      const double place = confidence * double(bins),
                   last = double(bins - 1);  // NaN is put into the first bin
      const int64_t bin = place > 0 ? int64_t(place < last ? place : last) : 0;
      const int right = guess == y, near = block.above[i] < top_k, infinite = std::isinf(loss);
      add(by_class + 4 * y, 1, right, near, loss);
      add(by_bin + 4 * bin, 1, right, confidence, infinite);
      guessed[guess] += 1;
    }
  }
  double loss = 0, loss2 = 0, brier = 0, brier2 = 0;
#pragma omp simd reduction(+ : loss, loss2, brier, brier2)
  for (int64_t i = 0; i < block.rows; ++i) {
    const bool counts = block.labels[i] >= 0 && block.loss[i] == block.loss[i];
    const double d = counts ? block.loss[i] - shift : 0.0, b = counts ? block.brier[i] : 0.0;
    loss += d, loss2 += d * d, brier += b, brier2 += b * b;
  }
  add(sums.moments, loss, loss2, brier, brier2);
  sums.unlabelled = unlabelled, sums.undefined = undefined, sums.first_undefined = first_undefined;
  return true;
}

template <bool PROBABILITIES, class Table>
constexpr void fill(Table& by_storage) {
  by_storage[F64] = evaluate<double, PROBABILITIES>;
  by_storage[F32] = evaluate<float, PROBABILITIES>;
  by_storage[F16] = evaluate<Half, PROBABILITIES>;
  by_storage[BF16] = evaluate<BFloat, PROBABILITIES>;
}

extern const Evaluates evaluates;
const Evaluates evaluates = [] {
  Evaluates all{};
  fill<false>(all.logits);
  fill<true>(all.probabilities);
  all.fold = fold;
  return all;
}();

}  // namespace XENT_ISA
}  // namespace xent
