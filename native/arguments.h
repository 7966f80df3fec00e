// Python's arguments as plain pointers, the chosen kernels, how many threads a call is worth, and a sum.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <stdexcept>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "job.h"

namespace nb = nanobind;

namespace xent {

using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;
// One value a row, in arrays of any number of axes.
using InDoubles = nb::ndarray<const double, nb::c_contig, nb::device::cpu>;
using OutDoubles = nb::ndarray<double, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu>;
using OutIntegers = nb::ndarray<int64_t, nb::c_contig, nb::device::cpu>;
template <class A>
using Maybe = std::optional<A>;

extern const Kernels* chosen;
extern bool forked;  // an OpenMP pool does not survive fork(): a child works alone

template <class A>
Strided strided(const A& x) {
  Strided s;
  s.data = const_cast<void*>(static_cast<const void*>(x.data()));
  s.outer = x.stride(0);
  s.inner = x.ndim() == 3 ? x.stride(1) : 0;
  s.cls = x.stride(x.ndim() - 1);
  return s;
}

inline Storage storage(nb::dlpack::dtype dtype) {
  const auto code = nb::dlpack::dtype_code(dtype.code);
  if (code == nb::dlpack::dtype_code::Float && dtype.bits == 64) return F64;
  if (code == nb::dlpack::dtype_code::Float && dtype.bits == 32) return F32;
  if (code == nb::dlpack::dtype_code::Float && dtype.bits == 16) return F16;
  if (code == nb::dlpack::dtype_code::UInt && dtype.bits == 16) return BF16;  // NumPy has no bfloat16
  throw nb::type_error("logits must be float64, float32, float16 or uint16 (the bits of bfloat16)");
}

inline Column column(nb::handle coefficient, int64_t rows) {
  Column c;
  if (nb::isinstance<nb::float_>(coefficient)) {
    c.scalar = nb::cast<double>(coefficient);
    return c;
  }
  auto array = nb::cast<InDoubles>(coefficient);  // the caller's argument keeps it alive
  if (int64_t(array.size()) != rows) throw std::invalid_argument("a coefficient needs one value a row");
  c.data = array.data();
  return c;
}

template <class A>
auto pointer(const Maybe<A>& array, int64_t rows) -> decltype(array->data()) {
  if (!array) return nullptr;
  if (int64_t(array->size()) != rows) throw std::invalid_argument("a statistic needs one value a row");
  return array->data();
}

// Threads for work on so many elements in so many pieces.
inline int threads_for(int64_t elements, int64_t pieces) {
#ifdef _OPENMP
  constexpr int64_t worth_a_thread = 1 << 15;  // elements; waking the pool costs about 5 µs
  if (!forked)
    return int(std::min<int64_t>({int64_t(omp_get_max_threads()), pieces, elements / worth_a_thread}));
#endif
  return 1;
}

// Σ over halves, and halves of them: NumPy's order and bits, without its 1 µs (8 in a loop that trains) a call.
inline double pairwise(const double* x, int64_t size) {
  if (size > 128) {
    const int64_t half = size / 2 - size / 2 % 8;
    return pairwise(x, half) + pairwise(x + half, size - half);
  }
  if (size < 8) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) sum += x[i];
    return sum;
  }
  double lanes[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) lanes[j] = x[j];
  int64_t i = 8;
  for (; i + 8 <= size; i += 8)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) lanes[j] += x[i + j];
  double sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; i < size; ++i) sum += x[i];
  return sum;
}

void bind_linear(nb::module_& m);    // linear_module.cpp
void bind_evaluate(nb::module_& m);  // evaluate_module.cpp
void bind_sparse(nb::module_& m);    // sparse_module.cpp
void bind_binary(nb::module_& m);    // binary_module.cpp

}  // namespace xent
