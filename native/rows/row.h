// Shared by both layouts of the kernels: the position of a row, its coefficients, and equation (2) at the one
// class where it would cancel.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "job.h"
#include "../math.h"

namespace xent {
namespace XENT_ISA {

struct Position {
  int64_t outer, inner;
};

XENT_INLINE Position position(const Job& job, int64_t row) {
  if (job.inner == 1) return {row, 0};
  return {row / job.inner, row % job.inner};
}

template <class S>
XENT_INLINE S* at(const Strided& x, Position p) {
  return static_cast<S*>(x.data) + p.outer * x.outer + p.inner * x.inner;
}
XENT_INLINE char* at(const Strided& x, Position p, Storage storage) {
  return static_cast<char*>(x.data) + (p.outer * x.outer + p.inner * x.inner) * ELEMENT_BYTES[storage];
}

// During its lifetime subnormal results become 0 on this thread, as exp_ does for probabilities: with subnormals
// some processors take a hundred cycles (a Xeon, logits of deviation 20: 5.8 ns an element instead of 1.2).
struct NoSubnormals {
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();
  NoSubnormals() { _mm_setcsr(before | 0x8000); }  // flush to zero, but not inputs: halves are read as subnormals
  ~NoSubnormals() { _mm_setcsr(before); }
#else
  NoSubnormals() {}
#endif
  NoSubnormals(const NoSubnormals&) = delete;
  NoSubnormals& operator=(const NoSubnormals&) = delete;
};

// Scratch memory of one call, freed on return.
struct Scratch {
  void* data;
  explicit Scratch(size_t bytes) : data(::operator new(bytes, std::align_val_t(64), std::nothrow)) {}
  ~Scratch() { ::operator delete(data, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// The cotangents of one row and its mass V, in double precision.
struct Coefficients {
  double dl, dx, ds, mass;
  Coefficients(const Job& job, int64_t row) : dl(job.dl[row]), dx(job.dx[row]), ds(job.ds[row]), mass(0) {}
  bool silent() const { return dl == 0 && dx == 0 && ds == 0; }
  double of_p() const { return dl - dx - ds * mass; }  // s − b of (3): the coefficient of p in (2)

  // The bracket of (2) at one class of log-probability `log_p`, with 1 − p from expm1.
  double bracket(double log_p, bool is_label, double v) const {
    double p = std::exp(log_p), rest = -std::expm1(log_p);
    const double dense = p > 0.5 ? (v - mass) + mass * rest : v - mass * p;
    return dl * p + dx * (is_label ? rest : -p) + (ds == 0 ? 0.0 : ds * dense);
  }
};

}  // namespace XENT_ISA
}  // namespace xent
