// The statistics of a row, and its gradient, equation (2).
#pragma once
#include "wide.h"

namespace xent {
namespace XENT_ISA {

template <class T>
XENT_ONCE void Wide<T>::stats(int64_t row, bool with_grad) {
  const Position at_row = position(job, row);
  const char* z = at(job.z, at_row, storage);
  char* out = with_grad ? at(job.out, at_row, storage) : nullptr;
  const T* v = job.dense.data ? at<T>(job.dense, at_row) : nullptr;
  const int64_t y = job.labels ? job.labels[row] : 0;
  if (y < 0) return absent(row, out);
  const Sums sums = sweep(z, v, nullptr, T(0));
  const double log_norm = sums.log_norm();
  const bool labelled = job.labels && y < K;
  const double x =
      labelled ? (double(linked(z, y)) - sums.max) * phi.scale - log_norm : (job.labels ? nan_<double>() : 0.0);
  if (job.lse) job.lse[row] = y < K || !job.labels ? sums.max * phi.scale + log_norm : nan_<double>();
  if (job.log_prob) job.log_prob[row] = x;
  if (job.dense_log_prob) job.dense_log_prob[row] = sums.dense - (sums.mass != 0 ? sums.mass * log_norm : 0.0);
  if (job.mass) job.mass[row] = sums.mass;
  if (job.entropy) job.entropy[row] = log_norm - sums.entropy / (1 + sums.rest());
  if (job.argmax) job.argmax[row] = swept_argmax(z, sums.max);
  if (!with_grad) return;

  Coefficients c(job, row);
  if (c.silent()) return fill(out, T(0));
  if (job.labels && y >= K) return fill(out, nan_<T>());
  c.mass = sums.mass;
  const int64_t top = v && sums.rest() < 1 ? swept_argmax(z, sums.max) : -1;
  const double v_y = v && labelled ? double(v[y]) : 0.0, v_top = top >= 0 ? double(v[top]) : 0.0;
  postpone(out, v, sums, c);
  if (top >= 0) pending.exact[0] = {top, T(slope_at(z, top) * c.bracket(-log_norm, job.labels && top == y, v_top))};
  if (labelled) pending.exact[1] = {y, T(slope_at(z, y) * c.bracket(x, true, v_y))};
}

template <class T>
void Wide<T>::absent(int64_t row, char* out) const {
  double* const statistics[] = {job.lse, job.log_prob, job.dense_log_prob, job.mass, job.entropy};
  for (double* statistic : statistics)
    if (statistic) statistic[row] = 0;
  if (job.argmax) job.argmax[row] = 0;
  if (out) fill(out, T(0));
}

// The gradient from known statistics, in one pass over the row.
template <class T>
void Wide<T>::grad(int64_t row) {
  const Position at_row = position(job, row);
  const char* z = at(job.z, at_row, storage);
  char* out = at(job.out, at_row, storage);
  const T* v = job.dense.data ? at<T>(job.dense, at_row) : nullptr;
  const int64_t y = job.labels ? job.labels[row] : 0;
  Coefficients c(job, row);
  if (y < 0 || c.silent()) return fill(out, T(0));
  if (job.labels && y >= K) return fill(out, nan_<T>());
  if (v) c.mass = job.in_mass[row];
  // lse as an unevaluated sum hi + lo of two T, so that w − hi is exact where p matters.
  const double lse = job.in_lse[row] / double(phi.scale);
  const T hi = T(lse), lo = T(lse - double(hi)), of_p = T(c.of_p()), ds = T(c.ds);
  Exact exact[2];
  if (v) {
    const int64_t top = argmax(z);
    const double log_p_top = (double(linked(z, top)) - lse) * phi.scale;
    if (log_p_top > -0.69)
      exact[0] = {top, T(slope_at(z, top) * c.bracket(log_p_top, job.labels && top == y, double(v[top])))};
  }
  if (job.labels) exact[1] = {y, T(slope_at(z, y) * c.bracket(job.in_log_prob[row], true, v ? double(v[y]) : 0.0))};
  by_storage<T>(storage, [&](auto element) {
    using S = decltype(element);
    const S* logits = reinterpret_cast<const S*>(z);
    if (phi.capped)
      v ? known<S, true, true>(logits, v, hi, lo, of_p, ds, exact, out)
        : known<S, false, true>(logits, v, hi, lo, of_p, ds, exact, out);
    else
      v ? known<S, true, false>(logits, v, hi, lo, of_p, ds, exact, out)
        : known<S, false, false>(logits, v, hi, lo, of_p, ds, exact, out);
  });
}

template <class T>
template <class S, bool DENSE, bool CAP>
XENT_ONCE void Wide<T>::known(const S* z, const T* v, T hi, T lo, T of_p, T ds, const Exact (&exact)[2],
                              char* out) const {
  for (int64_t k = 0; k < K; k += STRETCH)
    emit<S>(out, z, 0, K, k, exact, [=, link = phi](int64_t i, T z_i) {
      const T u = link.template value<CAP>(z_i);
      T value = of_p * link.exp_scaled((u - hi) - lo);
      if constexpr (DENSE) value += ds * v[i];
      return value * link.template slope<CAP>(u);
    });
}

}  // namespace XENT_ISA
}  // namespace xent
