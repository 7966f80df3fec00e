// The kernels of one instruction set: CMake compiles this file once for each, with XENT_ISA set.
#include "../evaluate/evaluate.h"
#include "../linear/linear.h"
#include "../sparse/sparse.h"
#include "../binary/binary.h"
#include "layouts.h"
#include "row.h"

namespace xent {
namespace XENT_ISA {

constexpr int64_t MANY_UP_TO = 1024;  // classes up to which a tile stays in the level-2 cache

enum class Layout { WIDE, MANY, FEW };

Layout layout(const Job& job) {
  bool contiguous = true;
  const Strided* const all[] = {&job.z, &job.out, &job.vector, &job.dense};
  for (const Strided* x : all) contiguous &= !x->data || x->cls == 1;
  const int64_t rows = job.rows(), lanes = rows < MANY || job.classes > MANY_UP_TO ? FEW : MANY;
  // Measured nanoseconds: a row along its classes has a fixed cost, a tile has idle lanes (float32, large arrays, row
  // and tile: 128 classes 1.25 and 0.80 ns an element, 256 classes 0.78 and 0.83).
  const double along = double(rows) * (110 + 0.35 * double(job.classes));
  const double across = double((rows + lanes - 1) / lanes * lanes) * (job.dense.data ? 1.1 : 0.7) * double(job.classes);
  if (contiguous && along < across) return Layout::WIDE;
  return lanes == MANY ? Layout::MANY : Layout::FEW;
}

int64_t granule(const Job& job) {
  const Layout choice = layout(job);
  return choice == Layout::WIDE ? 1 : choice == Layout::MANY ? MANY : FEW;
}

bool rows(const Job& job, Op op, int64_t begin, int64_t end) {
  const NoSubnormals zeros;
  const Layout choice = layout(job);
  if (choice == Layout::WIDE) return wide_rows(job, op, begin, end);
  return tile_rows(job, op, choice == Layout::MANY, begin, end);
}

#define XENT_STRING_(x) #x
#define XENT_STRING(x) XENT_STRING_(x)

extern const Linear linear[];
extern const Evaluates evaluates;
extern const Sparse sparse;
extern const Binary binary;
extern const Kernels kernels;
const Kernels kernels = [] {
  Kernels k{};
  k.isa = XENT_STRING(XENT_ISA);
  k.granule = granule;
  k.rows = rows;
  k.linear = linear;
  k.evaluates = &evaluates;
  k.sparse = &sparse;
  k.binary = &binary;
  return k;
}();

}  // namespace XENT_ISA
}  // namespace xent
