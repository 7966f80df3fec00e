// The arguments of a pass over a linear model: logits X·Wᵀ + b of one block of rows at a time, the row kernels on
// them, and the gradient in W and b. Plain pointers, no option of the loss, as in job.h.
#pragma once
#include <cstddef>

#include "../rows/job.h"

namespace xent {

struct LinearJob {
  Job rows;  // N rows of K classes; its z, out and vector are set block by block
  Op op = STATS;
  Strided features;                                 // (N, D): strides `outer` and `cls`
  int64_t num_features = 0, padded = 0;             // D, and D rounded up to a whole number of vectors
  int64_t num_scores = 0;                           // rows of W: K, or K − 1 where the first class's logit is always 0
  const void *weight = nullptr, *vector = nullptr;  // (num_scores, padded) as `place` says; compute type
  const void *bias = nullptr, *vector_bias = nullptr;  // (num_scores,), or null
  int64_t block = 0;                                   // rows at a time
  int64_t zero_classes() const { return rows.classes - num_scores; }

  // The position of feature d in a row of `padded` sums or weights. A row of D features is read in whole vectors, the
  // last of which ends with the row; features that it reads twice have weight 0 there.
  int64_t place(int64_t d, int64_t lanes) const {
    return d < num_features / lanes * lanes || num_features < lanes ? d : padded - num_features + d;
  }
};

enum Widths { F32_F32, F32_F64, F64_F64, WIDTHS };  // of the features and of the arithmetic

// The pass of one instruction set for one pair of widths.
struct Linear {
  int64_t lanes;  // of a vector
  std::size_t (*scratch_bytes)(const LinearJob&);
  // Rows [begin, end), begin a multiple of the block: writes their statistics; adds the gradients in W
  // (num_scores, padded) and then in b (num_scores,) to `sums`. False if memory could not be allocated.
  bool (*piece)(const LinearJob&, int64_t begin, int64_t end, void* scratch, double* sums);
};

}  // namespace xent
