// What `xent eval` asks of a block of rows: how its labels fare among the classes. Plain pointers, as in job.h.
#pragma once
#include "../rows/job.h"

namespace xent {

// Rows of logits or probabilities without gaps, and one place a row for each answer.
struct Block {
  const void* outputs = nullptr;
  int64_t rows = 0, classes = 0;
  const int64_t* labels = nullptr;  // negative for none: then `loss` and `above` say nothing
  double* loss = nullptr;           // −log p of the label; +inf at p = 0, NaN in a row that is no distribution
  double* confidence = nullptr;     // the largest p
  int32_t* predicted = nullptr;     // the first class of the largest p
  int32_t* above = nullptr;         // classes of more than the label's p
  double *mass = nullptr, *lowest = nullptr;  // of probabilities, taken as they are: their sum and the least
};

// Sums over the rows of blocks, but for those of a negative label or a loss of NaN.
struct Sums {
  int64_t classes = 0, bins = 0, top_k = 0;
  double* by_class = nullptr;  // (classes, 4): rows of the class, right ones, fewer than top_k above, loss
  double* guessed = nullptr;   // (classes,): rows that are predicted to be of it
  double* by_bin = nullptr;    // (bins, 4), of confidence: rows, right ones, confidence, of infinite loss
  int64_t unlabelled = 0, undefined = 0, first_undefined = -1;  // of the last block; the first is a row of it
};

struct Evaluates {
  // By storage type; false if scratch memory could not be had.
  bool (*logits[STORAGES])(const Block&);
  bool (*probabilities[STORAGES])(const Block&);
  // False if a label or a prediction is no class.
  bool (*fold)(const Block&, Sums&);
};

}  // namespace xent
