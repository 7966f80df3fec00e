// The product of a CSR matrix with a dense one: converts arrays to a SparseJob; threads share its rows by entries.
#include <algorithm>
#include <atomic>

#include "arguments.h"
#include "../sparse/sparse.h"

namespace {

using namespace xent;

bool is_int(nb::dlpack::dtype dtype, int bits) {
  return nb::dlpack::dtype_code(dtype.code) == nb::dlpack::dtype_code::Int && dtype.bits == bits;
}

template <class I>
int64_t row_of(const void* starts, int64_t rows, int64_t entry) {
  const I* first = static_cast<const I*>(starts);
  return std::lower_bound(first, first + rows, I(entry)) - first;
}

bool is_list(const In& a) { return a.ndim() == 1 && (a.size() < 2 || a.stride(0) == 1); }

// Whether the indices have 32 bits, not 64.
bool are_narrow(const In& columns, const In& starts) {
  const bool narrow = is_int(columns.dtype(), 32) && is_int(starts.dtype(), 32);
  if (!narrow && !(is_int(columns.dtype(), 64) && is_int(starts.dtype(), 64)))
    throw nb::type_error("indices must all be int32 or all int64");
  return narrow;
}

int64_t pieces_of(int64_t entries) { return entries < 1 << 16 ? 1 : 64; }

void csr_product(const In& entries, const In& columns, const In& starts, const In& dense, const Out& out) {
  const Storage type = storage(dense.dtype());
  if (type > F32 || storage(entries.dtype()) != type || storage(out.dtype()) != type)
    throw nb::type_error("entries, dense and out must all be float32 or all float64");
  const bool narrow = are_narrow(columns, starts);
  const int64_t rows = int64_t(starts.size()) - 1, scores = dense.ndim() == 2 ? int64_t(dense.shape(1)) : 0;
  const auto is_matrix = [scores](const auto& a) {
    return a.ndim() == 2 && int64_t(a.shape(1)) == scores &&
           (a.size() == 0 || ((scores < 2 || a.stride(1) == 1) && (a.shape(0) < 2 || a.stride(0) == scores)));
  };
  if (rows < 0 || entries.size() != columns.size() || !is_list(entries) || !is_list(columns) || !is_list(starts) ||
      !is_matrix(dense) || !is_matrix(out) || int64_t(out.shape(0)) != rows)
    throw std::invalid_argument("entries and columns (E,), starts (N + 1,), dense (D, C) and out (N, C), in C order");
  SparseJob job;
  job.entries = data_of(entries), job.columns = data_of(columns), job.starts = data_of(starts);
  job.num_entries = int64_t(entries.size()), job.num_columns = int64_t(dense.shape(0)), job.num_scores = scores;
  job.dense = data_of(dense), job.out = data_of(out);
  const int64_t pieces = pieces_of(job.num_entries);
  const int threads = threads_for(times({job.num_entries, scores}), pieces);
  const Sparse& kernels = *chosen->sparse;
  const auto work = kernels.rows[type][narrow];
  bool sound = true;
  {
    nb::gil_scoped_release release;
    sound = kernels.starts[narrow](job.starts, rows, job.num_entries);
    const auto edge = [&](int64_t piece) {
      if (piece == 0 || piece == pieces) return piece ? rows : 0;
      const int64_t entry = job.num_entries * piece / pieces;
      return narrow ? row_of<int32_t>(job.starts, rows, entry) : row_of<int64_t>(job.starts, rows, entry);
    };
    std::atomic<bool> all{sound};
    const int64_t count = sound ? pieces : 0;
    each_piece(count, threads, [&](int64_t piece) {
      if (!work(job, edge(piece), edge(piece + 1))) all = false;
    });
    sound = all;
  }
  if (!sound) throw std::invalid_argument("starts must rise from 0 to E at most, columns must be in [0, D)");
}

// Whether the starts rise from 0 to at most the number of columns, and the columns are in [0, width); reads both once.
bool csr_is_sound(const In& columns, const In& starts, int64_t width) {
  const bool narrow = are_narrow(columns, starts);
  if (!is_list(columns) || !is_list(starts) || !starts.size())
    throw std::invalid_argument("columns (E,) and starts (N + 1,)");
  const int64_t rows = int64_t(starts.size()) - 1, entries = int64_t(columns.size());
  const void *column = data_of(columns), *start = data_of(starts);
  const Sparse& kernels = *chosen->sparse;
  nb::gil_scoped_release release;
  if (!kernels.starts[narrow](start, rows, entries)) return false;
  const int64_t pieces = pieces_of(entries);
  const int threads = threads_for(entries, pieces);
  if (threads <= 1) return kernels.columns[narrow](column, 0, entries, width);
  std::atomic<bool> all{true};
  each_piece(pieces, threads, [&](int64_t piece) {
    if (!kernels.columns[narrow](column, entries * piece / pieces, entries * (piece + 1) / pieces, width)) all = false;
  });
  return all;
}

}  // namespace

void xent::bind_sparse(nb::module_& m) {
  m.def("csr_product", &csr_product, array("entries"), array("columns"), array("starts"), array("dense"), array("out"));
  m.def("csr_is_sound", &csr_is_sound, array("columns"), array("starts"), "width"_a);
}
