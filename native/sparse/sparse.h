// The arguments of a product of a CSR matrix with a dense one: plain pointers.
#pragma once
#include <cstdint>

namespace xent {

struct SparseJob {
  const void* entries = nullptr;  // compute type
  const void* columns = nullptr;  // of the entries; starts: (rows + 1,) as in CSR
  const void* starts = nullptr;
  int64_t num_entries = 0, num_columns = 0, num_scores = 0;
  const void* dense = nullptr;  // (num_columns, num_scores) by rows; compute type
  void* out = nullptr;          // (rows, num_scores)
};

// One instruction set's kernels, by indices of 64 or of 32 bits.
struct Sparse {
  // Products of rows [begin, end), by arithmetic in F64 or F32; false if a column is out of range.
  bool (*rows[2][2])(const SparseJob&, int64_t begin, int64_t end);
  // Whether the `rows` + 1 starts begin at 0, never decrease, and are at most `entries`.
  bool (*starts[2])(const void* starts, int64_t rows, int64_t entries);
  // Whether columns [begin, end) are in [0, width).
  bool (*columns[2])(const void* columns, int64_t begin, int64_t end, int64_t width);
};

}  // namespace xent
