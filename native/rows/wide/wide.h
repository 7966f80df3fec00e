// Kernels along the row, for many contiguous classes: a row is read once from memory, in blocks that
// stay in the level-1 cache; its exponentials, relative to their block's maximum, are kept in scratch
// memory until the whole row's maximum and sum are known. The results are written while the next row is read.
#pragma once
#include "../row.h"
#include "../storage.h"

namespace xent {
namespace XENT_ISA {

template <class T>
class Wide {
  using Int = typename Real<T>::Int;
  static constexpr int64_t BLOCK = 2048, STRETCH = 256;
  static constexpr int LANES = 64 / sizeof(T), SIDE = 256 / sizeof(T);  // terms summed, and compared, at once

  // Sums over a block, or a row. Terms of the largest logit are counted separately: added to 1, small terms would be
  // lost.
  struct Sums {
    double max = -std::numeric_limits<double>::infinity(), below = 0, ties = 0, dense = 0, mass = 0, entropy = 0;
    double moment = 0, at_ties = 0;                     // Σ e·d without and with the largest, d = r̃ − origin
    double rest() const { return below + (ties - 1); }  // Σ eᵘ⁻ᵐ without one largest term
    double log_norm() const { return std::log1p(rest()); }
  };

  struct Buffers {
    T* e;         // (K,) exponentials relative to their block's maximum
    T* w;         // linked logits: (K,) with a cap, whose slope needs them again; else (BLOCK,)
    Sums* block;  // (blocks,)
  };

  // A class whose element is computed separately, more exactly than by the common formula.
  struct Exact {
    int64_t at = -1;
    T value = 0;
  };

  // A row whose exponentials are computed but whose results are not written yet. They are written block by block
  // while the next row is read, so that memory and arithmetic overlap.
  struct Pending {
    char* out = nullptr;  // null: no output
    Buffers from = {};
    const T* v = nullptr;
    const char* r = nullptr;   // null: the gradient, not a Hessian product
    double max = 0, norm = 0;  // p = e·exp(block maximum − max)·norm
    double of_p = 0, constant = 0;
    T ds = 0, origin = 0, top = 0, shift = 0;
    Exact exact[2] = {};
  };

  // The factors of the exponentials of one block of the pending row.
  struct Factors {
    T factor, constant, ds, of_p;
  };

  const Job& job;
  const Storage storage;
  const int64_t size;  // bytes of an element
  const Link<T> phi;   // each method copies it: a load inside a loop that stores is not invariant
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
        storage(job.storage),
        size(ELEMENT_BYTES[storage]),
        phi(job.inv_temperature, job.softcap),
        K(job.classes),
        blocks((job.classes + BLOCK - 1) / BLOCK),
        streams(job.stream && K * size >= 3 << 10) {  // in shorter rows too many lines are shared by two rows
    T* memory = static_cast<T*>(scratch);
    Sums* more = reinterpret_cast<Sums*>(memory + 4 * blocks * BLOCK);
    for (int i = 0; i < 2; ++i)
      buffers[i] = {memory + 2 * i * blocks * BLOCK, memory + (2 * i + 1) * blocks * BLOCK, more + i * blocks};
    now = buffers[0];
  }

  // gradient.h
  void stats(int64_t row, bool with_grad);
  void grad(int64_t row);
  // hessian.h
  void hvp(int64_t row);
  // writing.h: writes the rest of the last row.
  void finish();

 private:
  // sweep.h
  Sums sweep(const char* z, const T* v, const char* r, T origin);
  template <bool DENSE>
  void exponentials(int64_t b, const char* z, const T* v, const char* r, T origin);
  template <bool HESSIAN, bool DENSE, class R>
  void exponentials(int64_t b, const char* z, const T* v, const char* r, T origin);
  const T* linked(const char* z, int64_t k, int64_t n, T* room) const;
  const T* widened_with_largest(const char* from, int64_t n, T* room, T& max) const;
  template <class S>
  T largest(const S* from, int64_t n, T* room) const;
  int64_t swept_argmax(const char* z, double max) const;
  int64_t argmax(const char* z) const;
  int64_t first_equal(const char* z, int64_t b, T max) const;

  // gradient.h
  template <class S, bool DENSE, bool CAP>
  void known(const S* z, const T* v, T hi, T lo, T of_p, T ds, const Exact (&exact)[2], char* out) const;
  void absent(int64_t row, char* out) const;

  // hessian.h
  template <class R>
  const R* tilts(const char* r, const T* u, int64_t n, T* room) const;
  const T* bent(const char* r, const T* u, int64_t n, T* room) const;
  template <class S, bool DENSE, bool CAP>
  void hessian(const Factors& f, int64_t first, int64_t last, int64_t begin) const;

  // writing.h
  void postpone(char* out, const T* v, const Sums& sums, const Coefficients& c);
  Factors factors(int64_t b) const;
  template <bool HESSIAN, bool DENSE>
  void write_pending(const Factors& f, int64_t first, int64_t last, int64_t begin) const;
  template <class S, bool DENSE, bool CAP>
  void gradient(const Factors& f, int64_t first, int64_t last, int64_t begin) const;
  template <class R, class F>
  static void each(const R* x, int64_t first, int64_t n, T* to, F f);
  template <class S, class R, class F>
  static void few(S* out, const R* x, int64_t first, int64_t n, F f);
  template <class S, class R, class F>
  void emit(char* out, const R* x, int64_t first, int64_t last, int64_t begin, const Exact (&exact)[2], F f) const;
  void fill(char* out, T value) const;

  int64_t length(int64_t k) const { return K - k < BLOCK ? K - k : BLOCK; }
  T stored(const char* x, int64_t i) const { return load<T>(storage, x + i * size); }
  T linked(const char* z, int64_t i) const { return phi.value(stored(z, i)); }
  T slope_at(const char* z, int64_t i) const { return phi.capped ? phi.slope(linked(z, i)) : phi.slope_at_0; }
  // In units in which r̃ = r without a cap.
  T tilted(T u, T r) const { return phi.capped ? phi.slope(u) * r : r; }
  double unit() const { return phi.capped ? 1.0 : double(phi.slope_at_0); }
  // The factor from eᵘ⁻ᵇˡᵒᶜᵏ ᵐᵃˣ, as in e, to eᵘ⁻ᵐᵃˣ.
  double weight(const Sums& b, double max) const { return b.max == max ? 1.0 : std::exp((b.max - max) * phi.scale); }
};

}  // namespace XENT_ISA
}  // namespace xent
