// Kernels across rows: a tile of LANES rows is laid out class by class in scratch memory and every loop
// runs over its rows. For few classes, and for any strides (classes on another axis).
#pragma once
#include "tile_memory.h"

namespace xent {
namespace XENT_ISA {

template <class S, bool CAP, bool DENSE, int LANES>
class Tile : TileMemory<S, CAP, LANES> {
  using Memory = TileMemory<S, CAP, LANES>;
  using T = typename Memory::T;
  using Memory::job, Memory::K, Memory::first, Memory::lanes, Memory::affine, Memory::start;
  using Memory::step, Memory::planar, Memory::prefetch;
  static constexpr int CHUNK = 16;       // rows summed together
  static constexpr int64_t FLUSH = 256;  // classes summed in T before the sum goes into a double

  const LinkOf<T, CAP> phi;  // each method copies it: a load inside a loop that stores is not invariant
  T *e, *w, *v, *r;  // (K, LANES) each: exponentials, linked logits, dense targets, vector
  int64_t label[LANES];
  int opened = 0;
  bool special = false;  // some row is silent or broken
  T max[LANES], rest[LANES], log_norm[LANES], norm[LANES], mass[LANES] = {}, dense[LANES] = {}, entropy[LANES] = {};
  T x[LANES], dl[LANES], dx[LANES], ds[LANES], of_p[LANES], v_y[LANES] = {}, ddl[LANES], ddx[LANES];
  int32_t silent[LANES], broken[LANES];

 public:
  static size_t scratch_bytes(const Job& job) { return size_t(4 * job.classes * LANES) * sizeof(T); }

  Tile(const Job& job, void* scratch)
      : Memory(job),
        phi(job.inv_temperature, job.softcap),
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
#pragma omp simd
    for (int j = 0; j < LANES; ++j) of_p[j] *= norm[j];
    write_gradient();
  }

  void grad(int64_t begin, int64_t end) {
    const LinkOf<T, CAP> link = phi;
    open(begin, end);
    T hi[LANES] = {}, lo[LANES] = {};
    const double* lse = job.in_lse + first;
    const double scale = double(link.scale);
#pragma omp simd
    for (int j = 0; j < lanes; ++j) {  // lse as an unevaluated sum, so that w − hi is exact where p matters
      hi[j] = T(lse[j] / scale);
      lo[j] = T(lse[j] / scale - double(hi[j]));
    }
    column({job.in_mass, 0.0}, mass);
    column({job.in_log_prob, 0.0}, x);
    for (int64_t k = 0; k < K; ++k) {
      T *p = e + k * LANES, *u = w + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) p[j] = link.exp_scaled((u[j] - hi[j]) - lo[j]);
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
    this->template gather<S>(job.vector, r, [](T value) { return value; });
    sweep();
    finish();
    coefficients();
    T centre[LANES], delta[LANES] = {}, constant[LANES], at_label[LANES];
    double sum[LANES] = {};
    column(job.ddl, ddl);
    column(job.ddx, ddx);
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
    special = false;
    for (int j = 0; j < LANES; ++j) {  // the label's element, before e is overwritten
      const int64_t k = label[j] * LANES + j;
      delta[j] = T(sum[j]);
      const T shifted = link.slope(w[k]) * r[k] - centre[j] - delta[j], ddl_rho = ddl[j] * (centre[j] + delta[j]);
      const T kappa = job.labels ? ddx[j] * shifted : T(0), p = exp_(x[j]);
      const T product = of_p[j] * p * shifted + ddl_rho * p - kappa * expm1_(x[j]);
      constant[j] = ddl_rho - kappa;
      at_label[j] = link.slope(w[k]) * product + (CAP ? link.curvature(w[k]) * r[k] * bracket(j, x[j], true, v_y[j]) : T(0));
      const bool absent = job.labels && j < lanes && job.labels[first + j] < 0;
      silent[j] = absent || (silent[j] && ddl[j] == 0 && ddx[j] == 0);
      special |= silent[j] || broken[j];
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
    scatter_rows();
    put_labels(at_label);
  }

 private:
  XENT_ONCE void open(int64_t begin, int64_t end) {
    this->select(begin, end);
    ++opened;
    special = false;
    for (int j = 0; j < LANES; ++j) label[j] = silent[j] = broken[j] = 0;
    if (job.labels) {
      const int64_t* y = job.labels + begin;
      int32_t found = 0;
#pragma omp simd reduction(| : found)
      for (int j = 0; j < lanes; ++j) {
        silent[j] = y[j] < 0;
        broken[j] = y[j] >= K;
        found |= silent[j] | broken[j];
        label[j] = silent[j] | broken[j] ? 0 : y[j];
      }
      special = found;
    }
    this->template gather<S>(job.z, w, [link = phi](T z) { return link.value(z); });
    if constexpr (DENSE) {
      this->template gather<T>(job.dense, v, [](T value) { return value; });
      for (int j = 0; j < LANES; ++j) v_y[j] = v[label[j] * LANES + j];
    }
  }

  // A coefficient of each lane, in T. One for all rows is set in the first tile and stays.
  void column(const Column& c, T* to) {
    if (!c.data && opened > 1) return;
    const T other = T(c[first]);  // idle lanes get the first row's
    for (int j = 0; j < LANES; ++j) to[j] = other;
    if (!c.data) return;
    const double* from = c.data + first;
#pragma omp simd
    for (int j = 0; j < lanes; ++j) to[j] = T(from[j]);
  }

  void scatter_rows() {
    for (int j = 0; j < lanes && special; ++j)
      if (silent[j] || broken[j])
        for (int64_t k = 0; k < K; ++k) e[k * LANES + j] = silent[j] ? T(0) : nan_<T>();
    this->scatter(e);
  }

  template <int N>
  static void flush(T (&part)[N], double (&sum)[N]) {
    for (int j = 0; j < N; ++j) sum[j] += double(part[j]), part[j] = 0;
  }

  // Maxima, exponentials, and their sums without the largest term: a vector of rows at a time,
  // so that what is summed over the classes stays in registers.
  void sweep() {
    for (int j = 0; j < LANES; j += CHUNK) {
      for (int64_t k = K * j / LANES; k < K * (j + CHUNK) / LANES; ++k) prefetch(k);
      job.entropy ? sweep_chunk<true>(j) : sweep_chunk<false>(j);
    }
  }

  template <bool ENTROPY>
  XENT_ONCE void sweep_chunk(const int j0) {
    const LinkOf<T, CAP> link = phi;
    const int64_t classes = K;
    const T *u = w + j0, *vk = v + j0;
    T* p = e + j0;
    T top[CHUNK];
    for (int j = 0; j < CHUNK; ++j) top[j] = lowest_<T>();
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
      for (int j = 0; j < CHUNK; ++j) top[j] = u[k * LANES + j] > top[j] ? u[k * LANES + j] : top[j];
    T ties[CHUNK] = {}, below[CHUNK] = {}, part_dense[CHUNK] = {}, part_mass[CHUNK] = {}, part_entropy[CHUNK] = {};
    double sum[4][CHUNK] = {};
    for (int64_t begin = 0; begin < classes; begin += FLUSH) {
      const int64_t end = begin + FLUSH < classes ? begin + FLUSH : classes;
      for (int64_t k = begin; k < end; ++k)
#pragma omp simd
        for (int j = 0; j < CHUNK; ++j) {
          const T d = u[k * LANES + j] - top[j], value = link.exp_scaled(d);
          const T tie = only(d == T(0), T(1));  // then value = 1
          p[k * LANES + j] = value;
          ties[j] += tie;
          below[j] += value - tie;
          if constexpr (DENSE) {
            part_mass[j] += vk[k * LANES + j];
            part_dense[j] += only(vk[k * LANES + j] != T(0), vk[k * LANES + j] * d);
          }
          if constexpr (ENTROPY) part_entropy[j] += only(value != T(0), value * d);
        }
      if (classes <= FLUSH) break;
      flush(below, sum[0]);
      if constexpr (DENSE) flush(part_dense, sum[1]), flush(part_mass, sum[2]);
      if constexpr (ENTROPY) flush(part_entropy, sum[3]);
    }
    if (classes > FLUSH)
      for (int j = 0; j < CHUNK; ++j) {
        below[j] = T(sum[0][j] + double(ties[j] - T(1))), ties[j] = ties[j] < T(1) ? T(0) : T(1);
        part_dense[j] = T(sum[1][j]), part_mass[j] = T(sum[2][j]), part_entropy[j] = T(sum[3][j]);
      }
#pragma omp simd
    for (int j = 0; j < CHUNK; ++j) {
      max[j0 + j] = top[j];
      rest[j0 + j] = choose(ties[j] < T(1), nan_<T>(), below[j] + (ties[j] - T(1)));
      if constexpr (DENSE) dense[j0 + j] = part_dense[j] * link.scale, mass[j0 + j] = part_mass[j];
      if constexpr (ENTROPY) entropy[j0 + j] = part_entropy[j] * link.scale;
    }
  }

  XENT_ONCE void finish() {
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

  XENT_ONCE void report() const {
    const LinkOf<T, CAP> link = phi;
    put(job.lse, [&](int j) { return double(max[j]) * link.scale + double(log_norm[j]); });
    put(job.log_prob, [&](int j) { return double(x[j]); });
    put(job.dense_log_prob, [&](int j) { return double(dense[j]) - double(only(mass[j] != T(0), mass[j] * log_norm[j])); });
    put(job.mass, [&](int j) { return double(mass[j]); });
    put(job.entropy, [&](int j) { return double(log_norm[j] - entropy[j] * norm[j]); });
    if (job.argmax)
      for (int j = 0; j < lanes; ++j) job.argmax[first + j] = silent[j] ? 0 : top(j);
  }

  template <class F>
  void put(double* to, F value) const {
    if (!to) return;
    to += first;
#pragma omp simd
    for (int j = 0; j < lanes; ++j) to[j] = value(j);
    for (int j = 0; j < lanes && special; ++j)
      if (silent[j] || broken[j]) to[j] = silent[j] ? 0.0 : nan_<double>();
  }

  void coefficients() {
    column(job.dl, dl);
    column(job.dx, dx);
    column(job.ds, ds);
    int32_t found = special;
#pragma omp simd reduction(| : found)
    for (int j = 0; j < LANES; ++j) {
      silent[j] |= (dl[j] == T(0)) & (dx[j] == T(0)) & (ds[j] == T(0));
      found |= silent[j];
      of_p[j] = dl[j] - dx[j] - (DENSE ? ds[j] * mass[j] : T(0));
    }
    special = found;
  }

  // Coefficients::bracket of row.h, in T and without branches.
  XENT_INLINE T bracket(int j, T log_p, bool is_label, T v_k) const {
    const T left = -expm1_(log_p), p = DENSE ? exp_(log_p) : T(1) - left;
    T value = dl[j] * p + dx[j] * (is_label ? left : -p);
    if constexpr (DENSE) value += ds[j] * choose(p > T(0.5), (v_k - mass[j]) + mass[j] * left, v_k - mass[j] * p);
    return value;
  }

  // The gradient replaces e: φ'·(of_p·e + ds·v), exact at the label and at a class of p > 1/2.
  void write_gradient() {
    const LinkOf<T, CAP> link = phi;
    T factor[LANES], add[LANES], at_label[LANES];
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      at_label[j] = bracket(j, x[j], true, v_y[j]);
      factor[j] = CAP ? of_p[j] : of_p[j] * link.slope_at_0;
      add[j] = CAP ? ds[j] : ds[j] * link.slope_at_0;
    }
    auto gradient = [&](int64_t k, auto put) {
      const T *p = e + k * LANES, *u = w + k * LANES, *vk = v + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        T value = factor[j] * p[j];
        if constexpr (DENSE) value += add[j] * vk[j];
        if constexpr (CAP) value *= link.slope(u[j]);
        put(j, value);
      }
    };
    T at_top[LANES];
    int64_t likeliest[LANES];
    for (int j = 0; j < lanes && DENSE; ++j) {
      likeliest[j] = rest[j] < T(1) ? top(j) : -1;
      if (likeliest[j] < 0) continue;
      const int64_t t = likeliest[j], k = t * LANES + j;
      at_top[j] = link.slope(w[k]) * bracket(j, -log_norm[j], job.labels && t == label[j], v[k]);
    }
    for (int j = 0; j < lanes && job.labels; ++j) at_label[j] *= link.slope(w[label[j] * LANES + j]);
    if (planar(job.out) && !special) {
      S* to = at<S>(job.out, start);
      for (int64_t k = 0; k < K; ++k) {
        S* target = to + k * job.out.cls;
        gradient(k, [target](int j, T value) { target[j] = store<S>(value); });
      }
    } else {
      for (int64_t k = 0; k < K; ++k) {
        T* target = e + k * LANES;
        gradient(k, [target](int j, T value) { target[j] = value; });
      }
      scatter_rows();
    }
    for (int j = 0; j < lanes && DENSE; ++j)
      if (likeliest[j] >= 0) put_one(j, likeliest[j], at_top[j]);
    put_labels(at_label);
  }

  // The label's elements, after `scatter`: scalar stores before it would stall its vector loads.
  void put_labels(const T* value) {
    if (!job.labels) return;
    if (!affine || special) {
      for (int j = 0; j < lanes; ++j) put_one(j, label[j], value[j]);
      return;
    }
    S* out = at<S>(job.out, start);
    const int64_t row = step(job.out), cls = job.out.cls;
    const int n = lanes;
    for (int j = 0; j < n; ++j) out[j * row + label[j] * cls] = store<S>(value[j]);
  }

  XENT_INLINE void put_one(int j, int64_t k, T value) {
    if (special && (silent[j] || broken[j])) return;
    this->template lane<S>(job.out, j)[k * job.out.cls] = store<S>(value);
  }

  int64_t top(int j) const {
    const S* z = this->template lane<S>(job.z, j);
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
