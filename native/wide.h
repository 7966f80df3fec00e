// Kernels along the row, for many contiguous classes: a row is read once from memory, in blocks that
// stay in the level-1 cache; its exponentials wait in scratch memory, relative to their block's maximum,
// until the whole row's maximum and sum are known. What they become is written while the next row is read.
#pragma once
#include "row.h"

namespace xent {
namespace XENT_ISA {

template <class S, bool CAP, bool DENSE>
class Wide {
  using T = typename ComputeOf<S>::type;
  using Int = typename Real<T>::Int;
  static constexpr int64_t BLOCK = 2048, STRETCH = 256;
  static constexpr int LANES = 64 / sizeof(T);  // terms summed side by side

  // Sums over a block, or a row. Terms of the largest logit are counted apart: beside 1 small ones would be lost.
  struct Sums {
    double max, below, ties, dense, mass, entropy;
    double moment, at_ties;  // Σ e·d without and with the largest, d = r̃ − origin
    double rest() const { return below + (ties - 1); }  // Σ eᵘ⁻ᵐ without one largest term
    double log_norm() const { return std::log1p(rest()); }
  };

  struct Buffers {
    T* e;         // (K,) exponentials relative to their block's maximum
    T* w;         // linked logits: (K,) under a cap, whose slope needs them again; else (BLOCK,)
    Sums* block;  // (blocks,)
  };
  // A row between its exponentials and what is written of it, block by block and line by line while the next
  // row is read, so that memory and arithmetic are busy at once.
  struct Pending {
    S* out = nullptr;  // null: none
    Buffers from;
    const T* v;
    const S* r;
    double max, norm;  // p = e·exp(block maximum − max)·norm
    double of_p, constant;
    T ds, origin, top, shift;
    Exact<T> exact[2];
  };

  const Job& job;
  const LinkOf<T, CAP> phi;  // each method copies it: a load inside a loop that stores is not invariant
  const int64_t K, blocks;
  const bool streams;
  Buffers buffers[2], now;
  Pending pending;

 public:
  static size_t scratch_bytes(const Job& job) {
    int64_t blocks = (job.classes + BLOCK - 1) / BLOCK;
    return 2 * (size_t(2 * blocks * BLOCK) * sizeof(T) + size_t(blocks) * sizeof(Sums));
  }

  Wide(const Job& job, void* scratch)
      : job(job),
        phi(job.inv_temperature, job.softcap),
        K(job.classes),
        blocks((job.classes + BLOCK - 1) / BLOCK),
        streams(job.stream && K * int64_t(sizeof(S)) >= 3 << 10) {  // of shorter rows too many lines have two owners
    T* memory = static_cast<T*>(scratch);
    Sums* more = reinterpret_cast<Sums*>(memory + 4 * blocks * BLOCK);
    for (int i = 0; i < 2; ++i)
      buffers[i] = {memory + 2 * i * blocks * BLOCK, memory + (2 * i + 1) * blocks * BLOCK, more + i * blocks};
    now = buffers[0];
  }

  XENT_ONCE void stats(int64_t row, bool with_grad) {
    const LinkOf<T, CAP> link = phi;
    const Position at_row = position(job, row);
    const S* z = at<S>(job.z, at_row);
    S* out = with_grad ? at<S>(job.out, at_row) : nullptr;
    const T* v = DENSE ? at<T>(job.dense, at_row) : nullptr;
    const int64_t y = job.labels ? job.labels[row] : 0;
    if (y < 0) return absent(row, out);
    const Sums sums = sweep<false>(z, v);
    const double log_norm = sums.log_norm();
    const bool labelled = job.labels && y < K;
    const double x = labelled ? (double(linked(z, y)) - sums.max) * link.scale - log_norm
                              : (job.labels ? nan_<double>() : 0.0);
    if (job.lse) job.lse[row] = y < K || !job.labels ? sums.max * link.scale + log_norm : nan_<double>();
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
    const int64_t top = DENSE && sums.rest() < 1 ? swept_argmax(z, sums.max) : -1;
    const double v_y = DENSE && labelled ? double(v[y]) : 0.0, v_top = top >= 0 ? double(v[top]) : 0.0;
    postpone(out, v, sums, c);
    if (top >= 0) pending.exact[0] = {top, T(slope_at(z, top) * c.bracket(-log_norm, job.labels && top == y, v_top))};
    if (labelled) pending.exact[1] = {y, T(slope_at(z, y) * c.bracket(x, true, v_y))};
  }

  // Equation (2) from known statistics, in one pass over the row.
  void grad(int64_t row) {
    const LinkOf<T, CAP> link = phi;
    const Position at_row = position(job, row);
    const S* z = at<S>(job.z, at_row);
    S* out = at<S>(job.out, at_row);
    const T* v = DENSE ? at<T>(job.dense, at_row) : nullptr;
    const int64_t y = job.labels ? job.labels[row] : 0;
    Coefficients c(job, row);
    if (y < 0 || c.silent()) return fill(out, T(0));
    if (job.labels && y >= K) return fill(out, nan_<T>());
    if (DENSE) c.mass = job.in_mass[row];
    // lse as an unevaluated sum hi + lo of two T, so that w − hi is exact where p matters.
    const double lse = job.in_lse[row] / double(link.scale);
    const T hi = T(lse), lo = T(lse - double(hi)), of_p = T(c.of_p()), ds = T(c.ds);
    Exact<T> exact[2];
    if (DENSE) {
      const int64_t top = argmax(z);
      const double log_p_top = (double(linked(z, top)) - lse) * link.scale;
      if (log_p_top > -0.69)
        exact[0] = {top, T(slope_at(z, top) * c.bracket(log_p_top, job.labels && top == y, double(v[top])))};
    }
    if (job.labels)
      exact[1] = {y, T(slope_at(z, y) * c.bracket(job.in_log_prob[row], true, DENSE ? double(v[y]) : 0.0))};
    for (int64_t k = 0; k < K; k += STRETCH)
      emit<STRETCH>(out, 0, K, k, streams, exact, [=](int64_t i) {
        const T u = link.value(load(z[i]));
        T value = of_p * link.exp_scaled((u - hi) - lo);
        if constexpr (DENSE) value += ds * v[i];
        return value * link.slope(u);
      });
  }

  // Equation (3). All r̃ are taken relative to the likeliest class's, so that r̃ − ρ is exact as p → 1.
  void hvp(int64_t row) {
    const LinkOf<T, CAP> link = phi;
    const Position at_row = position(job, row);
    const S *z = at<S>(job.z, at_row), *r = at<S>(job.vector, at_row);
    S* out = at<S>(job.out, at_row);
    const T* v = DENSE ? at<T>(job.dense, at_row) : nullptr;
    const int64_t y = job.labels ? job.labels[row] : 0;
    Coefficients c(job, row);
    if (y < 0 || (c.silent() && job.ddl[row] == 0 && job.ddx[row] == 0)) return fill(out, T(0));
    if (job.labels && y >= K) return fill(out, nan_<T>());
    // Without a cap in units where r̃ = r; moments about the label's, as the likeliest class is not known yet.
    T origin = tilted(linked(z, y), load(r[y]));
    if (!(origin - origin == T(0))) origin = 0;
    const Sums sums = sweep<true>(z, v, r, origin);
    c.mass = sums.mass;
    const double unit = CAP ? 1.0 : link.slope_at_0, ddl = job.ddl[row], log_norm = sums.log_norm();
    const double top = sums.at_ties / sums.ties;
    const double shift = (sums.moment - top * sums.below) / (1 + sums.rest());
    const double rho = (double(origin) + top + shift) * unit;
    postpone(out, v, sums, c);
    pending.r = r;
    pending.origin = origin;
    pending.top = T(top);
    pending.shift = T(shift);
    pending.constant = ddl * rho;
    if (!job.labels) return;
    const T w_y = linked(z, y), r_y = load(r[y]);
    const double x = (double(w_y) - sums.max) * link.scale - log_norm, p_y = std::exp(x), slope_y = link.slope(w_y);
    const double d_y = double(w_y) == sums.max && sums.ties == 1 ? 0.0 : double(tilted(w_y, r_y) - origin) - top;
    const double shifted_y = (d_y - shift) * unit, kappa = job.ddx[row] * shifted_y;
    const double product = c.of_p() * p_y * shifted_y + ddl * rho * p_y - kappa * std::expm1(x);
    pending.constant -= kappa;
    const double bent = link.curvature(w_y) * r_y * c.bracket(x, true, DENSE ? double(v[y]) : 0.0);
    pending.exact[1] = {y, T(slope_y * product + bent)};
  }

  // Writes what is left of the last row.
  template <bool HESSIAN>
  void finish() {
    if (!pending.out) return;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t k = b * BLOCK, end = k + size(k);
      const auto late = postponed<HESSIAN>(b);
      for (int64_t i = k; i < end; i += STRETCH) emit<STRETCH>(pending.out, k, end, i, streams, pending.exact, late);
    }
    pending.out = nullptr;
  }

 private:
  void postpone(S* out, const T* v, const Sums& sums, const Coefficients& c) {
    pending = {out, now, v, nullptr, sums.max, 1 / (1 + sums.rest()), c.of_p(), 0, T(c.ds), 0, 0, 0, {}};
    now = buffers[now.e == buffers[0].e];
  }

  // What the pending row holds at class i of block b: equation (2) or (3).
  template <bool HESSIAN>
  XENT_INLINE auto postponed(int64_t b) const {
    const Pending& row = pending;
    const double unit = CAP ? 1.0 : phi.slope_at_0;
    const double norm = row.out ? weight(row.from.block[b], row.max) * row.norm : 0.0;
    const T factor = T(row.of_p * norm * (HESSIAN ? unit * unit : unit)), constant = T(row.constant * norm * unit);
    const T ds = T(row.ds * unit), of_p = T(row.of_p * norm), origin = row.origin, top = row.top, shift = row.shift;
    return [=, link = phi, e = row.from.e, w = row.from.w, v = row.v, r = row.r](int64_t i) {
      if constexpr (HESSIAN) {
        const T u = CAP ? w[i] : T(0), ri = load(r[i]);
        T value = e[i] * (factor * (((tilted(link, u, ri) - origin) - top) - shift) + constant);
        if constexpr (!CAP) return value;
        T g = of_p * e[i];
        if constexpr (DENSE) g += ds * v[i];
        return link.slope(u) * value + link.curvature(u) * ri * g;
      } else {
        T value = factor * e[i];
        if constexpr (DENSE) value += ds * v[i];
        if constexpr (CAP) value *= link.slope(w[i]);
        return value;
      }
    };
  }

  int64_t size(int64_t k) const { return K - k < BLOCK ? K - k : BLOCK; }
  T linked(const S* z, int64_t i) const { return phi.value(load(z[i])); }
  T slope_at(const S* z, int64_t i) const { return phi.slope(CAP ? linked(z, i) : T(0)); }
  T tilted(T u, T r) const { return tilted(phi, u, r); }
  XENT_INLINE static T tilted(const LinkOf<T, CAP>& link, T u, T r) {
    if constexpr (CAP) return link.slope(u) * r;
    return r;
  }
  // e of a block counts eᵘ⁻ᵇˡᵒᶜᵏ ᵐᵃˣ; times this eᵘ⁻ᵐᵃˣ.
  double weight(const Sums& b, double max) const { return b.max == max ? 1.0 : std::exp((b.max - max) * phi.scale); }

  // Linked logits of one block in the compute type, the row itself where there is nothing to do, and their maximum.
  XENT_ONCE const T* fetch(const S* z, int64_t k, T& max) const {
    const LinkOf<T, CAP> link = phi;
    constexpr int SIDE = 128 / sizeof(T);
    const int64_t n = size(k);
    const S* from = z + k;
    T *u = now.w + (CAP ? k : 0), part[SIDE];
    for (T& largest : part) largest = lowest_<T>();
    const auto take = [&](const S* some, int64_t i) {
      if constexpr (!std::is_same_v<S, T>) widen(some, u + i, SIDE);
#pragma omp simd
      for (int j = 0; j < SIDE; ++j) {
        const T value = link.value(std::is_same_v<S, T> ? load(some[j]) : u[i + j]);
        if constexpr (CAP) u[i + j] = value;
        part[j] = value > part[j] ? value : part[j];
      }
    };
    int64_t i = 0;
    for (; i + SIDE <= n; i += SIDE) take(from + i, i);
    if (i < n) {  // as if the last logit were repeated
      S end[SIDE];
      for (int64_t j = 0; j < SIDE; ++j) end[j] = from[i + j < n ? i + j : n - 1];
      take(end, i);
    }
    max = fold<SIDE>(part, [](T a, T b) { return b > a ? b : a; });
    if constexpr (!CAP && std::is_same_v<S, T>) return from;
    return u;
  }

  template <bool HESSIAN>
  XENT_ONCE Sums sweep(const S* z, const T* v, const S* r = nullptr, T origin = 0) {
    Sums sums{-std::numeric_limits<double>::infinity(), 0, 0, 0, 0, 0, 0, 0};
    for (int64_t b = 0; b < blocks; ++b) {
      now.block[b] = exponentials<HESSIAN>(b, z, v, r, origin);
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

  // Exponentials of a block and their sums. Beside, it writes the pending row's block, and has memory bring the next.
  template <bool HESSIAN>
  XENT_ONCE Sums exponentials(int64_t b, const S* z, const T* v, const S* r, const T origin) {
    const LinkOf<T, CAP> link = phi;
    const int64_t k = b * BLOCK, n = size(k);
    T max;
    const T* u = fetch(z, k, max);
    T* exps = now.e + k;
    S* const out = pending.out;
    const auto late = postponed<HESSIAN>(b);
    if (DENSE) v += k;
    if (HESSIAN) r += k;
    const S* next = z + k + BLOCK;
    T below[LANES] = {}, dense[LANES] = {}, mass[LANES] = {}, moment[LANES] = {}, at_ties[LANES] = {};
    Int others[LANES] = {};
    T u_end[LANES], v_end[LANES];
    S r_end[LANES];
    for (int64_t begin = 0; begin < n; begin += STRETCH) {
      const int64_t stop = begin + STRETCH < n ? begin + STRETCH : n;
      for (int64_t i = begin; i < stop; i += LANES) {
        const T *ui = u + i, *vi = DENSE ? v + i : nullptr;
        const S* ri = HESSIAN ? r + i : nullptr;
        if (i + LANES > n) {  // as if −inf followed the row
          for (int64_t j = 0; j < LANES; ++j) {
            const bool in = i + j < n;
            u_end[j] = in ? u[i + j] : -std::numeric_limits<T>::infinity();
            if (DENSE) v_end[j] = in ? v[i + j] : T(0);
            if (HESSIAN) r_end[j] = r[in ? i + j : 0];
          }
          ui = u_end, vi = v_end, ri = r_end;
        }
        __builtin_prefetch(next + i);
        if (HESSIAN) __builtin_prefetch(r + BLOCK + i);
#pragma omp simd
        for (int j = 0; j < LANES; ++j) {
          const T d = ui[j] - max, value = link.exp_scaled(d);
          const bool other = d != T(0);  // than the largest, whose value is 1
          exps[i + j] = value;
          others[j] += Int(other);
          below[j] += only(other, value);
          if constexpr (DENSE) {
            mass[j] += vi[j];
            dense[j] += only(vi[j] != T(0), vi[j] * d);
          }
          if constexpr (HESSIAN) {
            const T tilt = tilted(link, ui[j], load(ri[j])) - origin;
            moment[j] += only(other && value != T(0), value * tilt);
            at_ties[j] += only(!other, tilt);
          }
        }
      }
      if (out) emit<STRETCH>(out, k, k + n, k + begin, streams, pending.exact, late);
    }
    T entropy = 0;
    if (job.entropy) {
#pragma omp simd reduction(+ : entropy)
      for (int64_t i = 0; i < n; ++i) entropy += only(exps[i] != T(0), exps[i] * (u[i] - max));
    }
    const double padded = double((n + LANES - 1) / LANES * LANES), scale = double(link.scale);
    Sums sums{double(max), total(below), padded - total(others), 0, 0, entropy * scale, 0, 0};
    if constexpr (DENSE) sums.dense = total(dense) * scale, sums.mass = total(mass);
    if constexpr (HESSIAN) sums.moment = total(moment), sums.at_ties = total(at_ties);
    return sums;
  }

  template <class A>
  XENT_INLINE static double total(A (&part)[LANES]) {
    return double(fold<LANES>(part, [](A a, A b) { return a + b; }));
  }

  // `argmax` after a sweep, which knows in which block to look; under a cap, where large logits may have
  // become equal, the logits themselves decide.
  int64_t swept_argmax(const S* z, double max) const {
    for (int64_t b = 0; b < blocks && !CAP; ++b)
      if (now.block[b].max == max)
        for (int64_t i = b * BLOCK; i < b * BLOCK + size(b * BLOCK); ++i)
          if (double(load(z[i])) == max) return i;
    return argmax(z);
  }

  // The first of the largest logits; φ is increasing, so it is the likeliest class. 0 if all are NaN.
  int64_t argmax(const S* z) const {
    T max = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < K; ++i) max = load(z[i]) > max ? load(z[i]) : max;
    for (int64_t i = 0; i < K; ++i)
      if (load(z[i]) == max) return i;
    return 0;
  }

  void fill(S* out, T value) const { std::fill(out, out + K, store<S>(value)); }

  void absent(int64_t row, S* out) const {
    double* const statistics[] = {job.lse, job.log_prob, job.dense_log_prob, job.mass, job.entropy};
    for (double* statistic : statistics)
      if (statistic) statistic[row] = 0;
    if (job.argmax) job.argmax[row] = 0;
    if (out) fill(out, T(0));
  }
};

template <class S, bool CAP, bool DENSE, Op OP>
bool wide_rows(const Job& job, int64_t begin, int64_t end) {
  using W = Wide<S, CAP, DENSE>;
  Scratch scratch(W::scratch_bytes(job));
  if (!scratch.data) return false;
  W wide(job, scratch.data);
  for (int64_t row = begin; row < end; ++row) {
    if constexpr (OP == STATS) wide.stats(row, false);
    if constexpr (OP == STATS_AND_GRAD) wide.stats(row, true);
    if constexpr (OP == GRAD) wide.grad(row);
    if constexpr (OP == HVP) wide.hvp(row);
  }
  wide.template finish<OP == HVP>();
  if (job.stream) fence();
  return true;
}

}  // namespace XENT_ISA
}  // namespace xent
