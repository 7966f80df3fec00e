// Writes a row while the next one is read: what its exponentials become, a stretch at a time.
#pragma once
#include "wide.h"

namespace xent {
namespace XENT_ISA {

template <class T>
void Wide<T>::postpone(char* out, const T* v, const Sums& sums, const Coefficients& c) {
  pending = Pending();
  pending.out = out;
  pending.from = now;
  pending.v = v;
  pending.max = sums.max;
  pending.norm = 1 / (1 + sums.rest());
  pending.of_p = c.of_p();
  pending.ds = T(c.ds);
  now = buffers[now.e == buffers[0].e];
}

template <class T>
void Wide<T>::finish() {
  for (int64_t b = 0; b < blocks && pending.out; ++b) {
    const int64_t k = b * BLOCK, end = k + length(k);
    const Factors f = factors(b);
    for (int64_t i = k; i < end; i += STRETCH)
      if (pending.r) pending.v ? write_pending<true, true>(f, k, end, i) : write_pending<true, false>(f, k, end, i);
      else pending.v ? write_pending<false, true>(f, k, end, i) : write_pending<false, false>(f, k, end, i);
  }
  pending.out = nullptr;
}

template <class T>
typename Wide<T>::Factors Wide<T>::factors(int64_t b) const {
  const double norm = weight(pending.from.block[b], pending.max) * pending.norm;
  const double of_r = pending.r ? unit() * unit() : unit();
  return {T(pending.of_p * norm * of_r), T(pending.constant * norm * unit()), T(pending.ds * unit()),
          T(pending.of_p * norm)};
}

// The stretch of block [first, last) that begins at `begin`.
template <class T>
template <bool HESSIAN, bool DENSE>
XENT_INLINE void Wide<T>::write_pending(const Factors& f, int64_t first, int64_t last, int64_t begin) const {
  emit(pending.out, first, last, begin, pending.exact, [&](int64_t from, int64_t n, T* to) {
    if constexpr (HESSIAN) phi.capped ? hessian<DENSE, true>(f, from, n, to) : hessian<false, false>(f, from, n, to);
    else phi.capped ? gradient<DENSE, true>(f, from, n, to) : gradient<DENSE, false>(f, from, n, to);
  });
}

// What the pending row holds at n classes from `begin` on.
template <class T>
template <bool DENSE, bool CAP>
XENT_INLINE void Wide<T>::gradient(const Factors& f, int64_t begin, int64_t n, T* to) const {
  const Link<T> link = phi;
  const T *e = pending.from.e + begin, *w = pending.from.w + begin, *v = pending.v + begin;
  const T factor = f.factor, ds = f.ds;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    T value = factor * e[i];
    if constexpr (DENSE) value += ds * v[i];
    if constexpr (CAP) value *= link.template slope<CAP>(w[i]);
    to[i] = value;
  }
}

// Writes the stretch of [first, last) that begins at `begin`: formula(from, n, to) computes n elements from class
// `from` on. Past the cache the stretch is moved back to whole lines of the output: no line is to be touched twice.
template <class T>
template <class Formula>
XENT_INLINE void Wide<T>::emit(char* out, int64_t first, int64_t last, int64_t begin, const Exact (&exact)[2],
                               Formula formula) const {
  const int64_t past = streams ? into_line(out + begin * size) >> __builtin_ctz(unsigned(size)) : 0;
  const int64_t end = begin + STRETCH < last ? begin + STRETCH - past : last;
  begin = begin > first ? begin - past : first;
  const bool direct = size == sizeof(T) && !streams;
  alignas(64) T stage[STRETCH + MOST_IN_LINE];
  T* const to = direct ? reinterpret_cast<T*>(out) + begin : stage;
  formula(begin, end - begin, to);
  for (const Exact& x : exact)
    if (x.at >= begin && x.at < end) to[x.at - begin] = x.value;
  if (!direct) write(storage, to, out + begin * size, end - begin, streams);
}

template <class T>
void Wide<T>::fill(char* out, T value) const {
  by_storage<T>(storage, [&](auto element) {
    using S = decltype(element);
    std::fill_n(reinterpret_cast<S*>(out), K, store<S>(value));
  });
}

}  // namespace XENT_ISA
}  // namespace xent
