// What the loss of rows of two logits (0, z) asks, element by element and without the rows: plain pointers.
#pragma once
#include "../rows/job.h"

namespace xent {

// One value an element, or a few that repeat: x[i % period], in the compute type; null: 1 throughout.
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
  Cycle positive, weight, upstream;  // π, ω and what the gradient is multiplied by
  double inv_temperature = 1.0, softcap = 0.0, scale = 1.0;
  void* losses = nullptr;  // compute type, or not wanted
  double* sums = nullptr;  // of the losses of each block
  void* out = nullptr;     // storage type, or not wanted
  bool stream = false;     // see Job
};

constexpr int64_t BINARY_BLOCK = 1024;  // elements: what is computed on the way stays in the level-1 cache

// One instruction set's blocks [begin, end), and whether all of some numbers are in [0, upper]; NaN is not.
struct Binary {
  void (*blocks[STORAGES])(const BinaryJob&, int64_t begin, int64_t end);
  bool (*within[STORAGES])(const void* x, int64_t begin, int64_t end, double upper);
};

}  // namespace xent
