// Kernels along the row, for many contiguous classes: a row is read once from memory, in blocks that
// stay in the level-1 cache; its exponentials wait in scratch memory, relative to their block's maximum,
// until the whole row's maximum and sum are known.
#pragma once
#include "row.h"

namespace xent {
namespace XENT_ISA {

template <class S, bool CAP, bool DENSE>
class Wide {
  using T = typename ComputeOf<S>::type;
  static constexpr int64_t BLOCK = 2048;

  struct Block {
    T max;
    double below, ties, dense, mass, entropy;
  };
  struct Sums {
    double max, rest, dense, mass, entropy;  // maximum of w; Σ eᵘ⁻ᵐ without its largest term; …
    double log_norm() const { return std::log1p(rest); }
  };

  // A row between its exponentials and its gradient. It is written block by block while the next row is
  // read, so that memory and arithmetic are busy at once (32768 classes, one thread: 0.68 → 0.48 ns an element).
  struct Buffers {
    T* e;          // (K,) exponentials relative to their block's maximum
    T* w;          // linked logits: (K,) under a cap, whose slope needs them again; else (BLOCK,)
    Block* block;  // (blocks,)
  };
  struct Pending {
    S* out = nullptr;  // null: none
    const T* v;
    Buffers from;
    double of_p, max, norm;  // gradient = φ'·(of_p·p + ds·v), p = e·exp(block maximum − max)·norm
    T ds;
    int64_t exact[2];  // classes whose element is known more exactly, −1 for none
    T value[2];
  };

  const Job& job;
  const LinkOf<T, CAP> phi;  // each method copies it: a load inside a loop that stores is not invariant
  const int64_t K, blocks;
  const bool streams;  // shorter rows leave too many lines to be written in two parts
  Buffers buffers[2];
  T* e;
  T* w;
  Block* block;
  Pending pending;

 public:
  static size_t scratch_bytes(const Job& job) {
    int64_t blocks = (job.classes + BLOCK - 1) / BLOCK;
    return 2 * (size_t(2 * blocks * BLOCK) * sizeof(T) + size_t(blocks) * sizeof(Block));
  }

  Wide(const Job& job, void* scratch)
      : job(job),
        phi(job.inv_temperature, job.softcap),
        K(job.classes),
        blocks((job.classes + BLOCK - 1) / BLOCK),
        streams(job.stream && K * int64_t(sizeof(S)) >= 16 << 10) {
    T* memory = static_cast<T*>(scratch);
    Block* more = reinterpret_cast<Block*>(memory + 4 * blocks * BLOCK);
    for (int i = 0; i < 2; ++i)
      buffers[i] = {memory + 2 * i * blocks * BLOCK, memory + (2 * i + 1) * blocks * BLOCK, more + i * blocks};
    use(0);
  }

  XENT_ONCE void stats(int64_t row, bool with_grad) {
    const LinkOf<T, CAP> link = phi;
    const Position at_row = position(job, row);
    const S* z = at<S>(job.z, at_row);
    S* out = with_grad ? at<S>(job.out, at_row) : nullptr;
    const T* v = DENSE ? at<T>(job.dense, at_row) : nullptr;
    const int64_t y = job.labels ? job.labels[row] : 0;
    if (y < 0) return absent(row, out);
    const Sums sums = sweep(z, v);
    const double log_norm = sums.log_norm();
    const bool labelled = job.labels && y < K;
    const double x = labelled ? (double(linked(z, y)) - sums.max) * link.scale - log_norm
                              : (job.labels ? nan_<double>() : 0.0);
    if (job.lse) job.lse[row] = y < K || !job.labels ? sums.max * link.scale + log_norm : nan_<double>();
    if (job.log_prob) job.log_prob[row] = x;
    if (job.dense_log_prob) job.dense_log_prob[row] = sums.dense - (sums.mass != 0 ? sums.mass * log_norm : 0.0);
    if (job.mass) job.mass[row] = sums.mass;
    if (job.entropy) job.entropy[row] = log_norm - sums.entropy / (1 + sums.rest);
    if (job.argmax) job.argmax[row] = swept_argmax(z, sums.max);
    if (!with_grad) return;

    Coefficients c(job, row);
    if (c.silent()) return fill(out, T(0));
    if (job.labels && y >= K) return fill(out, nan_<T>());
    c.mass = sums.mass;
    const int64_t top = DENSE && sums.rest < 1 ? swept_argmax(z, sums.max) : -1;
    const double v_y = DENSE && labelled ? double(v[y]) : 0.0, v_top = top >= 0 ? double(v[top]) : 0.0;
    pending = {out, v, {e, w, block}, c.of_p(), sums.max, 1 / (1 + sums.rest), T(c.ds), {-1, -1}, {0, 0}};
    if (top >= 0) set_exact(0, top, slope_at(top) * c.bracket(-log_norm, job.labels && top == y, v_top));
    if (labelled) set_exact(1, y, slope_at(y) * c.bracket(x, true, v_y));
    if (blocks == 1) return finish();  // short rows follow each other closely enough
    use(e == buffers[0].e ? 1 : 0);
  }

  // Writes what is left of the last row.
  void finish() {
    for (int64_t b = 0; b < blocks; ++b) write_pending(b);
    settle();
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
    const T hi = T(lse), lo = T(lse - double(hi));
    int64_t top = -1;
    double log_p_top = 0, v_top = 0;
    if (DENSE) {
      top = argmax(z);
      log_p_top = (double(linked(z, top)) - lse) * link.scale;
      if (log_p_top > -0.69)
        v_top = double(v[top]);
      else
        top = -1;
    }
    const double v_y = DENSE && job.labels ? double(v[y]) : 0.0;
    for (int64_t k = 0; k < K; k += BLOCK) {
      const int64_t n = K - k < BLOCK ? K - k : BLOCK;
      const T* u = fetch(z, k, n);
      T* p = e + k;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) p[i] = link.exp_scaled((u[i] - hi) - lo);
      write(out, v, e, w, k, T(c.of_p()), T(c.ds));
    }
    if (top >= 0) out[top] = store<S>(T(slope_at(top) * c.bracket(log_p_top, job.labels && top == y, v_top)));
    if (job.labels) out[y] = store<S>(T(slope_at(y) * c.bracket(job.in_log_prob[row], true, v_y)));
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
    const Sums sums = sweep(z, v, r);
    c.mass = sums.mass;
    const int64_t top = swept_argmax(z, sums.max);
    const T centre = link.slope(kept(z, top)) * load(r[top]);
    double delta = 0;  // ρ − centre
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t k = b * BLOCK, n = size(k);
      const T norm = T(weight(block[b], sums)), *u = w + k;
      T* p = e + k;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; ++i) {
        p[i] *= norm;
        T d = link.slope(CAP ? u[i] : T(0)) * load(r[k + i]) - centre;
        sum += only(p[i] != T(0), p[i] * d);
      }
      delta += sum;
    }
    const double ddl = job.ddl[row], rho = double(centre) + delta;
    const double log_norm = sums.log_norm(), r_y = job.labels ? double(load(r[y])) : 0.0;
    const double shifted_y = job.labels ? link.slope(kept(z, y)) * r_y - double(centre) - delta : 0.0;
    const double kappa = job.labels ? job.ddx[row] * shifted_y : 0.0;
    const double x = job.labels ? (double(kept(z, y)) - sums.max) * link.scale - log_norm : 0.0;
    const double w_y = job.labels ? double(kept(z, y)) : 0.0, v_y = DENSE && job.labels ? double(v[y]) : 0.0;
    const T of_p = T(c.of_p()), constant = T(ddl * rho - kappa), ds = T(c.ds), shift = T(delta);
    for (int64_t k = 0; k < K; k += BLOCK) {
      const T *p = e + k, *u = w + k;
      emit(out, k, [=](int64_t i) {
        const T ri = load(r[k + i]), slope = link.slope(CAP ? u[i] : T(0));
        T value = slope * p[i] * (of_p * ((slope * ri - centre) - shift) + constant);
        if constexpr (CAP) {
          T g = of_p * p[i];
          if constexpr (DENSE) g += ds * v[k + i];
          value += link.curvature(u[i]) * ri * g;
        }
        return value;
      });
    }
    if (!job.labels) return;
    const double p_y = std::exp(x), slope_y = link.slope(T(w_y));
    const double product = c.of_p() * p_y * shifted_y + ddl * rho * p_y - kappa * std::expm1(x);
    out[y] = store<S>(T(slope_y * product + link.curvature(T(w_y)) * r_y * c.bracket(x, true, v_y)));
  }

 private:
  void use(int i) { e = buffers[i].e, w = buffers[i].w, block = buffers[i].block; }
  void set_exact(int i, int64_t k, double value) { pending.exact[i] = k, pending.value[i] = T(value); }

  void write_pending(int64_t b) {
    if (!pending.out) return;
    const double factor = std::exp((double(pending.from.block[b].max) - pending.max) * phi.scale) * pending.norm;
    write(pending.out, pending.v, pending.from.e, pending.from.w, b * BLOCK, T(pending.of_p * factor), pending.ds);
  }

  void settle() {
    for (int i = 0; i < 2 && pending.out; ++i)
      if (pending.exact[i] >= 0) pending.out[pending.exact[i]] = store<S>(pending.value[i]);
    pending.out = nullptr;
  }

  int64_t size(int64_t k) const { return K - k < BLOCK ? K - k : BLOCK; }
  T linked(const S* z, int64_t i) const { return phi.value(load(z[i])); }
  T kept(const S* z, int64_t i) const { return CAP ? w[i] : load(z[i]); }
  T slope_at(int64_t i) const { return phi.slope(CAP ? w[i] : T(0)); }

  // e of this block counts eᵘ⁻ᵇˡᵒᶜᵏ ᵐᵃˣ; times this it is p.
  double weight(const Block& b, const Sums& sums) const {
    return std::exp((double(b.max) - sums.max) * phi.scale) / (1 + sums.rest);
  }

  // Linked logits of one block in the compute type: the row itself where there is nothing to do.
  XENT_ONCE const T* fetch(const S* z, int64_t k, int64_t n) {
    if constexpr (!CAP && std::is_same_v<S, T>) return z + k;
    const LinkOf<T, CAP> link = phi;
    T* u = w + (CAP ? k : 0);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) u[i] = link.value(load(z[k + i]));
    return u;
  }

  XENT_ONCE Sums sweep(const S* z, const T* v, const S* also = nullptr) {
    const LinkOf<T, CAP> link = phi;
    double max = -std::numeric_limits<double>::infinity();
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t k = b * BLOCK;
      block[b] = exponentials(fetch(z, k, size(k)), DENSE ? v + k : nullptr, e + k, size(k), z + k + BLOCK,
                             also ? also + k : nullptr);
      if (block[b].max > max) max = block[b].max;
      if (blocks > 1) write_pending(b);
    }
    if (blocks > 1) settle();
    Sums sums{max, 0, 0, 0, 0};
    double ties = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const double gap = (double(block[b].max) - max) * link.scale, factor = std::exp(gap);
      if (gap == 0) {
        ties += block[b].ties;
        sums.rest += block[b].below;
      } else {
        sums.rest += factor * (block[b].below + block[b].ties);
      }
      if (factor > 0 && job.entropy) sums.entropy += factor * (block[b].entropy + gap * (block[b].below + block[b].ties));
      sums.mass += block[b].mass;
      sums.dense += block[b].dense + (block[b].mass != 0 ? block[b].mass * gap : 0.0);
    }
    // No logit equals the maximum only if all are −inf or one is +inf: not a distribution.
    sums.rest = ties < 1 ? nan_<double>() : sums.rest + (ties - 1);
    return sums;
  }

  // Beside its own work it has memory bring what comes `next`, and `also` what is wanted later of this block.
  XENT_ONCE Block exponentials(const T* u, const T* v, T* exps, int64_t n, const S* next, const S* also) const {
    const LinkOf<T, CAP> link = phi;
    T max = lowest_<T>();
#pragma omp simd reduction(max : max)
    for (int64_t i = 0; i < n; ++i) max = u[i] > max ? u[i] : max;
    T below = 0, ties = 0, dense = 0, mass = 0;
    const int64_t stretch = blocks > 1 ? 256 : n;  // at a time; each brings its part of the next block
    for (int64_t begin = 0; begin < n; begin += stretch) {
      const int64_t end = begin + stretch < n ? begin + stretch : n;
      for (int64_t i = begin; i < end && blocks > 1; i += 64 / int64_t(sizeof(S))) __builtin_prefetch(next + i);
      for (int64_t i = begin; i < end && also && blocks > 1; i += 64 / int64_t(sizeof(S))) __builtin_prefetch(also + i);
#pragma omp simd reduction(+ : below, ties, dense, mass)
      for (int64_t i = begin; i < end; ++i) {
        T d = u[i] - max;
        T value = link.exp_scaled(d);
        exps[i] = value;
        T tie = only(d == T(0), T(1));  // then value = 1
        ties += tie;
        below += value - tie;
        if constexpr (DENSE) {
          mass += v[i];
          dense += only(v[i] != T(0), v[i] * d);
        }
      }
    }
    T entropy = 0;
    if (job.entropy) {
#pragma omp simd reduction(+ : entropy)
      for (int64_t i = 0; i < n; ++i) entropy += only(exps[i] != T(0), exps[i] * (u[i] - max));
    }
    return {max, double(below), double(ties), dense * double(link.scale), double(mass), entropy * double(link.scale)};
  }

  // out = φ'·(of_p·e + ds·v) over the block that begins at k.
  void write(S* out, const T* v, const T* e, const T* w, int64_t k, T of_p, T ds) const {
    const LinkOf<T, CAP> link = phi;
    emit(out, k, [=](int64_t i) {
      T value = of_p * e[k + i];
      if constexpr (DENSE) value += ds * v[k + i];
      return value * link.slope(CAP ? w[k + i] : T(0));
    });
  }

  // out[k + i] = f(i) over the block that begins at k; on its way past the cache it is staged at the
  // alignment of its destination, so that stores and later loads coincide.
  template <class F>
  XENT_INLINE void emit(S* out, int64_t k, F f) const {
    const int64_t n = size(k);
    alignas(64) S stage[BLOCK + 64 / sizeof(S)];
    S* to = streams ? stage + reinterpret_cast<uintptr_t>(out + k) % 64 / sizeof(S) : out + k;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = store<S>(f(i));
    if (streams) stream(out + k, to, n);
  }

  // `argmax` after a sweep, which knows in which block to look; under a cap, where large logits may have
  // become equal, the logits themselves decide.
  int64_t swept_argmax(const S* z, double max) const {
    for (int64_t b = 0; b < blocks && !CAP; ++b)
      if (double(block[b].max) == max)
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

  void fill(S* out, T value) const {
    for (int64_t i = 0; i < K; ++i) out[i] = store<S>(value);
  }

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
  if constexpr (OP == STATS_AND_GRAD) wide.finish();
  if (job.stream) fence();
  return true;
}

}  // namespace XENT_ISA
}  // namespace xent
