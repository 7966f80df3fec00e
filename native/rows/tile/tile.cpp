// Runs the kernels across rows: CMake compiles this file once for each instruction set.
#include "tile.h"

#include "../layouts.h"
#include "gradient.h"
#include "hessian.h"
#include "statistics.h"

namespace xent {
namespace XENT_ISA {

template <class T, int LANES>
bool tiles(const Job& job, Op op, int64_t begin, int64_t end) {
  using Tiles = Tile<T, LANES>;
  Scratch scratch(Tiles::scratch_bytes(job));
  if (!scratch.data) return false;
  Tiles tile(job, scratch.data);
  for (int64_t row = begin, last; row < end; row = last) {
    last = tile.last(row, end);
    tile.rows(op, row, last);
  }
  if (job.stream) fence();
  return true;
}

bool tile_rows(const Job& job, Op op, bool many, int64_t begin, int64_t end) {
  if (many) return (job.storage == F64 ? tiles<double, MANY> : tiles<float, MANY>)(job, op, begin, end);
  return (job.storage == F64 ? tiles<double, FEW> : tiles<float, FEW>)(job, op, begin, end);
}

}  // namespace XENT_ISA
}  // namespace xent
