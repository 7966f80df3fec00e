// What a product of a CSR matrix with a dense one asks: plain pointers.
#pragma once
#include <cstdint>

namespace xent {

struct SparseJob {
  const void* entries = nullptr;  // compute type
  const void* columns = nullptr;  // of the entries; starts: of the rows, one more than there are rows
  const void* starts = nullptr;
  int64_t num_entries = 0, num_scores = 0;
  const void* dense = nullptr;  // (columns, num_scores) by rows; compute type
  void* out = nullptr;          // (rows, num_scores)
};

// One instruction set's products of rows [begin, end).
using SparseRows = void (*)(const SparseJob&, int64_t begin, int64_t end);
struct Sparse {
  SparseRows rows[2][2];  // by arithmetic in F64 or F32, and by indices of 64 or of 32 bits
};

}  // namespace xent
