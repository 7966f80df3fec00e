// Writes the results of a row, a stretch at a time, while the next row is read.
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
  Factors f;
  f.factor = T(pending.of_p * norm * of_r);
  f.constant = T(pending.constant * norm * unit());
  f.ds = T(pending.ds * unit());
  f.of_p = T(pending.of_p * norm);
  return f;
}

// The stretch of block [first, last) that begins at `begin`.
template <class T>
template <bool HESSIAN, bool DENSE>
XENT_INLINE void Wide<T>::write_pending(const Factors& f, int64_t first, int64_t last, int64_t begin) const {
  by_storage<T>(storage, [&](auto element) {
    using S = decltype(element);
    if constexpr (HESSIAN)
      phi.capped ? hessian<S, DENSE, true>(f, first, last, begin) : hessian<S, false, false>(f, first, last, begin);
    else
      phi.capped ? gradient<S, DENSE, true>(f, first, last, begin) : gradient<S, DENSE, false>(f, first, last, begin);
  });
}

template <class T>
template <class S, bool DENSE, bool CAP>
XENT_ONCE void Wide<T>::gradient(const Factors& f, int64_t first, int64_t last, int64_t begin) const {
  const T *w = pending.from.w, *v = pending.v, factor = f.factor, ds = f.ds;
  emit<S>(pending.out, pending.from.e, first, last, begin, pending.exact, [=, link = phi](int64_t i, T e) {
    T value = factor * e;
    if constexpr (DENSE) value += ds * v[i];
    if constexpr (CAP) value *= link.template slope<CAP>(w[i]);
    return value;
  });
}

// to[i] = f(first + i, x[first + i]) for n classes.
template <class T>
template <class R, class F>
XENT_INLINE void Wide<T>::each(const R* x, int64_t first, int64_t n, T* to, F f) {
  if constexpr (std::is_same_v<R, Half>) {
    alignas(64) T room[STRETCH + MOST_IN_LINE];
    widen(x + first, room, n);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = f(first + i, room[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = f(first + i, T(load(x[first + i])));
  }
}

// out[i] = f(i, x[i]) for n classes from `first` on, less than a line of the output.
template <class T>
template <class S, class R, class F>
XENT_INLINE void Wide<T>::few(S* out, const R* x, int64_t first, int64_t n, F f) {
  if (n == 0) return;
  alignas(64) T values[64 / sizeof(S)] = {};
  each(x, first, n, values, f);
  narrow(values, out + first, n);
}

// out[i] = f(i, x[i]) over the stretch of [first, last) that begins at `begin`. With streaming stores the
// stretch is moved back to whole lines of the output, and staged if an exact element replaces one of it, so that no
// line is written twice.
template <class T>
template <class S, class R, class F>
XENT_INLINE void Wide<T>::emit(char* bytes, const R* x, int64_t first, int64_t last, int64_t begin,
                               const Exact (&exact)[2], F f) const {
  constexpr int64_t LINE = 64 / sizeof(S);
  S* const out = reinterpret_cast<S*>(bytes);
  const int64_t past = streams ? into_line(out + begin) : 0;
  const int64_t end = begin + STRETCH < last ? begin + STRETCH - past : last;
  begin = begin > first ? begin - past : first;
  const auto inside = [=](const Exact& exact) { return exact.at >= begin && exact.at < end; };
  if (streams && !inside(exact[0]) && !inside(exact[1])) {
    const int64_t into = into_line(out + begin), whole = begin + (into ? LINE - into : 0);
    int64_t i = whole < end ? whole : end;
    few(out, x, begin, i - begin, f);
    for (; i + LINE <= end; i += LINE) {
      alignas(64) T line[LINE];
      each(x, i, LINE, line, f);
      stream(line, out + i);
    }
    return few(out, x, i, end - i, f);
  }
  alignas(64) T stage[STRETCH + MOST_IN_LINE];
  T* to = stage;
  if constexpr (std::is_same_v<S, T>) to = streams ? stage : out + begin;
  each(x, begin, end - begin, to, f);
  for (const Exact& known : exact)
    if (inside(known)) to[known.at - begin] = known.value;
  if (streams) stream(stage, out + begin, end - begin);
  else if constexpr (!std::is_same_v<S, T>) narrow(stage, out + begin, end - begin);
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
