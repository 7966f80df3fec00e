// What one call asks of the kernels: plain pointers and strides, no option of the loss.
#pragma once
#include <cstdint>

namespace xent {

// A tensor seen as (outer, inner, classes), strides in elements. Rows are numbered outer * inner.
struct Strided {
  void* data = nullptr;
  int64_t outer = 0, inner = 0, cls = 0;
};

// One coefficient a row, or one for all.
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
  bool stream = false;  // the output is large: write it past the cache where whole lines are
  int64_t rows() const { return outer * inner; }
};

// Rows [begin, end) of a job; false if scratch memory could not be had.
using Rows = bool (*)(const Job&, Op, int64_t begin, int64_t end);

struct Linear;     // linear/linear.h
struct Evaluates;  // evaluate/evaluate.h
struct Sparse;     // sparse/sparse.h
struct Binary;     // binary/binary.h

// One instruction set's kernels. Rows are handed out in multiples of `granule`, so that a row is always
// computed in the same place of the same loop, whatever the number of threads.
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
