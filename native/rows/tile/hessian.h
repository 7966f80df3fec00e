// The Hessian product of a tile, equation (3), with r̃ relative to the likeliest class's as in wide/hessian.h.
#pragma once
#include "tile.h"

namespace xent {
namespace XENT_ISA {

template <class T, int LANES>
XENT_ONCE void Tile<T, LANES>::hessian_product() {
  const Link<T> link = phi;
  const T labelled = job.labels ? T(1) : T(0);
  column(job.ddl, ddl);
  column(job.ddx, ddx);
  coefficients();
  alignas(64) Lanes centre = {}, delta, constant, r_y, slope;
  find_likeliest(r, centre);
  pick(w, w_y);
  pick(r, r_y);
  if (phi.capped) {
    each_lane([&](int j) {
      centre[j] *= link.template slope<true>(max[j]);
      slope[j] = link.template slope<true>(w_y[j]);
    });
    hessian_moment<true>(centre, delta);
  } else {
    each_lane([&](int j) {
      centre[j] *= link.slope_at_0;
      slope[j] = link.slope_at_0;
    });
    hessian_moment<false>(centre, delta);
  }
  each_lane([&](int j) {
    const T p = exp_(x[j]);
    const T shifted = slope[j] * r_y[j] - centre[j] - delta[j], ddl_rho = ddl[j] * (centre[j] + delta[j]);
    const T kappa = labelled * ddx[j] * shifted;
    const T product = of_p[j] * p * shifted + ddl_rho * p - kappa * expm1_(x[j]);
    constant[j] = ddl_rho - kappa;
    at_label[j] = slope[j] * product;
  });
  if (!phi.capped) {
    hessian_classes<false, false>(centre, delta, constant);
  } else {
    const auto bend = [&](auto dense) {
      each_lane([&](int j) {
        at_label[j] += link.template curvature<true>(w_y[j]) * r_y[j] *
                       this->template bracket<decltype(dense)::value, true>(j, x[j], T(1), v_y[j]);
      });
      hessian_classes<true, decltype(dense)::value>(centre, delta, constant);
    };
    dense_targets ? bend(std::true_type()) : bend(std::false_type());
  }
  scatter_rows();
}

// e becomes p, and delta = Σ p·(r̃ − centre).
template <class T, int LANES>
template <bool CAP>
XENT_ONCE void Tile<T, LANES>::hessian_moment(const T* centre, T* delta) {
  const Link<T> link = phi;
  alignas(64) Lanes part = {};
  double sum[LANES] = {};
  for (int64_t k = 0; k < K; ++k) {
    T *p = e + k * LANES, *u = w + k * LANES, *rk = r + k * LANES;
    each_lane([&](int j) {
      p[j] *= norm[j];
      part[j] += only(p[j] != T(0), p[j] * (link.template slope<CAP>(u[j]) * rk[j] - centre[j]));
    });
    if ((k + 1) % FLUSH == 0 || k + 1 == K) flush(part, sum);
  }
  for (int j = 0; j < LANES; ++j) delta[j] = T(sum[j]);
}

template <class T, int LANES>
template <bool CAP, bool DENSE>
XENT_ONCE void Tile<T, LANES>::hessian_classes(const T* centre, const T* delta, const T* constant) {
  const Link<T> link = phi;
  for (int64_t k = 0; k < K; ++k) {
    T *p = e + k * LANES, *u = w + k * LANES, *rk = r + k * LANES, *vk = v + k * LANES;
    each_lane([&](int j) {
      T slope = link.template slope<CAP>(u[j]);
      T value = slope * p[j] * (of_p[j] * ((slope * rk[j] - centre[j]) - delta[j]) + constant[j]);
      if constexpr (CAP) {
        T g = of_p[j] * p[j];
        if constexpr (DENSE) g += ds[j] * vk[j];
        value += link.template curvature<true>(u[j]) * rk[j] * g;
      }
      p[j] = label[j] == Int(k) ? at_label[j] : value;
    });
  }
}

}  // namespace XENT_ISA
}  // namespace xent
