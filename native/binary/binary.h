// The arguments of the loss of rows (0, z), element by element and without the rows in memory: plain pointers.
#pragma once
#include "../rows/job.h"

namespace xent {

// Values x[i % period] of the elements i, in the compute type; null: all 1.
struct Cycle {
  const void* data = nullptr;
  int64_t period = 1;
};

// Targets are probabilities in the type of the arithmetic or of the logits, or labels.
enum Targets { COMPUTED, STORED, BYTES, INTEGERS };

struct BinaryJob {
  int64_t size = 0;
  const void* z = nullptr;  // storage type
  const void* q = nullptr;
  Targets targets = COMPUTED;
  double keep = 1.0, add = 0.0;      // the second class's probability is keep·q + add
  Cycle positive, weight, upstream;  // π, ω and the upstream gradient
  double inv_temperature = 1.0, softcap = 0.0, scale = 1.0;
  void* losses = nullptr;  // compute type; null: not requested
  double* sums = nullptr;  // of the losses of each block
  void* out = nullptr;     // storage type; null: not requested
  bool stream = false;     // see Job
};

constexpr int64_t BINARY_BLOCK = 1024;  // elements: intermediate results stay in the level-1 cache

// The kernels of one instruction set: blocks [begin, end), and whether all numbers are in [0, upper]; NaN is not.
struct Binary {
  void (*blocks[STORAGES])(const BinaryJob&, int64_t begin, int64_t end);
  bool (*within[STORAGES])(const void* x, int64_t begin, int64_t end, double upper);
};

}  // namespace xent
