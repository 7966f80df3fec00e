// The linear model's functions: convert arrays to a LinearJob, whose pieces of rows the threads share; the sums of the
// pieces are added in the order of the rows.
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "arguments.h"
#include "../linear/linear.h"

namespace {

using namespace xent;

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};
using OutMatrix = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Memory = std::unique_ptr<void, Free>;

Memory allocate(size_t bytes) { return Memory(::operator new(bytes + 64, std::align_val_t(64), std::nothrow)); }

struct LinearCall {
  LinearJob job;
  Widths widths;
  Memory weight, vector;  // padded
  CoefficientArguments coefficient;

  LinearCall(Op op, const In& features, const In& w, const Maybe<In>& b, bool zero_class, const Maybe<Labels>& labels,
             const Maybe<In>& dense, double inv_temperature, double softcap) {
    if (features.ndim() != 2 || w.ndim() != 2 || features.shape(1) != w.shape(1))
      throw std::invalid_argument("features and weight must be (N, D) and (K, D)");
    const Storage wide = storage(w.dtype()), narrow = storage(features.dtype());
    if (wide > F32 || narrow > F32 || wide > narrow)
      throw nb::type_error("weight must be as wide as the features, or wider");
    widths = wide == F32 ? F32_F32 : narrow == F32 ? F32_F64 : F64_F64;
    const int64_t size = wide == F32 ? 4 : 8, lanes = kernel().lanes;
    if (w.shape(0) < 1 || int64_t(w.shape(0)) >= MOST_CLASSES)
      throw std::invalid_argument("weight must have 1 to 2^31 - 2 rows");
    times({int64_t(w.shape(0)), SCRATCH_BYTES}), times({int64_t(w.shape(1)), SCRATCH_BYTES});
    job.op = op;
    job.features = strided(features);
    job.num_features = features.shape(1);
    job.padded = (job.num_features + lanes - 1) / lanes * lanes;
    job.num_scores = w.shape(0);
    Job& rows = job.rows;
    rows.outer = features.shape(0);
    rows.inner = 1;
    rows.classes = job.num_scores + (zero_class ? 1 : 0);
    rows.inv_temperature = inv_temperature;
    rows.softcap = softcap;
    rows.labels = pointer(labels, rows.outer);
    if (dense) set_dense(*dense, wide);
    set_block(size);
    weight = padded(w, size);
    job.weight = weight.get();
    job.bias = one_a_class(b, wide);
  }

  void set_cotangents(nb::handle dl, nb::handle dx, nb::handle ds) {
    job.rows.dl = coefficient(dl, job.rows.outer);
    job.rows.dx = coefficient(dx, job.rows.outer);
    job.rows.ds = coefficient(ds, job.rows.outer);
  }
  void set_statistics(Maybe<OutDoubles>& lse, Maybe<OutDoubles>& log_prob, Maybe<OutDoubles>& dense_log_prob,
                      Maybe<OutDoubles>& mass) {
    job.rows.lse = pointer(lse, job.rows.outer);
    job.rows.log_prob = pointer(log_prob, job.rows.outer);
    job.rows.dense_log_prob = pointer(dense_log_prob, job.rows.outer);
    job.rows.mass = pointer(mass, job.rows.outer);
  }
  void set_vector(const In& v, const Maybe<In>& b) {
    const Storage wide = widths == F32_F32 ? F32 : F64;
    if (v.ndim() != 2 || int64_t(v.shape(0)) != job.num_scores || int64_t(v.shape(1)) != job.num_features ||
        storage(v.dtype()) != wide)
      throw std::invalid_argument("vector must be as weight");
    vector = padded(v, wide == F32 ? 4 : 8);
    job.vector = vector.get();
    job.vector_bias = one_a_class(b, wide);
  }

  void run(OutMatrix& dweight, OutDoubles& dbias) const {
    if (int64_t(dweight.shape(0)) != job.num_scores || int64_t(dweight.shape(1)) != job.num_features ||
        dbias.ndim() != 1 || int64_t(dbias.shape(0)) != job.num_scores)
      throw std::invalid_argument("gradients must be (K, D), as weight, and (K,)");
    run(data_of(dweight), data_of(dbias));
  }
  // Gradients in W (num_scores, D) and b (num_scores,); null for statistics only.
  void run(double* dweight, double* dbias) const {
    bool enough_memory = true;
    {
      nb::gil_scoped_release release;
      enough_memory = shared(dweight, dbias);
    }
    if (!enough_memory) throw std::bad_alloc();
  }

 private:
  const Linear& kernel() const { return chosen->linear[widths]; }

  void set_dense(const In& dense, Storage wide) {
    Strided& d = job.rows.dense;
    if (storage(dense.dtype()) != wide) throw nb::type_error("dense has another dtype than the weight");
    if (dense.ndim() < 1 || dense.ndim() > 2 || int64_t(dense.shape(dense.ndim() - 1)) != job.rows.classes ||
        (dense.ndim() == 2 && int64_t(dense.shape(0)) != job.rows.outer))
      throw std::invalid_argument("dense must be (K,) or (N, K)");
    d = strided(dense);
    if (dense.ndim() == 1) d.outer = 0;
  }

  // Rows that fit in the level-2 cache; whole tiles of the row kernels if they are 64 or more.
  void set_block(int64_t size) {
    constexpr int64_t bytes = 480 << 10;
    const int64_t fit = bytes / ((job.padded + 2 * job.rows.classes + 1) * size);
    job.block = fit >= 64 ? std::min<int64_t>(fit / 64 * 64, 1024) : 32;
  }

  const void* one_a_class(const Maybe<In>& b, Storage wide) const {
    if (!b) return nullptr;
    if (b->ndim() != 1 || int64_t(b->shape(0)) != job.num_scores || storage(b->dtype()) != wide ||
        (b->shape(0) > 1 && b->stride(0) != 1))
      throw std::invalid_argument("a bias must have one value a class, in the dtype of the weight");
    return data_of(*b);
  }

  // A copy whose rows are padded to whole vectors.
  Memory padded(const In& w, int64_t size) const {
    const int64_t line = job.padded * size, cls = w.stride(0), step = w.stride(1);
    const size_t bytes = size_t(times({job.num_scores, line}));
    const char* from = static_cast<const char*>(data_of(w));
    Memory memory = allocate(bytes);
    if (!memory) throw std::bad_alloc();
    char* to = static_cast<char*>(memory.get());
    std::memset(to, 0, bytes);
    for (int64_t c = 0; c < job.num_scores; ++c)
      for (int64_t d = 0; d < job.num_features; ++d)
        std::memcpy(to + c * line + job.place(d, kernel().lanes) * size, from + (c * cls + d * step) * size,
                    size_t(size));
    return memory;
  }

  // Rows of a piece of work, a whole number of blocks. There are at most 64 pieces, whose sums take at most a
  // sixteenth of the memory of the features. They depend on the shape only, so the bits do not depend on the threads.
  int64_t rows_of_a_piece() const {
    const int64_t rows = std::max(job.rows.outer / 64, 32 * job.num_scores);
    return std::max<int64_t>(1, (rows + job.block - 1) / job.block) * job.block;
  }

  bool shared(double* dweight, double* dbias) const {
    const int64_t total = job.rows.outer, step = rows_of_a_piece(), pieces = (total + step - 1) / step;
    const int64_t sums = (times({job.num_scores, job.padded + 1}) + 7) / 8 * 8;
    const Memory partial = allocate(dweight ? size_t(times({pieces, sums, int64_t(sizeof(double))})) : 0);
    if (!partial) return false;
    double* part = static_cast<double*>(partial.get());
    const int threads = threads_for(times({total, job.num_features}), pieces);
    const size_t scratch = kernel().scratch_bytes(job);
    std::atomic<bool> ok{true};
    const auto work = [&](int64_t piece, void* memory) {
      double* to = part + (dweight ? piece * sums : 0);
      if (dweight) std::memset(to, 0, size_t(sums) * sizeof(double));
      if (!memory || !kernel().piece(job, piece * step, std::min(total, (piece + 1) * step), memory, to)) ok = false;
    };
    std::atomic<int64_t> next{0};
    on_threads(std::max(threads, 1), [&] {
      const Memory memory = allocate(scratch);
      for (int64_t piece = next++; piece < pieces; piece = next++) work(piece, memory.get());
    });
    if (dweight && ok) add(part, pieces, sums, dweight, dbias);
    return ok;
  }

  // Adds the sums in the order of the pieces.
  void add(const double* part, int64_t pieces, int64_t sums, double* dweight, double* dbias) const {
    const int64_t C = job.num_scores, D = job.num_features, lanes = kernel().lanes;
    std::memset(dweight, 0, size_t(C * D) * sizeof(double));
    std::memset(dbias, 0, size_t(C) * sizeof(double));
    for (int64_t piece = 0; piece < pieces; ++piece, part += sums)
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t d = 0; d < D; ++d) dweight[c * D + d] += part[c * job.padded + job.place(d, lanes)];
        dbias[c] += part[C * job.padded + c];
      }
  }
};

void linear_stats(const In& features, const In& weight, const Maybe<In>& bias, bool zero_class,
                  const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature, double softcap,
                  Maybe<OutDoubles> lse, Maybe<OutDoubles> log_prob, Maybe<OutDoubles> dense_log_prob,
                  Maybe<OutDoubles> mass, Maybe<OutDoubles> entropy, Maybe<OutIntegers> argmax) {
  LinearCall call(STATS, features, weight, bias, zero_class, labels, dense, inv_temperature, softcap);
  call.set_statistics(lse, log_prob, dense_log_prob, mass);
  call.job.rows.entropy = pointer(entropy, call.job.rows.outer);
  call.job.rows.argmax = pointer(argmax, call.job.rows.outer);
  call.run(nullptr, nullptr);
}

void linear_stats_and_grad(const In& features, const In& weight, const Maybe<In>& bias, bool zero_class,
                           const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature, double softcap,
                           nb::handle dl, nb::handle dx, nb::handle ds, Maybe<OutDoubles> lse,
                           Maybe<OutDoubles> log_prob, Maybe<OutDoubles> dense_log_prob, Maybe<OutDoubles> mass,
                           OutMatrix dweight, OutDoubles dbias) {
  LinearCall call(STATS_AND_GRAD, features, weight, bias, zero_class, labels, dense, inv_temperature, softcap);
  call.set_cotangents(dl, dx, ds);
  call.set_statistics(lse, log_prob, dense_log_prob, mass);
  call.run(dweight, dbias);
}

void linear_hvp(const In& features, const In& weight, const Maybe<In>& bias, bool zero_class,
                const Maybe<Labels>& labels, const Maybe<In>& dense, double inv_temperature, double softcap,
                nb::handle dl, nb::handle dx, nb::handle ds, nb::handle ddl, nb::handle ddx, const In& vector,
                const Maybe<In>& vector_bias, OutMatrix dweight, OutDoubles dbias) {
  LinearCall call(HVP, features, weight, bias, zero_class, labels, dense, inv_temperature, softcap);
  call.set_cotangents(dl, dx, ds);
  call.job.rows.ddl = call.coefficient(ddl, call.job.rows.outer);
  call.job.rows.ddx = call.coefficient(ddx, call.job.rows.outer);
  call.set_vector(vector, vector_bias);
  call.run(dweight, dbias);
}

}  // namespace

void xent::bind_linear(nb::module_& m) {
  m.def("linear_stats", &linear_stats, array("features"), array("weight"), maybe("bias"), "zero_class"_a,
        maybe("labels"), maybe("dense"), "inv_temperature"_a, "softcap"_a, maybe("lse"), maybe("log_prob"),
        maybe("dense_log_prob"), maybe("mass"), maybe("entropy"), maybe("argmax"));
  m.def("linear_stats_and_grad", &linear_stats_and_grad, array("features"), array("weight"), maybe("bias"),
        "zero_class"_a, maybe("labels"), maybe("dense"), "inv_temperature"_a, "softcap"_a, "dl"_a, "dx"_a, "ds"_a,
        maybe("lse"), maybe("log_prob"), maybe("dense_log_prob"), maybe("mass"), array("dweight"), array("dbias"));
  m.def("linear_hvp", &linear_hvp, array("features"), array("weight"), maybe("bias"), "zero_class"_a, maybe("labels"),
        maybe("dense"), "inv_temperature"_a, "softcap"_a, "dl"_a, "dx"_a, "ds"_a, "ddl"_a, "ddx"_a, array("vector"),
        maybe("vector_bias"), array("dweight"), array("dbias"));
}
