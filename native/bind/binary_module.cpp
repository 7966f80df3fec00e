// The loss of rows (0, z): converts flat arrays to a BinaryJob, whose blocks the threads share.
#include "../binary/binary.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "arguments.h"

namespace {

using namespace xent;

bool is_flat(const In& a) { return a.ndim() == 1 && (a.size() < 2 || a.stride(0) == 1); }

Targets targets_of(const In& q, Storage logits, Storage computed) {
  const auto code = nb::dlpack::dtype_code(q.dtype().code);
  if (code == nb::dlpack::dtype_code::UInt && q.dtype().bits == 8) return BYTES;
  if (code == nb::dlpack::dtype_code::Int && q.dtype().bits == 64) return INTEGERS;
  const Storage type = storage(q.dtype());
  if (type == computed) return COMPUTED;
  if (type == logits) return STORED;
  throw nb::type_error("targets must be int64, uint8 or of the dtype of the logits or of their loss");
}

double binary_loss(const In& z, const In& q, const Maybe<In>& positive, const Maybe<In>& weight,
                   const Maybe<In>& upstream, double keep, double add, double inv_temperature, double softcap,
                   double scale, const Maybe<Out>& losses, const Maybe<Out>& out) {
  BinaryJob job;
  const Storage type = storage(z.dtype()), computed = type == F64 ? F64 : F32;
  job.size = int64_t(z.size());
  const auto cycle = [&](const Maybe<In>& a) -> Cycle {
    if (!a) return {};
    if (storage(a->dtype()) != computed || !is_flat(*a) || a->size() == 0)
      throw std::invalid_argument("factors must be flat, in the dtype of the loss");
    return {data_of(*a), int64_t(a->size())};
  };
  const auto room = [&](const Maybe<Out>& a, Storage wanted) -> void* {
    if (!a) return nullptr;
    if (storage(a->dtype()) != wanted || !is_flat(In(*a)) || int64_t(a->size()) != job.size)
      throw std::invalid_argument("losses and out must be flat, as long as the logits");
    return data_of(*a);
  };
  if (!is_flat(z) || !is_flat(q) || q.size() != z.size())
    throw std::invalid_argument("logits and targets must be flat and of one length");
  job.z = data_of(z), job.q = data_of(q);
  job.targets = targets_of(q, type, computed);
  job.keep = keep, job.add = add;
  job.positive = cycle(positive), job.weight = cycle(weight), job.upstream = cycle(upstream);
  job.inv_temperature = inv_temperature, job.softcap = softcap, job.scale = scale;
  job.losses = room(losses, computed), job.out = room(out, type);
  job.stream = out && is_large(job.size * int64_t(out->itemsize())) && job.out != job.z;
  const auto work = chosen->binary->blocks[type];
  nb::gil_scoped_release release;
  const int64_t blocks = (job.size + BINARY_BLOCK - 1) / BINARY_BLOCK, pieces = std::min<int64_t>(blocks, 64);
  std::vector<double> sums(static_cast<size_t>(blocks));
  job.sums = sums.data();
  each_piece(pieces, threads_for(job.size, pieces),
             [&](int64_t piece) { work(job, blocks * piece / pieces, blocks * (piece + 1) / pieces); });
  return pairwise(sums.data(), blocks);
}

bool all_within(const In& x, double upper) {
  if (!is_flat(x)) throw std::invalid_argument("numbers must be flat");
  const auto within = chosen->binary->within[storage(x.dtype())];
  const int64_t size = int64_t(x.size()), pieces = 64;
  const void* data = data_of(x);
  nb::gil_scoped_release release;
  const int threads = threads_for(size, pieces);
  if (threads <= 1) return within(data, 0, size, upper);
  std::atomic<bool> all{true};
  each_piece(pieces, threads, [&](int64_t piece) {
    if (!within(data, size * piece / pieces, size * (piece + 1) / pieces, upper)) all = false;
  });
  return all;
}

}  // namespace

void xent::bind_binary(nb::module_& m) {
  m.def("binary_loss", &binary_loss, array("logits"), array("targets"), maybe("positive"), maybe("weight"),
        maybe("upstream"), "keep"_a, "add"_a, "inv_temperature"_a, "softcap"_a, "scale"_a, maybe("losses"),
        maybe("out"));
  m.def("all_within", &all_within, array("x"), "upper"_a);
}
