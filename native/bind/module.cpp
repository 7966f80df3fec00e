// The Python module: converts arrays to a Job, chooses the instruction set, and shares the rows among threads.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

#include "arguments.h"
#include "cpu.h"

// isas.inc, which CMake writes, is BUILT(name) for each instruction set that has kernels, best first.
namespace xent {
#define BUILT(name)             \
  namespace name {              \
  extern const Kernels kernels; \
  }
#include "isas.inc"
#undef BUILT
}  // namespace xent

namespace xent {
const Kernels* chosen = nullptr;
bool forked = false;
}  // namespace xent

namespace {

using namespace xent;

// The instruction sets of this processor, best first; the first is used unless a test sets another.
const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> list = [] {
    std::vector<const Kernels*> found;
#define BUILT(name) \
  if (has_isa(#name)) found.push_back(&name::kernels);
#include "isas.inc"
#undef BUILT
    return found;
  }();
  return list;
}

struct Call {
  Job job;
  Storage type;
  CoefficientArguments coefficient;

  Call(const In& z, const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature, double softcap)
      : type(storage(z.dtype())) {
    if (z.ndim() != 2 && z.ndim() != 3) throw std::invalid_argument("logits must have 2 or 3 axes");
    job.storage = type;
    job.outer = z.shape(0);
    job.inner = z.ndim() == 3 ? z.shape(1) : 1;
    job.classes = z.shape(z.ndim() - 1);
    if (job.classes < 1) throw std::invalid_argument("logits must have at least one class");
    times({job.classes, SCRATCH_BYTES});
    job.z = strided(z);
    job.inv_temperature = inv_temperature;
    job.softcap = softcap;
    job.labels = pointer(labels, job.rows());
    if (!dense) return;
    if (storage(dense->dtype()) != (type == F64 ? F64 : F32)) throw nb::type_error("dense has another dtype");
    if (dense->ndim() == 1) {
      if (int64_t(dense->shape(0)) != job.classes) throw std::invalid_argument("dense has another length");
      job.dense.data = const_cast<void*>(data_of(*dense));
      job.dense.cls = dense->stride(0);
    } else {
      job.dense = like_logits(*dense);
    }
  }

  template <class A>
  Strided like_logits(const A& x) const {
    bool same = x.ndim() == (job.inner == 1 && x.ndim() == 2 ? 2u : 3u) && int64_t(x.shape(0)) == job.outer &&
                int64_t(x.shape(x.ndim() - 1)) == job.classes && (x.ndim() == 2 || int64_t(x.shape(1)) == job.inner);
    if (!same) throw std::invalid_argument("an array has another shape than the logits");
    return strided(x);
  }
  // Whether a stride is shorter than the extent of the smaller strides; a slice of an array has none.
  static bool overlaps_itself(const Out& out) {
    int64_t reach = 0, seen[3];
    for (size_t i = 0; i < out.ndim(); ++i) seen[i] = std::abs(out.stride(i));
    for (size_t step = 0; step < out.ndim(); ++step) {
      const size_t i = size_t(std::min_element(seen, seen + out.ndim()) - seen);
      if (out.shape(i) > 1 && seen[i] <= reach) return true;
      if (out.shape(i) > 1) reach += seen[i] * (int64_t(out.shape(i)) - 1);
      seen[i] = INT64_MAX;
    }
    return false;
  }
  void set_out(const Out& out) {
    if (storage(out.dtype()) != type) throw nb::type_error("out has another dtype than the logits");
    job.out = like_logits(out);
    if (overlaps_itself(out)) throw std::invalid_argument("out must own each of its elements");
    // Lines that were read as input are in the cache.
    job.stream = is_large(job.rows() * job.classes * int64_t(out.itemsize())) && job.out.data != job.z.data;
  }
  void set_cotangents(nb::handle dl, nb::handle dx, nb::handle ds) {
    job.dl = coefficient(dl, job.rows());
    job.dx = coefficient(dx, job.rows());
    job.ds = coefficient(ds, job.rows());
  }
  void set_statistics(Maybe<OutDoubles>& lse, Maybe<OutDoubles>& log_prob, Maybe<OutDoubles>& dense_log_prob,
                      Maybe<OutDoubles>& mass) {
    job.lse = pointer(lse, job.rows());
    job.log_prob = pointer(log_prob, job.rows());
    job.dense_log_prob = pointer(dense_log_prob, job.rows());
    job.mass = pointer(mass, job.rows());
  }

  void run(Op op) const {
    const int64_t granule = chosen->granule(job);
    if (granule > 1 && job.classes > MOST_CLASSES)  // rows in tiles
      throw std::invalid_argument("more than 2^31 - 1 classes must be consecutive in memory");
    bool enough_memory = true;
    {
      nb::gil_scoped_release release;
      enough_memory = shared(op, granule);
    }
    if (!enough_memory) throw std::bad_alloc();
  }

  bool shared(Op op, int64_t granule) const {
    const Rows rows = chosen->rows;
    const int64_t total = job.rows();
    return share((total + granule - 1) / granule, total * job.classes, [&](int64_t begin, int64_t end) {
      return rows(job, op, begin * granule, std::min(end * granule, total));
    });
  }
};

void row_stats(const In& z, const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature, double softcap,
               Maybe<OutDoubles> lse, Maybe<OutDoubles> log_prob, Maybe<OutDoubles> dense_log_prob,
               Maybe<OutDoubles> mass, Maybe<OutDoubles> entropy, Maybe<OutIntegers> argmax) {
  Call call(z, labels, dense, inv_temperature, softcap);
  call.set_statistics(lse, log_prob, dense_log_prob, mass);
  call.job.entropy = pointer(entropy, call.job.rows());
  call.job.argmax = pointer(argmax, call.job.rows());
  call.run(STATS);
}

void row_grad(const In& z, const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature, double softcap,
              const InDoubles& lse, const Maybe<InDoubles>& log_prob, const Maybe<InDoubles>& mass, nb::handle dl,
              nb::handle dx, nb::handle ds, Out out) {
  Call call(z, labels, dense, inv_temperature, softcap);
  if (labels && !log_prob) throw std::invalid_argument("labels need log_prob");
  if (dense && !mass) throw std::invalid_argument("dense needs mass");
  call.set_cotangents(dl, dx, ds);
  call.job.in_lse = pointer(Maybe<InDoubles>(lse), call.job.rows());
  call.job.in_log_prob = pointer(log_prob, call.job.rows());
  call.job.in_mass = pointer(mass, call.job.rows());
  call.set_out(out);
  call.run(GRAD);
}

void row_stats_and_grad(const In& z, const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature,
                        double softcap, nb::handle dl, nb::handle dx, nb::handle ds, Out out, Maybe<OutDoubles> lse,
                        Maybe<OutDoubles> log_prob, Maybe<OutDoubles> dense_log_prob, Maybe<OutDoubles> mass) {
  Call call(z, labels, dense, inv_temperature, softcap);
  call.set_cotangents(dl, dx, ds);
  call.set_statistics(lse, log_prob, dense_log_prob, mass);
  call.set_out(out);
  call.run(STATS_AND_GRAD);
}

void row_hvp(const In& z, const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature, double softcap,
             nb::handle dl, nb::handle dx, nb::handle ds, nb::handle ddl, nb::handle ddx, const In& vector, Out out) {
  Call call(z, labels, dense, inv_temperature, softcap);
  call.set_cotangents(dl, dx, ds);
  call.job.ddl = call.coefficient(ddl, call.job.rows());
  call.job.ddx = call.coefficient(ddx, call.job.rows());
  if (storage(vector.dtype()) != call.type) throw nb::type_error("vector has another dtype than the logits");
  call.job.vector = call.like_logits(vector);
  call.set_out(out);
  call.run(HVP);
}

// Whether every label is in [0, classes): then the sign bits of y and classes − 1 − y are 0.
bool all_in_range(const Labels& labels, int64_t classes) {
  if (classes < 1) return labels.size() == 0;
  const int64_t size = labels.size(), last = classes - 1;
  const int64_t* y = data_of(labels);
  nb::gil_scoped_release release;
  const auto signs = [=](int64_t begin, int64_t end) {
    uint64_t bits = 0;
    for (int64_t i = begin; i < end; ++i) bits |= uint64_t(y[i]) | (uint64_t(last) - uint64_t(y[i]));
    return bits;
  };
  return share(size, size, [&](int64_t begin, int64_t end) { return !(signs(begin, end) >> 63); });
}

// `pairwise` with PARTS of its halves shared among threads; the same bits.
double total(const InDoubles& column) {
  constexpr int PARTS = 16;
  const double* x = data_of(column);
  const int64_t size = column.size();
  nb::gil_scoped_release release;
  const int threads = threads_for(size, PARTS);
  if (threads <= 1) return pairwise(x, size);
  int64_t begin[PARTS + 1] = {0, size};
  for (int parts = 1; parts < PARTS; parts *= 2)
    for (int i = parts; i > 0; --i) {
      begin[2 * i] = begin[i];
      const int64_t part = begin[2 * i] - begin[i - 1];
      begin[2 * i - 1] = begin[i - 1] + (part / 2 - part / 2 % 8);
    }
  double sums[PARTS];
  each_piece(PARTS, threads, [&](int64_t i) { sums[i] = pairwise(x + begin[i], begin[i + 1] - begin[i]); });
  for (int parts = PARTS; parts > 1; parts /= 2)
    for (int i = 0; i < parts / 2; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
  return sums[0];
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.push_back(k->isa);
  return names;
}

std::string set_isa(const std::string& name) {
  for (const Kernels* k : available())
    if (name == k->isa) {
      std::string before = chosen->isa;
      chosen = k;
      return before;
    }
  throw nb::value_error(("no kernels for instruction set " + name).c_str());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The C++ kernels. Made by nanobind's stubgen from native/bind/: run `make format`.";
  if (available().empty())
    throw nb::import_error("xent was built for the instruction set of another machine; install it again on this one");
  chosen = available().front();
#ifndef _WIN32
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
  m.def("row_stats", &row_stats, array("logits"), maybe("labels"), maybe("dense"), "inv_temperature"_a, "softcap"_a,
        maybe("lse"), maybe("log_prob"), maybe("dense_log_prob"), maybe("mass"), maybe("entropy"), maybe("argmax"));
  m.def("row_grad", &row_grad, array("logits"), maybe("labels"), maybe("dense"), "inv_temperature"_a, "softcap"_a,
        array("lse"), maybe("log_prob"), maybe("mass"), "dl"_a, "dx"_a, "ds"_a, array("out"));
  m.def("row_stats_and_grad", &row_stats_and_grad, array("logits"), maybe("labels"), maybe("dense"),
        "inv_temperature"_a, "softcap"_a, "dl"_a, "dx"_a, "ds"_a, array("out"), maybe("lse"), maybe("log_prob"),
        maybe("dense_log_prob"), maybe("mass"));
  m.def("row_hvp", &row_hvp, array("logits"), maybe("labels"), maybe("dense"), "inv_temperature"_a, "softcap"_a, "dl"_a,
        "dx"_a, "ds"_a, "ddl"_a, "ddx"_a, array("vector"), array("out"));
  m.def("all_in_range", &all_in_range, array("labels"), "classes"_a);
  m.def("total", &total, array("column"));
  bind_linear(m);
  bind_evaluate(m);
  bind_sparse(m);
  bind_binary(m);
  bind_ffi(m);
  m.def("isas", &isas);
  m.def("set_isa", &set_isa, "name"_a);
  m.def("set_threads", &set_threads, "most"_a);
}
