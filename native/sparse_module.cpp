// The product of a CSR matrix with a dense one: arrays become a SparseJob, threads share rows by entries.
#include <algorithm>

#include "arguments.h"
#include "sparse.h"

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

void csr_product(const In& entries, const In& columns, const In& starts, const In& dense, const Out& out) {
  const Storage type = storage(dense.dtype());
  if (type > F32 || storage(entries.dtype()) != type || storage(out.dtype()) != type)
    throw nb::type_error("entries, dense and out must all be float32 or all float64");
  const bool narrow = is_int(columns.dtype(), 32) && is_int(starts.dtype(), 32);
  if (!narrow && !(is_int(columns.dtype(), 64) && is_int(starts.dtype(), 64)))
    throw nb::type_error("indices must all be int32 or all int64");
  const int64_t rows = int64_t(starts.size()) - 1, scores = dense.ndim() == 2 ? int64_t(dense.shape(1)) : 0;
  const auto is_list = [](const In& a) { return a.ndim() == 1 && (a.size() < 2 || a.stride(0) == 1); };
  const auto is_matrix = [scores](const auto& a) {
    return a.ndim() == 2 && int64_t(a.shape(1)) == scores && (a.size() == 0 || ((scores < 2 || a.stride(1) == 1) && (a.shape(0) < 2 || a.stride(0) == scores)));
  };
  if (rows < 0 || entries.size() != columns.size() || int64_t(out.shape(0)) != rows || !is_list(entries) ||
      !is_list(columns) || !is_list(starts) || !is_matrix(dense) || !is_matrix(out))
    throw std::invalid_argument("entries and columns (E,), starts (N + 1,), dense (D, C) and out (N, C), in C order");
  SparseJob job;
  job.entries = entries.data(), job.columns = columns.data(), job.starts = starts.data();
  job.num_entries = int64_t(entries.size()), job.num_scores = scores;
  job.dense = dense.data(), job.out = out.data();
  const SparseRows work = chosen->sparse->rows[type][narrow];
  constexpr int64_t pieces = 64;
  const auto edge = [&](int64_t piece) {
    if (piece == 0 || piece == pieces) return piece ? rows : 0;
    const int64_t entry = job.num_entries * piece / pieces;
    return narrow ? row_of<int32_t>(job.starts, rows, entry) : row_of<int64_t>(job.starts, rows, entry);
  };
  nb::gil_scoped_release release;
  const int threads = threads_for(job.num_entries * scores, pieces);
  if (threads <= 1) return work(job, 0, rows);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t piece = 0; piece < pieces; ++piece) work(job, edge(piece), edge(piece + 1));
}

}  // namespace

void xent::bind_sparse(nb::module_& m) {
  const auto array = [] { return nb::arg().noconvert(); };
  m.def("csr_product", &csr_product, array(), array(), array(), array(), array());
}
