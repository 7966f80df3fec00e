// The Hessian product of a row, equation (3).
#pragma once
#include "wide.h"

namespace xent {
namespace XENT_ISA {

// All r̃ are taken relative to the likeliest class's, so that r̃ − ρ is exact as p → 1.
template <class T>
void Wide<T>::hvp(int64_t row) {
  const Position at_row = position(job, row);
  const char *z = at(job.z, at_row, storage), *r = at(job.vector, at_row, storage);
  char* out = at(job.out, at_row, storage);
  const T* v = job.dense.data ? at<T>(job.dense, at_row) : nullptr;
  const int64_t y = job.labels ? job.labels[row] : 0;
  Coefficients c(job, row);
  if (y < 0 || (c.silent() && job.ddl[row] == 0 && job.ddx[row] == 0)) return fill(out, T(0));
  if (job.labels && y >= K) return fill(out, nan_<T>());
  // Moments about the label's, as the likeliest class is not known yet.
  T origin = tilted(linked(z, y), stored(r, y));
  if (!(origin - origin == T(0))) origin = 0;
  const Sums sums = sweep(z, v, r, origin);
  c.mass = sums.mass;
  const double ddl = job.ddl[row], log_norm = sums.log_norm(), top = sums.at_ties / sums.ties;
  const double shift = (sums.moment - top * sums.below) / (1 + sums.rest());
  const double rho = (double(origin) + top + shift) * unit();
  postpone(out, v, sums, c);
  pending.r = r;
  pending.origin = origin;
  pending.top = T(top);
  pending.shift = T(shift);
  pending.constant = ddl * rho;
  if (!job.labels) return;
  const T w_y = linked(z, y), r_y = stored(r, y);
  const double x = (double(w_y) - sums.max) * phi.scale - log_norm, p_y = std::exp(x), slope_y = phi.slope(w_y);
  const double d_y = double(w_y) == sums.max && sums.ties == 1 ? 0.0 : double(tilted(w_y, r_y) - origin) - top;
  const double shifted_y = (d_y - shift) * unit(), kappa = job.ddx[row] * shifted_y;
  const double product = c.of_p() * p_y * shifted_y + ddl * rho * p_y - kappa * std::expm1(x);
  pending.constant -= kappa;
  const double bent = phi.curvature(w_y) * r_y * c.bracket(x, true, v ? double(v[y]) : 0.0);
  pending.exact[1] = {y, T(slope_y * product + bent)};
}

// r̃ of n classes, where r lies or in `room`.
template <class T>
template <class R>
XENT_INLINE const R* Wide<T>::tilts(const char* r, const T* u, int64_t n, T* room) const {
  if constexpr (!std::is_same_v<R, T>) return reinterpret_cast<const R*>(r);
  else return phi.capped ? bent(r, u, n, room) : widened(storage, r, room, n);
}

template <class T>
XENT_ONCE const T* Wide<T>::bent(const char* r, const T* u, int64_t n, T* room) const {
  const Link<T> link = phi;
  const T* from = widened(storage, r, room, n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) room[i] = link.template slope<true>(u[i]) * from[i];
  return room;
}

template <class T>
template <class S, bool DENSE, bool CAP>
XENT_ONCE void Wide<T>::hessian(const Factors& f, int64_t first, int64_t last, int64_t begin) const {
  const T *e = pending.from.e, *w = pending.from.w, *v = pending.v;
  const T origin = pending.origin, top = pending.top, shift = pending.shift;
  const T factor = f.factor, constant = f.constant, ds = f.ds, of_p = f.of_p;
  const S* const vector = reinterpret_cast<const S*>(pending.r);
  emit<S>(pending.out, vector, first, last, begin, pending.exact, [=, link = phi](int64_t i, T r) {
    const T slope = link.template slope<CAP>(CAP ? w[i] : T(0)), tilt = CAP ? slope * r : r;
    T value = e[i] * (factor * (((tilt - origin) - top) - shift) + constant);
    if constexpr (CAP) {
      T g = of_p * e[i];
      if constexpr (DENSE) g += ds * v[i];
      value = slope * value + link.template curvature<CAP>(w[i]) * r * g;
    }
    return value;
  });
}

}  // namespace XENT_ISA
}  // namespace xent
