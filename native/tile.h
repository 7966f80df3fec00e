// Kernels across rows: a tile of LANES rows is laid out class by class in scratch memory and every loop
// runs over its rows. For few classes, and for any strides (classes on another axis).
#pragma once
#include "tile_memory.h"

namespace xent {
namespace XENT_ISA {

template <class S, bool CAP, bool DENSE, int LANES>
class alignas(64) Tile : TileMemory<S, CAP, LANES> {
  using Memory = TileMemory<S, CAP, LANES>;
  using T = typename Memory::T;
  using Int = typename Real<T>::Int;
  using Lanes = T[LANES];
  using Memory::job, Memory::K, Memory::first, Memory::lanes, Memory::affine, Memory::start;
  using Memory::planar;
  static constexpr int CHUNK = LANES < 32 ? LANES : 32;  // rows summed together
  static constexpr int64_t FLUSH = 256;  // classes summed in T before the sum goes into a double

  const LinkOf<T, CAP> phi;  // each method copies it: a load inside a loop that stores is not invariant
  T *e, *w, *v, *r;  // (K, LANES) each: exponentials, linked logits, dense targets, vector
  int opened = 0;
  bool special = false;  // some row is silent or broken
  alignas(64) Int label[LANES], likeliest[LANES];  // −1: none, or not wanted
  alignas(64) Int silent[LANES], broken[LANES];
  alignas(64) Lanes max, rest, log_norm, norm, mass = {}, dense = {}, entropy = {};
  alignas(64) Lanes x, dl, dx, ds, of_p, w_y = {}, v_y = {}, ddl = {}, ddx = {}, at_label, at_top;

 public:
  static size_t scratch_bytes(const Job& job) { return size_t(4 * job.classes * LANES) * sizeof(T); }

  Tile(const Job& job, void* scratch)
      : Memory(job),
        phi(job.inv_temperature, job.softcap),
        e(static_cast<T*>(scratch)),
        w(e + K * LANES),
        v(w + K * LANES),
        r(v + K * LANES) {
    for (Int& none : label) none = -1;
  }

  using Memory::last;

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
    alignas(64) Lanes hi, lo;
    alignas(64) double padded[LANES];
    const double *lse = full(job.in_lse, padded), scale = double(link.scale);
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {  // lse as an unevaluated sum, so that w − hi is exact where p matters
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
    if constexpr (DENSE) {  // what `write_gradient` asks of the likeliest class
      for (int j = 0; j < LANES; ++j) max[j] = lowest_<T>();
      for (int64_t k = 0; k < K; ++k)
#pragma omp simd
        for (int j = 0; j < LANES; ++j) max[j] = w[k * LANES + j] > max[j] ? w[k * LANES + j] : max[j];
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        log_norm[j] = ((hi[j] - max[j]) + lo[j]) * link.scale;
        rest[j] = log_norm[j] < T(0.69) ? T(0) : T(1);
      }
    }
    coefficients();
    write_gradient();
  }

  // Equation (3), with r̃ relative to the likeliest class's as in wide.h.
  void hvp(int64_t begin, int64_t end) {
    const LinkOf<T, CAP> link = phi;
    const T labelled = job.labels ? T(1) : T(0);
    open(begin, end);
    this->template gather<S>(job.vector, r, e, [](T value) { return value; });
    sweep();
    finish();
    column(job.ddl, ddl);
    column(job.ddx, ddx);
    coefficients();
    alignas(64) Lanes centre = {}, delta = {}, constant, r_y;
    double sum[LANES] = {};
    find_likeliest(r, centre);
    pick(w, w_y);
    pick(r, r_y);
#pragma omp simd
    for (int j = 0; j < LANES; ++j) centre[j] *= link.slope(max[j]);
    for (int64_t k = 0; k < K; ++k) {
      T *p = e + k * LANES, *u = w + k * LANES, *rk = r + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        p[j] *= norm[j];
        delta[j] += only(p[j] != T(0), p[j] * (link.slope(u[j]) * rk[j] - centre[j]));
      }
      if ((k + 1) % FLUSH == 0 || k + 1 == K) flush(delta, sum);
    }
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      delta[j] = T(sum[j]);
      const T slope = link.slope(w_y[j]), p = exp_(x[j]);
      const T shifted = slope * r_y[j] - centre[j] - delta[j], ddl_rho = ddl[j] * (centre[j] + delta[j]);
      const T kappa = labelled * ddx[j] * shifted;
      const T product = of_p[j] * p * shifted + ddl_rho * p - kappa * expm1_(x[j]);
      constant[j] = ddl_rho - kappa;
      at_label[j] = slope * product;
      if constexpr (CAP) at_label[j] += link.curvature(w_y[j]) * r_y[j] * bracket(j, x[j], T(1), v_y[j]);
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
        p[j] = label[j] == Int(k) ? at_label[j] : value;
      }
    }
    scatter_rows();
  }

 private:
  XENT_ONCE void open(int64_t begin, int64_t end) {
    this->select(begin, end);
    ++opened;
    special = false;
    if (job.labels) {
      const uint64_t classes = uint64_t(K);
      alignas(64) int64_t padded[LANES];
      const int64_t* y = full(job.labels, padded);
      int64_t outside = 0;
#pragma omp simd reduction(| : outside)
      for (int j = 0; j < LANES; ++j) {
        const int64_t none = -int64_t(uint64_t(y[j]) >= classes);
        label[j] = Int(y[j] | none);
        outside |= none;
      }
      special = outside;
      for (int j = 0; j < LANES && special; ++j) silent[j] = y[j] < 0, broken[j] = y[j] >= K;
    }
    this->template gather<S>(job.z, w, e, [link = phi](T z) { return link.value(z); });
    if constexpr (DENSE) {
      this->template gather<T>(job.dense, v, e, [](T value) { return value; });
      pick(v, v_y);
    }
  }

  // The rows of this tile in an array of one value a row; idle lanes get the first row's.
  template <class A>
  const A* full(const A* all, A* padded) const {
    if (lanes == LANES) return all + first;
    for (int j = 0; j < LANES; ++j) padded[j] = all[first + (j < lanes ? j : 0)];
    return padded;
  }

  // A coefficient of each lane, in T. One for all rows is set in the first tile and stays.
  void column(const Column& c, T* to) {
    if (!c.data && opened > 1) return;
    alignas(64) double padded[LANES];
    for (int j = 0; j < LANES && !c.data; ++j) padded[j] = c.scalar;
    const double* from = c.data ? full(c.data, padded) : padded;
#pragma omp simd
    for (int j = 0; j < LANES; ++j) to[j] = T(from[j]);
  }

  // What `from` (K, LANES) holds at the label; class 0's where there is none.
  void pick(const T* from, T* to) const {
    for (int j = 0; j < LANES; ++j) to[j] = from[(label[j] < 0 ? 0 : label[j]) * LANES + j];
  }

  // A class of the largest w, and what `from` (K, LANES) holds there; none in a row of NaN.
  void find_likeliest(const T* from, T* to) {
    for (int j = 0; j < LANES; ++j) likeliest[j] = -1;
    for (int64_t k = 0; k < K; ++k) {
      const T *u = w + k * LANES, *value = from + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        const bool here = u[j] == max[j];
        likeliest[j] = here ? Int(k) : likeliest[j];
        to[j] = choose(here, value[j], to[j]);
      }
    }
  }

  void scatter_rows() {
    for (int j = 0; j < lanes && special; ++j)
      if (silent[j] || broken[j])
        for (int64_t k = 0; k < K; ++k) e[k * LANES + j] = silent[j] ? T(0) : nan_<T>();
    this->scatter(e, w);
  }

  template <int N>
  static void flush(T (&part)[N], double (&sum)[N]) {
    for (int j = 0; j < N; ++j) sum[j] += double(part[j]), part[j] = 0;
  }

  // Maxima, exponentials, and their sums without the largest term: a vector of rows at a time,
  // so that what is summed over the classes stays in registers.
  void sweep() {
    for (int j = 0; j < LANES; j += CHUNK) job.entropy ? sweep_chunk<true>(j) : sweep_chunk<false>(j);
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
      for (int64_t k = begin; k < end; ++k) {
        this->template prefetch<CHUNK>(k, j0);
#pragma omp simd
        for (int j = 0; j < CHUNK; ++j) {
          const T d = u[k * LANES + j] - top[j], value = link.exp_scaled(d);
          p[k * LANES + j] = value;
          const T tie = only(d == T(0), T(1));  // then value = 1
          ties[j] += tie;
          below[j] += value - tie;
          if constexpr (DENSE) {
            part_mass[j] += vk[k * LANES + j];
            part_dense[j] += only(vk[k * LANES + j] != T(0), vk[k * LANES + j] * d);
          }
          if constexpr (ENTROPY) part_entropy[j] += only(value != T(0), value * d);
        }
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
    pick(w, x);
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      norm[j] = T(1) / (T(1) + rest[j]);
      log_norm[j] = log1p_(rest[j], norm[j]);
      x[j] = (x[j] - max[j]) * link.scale - log_norm[j];
    }
  }

  XENT_ONCE void report() const {
    const LinkOf<T, CAP> link = phi;
    put(job.lse, [&](int j) { return double(max[j]) * link.scale + double(log_norm[j]); });
    put(job.log_prob, [&](int j) { return double(x[j]); });
    put(job.dense_log_prob,
        [&](int j) { return double(dense[j]) - double(only(mass[j] != T(0), mass[j] * log_norm[j])); });
    put(job.mass, [&](int j) { return double(mass[j]); });
    put(job.entropy, [&](int j) { return double(log_norm[j] - entropy[j] * norm[j]); });
    if (job.argmax)
      for (int j = 0; j < lanes; ++j) job.argmax[first + j] = special && silent[j] ? 0 : top(j);
  }

  template <class F>
  void put(double* to, F value) const {
    if (!to) return;
    alignas(64) double padded[LANES];
    double* target = lanes == LANES ? to + first : padded;
#pragma omp simd
    for (int j = 0; j < LANES; ++j) target[j] = value(j);
    for (int j = 0; j < LANES && special; ++j)
      if (silent[j] || broken[j]) target[j] = silent[j] ? 0.0 : nan_<double>();
    if (target == padded) std::memcpy(to + first, padded, size_t(lanes) * sizeof(double));
  }

  // A row whose coefficients are all 0 is silent: its gradient is 0 whatever its logits.
  XENT_ONCE void coefficients() {
    column(job.dl, dl);
    column(job.dx, dx);
    column(job.ds, ds);
    alignas(64) Int none[LANES], found = 0;
#pragma omp simd reduction(| : found)
    for (int j = 0; j < LANES; ++j) {
      found |= none[j] = (dl[j] == T(0)) & (dx[j] == T(0)) & (ds[j] == T(0)) & (ddl[j] == T(0)) & (ddx[j] == T(0));
      of_p[j] = dl[j] - dx[j] - (DENSE ? ds[j] * mass[j] : T(0));
    }
    if (!found) return;
    for (int j = 0; j < LANES; ++j) {
      if (!special) silent[j] = broken[j] = 0;
      silent[j] |= none[j];
    }
    special = true;
  }

  // Coefficients::bracket of row.h, in T and without branches; `is_label` is 1 or 0.
  XENT_INLINE T bracket(int j, T log_p, T is_label, T v_k) const {
    const T left = -expm1_(log_p), p = DENSE ? exp_(log_p) : T(1) - left;
    T value = dl[j] * p + dx[j] * (is_label * left - (T(1) - is_label) * p);
    if constexpr (DENSE) value += ds[j] * choose(p > T(0.5), (v_k - mass[j]) + mass[j] * left, v_k - mass[j] * p);
    return value;
  }

  // The gradient replaces e: φ'·(of_p·e + ds·v), exact at the label and at a class of p > 1/2.
  XENT_ONCE void write_gradient() {
    const LinkOf<T, CAP> link = phi;
    alignas(64) Lanes factor, add, v_top = {};
    if constexpr (CAP) pick(w, w_y);
    if constexpr (DENSE) find_likeliest(v, v_top);
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      at_label[j] = link.slope(w_y[j]) * bracket(j, x[j], T(1), v_y[j]);
      if constexpr (!DENSE) label[j] = dx[j] == 0 ? Int(-1) : label[j];  // 1 - left has no digits of a small p
      factor[j] = CAP ? of_p[j] : of_p[j] * link.slope_at_0;
      add[j] = CAP ? ds[j] : ds[j] * link.slope_at_0;
      if constexpr (DENSE) {
        at_top[j] = link.slope(max[j]) * bracket(j, -log_norm[j], T(label[j] == likeliest[j]), v_top[j]);
        likeliest[j] = rest[j] < T(1) ? likeliest[j] : Int(-1);
      }
    }
    const bool direct = planar(job.out) && !special;
    for (int64_t k = 0; k < K; ++k) {
      const T *u = w + k * LANES, *vk = v + k * LANES;
      T* p = e + k * LANES;
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        T value = factor[j] * p[j];
        if constexpr (DENSE) value += add[j] * vk[j];
        if constexpr (CAP) value *= link.slope(u[j]);
        if constexpr (DENSE) value = likeliest[j] == Int(k) ? at_top[j] : value;
        p[j] = label[j] == Int(k) ? at_label[j] : value;
      }
      if (direct) this->put_plane(k, p);
    }
    if (!direct) scatter_rows();
  }

  int64_t top(int j) const {  // the first of the largest; NaN is none of them
    const S* z = this->template lane<S>(job.z, j);
    T best = nan_<T>();
    int64_t first = 0;
    for (int64_t k = 0; k < K; ++k)
      if (const T value = load(z[k * job.z.cls]); value > best || (best != best && value == value))
        best = value, first = k;
    return first;
  }
};

template <class S, bool CAP, bool DENSE, Op OP, int LANES>
bool tile_rows(const Job& job, int64_t begin, int64_t end) {
  using Tiles = Tile<S, CAP, DENSE, LANES>;
  Scratch scratch(Tiles::scratch_bytes(job));
  if (!scratch.data) return false;
  Tiles tile(job, scratch.data);
  for (int64_t row = begin, last; row < end; row = last) {
    last = tile.last(row, end);
    if constexpr (OP == STATS) tile.stats(row, last, false);
    if constexpr (OP == STATS_AND_GRAD) tile.stats(row, last, true);
    if constexpr (OP == GRAD) tile.grad(row, last);
    if constexpr (OP == HVP) tile.hvp(row, last);
  }
  if (job.stream) fence();
  return true;
}

}  // namespace XENT_ISA
}  // namespace xent
