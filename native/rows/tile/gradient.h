// The gradient of a tile, equation (2).
#pragma once
#include "tile.h"

namespace xent {
namespace XENT_ISA {

// The state that a sweep would compute, from known statistics.
template <class T, int LANES>
XENT_ONCE void Tile<T, LANES>::known() {
  const Link<T> link = phi;
  alignas(64) Lanes hi, lo;
  alignas(64) double padded[LANES];
  const double *lse = full(job.in_lse, padded), scale = double(link.scale);
  each_lane([&](int j) {  // lse as an unevaluated sum, so that w − hi is exact where p matters
    hi[j] = T(lse[j] / scale);
    lo[j] = T(lse[j] / scale - double(hi[j]));
    norm[j] = 1;
  });
  column({job.in_mass, 0.0}, mass);
  column({job.in_log_prob, 0.0}, x);
  typename Memory::template Ahead<LANES> ahead(*this, 0);
  for (int64_t k = 0; k < K; ++k) {
    ahead.prefetch();
    T *p = e + k * LANES, *u = w + k * LANES;
    each_lane([&](int j) { p[j] = link.exp_scaled((u[j] - hi[j]) - lo[j]); });
  }
  if (!dense_targets) return;
  for (int j = 0; j < LANES; ++j) max[j] = lowest_<T>();  // as `exact_classes` expects for the likeliest class
  for (int64_t k = 0; k < K; ++k) {
    const T* u = w + k * LANES;
    each_lane([&](int j) { max[j] = u[j] > max[j] ? u[j] : max[j]; });
  }
  each_lane([&](int j) {
    log_norm[j] = ((hi[j] - max[j]) + lo[j]) * link.scale;
    rest[j] = log_norm[j] < T(0.69) ? T(0) : T(1);
  });
}

// A row whose coefficients are all 0 is silent: its gradient is 0 whatever its logits. Coefficients that are the same
// for all rows are read in the first tile only.
template <class T, int LANES>
XENT_ONCE void Tile<T, LANES>::coefficients() {
  if (opened > 1 && all_same) return;
  column(job.dl, dl);
  column(job.dx, dx);
  column(job.ds, ds);
  alignas(64) Int none[LANES], found = 0, derived = 0;
#pragma omp simd reduction(| : found, derived)
  for (int j = 0; j < LANES; ++j) {
    derived |= dl[j] != T(0);
    found |= none[j] = (dl[j] == T(0)) & (dx[j] == T(0)) & (ds[j] == T(0)) & (ddl[j] == T(0)) & (ddx[j] == T(0));
    of_p[j] = dl[j] - dx[j];
  }
  derives_lse = derived;
  if (dense_targets) each_lane([&](int j) { of_p[j] -= ds[j] * mass[j]; });
  all_same = !found && !dense_targets && !job.dl.data && !job.dx.data && !job.ds.data && !job.ddl.data && !job.ddx.data;
  if (!found) return;
  for (int j = 0; j < LANES; ++j) {
    if (!special) silent[j] = broken[j] = 0;
    silent[j] |= none[j];
  }
  special = true;
}

// Coefficients::bracket of row.h, in T and without branches; `is_label` is 1 or 0. Without COUNTS_P p is
// 1 − left, which lacks the digits of a small p: for elements to which p does not contribute.
template <class T, int LANES>
template <bool DENSE, bool COUNTS_P>
XENT_INLINE T Tile<T, LANES>::bracket(int j, T log_p, T is_label, T v_k) const {
  const T left = -expm1_(log_p), p = COUNTS_P ? exp_(log_p) : T(1) - left;
  T value = dl[j] * p + dx[j] * (is_label * left - (T(1) - is_label) * p);
  if constexpr (DENSE) value += ds[j] * choose(p > T(0.5), (v_k - mass[j]) + mass[j] * left, v_k - mass[j] * p);
  return value;
}

// φ'·(of_p·e + ds·v), exact at the label and at a class of p > 1/2: written class by class to the output if it
// has that layout, else to e.
template <class T, int LANES>
void Tile<T, LANES>::write_gradient() {
  dense_targets ? exact_classes<true>() : exact_classes<false>();
  const auto write = [&](auto place) {
    using To = decltype(place);
    if (phi.capped) dense_targets ? gradient<To, true, true>() : gradient<To, false, true>();
    else dense_targets ? gradient<To, true, false>() : gradient<To, false, false>();
  };
  if (planar(job.out) && !special) return by_storage<T>(job.storage, [&](auto element) { write(&element); });
  write(nullptr);
  scatter_rows();
}

template <class T, int LANES>
template <bool DENSE>
XENT_ONCE void Tile<T, LANES>::exact_classes() {
  const Link<T> link = phi;
  alignas(64) Lanes slope, v_top = {};
  const auto slopes_of = [&](const T* u) {
    if (phi.capped) each_lane([&](int j) { slope[j] = link.template slope<true>(u[j]); });
    else each_lane([&](int j) { slope[j] = link.slope_at_0; });
  };
  if (phi.capped) pick(w, w_y);
  slopes_of(w_y);
  if (DENSE || derives_lse)
    each_lane([&](int j) { at_label[j] = slope[j] * bracket<DENSE, true>(j, x[j], T(1), v_y[j]); });
  else each_lane([&](int j) { at_label[j] = slope[j] * bracket<DENSE, false>(j, x[j], T(1), v_y[j]); });
  if constexpr (DENSE) {
    find_likeliest(v, v_top);
    slopes_of(max);
    each_lane([&](int j) {
      at_top[j] = slope[j] * bracket<DENSE, true>(j, -log_norm[j], T(label[j] == likeliest[j]), v_top[j]);
      likeliest[j] = rest[j] < T(1) ? likeliest[j] : Int(-1);
    });
  }
}

// To is S* for planes of S, or nullptr_t.
template <class T, int LANES>
template <class To, bool DENSE, bool CAP>
XENT_ONCE void Tile<T, LANES>::gradient() {
  const Link<T> link = phi;
  alignas(64) Lanes factor, add;
  each_lane([&](int j) {
    factor[j] = CAP ? of_p[j] * norm[j] : of_p[j] * norm[j] * link.slope_at_0;
    if constexpr (DENSE) add[j] = CAP ? ds[j] : ds[j] * link.slope_at_0;
  });
  const bool past_cache = this->stream_planes;
  const int64_t step = this->plane_step();
  char* plane = this->planes();
  for (int64_t k = 0; k < K; ++k, plane += step) {
    const T *u = w + k * LANES, *vk = v + k * LANES;
    T* p = e + k * LANES;
    alignas(64) Lanes line;
    T* const to = std::is_same_v<To, std::nullptr_t> ? p : line;
    each_lane([&](int j) {
      T value = factor[j] * p[j];
      if constexpr (DENSE) value += add[j] * vk[j];
      if constexpr (CAP) value *= link.template slope<true>(u[j]);
      if constexpr (DENSE) value = likeliest[j] == Int(k) ? at_top[j] : value;
      to[j] = label[j] == Int(k) ? at_label[j] : value;
    });
    if constexpr (!std::is_same_v<To, std::nullptr_t>)
      past_cache ? stream(line, To(plane), LANES) : narrow(line, To(plane), LANES);
  }
}

}  // namespace XENT_ISA
}  // namespace xent
