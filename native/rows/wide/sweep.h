// The exponentials of a row and their sums, block by block.
#pragma once
#include "wide.h"

namespace xent {
namespace XENT_ISA {

// Reduces an array to one value, by halving it.
template <int N, class A, class F>
XENT_INLINE A fold(A* part, F f) {
  if constexpr (N == 1) return part[0];
  for (int j = 0; j < N / 2; ++j) part[j] = f(part[j], part[j + N / 2]);
  return fold<(N + 1) / 2>(part, f);
}

template <int N, class A>
XENT_INLINE double total(A (&part)[N]) {
  return double(fold<N>(part, [](A a, A b) { return a + b; }));
}

template <class T>
XENT_ONCE typename Wide<T>::Sums Wide<T>::sweep(const char* z, const T* v, const char* r, T origin) {
  Sums sums;
  for (int64_t b = 0; b < blocks; ++b) {
    v ? exponentials<true>(b, z, v, r, origin) : exponentials<false>(b, z, v, r, origin);
    if (now.block[b].max > sums.max) sums.max = now.block[b].max;
  }
  pending.out = nullptr;
  for (int64_t b = 0; b < blocks; ++b) {
    const Sums& block = now.block[b];
    const double gap = (block.max - sums.max) * phi.scale, factor = weight(block, sums.max);
    if (gap == 0) {
      sums.ties += block.ties, sums.below += block.below;
      sums.at_ties += block.at_ties, sums.moment += block.moment;
    } else if (!(factor == 0)) {
      sums.below += factor * (block.below + block.ties), sums.moment += factor * (block.moment + block.at_ties);
    }
    if (factor > 0) sums.entropy += factor * (block.entropy + gap * (block.below + block.ties));
    sums.mass += block.mass;
    sums.dense += block.dense + (block.mass != 0 ? block.mass * gap : 0.0);
  }
  // No logit equals the maximum only if all are −inf or one is +inf: not a distribution.
  if (sums.ties < 1) sums.below = nan_<double>();
  return sums;
}

template <class T>
template <bool DENSE>
void Wide<T>::exponentials(int64_t b, const char* z, const T* v, const char* r, T origin) {
  if (!r) return exponentials<false, DENSE, T>(b, z, v, r, origin);
  if constexpr (std::is_same_v<T, float>)
    if (storage == BF16 && !phi.capped) return exponentials<true, DENSE, BFloat>(b, z, v, r, origin);
  return exponentials<true, DENSE, T>(b, z, v, r, origin);
}

// Exponentials of a block and their sums. r̃ is read in type R: r itself, or a converted stretch of it. Meanwhile the
// pending row's block is written and the next block is prefetched.
template <class T>
template <bool HESSIAN, bool DENSE, class R>
XENT_ONCE void Wide<T>::exponentials(int64_t b, const char* z, const T* v, const char* r, const T origin) {
  const Link<T> link = phi;
  const int64_t k = b * BLOCK, n = length(k);
  T* const room = now.w + (phi.capped ? k : 0);
  T max;
  const T* u = phi.capped ? linked(z, k, n, room) : widened_with_largest(z + k * size, n, room, max);
  if (phi.capped) max = largest(u, n, room);
  T* exps = now.e + k;
  const Factors late = pending.out ? factors(b) : Factors();
  if (DENSE) v += k;
  const char* next = z + (k + BLOCK) * size;
  const bool fetches = pending.out && !streams;
  T below[LANES] = {}, dense[LANES] = {}, mass[LANES] = {}, moment[LANES] = {}, at_ties[LANES] = {};
  Int others[LANES] = {};
  T u_end[LANES], v_end[LANES];
  alignas(64) T tilts_room[STRETCH];
  R tilt_end[LANES];
  for (int64_t begin = 0; begin < n; begin += STRETCH) {
    const int64_t stop = begin + STRETCH < n ? begin + STRETCH : n;
    const R* tilt = nullptr;
    if constexpr (HESSIAN) tilt = tilts<R>(r + (k + begin) * size, u + begin, stop - begin, tilts_room) - begin;
    for (int64_t i = begin * size; i < stop * size && fetches; i += 64)
      __builtin_prefetch(pending.out + k * size + i, 1);
    for (int64_t i = begin; i < stop; i += LANES) {
      const T *ui = u + i, *vi = DENSE ? v + i : nullptr;
      const R* ti = HESSIAN ? tilt + i : nullptr;
      if (i + LANES > n) {  // as if the row were padded with −inf
        for (int64_t j = 0; j < LANES; ++j) {
          const bool in = i + j < n;
          u_end[j] = in ? u[i + j] : -std::numeric_limits<T>::infinity();
          if (DENSE) v_end[j] = in ? v[i + j] : T(0);
          if (HESSIAN) tilt_end[j] = in ? tilt[i + j] : R();
        }
        ui = u_end, vi = v_end, ti = tilt_end;
      }
      __builtin_prefetch(next + i * size);
      if (HESSIAN) __builtin_prefetch(r + (k + BLOCK + i) * size);
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        const T d = ui[j] - max, value = link.exp_scaled(d);
        const bool other = d != T(0);  // not the largest, whose value is 1
        exps[i + j] = value;
        others[j] += Int(other);
        below[j] += only(other, value);
        if constexpr (DENSE) {
          mass[j] += vi[j];
          dense[j] += only(vi[j] != T(0), vi[j] * d);
        }
        if constexpr (HESSIAN) {
          const T from_origin = load(ti[j]) - origin;
          moment[j] += only(other && value != T(0), value * from_origin);
          at_ties[j] += only(!other, from_origin);
        }
      }
    }
    if (pending.out) write_pending<HESSIAN, DENSE>(late, k, k + n, k + begin);
  }
  T entropy = 0;
  if (job.entropy) {
#pragma omp simd reduction(+ : entropy)
    for (int64_t i = 0; i < n; ++i) entropy += only(exps[i] != T(0), exps[i] * (u[i] - max));
  }
  const double padded = double((n + LANES - 1) / LANES * LANES), scale = double(link.scale);
  Sums& sums = now.block[b];
  sums = Sums();
  sums.max = double(max), sums.below = total(below), sums.ties = padded - total(others);
  sums.entropy = entropy * scale;
  if constexpr (DENSE) sums.dense = total(dense) * scale, sums.mass = total(mass);
  if constexpr (HESSIAN) sums.moment = total(moment), sums.at_ties = total(at_ties);
}

// Linked logits of n classes from k on, in T: in place, or in `room`.
template <class T>
XENT_ONCE const T* Wide<T>::linked(const char* z, int64_t k, int64_t n, T* room) const {
  const T* from = widened(storage, z + k * size, room, n);
  if (!phi.capped) return from;
  const Link<T> link = phi;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) room[i] = link.template value<true>(from[i]);
  return room;
}

// n elements in T, in place or in `room`, and their maximum.
template <class T>
const T* Wide<T>::widened_with_largest(const char* from, int64_t n, T* room, T& max) const {
  by_storage<T>(storage,
                [&](auto element) { max = largest(reinterpret_cast<const decltype(element)*>(from), n, room); });
  return storage == stored_as<T>() ? reinterpret_cast<const T*>(from) : room;
}

// The maximum of n elements, which are converted into `room` if they are stored in fewer bits.
template <class T>
template <class S>
XENT_ONCE T Wide<T>::largest(const S* from, int64_t n, T* room) const {
  T part[SIDE];
  for (T& most : part) most = lowest_<T>();
  const auto take = [&](int64_t i, int64_t some) {
    const T* u = room + i;
    if constexpr (std::is_same_v<S, T>) u = from + i;
    else widen(from + i, room + i, some);
#pragma omp simd
    for (int j = 0; j < some; ++j) part[j] = u[j] > part[j] ? u[j] : part[j];
  };
  if (n < SIDE) take(0, n);
  for (int64_t i = 0; i + SIDE <= n; i += SIDE) take(i, SIDE);
  if (n > SIDE && n % SIDE) take(n - SIDE, SIDE);  // overlaps the stretch before
  return fold<SIDE>(part, [](T a, T b) { return b > a ? b : a; });
}

// `argmax` after a sweep, which has found the block; with a cap, under which large logits may become equal, the
// logits themselves are compared.
template <class T>
int64_t Wide<T>::swept_argmax(const char* z, double max) const {
  for (int64_t b = 0; b < blocks && !phi.capped; ++b)
    if (now.block[b].max == max)
      if (const int64_t i = first_equal(z, b, T(max)); i >= 0) return i;
  return argmax(z);
}

// The first class of the largest logit; φ is increasing, so it is the likeliest class. 0 if all are NaN.
template <class T>
XENT_ONCE int64_t Wide<T>::argmax(const char* z) const {
  alignas(64) T room[BLOCK];
  T most = -std::numeric_limits<T>::infinity();
  int64_t best = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    T max;
    widened_with_largest(z + b * BLOCK * size, length(b * BLOCK), room, max);
    if (max > most) most = max, best = b;
  }
  int64_t i = -1;
  for (int64_t b = best; i < 0 && b < blocks; ++b) i = first_equal(z, b, most);
  // `largest` is finite where all numbers are −inf.
  for (int64_t b = 0; i < 0 && b < blocks; ++b) i = first_equal(z, b, -std::numeric_limits<T>::infinity());
  return i < 0 ? 0 : i;
}

template <class T>
XENT_ONCE int64_t Wide<T>::first_equal(const char* z, int64_t b, T max) const {
  alignas(64) T room[BLOCK];
  const int64_t k = b * BLOCK, n = length(k);
  constexpr int MANY = 2 * SIDE;
  const T* u = widened(storage, z + k * size, room, n);
  int64_t i = 0;
  for (; i + MANY <= n; i += MANY) {
    Int equal = 0;
#pragma omp simd reduction(| : equal)
    for (int j = 0; j < MANY; ++j) equal |= Int(u[i + j] == max);
    if (equal) break;
  }
  for (; i < n; ++i)
    if (u[i] == max) return k + i;
  return -1;
}

}  // namespace XENT_ISA
}  // namespace xent
