// Conversion of Python arguments to plain pointers, and a sum.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <initializer_list>
#include <new>
#include <stdexcept>

#include "../rows/job.h"
#include "sharing.h"

namespace nb = nanobind;

namespace xent {

using namespace nb::literals;

using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;
// One value for each row, in arrays of any number of axes.
using InDoubles = nb::ndarray<const double, nb::c_contig, nb::device::cpu>;
using OutDoubles = nb::ndarray<double, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu>;
using OutIntegers = nb::ndarray<int64_t, nb::c_contig, nb::device::cpu>;
template <class A>
using Maybe = std::optional<A>;

// The product of sizes that a caller gives; MemoryError if it exceeds the address space.
inline int64_t times(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes)
    if (__builtin_mul_overflow(product, size, &product) || product > int64_t(1) << 62) throw std::bad_alloc();
  return product;
}

// An upper bound of a kernel's scratch memory for each class or feature: 4 arrays of 64 rows of double.
constexpr int64_t SCRATCH_BYTES = 4 * 64 * 8 * 2;
// The most classes: kernels hold a class in an int32 beside float.
constexpr int64_t MOST_CLASSES = INT32_MAX;

// The memory of an array, which must be aligned for the kernels; the bytes it spans fit in an int64_t.
template <class A>
auto data_of(const A& x) -> decltype(x.data()) {
  int64_t bytes = int64_t(x.itemsize());
  for (size_t i = 0; i < x.ndim(); ++i) bytes = times({bytes, int64_t(x.shape(i))});
  if (reinterpret_cast<uintptr_t>(x.data()) % x.itemsize()) throw std::invalid_argument("an array must be aligned");
  return x.data();
}

template <class A>
Strided strided(const A& x) {
  Strided s;
  s.data = const_cast<void*>(static_cast<const void*>(data_of(x)));
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

// The coefficients of a call: floats for all rows, or arrays of one value for each row, which are kept alive.
class CoefficientArguments {
  InDoubles kept[5];
  int count = 0;

 public:
  Column operator()(nb::handle coefficient, int64_t rows) {
    Column c;
    if (nb::isinstance<nb::float_>(coefficient)) {
      c.scalar = nb::cast<double>(coefficient);
      return c;
    }
    InDoubles& array = kept[count++];
    if (!nb::try_cast(coefficient, array, false))  // no conversion: a copy would not be the caller's array
      throw nb::type_error("a coefficient must be a float or an array of float64 in C order");
    if (int64_t(array.size()) != rows) throw std::invalid_argument("a coefficient needs one value a row");
    c.data = data_of(array);
    return c;
  }
};

template <class A>
auto pointer(const Maybe<A>& array, int64_t rows) -> decltype(array->data()) {
  if (!array) return nullptr;
  if (int64_t(array->size()) != rows) throw std::invalid_argument("a statistic needs one value a row");
  return data_of(*array);
}

// Pairwise sum in NumPy's order, with its bits, but without its 1 µs a call (8 µs in a training loop).
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

// No implicit conversion: nanobind would make a copy, and results written to it would be lost.
inline auto array(const char* name) { return nb::arg(name).noconvert(); }
inline auto maybe(const char* name) { return nb::arg(name).noconvert().none(); }

void bind_linear(nb::module_& m);    // linear_module.cpp
void bind_evaluate(nb::module_& m);  // evaluate_module.cpp
void bind_sparse(nb::module_& m);    // sparse_module.cpp
void bind_binary(nb::module_& m);    // binary_module.cpp
void bind_ffi(nb::module_& m);       // ffi_module.cpp

}  // namespace xent
