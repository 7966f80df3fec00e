// The arguments of the kernels: plain pointers and strides, no option of the loss.
#pragma once
#include <cstdint>

namespace xent {

// A tensor seen as (outer, inner, classes), strides in elements. Rows are numbered outer * inner.
struct Strided {
  void* data = nullptr;
  int64_t outer = 0, inner = 0, cls = 0;
};

// A coefficient for each row, or one for all rows.
struct Column {
  const double* data = nullptr;
  double scalar = 0.0;
  double operator[](int64_t row) const { return data ? data[row] : scalar; }
};

enum Op { STATS, GRAD, STATS_AND_GRAD, HVP };
enum Storage { F64, F32, F16, BF16, STORAGES };
constexpr int64_t ELEMENT_BYTES[STORAGES] = {8, 4, 2, 2};

struct Job {
  Storage storage = F64;  // of z, out and vector; the compute type is double for F64, else float
  int64_t outer = 0, inner = 0, classes = 0;
  Strided z, out, vector;
  Strided dense;  // compute type; v of docs/maths.md, row strides 0 if shared by all rows
  const int64_t* labels = nullptr;
  double inv_temperature = 1.0, softcap = 0.0;  // softcap 0: none
  Column dl, dx, ds;                            // cotangents of l, x, σ
  Column ddl, ddx;                              // curvatures
  const double *in_lse = nullptr, *in_log_prob = nullptr, *in_mass = nullptr;
  double *lse = nullptr, *log_prob = nullptr, *dense_log_prob = nullptr, *mass = nullptr, *entropy = nullptr;
  int64_t* argmax = nullptr;
  bool stream = false;  // the output is large: whole lines bypass the cache
  int64_t rows() const { return outer * inner; }
};

// Rows [begin, end) of a job; false if scratch memory could not be allocated.
using Rows = bool (*)(const Job&, Op, int64_t begin, int64_t end);

struct Linear;     // linear/linear.h
struct Evaluates;  // evaluate/evaluate.h
struct Sparse;     // sparse/sparse.h
struct Binary;     // binary/binary.h

// One instruction set's kernels. Threads get multiples of `granule` rows, so that a row is computed at the
// same position of the same loop for any number of threads.
struct Kernels {
  const char* isa;
  int64_t (*granule)(const Job&);
  Rows rows;
  const Linear* linear;  // by Widths
  const Evaluates* evaluates;
  const Sparse* sparse;
  const Binary* binary;
};

}  // namespace xent
