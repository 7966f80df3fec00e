// Runs the kernels along the row: CMake compiles this file once for each instruction set.
#include "wide.h"

#include "../layouts.h"
#include "gradient.h"
#include "hessian.h"
#include "sweep.h"
#include "writing.h"

namespace xent {
namespace XENT_ISA {

template <class T>
bool rows(const Job& job, Op op, int64_t begin, int64_t end) {
  Scratch scratch(Wide<T>::scratch_bytes(job));
  if (!scratch.data) return false;
  Wide<T> wide(job, scratch.data);
  for (int64_t row = begin; row < end; ++row) {
    if (op == GRAD) wide.grad(row);
    else if (op == HVP) wide.hvp(row);
    else wide.stats(row, op == STATS_AND_GRAD);
  }
  wide.finish();
  if (job.stream) fence();
  return true;
}

bool wide_rows(const Job& job, Op op, int64_t begin, int64_t end) {
  return (job.storage == F64 ? rows<double> : rows<float>)(job, op, begin, end);
}

}  // namespace XENT_ISA
}  // namespace xent
