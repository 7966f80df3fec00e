// The chosen kernels, the number of threads of a call, and how they share its work.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../rows/job.h"

namespace xent {

extern const Kernels* chosen;
extern bool forked;  // an OpenMP pool does not survive fork(): a child uses one thread

// The number of threads for `elements` in `pieces`.
inline int threads_for(int64_t elements, int64_t pieces) {
#ifdef _OPENMP
  constexpr int64_t worth_a_thread = 1 << 15;  // elements; waking the pool costs about 5 µs
  // OpenMP ends the process if it cannot start the threads of OMP_NUM_THREADS.
  static const int64_t most = 4 * omp_get_num_procs();
  if (!forked) return int(std::min<int64_t>({int64_t(omp_get_max_threads()), most, pieces, elements / worth_a_thread}));
#endif
  return 1;
}

// Whether a fresh output of these bytes should bypass the cache, in which it does not fit.
inline bool is_large(int64_t bytes) { return bytes >= 32 << 20; }

// Shares granules of rows, `elements` in all, among threads: `work(begin, end)` does some of them. False if one of the
// calls returns false. A granule is not divided: the bits do not depend on the threads.
template <class Work>
bool share(int64_t granules, int64_t elements, const Work& work) {
  const int threads = threads_for(elements, granules);
  if (threads <= 1) return work(0, granules);
  const int64_t pieces = std::min<int64_t>(granules, int64_t(threads) * 16);
  std::atomic<bool> ok{true};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t piece = 0; piece < pieces; ++piece)
    if (!work(granules * piece / pieces, granules * (piece + 1) / pieces)) ok = false;
  return ok;
}

}  // namespace xent
