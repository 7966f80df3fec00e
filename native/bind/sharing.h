// The chosen kernels, the number of threads of a call, and how they share its work: by OpenMP, or without it by threads
// that live for one call.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#else
#include <cstdlib>
#include <system_error>
#include <thread>
#include <vector>
#endif

#include "../rows/job.h"

namespace xent {

extern const Kernels* chosen;
extern bool forked;  // an OpenMP pool does not survive fork(): a child uses one thread

#ifdef _OPENMP

constexpr int64_t WORTH_A_THREAD = 1 << 15;  // elements; waking the pool costs about 5 µs
inline int64_t most_threads() {
  // OpenMP ends the process if it cannot start the threads of OMP_NUM_THREADS.
  static const int64_t most = 4 * omp_get_num_procs();
  return forked ? 1 : std::min<int64_t>(omp_get_max_threads(), most);
}
// Sets the most threads of later calls of this thread; returns the number before.
inline int set_threads(int most) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(most);
  return before;
}
// Calls work() on each of some threads at once.
template <class Work>
void on_threads(int threads, const Work& work) {
#pragma omp parallel num_threads(threads)
  work();
}

#else

constexpr int64_t WORTH_A_THREAD = 1 << 18;  // elements; starting a thread costs about 30 µs
// The first number of OMP_NUM_THREADS, or that of the processors.
inline int default_threads() {
  const int processors = std::max(1, int(std::thread::hardware_concurrency()));
  const char* wish = std::getenv("OMP_NUM_THREADS");
  const int wanted = wish ? std::atoi(wish) : 0;
  return wanted > 0 ? std::min(wanted, 4 * processors) : processors;
}
inline int& thread_limit() {
  static const int by_default = default_threads();
  thread_local int most = by_default;
  return most;
}
inline int64_t most_threads() { return thread_limit(); }
inline int set_threads(int most) {
  std::swap(thread_limit(), most);
  return most;
}
template <class Work>
void on_threads(int threads, const Work& work) {
  std::vector<std::thread> started;
  started.reserve(size_t(threads));
  try {
    for (int i = 1; i < threads; ++i) started.emplace_back(std::cref(work));
  } catch (const std::system_error&) {  // no more threads: those that there are do the work
  }
  work();
  for (std::thread& thread : started) thread.join();
}

#endif

// The number of threads for `elements` in `pieces`.
inline int threads_for(int64_t elements, int64_t pieces) {
  return int(std::min<int64_t>({most_threads(), pieces, elements / WORTH_A_THREAD}));
}

// Calls work(piece) for each of the pieces; the threads take them in order, when they are free.
template <class Work>
void each_piece(int64_t pieces, int threads, const Work& work) {
  if (threads <= 1) {
    for (int64_t piece = 0; piece < pieces; ++piece) work(piece);
    return;
  }
  std::atomic<int64_t> next{0};
  on_threads(threads, [&] {
    for (int64_t piece = next++; piece < pieces; piece = next++) work(piece);
  });
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
  each_piece(pieces, threads, [&](int64_t piece) {
    if (!work(granules * piece / pieces, granules * (piece + 1) / pieces)) ok = false;
  });
  return ok;
}

}  // namespace xent
