// The arguments of the kernels of `xent eval`: per-row results of labels and predictions. Plain pointers, as in job.h.
#pragma once
#include "../rows/job.h"

namespace xent {

// Contiguous rows of logits or probabilities, and arrays with one result for each row.
struct Block {
  const void* outputs = nullptr;
  int64_t rows = 0, classes = 0;
  const int64_t* labels = nullptr;  // negative: no label; `loss` and `above` are then undefined
  double* loss = nullptr;           // −log p of the label; +inf at p = 0, NaN if the row is not a distribution
  double* confidence = nullptr;     // the largest p
  double* brier = nullptr;          // Σ (p − e_y)²; of probabilities as they are, unnormalised
  int32_t* predicted = nullptr;     // the first class of the largest p
  int32_t* above = nullptr;         // the number of classes with a larger p than the label
  double *mass = nullptr, *lowest = nullptr;  // of unnormalised probabilities: sum and minimum
};

// Sums over the rows of blocks, except rows with a negative label or a loss of NaN.
struct Sums {
  int64_t classes = 0, bins = 0, top_k = 0;
  double* by_class = nullptr;  // (classes, 4): rows of the class, correct ones, those in the top k, loss
  double* guessed = nullptr;   // (classes,): rows predicted to be of the class
  double* by_bin = nullptr;    // (bins of confidence, 4): rows, correct ones, confidence, rows of infinite loss
  double shift = 0;            // a loss near the mean, so that the sums of squares lose no digits
  double* moments = nullptr;   // (4,): sums of loss − shift and of its square, of brier and of its square
  int64_t unlabelled = 0, undefined = 0, first_undefined = -1;  // of the last block; first_undefined is a row index
};

struct Evaluates {
  // By storage type; false if scratch memory could not be allocated.
  bool (*logits[STORAGES])(const Block&);
  bool (*probabilities[STORAGES])(const Block&);
  // False if a label or a prediction is out of range.
  bool (*fold)(const Block&, Sums&);
};

}  // namespace xent
