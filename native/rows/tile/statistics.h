// The statistics of a tile: maxima, exponentials and their sums.
#pragma once
#include "tile.h"

namespace xent {
namespace XENT_ISA {

template <class T, int LANES>
XENT_INLINE void Tile<T, LANES>::open(int64_t begin, int64_t end) {
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
  this->gather(job.z, job.storage, w, e);
  if (phi.capped) link_logits();
  if (!dense_targets) return;
  this->gather(job.dense, stored_as<T>(), v, e);
  pick(v, v_y);
}

template <class T, int LANES>
XENT_ONCE void Tile<T, LANES>::link_logits() {
  const Link<T> link = phi;
  T* u = w;
#pragma omp simd
  for (int64_t i = 0; i < K * LANES; ++i) u[i] = link.template value<true>(u[i]);
}

// CHUNK rows at a time, so that the sums over classes stay in registers.
template <class T, int LANES>
void Tile<T, LANES>::sweep() {
  for (int j = 0; j < LANES; j += CHUNK)
    if (dense_targets) job.entropy ? sweep_rows<true, true>(j) : sweep_rows<true, false>(j);
    else job.entropy ? sweep_rows<false, true>(j) : sweep_rows<false, false>(j);
}

template <class T, int LANES>
template <bool DENSE, bool ENTROPY>
XENT_ONCE void Tile<T, LANES>::sweep_rows(const int from) {
  const Link<T> link = phi;
  const int64_t classes = K;
  const T *u = w + from, *vk = v + from;
  T* p = e + from;
  T top[CHUNK];
  for (int j = 0; j < CHUNK; ++j) top[j] = lowest_<T>();
  for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
    for (int j = 0; j < CHUNK; ++j) top[j] = u[k * LANES + j] > top[j] ? u[k * LANES + j] : top[j];
  T ties[CHUNK] = {}, below[CHUNK] = {}, part_dense[CHUNK] = {}, part_mass[CHUNK] = {}, part_entropy[CHUNK] = {};
  double sum[4][CHUNK] = {};
  typename Memory::template Ahead<CHUNK> ahead(*this, from);
  for (int64_t begin = 0; begin < classes; begin += FLUSH) {
    const int64_t end = begin + FLUSH < classes ? begin + FLUSH : classes;
    for (int64_t k = begin; k < end; ++k) {
      ahead.prefetch();
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
    max[from + j] = top[j];
    rest[from + j] = choose(ties[j] < T(1), nan_<T>(), below[j] + (ties[j] - T(1)));
    if constexpr (DENSE) dense[from + j] = part_dense[j] * link.scale, mass[from + j] = part_mass[j];
    if constexpr (ENTROPY) entropy[from + j] = part_entropy[j] * link.scale;
  }
}

template <class T, int LANES>
XENT_INLINE void Tile<T, LANES>::finish() {
  const Link<T> link = phi;
  pick(w, x);
  each_lane([&](int j) {
    norm[j] = T(1) / (T(1) + rest[j]);
    log_norm[j] = log1p_(rest[j], norm[j]);
    x[j] = (x[j] - max[j]) * link.scale - log_norm[j];
  });
}

template <class T, int LANES>
XENT_INLINE void Tile<T, LANES>::report() const {
  const Link<T> link = phi;
  put(job.lse, [&](int j) { return double(max[j]) * link.scale + double(log_norm[j]); });
  put(job.log_prob, [&](int j) { return double(x[j]); });
  put(job.dense_log_prob,
      [&](int j) { return double(dense[j]) - double(only(mass[j] != T(0), mass[j] * log_norm[j])); });
  put(job.mass, [&](int j) { return double(mass[j]); });
  put(job.entropy, [&](int j) { return double(log_norm[j] - entropy[j] * norm[j]); });
  if (job.argmax)
    for (int j = 0; j < lanes; ++j) job.argmax[first + j] = special && silent[j] ? 0 : top(j);
}

template <class T, int LANES>
template <class F>
XENT_INLINE void Tile<T, LANES>::put(double* to, F value) const {
  if (!to) return;
  alignas(64) double padded[LANES];
  double* target = lanes == LANES ? to + first : padded;
  each_lane([&](int j) { target[j] = value(j); });
  for (int j = 0; j < LANES && special; ++j)
    if (silent[j] || broken[j]) target[j] = silent[j] ? 0.0 : nan_<double>();
  if (target == padded) std::memcpy(to + first, padded, size_t(lanes) * sizeof(double));
}

// The first class of the largest logit; NaN counts as −inf.
template <class T, int LANES>
int64_t Tile<T, LANES>::top(int j) const {
  return by_storage<T>(job.storage, [this, j](auto element) {
    const auto* z = this->template lane<decltype(element)>(job.z, j);
    T best = nan_<T>();
    int64_t first = 0;
    for (int64_t k = 0; k < K; ++k)
      if (const T value = load(z[k * job.z.cls]); value > best || (best != best && value == value))
        best = value, first = k;
    return first;
  });
}

}  // namespace XENT_ISA
}  // namespace xent
