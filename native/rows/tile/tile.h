// Kernels across rows: a tile of rows is laid out class by class in scratch memory and every loop runs over its
// rows. For few classes, and for any strides (classes on another axis).
#pragma once
#include "memory.h"

namespace xent {
namespace XENT_ISA {

template <class T, int LANES>
class alignas(64) Tile : TileMemory<T, LANES> {
  using Memory = TileMemory<T, LANES>;
  using Int = typename Real<T>::Int;
  using Lanes = T[LANES];
  using Memory::affine, Memory::each_lane, Memory::first, Memory::job, Memory::K, Memory::lanes, Memory::planar;
  static constexpr int CHUNK = LANES < 32 ? LANES : 32;  // rows summed together
  static constexpr int64_t FLUSH = 256;                  // classes summed in T before the sum goes into a double

  const Link<T> phi;  // each method copies it: a load inside a loop that stores is not invariant
  const bool dense_targets;
  T *e, *w, *v, *r;  // (K, LANES) each: exponentials, linked logits, dense targets, vector
  int opened = 0;
  bool special = false;                            // whether a row is silent or has an undefined softmax
  bool derives_lse = false;                        // whether a dl is not 0
  bool all_same = false;                           // the coefficients are the same for all rows, and not all 0
  alignas(64) Int label[LANES], likeliest[LANES];  // −1: none, or not requested
  alignas(64) Int silent[LANES], broken[LANES];
  alignas(64) Lanes max, rest, log_norm, norm, mass, dense, entropy;
  alignas(64) Lanes x, dl, dx, ds, of_p, w_y, v_y, ddl, ddx, at_label, at_top;

 public:
  static size_t scratch_bytes(const Job& job) { return size_t(4 * job.classes * LANES) * sizeof(T); }

  Tile(const Job& job, void* scratch)
      : Memory(job),
        phi(job.inv_temperature, job.softcap),
        dense_targets(job.dense.data),
        e(static_cast<T*>(scratch)),
        w(e + K * LANES),
        v(w + K * LANES),
        r(v + K * LANES) {
    std::fill(label, label + LANES, Int(-1));
    for (T* unused : {mass, dense, entropy, w_y, v_y, ddl, ddx}) std::fill(unused, unused + LANES, T(0));
  }

  using Memory::last;

  // Rows [begin, end), where `last` gave `end`.
  void rows(Op op, int64_t begin, int64_t end) {
    open(begin, end);
    if (op == GRAD) {
      known();
      coefficients();
      return write_gradient();
    }
    if (op == HVP) this->gather(job.vector, job.storage, r, e);
    sweep();
    finish();
    if (op == HVP) return hessian_product();
    report();
    if (op == STATS) return;
    coefficients();
    write_gradient();
  }

 private:
  // statistics.h
  void open(int64_t begin, int64_t end);
  void link_logits();
  void sweep();
  template <bool DENSE, bool ENTROPY>
  void sweep_rows(int from);
  void finish();
  void report() const;
  template <class F>
  void put(double* to, F value) const;
  int64_t top(int j) const;

  // gradient.h
  void known();
  void coefficients();
  template <bool DENSE, bool COUNTS_P>
  T bracket(int j, T log_p, T is_label, T v_k) const;
  void write_gradient();
  template <bool DENSE>
  void exact_classes();
  template <class To, bool DENSE, bool CAP>
  void gradient();

  // hessian.h
  void hessian_product();
  template <bool CAP>
  void hessian_moment(const T* centre, T* delta);
  template <bool CAP, bool DENSE>
  void hessian_classes(const T* centre, const T* delta, const T* constant);

  // The values of this tile's rows in a column; idle lanes get the first row's.
  template <class A>
  const A* full(const A* all, A* padded) const {
    if (lanes == LANES) return all + first;
    for (int j = 0; j < LANES; ++j) padded[j] = all[first + (j < lanes ? j : 0)];
    return padded;
  }

  // The coefficient of each lane, in T. One coefficient for all rows is set in the first tile only.
  void column(const Column& c, T* to) {
    if (!c.data && opened > 1) return;
    alignas(64) double padded[LANES];
    const double* from = c.data ? full(c.data, padded) : nullptr;
    if (from) each_lane([=](int j) { to[j] = T(from[j]); });
    else std::fill(to, to + LANES, T(c.scalar));
  }

  // The element of `from` (K, LANES) at the label; that of class 0 without a label.
  void pick(const T* from, T* to) const {
    for (int j = 0; j < LANES; ++j) to[j] = from[(label[j] < 0 ? 0 : label[j]) * LANES + j];
  }

  // The class of the largest w, and the element of `from` (K, LANES) there; −1 in a row of NaN.
  XENT_ONCE void find_likeliest(const T* from, T* to) {
    for (int j = 0; j < LANES; ++j) likeliest[j] = -1;
    for (int64_t k = 0; k < K; ++k) {
      const T *u = w + k * LANES, *value = from + k * LANES;
      each_lane([&](int j) {
        const bool here = u[j] == max[j];
        likeliest[j] = here ? Int(k) : likeliest[j];
        to[j] = choose(here, value[j], to[j]);
      });
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
};

}  // namespace XENT_ISA
}  // namespace xent
