// Kernels across rows: a tile of LANES rows is laid out class by class in scratch memory and every loop
// runs over its rows. For few classes, and for any strides (classes on another axis).
#pragma once
#include "row.h"

namespace xent {
namespace XENT_ISA {

template <class S, bool CAP, bool DENSE, int LANES>
class Tile {
  using T = typename ComputeOf<S>::type;
  static constexpr int64_t FLUSH = 256;  // classes summed in T before the sum goes into a double

  const Job& job;
  const LinkOf<T, CAP> phi;  // each method copies it: a load inside a loop that stores is not invariant
  const int64_t K;
  T *e, *w, *v, *r;  // (K, LANES) each: exponentials, linked logits, dense targets, vector
  Position where[LANES];
  int64_t first = 0, label[LANES];
  int lanes = 0;
  T max[LANES], rest[LANES], log_norm[LANES], norm[LANES], mass[LANES], dense[LANES], entropy[LANES];
  T x[LANES], dl[LANES], dx[LANES], ds[LANES], of_p[LANES];
  bool silent[LANES], broken[LANES];

 public:
  static size_t scratch_bytes(const Job& job) { return size_t(4 * job.classes * LANES) * sizeof(T); }

  Tile(const Job& job, void* scratch)
      : job(job),
        phi(job.inv_temperature, job.softcap),
        K(job.classes),
        e(static_cast<T*>(scratch)),
        w(e + K * LANES),
        v(w + K * LANES),
        r(v + K * LANES) {}

  void stats(int64_t begin, int64_t end, bool with_grad) {
    open(begin, end);
    sweep();
    finish();
    report();
    if (!with_grad) return;
    coefficients();
    for (int j = 0; j < LANES; ++j) of_p[j] *= norm[j];
    write_gradient();
  }

  void grad(int64_t begin, int64_t end) {
    const LinkOf<T, CAP> link = phi;
    open(begin, end);
    T hi[LANES], lo[LANES];
    for (int j = 0; j < LANES; ++j) {
      const int64_t row = first + (j < lanes ? j : 0);
      const double lse = job.in_lse[row] / double(link.scale);
      hi[j] = T(lse);  // lse as an unevaluated sum, so that w − hi is exact where p matters
      lo[j] = T(lse - double(hi[j]));
      mass[j] = DENSE ? T(job.in_mass[row]) : T(0);
      x[j] = job.labels ? T(job.in_log_prob[row]) : T(0);
      norm[j] = 1;
    }
    for (int64_t k = 0; k < K; ++k) {
      T *p = e + k * LANES, *u = w + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) p[j] = exp_(((u[j] - hi[j]) - lo[j]) * link.scale);
    }
    for (int j = 0; j < LANES && DENSE; ++j) {  // what `write_gradient` asks of the likeliest class
      max[j] = w[top(j) * LANES + j];
      log_norm[j] = ((hi[j] - max[j]) + lo[j]) * link.scale;
      rest[j] = log_norm[j] < T(0.69) ? T(0) : T(1);
    }
    coefficients();
    write_gradient();
  }

  // Equation (3), with r̃ relative to the likeliest class's as in wide.h.
  void hvp(int64_t begin, int64_t end) {
    const LinkOf<T, CAP> link = phi;
    open(begin, end);
    gather<S>(job.vector, r, [](T value) { return value; });
    sweep();
    finish();
    coefficients();
    T centre[LANES], delta[LANES] = {}, constant[LANES], ddl_rho[LANES], kappa[LANES], shifted[LANES];
    double sum[LANES] = {};
    for (int j = 0; j < LANES; ++j) {
      const int64_t k = top(j) * LANES + j;
      centre[j] = link.slope(w[k]) * r[k];
    }
    for (int64_t k = 0; k < K; ++k) {
      T *p = e + k * LANES, *u = w + k * LANES, *rk = r + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        p[j] *= norm[j];
        delta[j] += only(p[j] != T(0), p[j] * (link.slope(u[j]) * rk[j] - centre[j]));
      }
      if ((k + 1) % FLUSH == 0 || k + 1 == K) flush(delta, sum);
    }
    for (int j = 0; j < LANES; ++j) {
      const int64_t row = first + (j < lanes ? j : 0), k = label[j] * LANES + j;
      delta[j] = T(sum[j]);
      shifted[j] = link.slope(w[k]) * r[k] - centre[j] - delta[j];
      kappa[j] = job.labels ? T(job.ddx[row]) * shifted[j] : T(0);
      ddl_rho[j] = T(job.ddl[row]) * (centre[j] + delta[j]);
      constant[j] = ddl_rho[j] - kappa[j];
      const bool absent = job.labels && job.labels[row] < 0;
      silent[j] = absent || (silent[j] && job.ddl[row] == 0 && job.ddx[row] == 0);
    }
    if (job.labels) {  // the label's element, before e is overwritten
      for (int j = 0; j < LANES; ++j) {
        const int64_t k = label[j] * LANES + j;
        const T p = exp_(x[j]), product = of_p[j] * p * shifted[j] + ddl_rho[j] * p - kappa[j] * expm1_(x[j]);
        shifted[j] = link.slope(w[k]) * product + (CAP ? link.curvature(w[k]) * r[k] * bracket(j, x[j], true, k) : T(0));
      }
    }
    for (int64_t k = 0; k < K; ++k) {
      T *p = e + k * LANES, *u = w + k * LANES, *rk = r + k * LANES, *vk = v + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        T slope = link.slope(u[j]);
        T value = slope * p[j] * (of_p[j] * ((slope * rk[j] - centre[j]) - delta[j]) + constant[j]);
        if constexpr (CAP) {
          T g = of_p[j] * p[j];
          if constexpr (DENSE) g += ds[j] * vk[j];
          value += link.curvature(u[j]) * rk[j] * g;
        }
        p[j] = value;
      }
    }
    if (job.labels)
      for (int j = 0; j < LANES; ++j) e[label[j] * LANES + j] = shifted[j];
    scatter();
  }

 private:
  void open(int64_t begin, int64_t end) {
    first = begin;
    lanes = int(end - begin);
    for (int j = 0; j < lanes; ++j) {
      where[j] = position(job, begin + j);
      const int64_t y = job.labels ? job.labels[begin + j] : 0;
      silent[j] = y < 0;
      broken[j] = job.labels && y >= K;
      label[j] = silent[j] || broken[j] ? 0 : y;
    }
    for (int j = lanes; j < LANES; ++j) where[j] = where[0], label[j] = 0, silent[j] = broken[j] = false;
    gather<S>(job.z, w, [link = phi](T z) { return link.value(z); });
    if constexpr (DENSE) gather<T>(job.dense, v, [](T value) { return value; });
  }

  // Rows of the tile lie `*step` apart in `x`, if they do.
  bool evenly(const Strided& x, int64_t* step) const {
    auto offset = [&](int j) { return where[j].outer * x.outer + where[j].inner * x.inner; };
    *step = lanes > 1 ? offset(1) - offset(0) : 1;
    return where[lanes - 1].outer == where[0].outer || job.inner == 1;
  }

  template <class From, class F>
  void gather(const Strided& x, T* to, F f) const {
    int64_t step;
    if (evenly(x, &step) && step == 1 && lanes == LANES) {
      const From* from = at<From>(x, where[0]);
      for (int64_t k = 0; k < K; ++k) {
        const From* source = from + k * x.cls;
        T* target = to + k * LANES;
#pragma omp simd
        for (int j = 0; j < LANES; ++j) target[j] = f(load(source[j]));
      }
      return;
    }
    for (int j = 0; j < LANES; ++j) {  // idle lanes repeat the first row
      const From* from = at<From>(x, where[j]);
      for (int64_t k = 0; k < K; ++k) to[k * LANES + j] = load(from[k * x.cls]);
    }
    if constexpr (CAP)
      for (int64_t i = 0; i < K; ++i) {
        T* u = to + i * LANES;
#pragma omp simd
        for (int j = 0; j < LANES; ++j) u[j] = f(u[j]);
      }
  }

  void scatter() {
    bool special = false;
    for (int j = 0; j < lanes; ++j) special |= silent[j] || broken[j];
    for (int j = 0; j < lanes && special; ++j)
      if (silent[j] || broken[j])
        for (int64_t k = 0; k < K; ++k) e[k * LANES + j] = silent[j] ? T(0) : nan_<T>();
    int64_t step;
    if (evenly(job.out, &step) && step == 1 && lanes == LANES) {
      S* to = at<S>(job.out, where[0]);
      for (int64_t k = 0; k < K; ++k) {
        S* target = to + k * job.out.cls;
        const T* from = e + k * LANES;
#pragma omp simd
        for (int j = 0; j < LANES; ++j) target[j] = store<S>(from[j]);
      }
      return;
    }
    for (int j = 0; j < lanes; ++j) {
      S* to = at<S>(job.out, where[j]);
      for (int64_t k = 0; k < K; ++k) to[k * job.out.cls] = store<S>(e[k * LANES + j]);
    }
  }

  static void flush(T* part, double* sum) {
    for (int j = 0; j < LANES; ++j) sum[j] += double(part[j]), part[j] = 0;
  }

  // Maxima, exponentials, and their sums without the largest term (DESIGN §2).
  void sweep() {
    const LinkOf<T, CAP> link = phi;
    T below[LANES] = {}, ties[LANES] = {}, part_dense[LANES] = {}, part_mass[LANES] = {}, part_entropy[LANES] = {};
    double sum[LANES] = {}, sum_dense[LANES] = {}, sum_mass[LANES] = {}, sum_entropy[LANES] = {};
    for (int j = 0; j < LANES; ++j) max[j] = lowest_<T>();
    for (int64_t k = 0; k < K; ++k) {
      const T* u = w + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) max[j] = u[j] > max[j] ? u[j] : max[j];
    }
    for (int64_t k = 0; k < K; ++k) {
      const T *u = w + k * LANES, *vk = v + k * LANES;
      T* p = e + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        T d = (u[j] - max[j]) * link.scale;
        T value = exp_(d);
        p[j] = value;
        T tie = only(d == T(0), T(1));  // then value = 1
        ties[j] += tie;
        below[j] += value - tie;
        if constexpr (DENSE) {
          part_mass[j] += vk[j];
          part_dense[j] += only(vk[j] != T(0), vk[j] * d);
        }
      }
      if (job.entropy) {
#pragma omp simd
        for (int j = 0; j < LANES; ++j)
          part_entropy[j] += only(p[j] != T(0), p[j] * ((u[j] - max[j]) * link.scale));
      }
      if ((k + 1) % FLUSH == 0 || k + 1 == K) {
        flush(below, sum);
        if constexpr (DENSE) flush(part_dense, sum_dense), flush(part_mass, sum_mass);
        if (job.entropy) flush(part_entropy, sum_entropy);
      }
    }
    for (int j = 0; j < LANES; ++j) {
      rest[j] = ties[j] < T(1) ? nan_<T>() : T(sum[j] + double(ties[j] - T(1)));
      dense[j] = T(sum_dense[j]);
      mass[j] = T(sum_mass[j]);
      entropy[j] = T(sum_entropy[j]);
    }
  }

  void finish() {
    const LinkOf<T, CAP> link = phi;
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      log_norm[j] = log1p_(rest[j]);
      norm[j] = T(1) / (T(1) + rest[j]);
    }
    for (int j = 0; j < LANES; ++j) x[j] = job.labels ? w[label[j] * LANES + j] : T(0);
#pragma omp simd
    for (int j = 0; j < LANES; ++j) x[j] = (x[j] - max[j]) * link.scale - log_norm[j];
  }

  void report() const {
    const LinkOf<T, CAP> link = phi;
    auto put = [&](double* to, auto value) {
      if (!to) return;
      for (int j = 0; j < lanes; ++j)
        to[first + j] = silent[j] ? 0.0 : broken[j] ? nan_<double>() : double(value(j));
    };
    put(job.lse, [&](int j) { return double(max[j]) * link.scale + double(log_norm[j]); });
    put(job.log_prob, [&](int j) { return x[j]; });
    put(job.dense_log_prob, [&](int j) { return dense[j] - (mass[j] != T(0) ? mass[j] * log_norm[j] : T(0)); });
    put(job.mass, [&](int j) { return mass[j]; });
    put(job.entropy, [&](int j) { return log_norm[j] - entropy[j] * norm[j]; });
    if (job.argmax)
      for (int j = 0; j < lanes; ++j) job.argmax[first + j] = silent[j] ? 0 : top(j);
  }

  void coefficients() {
    for (int j = 0; j < LANES; ++j) {
      const int64_t row = first + (j < lanes ? j : 0);
      dl[j] = T(job.dl[row]), dx[j] = T(job.dx[row]), ds[j] = T(job.ds[row]);
      silent[j] = silent[j] || (job.dl[row] == 0 && job.dx[row] == 0 && job.ds[row] == 0);
      of_p[j] = dl[j] - dx[j] - (DENSE ? ds[j] * mass[j] : T(0));
    }
  }

  // Coefficients::bracket of row.h, in T: at class-and-lane `k` of log-probability `log_p`.
  T bracket(int j, T log_p, bool is_label, int64_t k) const {
    const T p = exp_(log_p), left = -expm1_(log_p);
    T value = dl[j] * p + dx[j] * (is_label ? left : -p);
    if constexpr (DENSE) value += ds[j] * (p > T(0.5) ? (v[k] - mass[j]) + mass[j] * left : v[k] - mass[j] * p);
    return value;
  }

  // The gradient replaces e: φ'·(of_p·e + ds·v), exact at the label and at a class of p > 1/2.
  void write_gradient() {
    const LinkOf<T, CAP> link = phi;
    T at_label[LANES];
    if (job.labels)
      for (int j = 0; j < LANES; ++j) at_label[j] = bracket(j, x[j], true, label[j] * LANES + j);
    for (int64_t k = 0; k < K; ++k) {
      T *p = e + k * LANES, *vk = v + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        p[j] *= of_p[j];
        if constexpr (DENSE) p[j] += ds[j] * vk[j];
      }
    }
    for (int j = 0; j < LANES && DENSE; ++j) {
      if (!(rest[j] < T(1))) continue;
      const int64_t t = top(j), k = t * LANES + j;
      e[k] = bracket(j, -log_norm[j], job.labels && t == label[j], k);
    }
    if (job.labels)
      for (int j = 0; j < LANES; ++j) e[label[j] * LANES + j] = at_label[j];
    for (int64_t k = 0; k < K; ++k) {
      T *p = e + k * LANES, *u = w + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) p[j] *= link.slope(u[j]);
    }
    scatter();
  }

  int64_t top(int j) const {
    const S* z = at<S>(job.z, where[j]);
    int64_t best = 0;
    for (int64_t k = 1; k < K; ++k)
      if (load(z[k * job.z.cls]) > load(z[best * job.z.cls])) best = k;
    return best;
  }
};

template <class S, bool CAP, bool DENSE, Op OP, int LANES>
bool tile_rows(const Job& job, int64_t begin, int64_t end) {
  using Tiles = Tile<S, CAP, DENSE, LANES>;
  Scratch scratch(Tiles::scratch_bytes(job));
  if (!scratch.data) return false;
  Tiles tile(job, scratch.data);
  for (int64_t row = begin; row < end; row += LANES) {
    const int64_t last = row + LANES < end ? row + LANES : end;
    if constexpr (OP == STATS) tile.stats(row, last, false);
    if constexpr (OP == STATS_AND_GRAD) tile.stats(row, last, true);
    if constexpr (OP == GRAD) tile.grad(row, last);
    if constexpr (OP == HVP) tile.hvp(row, last);
  }
  return true;
}

}  // namespace XENT_ISA
}  // namespace xent
