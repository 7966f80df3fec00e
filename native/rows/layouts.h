// The two layouts of the row kernels, for one instruction set.
#pragma once
#include "job.h"

namespace xent {
namespace XENT_ISA {

constexpr int MANY = 64, FEW = 16;  // rows of a tile

// Rows [begin, end), along their classes or in tiles; false if scratch memory could not be allocated.
bool wide_rows(const Job& job, Op op, int64_t begin, int64_t end);
bool tile_rows(const Job& job, Op op, bool many, int64_t begin, int64_t end);

}  // namespace XENT_ISA
}  // namespace xent
