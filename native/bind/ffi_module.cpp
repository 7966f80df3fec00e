// The row kernels as XLA calls them, on its threads and without Python: buffers become Jobs, whose rows the threads
// share. The attributes `operands` and `results` name the buffers beside the logits and the gradient, in their order.
#include <xla/ffi/api/ffi.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "arguments.h"

namespace {

using namespace xent;
namespace ffi = xla::ffi;
using ffi::DataType;

constexpr int64_t BLOCK = 1024;  // rows whose columns are converted at once: whole granules

enum Input { LABELS, DENSE, LSE, LOG_PROB, MASS, DL, DX, DS, INPUTS };
constexpr std::string_view INPUT_NAMES[INPUTS] = {"labels", "dense", "lse", "log_prob", "mass", "dl", "dx", "ds"};
enum Output { OUT_LSE, OUT_LOG_PROB, OUT_DENSE_LOG_PROB, OUT_MASS, OUT_ENTROPY, OUT_ARGMAX, OUTPUTS };
constexpr std::string_view OUTPUT_NAMES[OUTPUTS] = {"lse", "log_prob", "dense_log_prob", "mass", "entropy", "argmax"};

void expect(bool true_of_the_call, const char* message) {
  if (!true_of_the_call) throw std::invalid_argument(message);
}

template <class T>
T value(const ffi::ErrorOr<T>& result) {
  expect(result.has_value(), "a buffer is missing");
  return *result;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found;
  for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
    end = std::min(text.find(' ', begin), text.size());
    found.push_back(text.substr(begin, end - begin));
  }
  return found;
}

template <int COUNT>
int place(std::string_view name, const std::string_view (&names)[COUNT]) {
  const auto found = std::find(names, names + COUNT, name);
  expect(found != names + COUNT, "a buffer has an unknown name");
  return int(found - names);
}

Storage storage_of(DataType type) {
  if (type == DataType::F64) return F64;
  if (type == DataType::F32) return F32;
  if (type == DataType::F16) return F16;
  expect(type == DataType::BF16, "logits must be float64, float32, float16 or bfloat16");
  return BF16;
}

// A buffer of items, one for each row or for each run of rows: its axes are the first of the axes of the rows.
struct Items {
  const char* data = nullptr;
  DataType type = DataType::INVALID;
  int64_t bytes = 0;     // of an item
  size_t axes = 0;       // of the items
  bool each_row = true;  // else one item for all rows of a group, or for several groups

  explicit operator bool() const { return type != DataType::INVALID; }
};

struct Result {
  char* data = nullptr;
  DataType type = DataType::INVALID;
  explicit operator bool() const { return type != DataType::INVALID; }
};

template <class To, class From>
void converted(const From* from, bool each, int64_t count, To* to) {
  if (!each) std::fill_n(to, count, To(*from));
  else
    for (int64_t i = 0; i < count; ++i) to[i] = To(from[i]);
}

// `column`, for a job that counts its rows from 0 while the column begins at row `first`.
template <class T>
T* counted(T* column, int64_t first) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(column) - uintptr_t(first) * sizeof(T));
}

// Scratch for BLOCK rows of each input and output, in the types of the kernels.
struct Columns {
  std::unique_ptr<double[]> doubles{new (std::nothrow) double[(INPUTS + OUTPUTS) * BLOCK]};
  std::unique_ptr<int64_t[]> integers{new (std::nothrow) int64_t[2 * BLOCK]};
  explicit operator bool() const { return doubles && integers; }
  double* input(int i) const { return doubles.get() + i * BLOCK; }
  double* output(int i) const { return doubles.get() + (INPUTS + i) * BLOCK; }
  int64_t* labels() const { return integers.get(); }
  int64_t* argmax() const { return integers.get() + BLOCK; }
};

// The pages of a fresh output are faulted in while it is written; of large pages there are 512 times fewer.
void ask_for_large_pages([[maybe_unused]] char* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

class RowCall {
  const Op op;
  Job job;                    // of the rows of a group
  std::vector<int64_t> axes;  // of all rows
  Items logits, inputs[INPUTS];
  Result gradient, outputs[OUTPUTS];
  // A group: rows of which each buffer has an item each, or one for all. The first axes count the groups.
  size_t group_axes = 0;
  int64_t groups = 1;

 public:
  RowCall(Op op, const ffi::AnyBuffer& z, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view operands,
          std::string_view results, double inv_temperature, double softcap, double dl, double dx, double ds)
      : op(op) {
    const auto given = words(operands), wanted = words(results);
    const bool with_gradient = op != STATS;
    expect(args.size() == given.size() && rets.size() == wanted.size() + with_gradient && rets.size() > 0,
           "operands or results have other names");
    set_axes(*value(rets.get<ffi::AnyBuffer>(0)), with_gradient);
    job.storage = storage_of(z.element_type());
    job.inner = 1;
    job.inv_temperature = inv_temperature, job.softcap = softcap;
    job.dl.scalar = dl, job.dx.scalar = dx, job.ds.scalar = ds;
    job.classes = z.dimensions().size() ? z.dimensions().back() : 0;
    expect(job.classes > 0 && job.classes <= MOST_CLASSES, "logits must have 1 to 2^31 - 1 classes");
    times({job.classes, SCRATCH_BYTES});
    logits = items(z, true);
    expect(logits.axes == axes.size(), "the logits have other axes than the results");
    for (size_t i = 0; i < given.size(); ++i) {
      const int name = place(given[i], INPUT_NAMES);
      inputs[name] = items(value(args.get<ffi::AnyBuffer>(i)), name == DENSE);
      expect_type(inputs[name].type, name);
    }
    if (with_gradient) gradient = result(*value(rets.get<ffi::AnyBuffer>(0)));
    for (size_t i = 0; i < wanted.size(); ++i) {
      const int name = place(wanted[i], OUTPUT_NAMES);
      Result& out = outputs[name] = result(*value(rets.get<ffi::AnyBuffer>(i + with_gradient)));
      expect(name == OUT_ARGMAX ? out.type == DataType::S32 : is_real(out.type), "a result has another dtype");
    }
    expect(!with_gradient || gradient.type == z.element_type(), "the gradient must have the dtype of the logits");
    expect(op != GRAD || (inputs[LSE] && (inputs[LOG_PROB] || !inputs[LABELS]) && (inputs[MASS] || !inputs[DENSE])),
           "the gradient needs lse, with labels log_prob, and with dense mass");
    set_groups();
  }

  // False if there is not enough memory.
  bool run() {
    if (job.outer == 0 || groups == 0) return true;
    const int64_t item = job.classes * ELEMENT_BYTES[job.storage], bytes = groups * job.outer * item;
    job.stream = gradient && is_large(bytes);
    if (gradient && is_large(bytes)) ask_for_large_pages(gradient.data, bytes);
    set_matrices(job, 0);  // the granule depends on which there are
    const int64_t granule = chosen->granule(job), granules = (job.outer + granule - 1) / granule;
    const Rows rows = chosen->rows;
    return share(groups * granules, groups * job.outer * job.classes, [&](int64_t begin, int64_t end) {
      const Columns columns;
      if (!columns) return false;
      for (int64_t unit = begin, last; unit < end; unit = last) {
        const int64_t group = unit / granules, origin = group * granules;
        last = std::min({end, origin + granules, unit + BLOCK / granule});
        if (!block(rows, group, (unit - origin) * granule, std::min(job.outer, (last - origin) * granule), columns))
          return false;
      }
      return true;
    });
  }

 private:
  void set_axes(const ffi::AnyBuffer& first, bool with_gradient) {
    const auto dims = first.dimensions();
    expect(dims.size() >= size_t(with_gradient), "the gradient must have the shape of the logits");
    axes.assign(dims.begin(), dims.end() - with_gradient);
  }

  Items items(const ffi::AnyBuffer& buffer, bool has_classes) const {
    const auto dims = buffer.dimensions();
    expect(dims.size() >= size_t(has_classes) && dims.size() - has_classes <= axes.size(),
           "an operand has other axes than the logits");
    Items x;
    x.data = static_cast<const char*>(buffer.untyped_data());
    x.type = buffer.element_type();
    x.axes = dims.size() - has_classes;
    x.bytes = int64_t(ffi::ByteWidth(x.type)) * (has_classes ? job.classes : 1);
    expect(std::equal(axes.begin(), axes.begin() + x.axes, dims.begin()), "an operand has other axes than the logits");
    expect(!has_classes || dims.back() == job.classes, "dense has another number of classes than the logits");
    return x;
  }

  static bool is_real(DataType type) { return type == DataType::F32 || type == DataType::F64; }

  void expect_type(DataType type, int name) const {
    if (name == LABELS) expect(type == DataType::S32 || type == DataType::S64, "labels must be int32 or int64");
    else if (name == DENSE)
      expect(type == (job.storage == F64 ? DataType::F64 : DataType::F32), "dense has another dtype");
    else expect(is_real(type), "statistics and cotangents must be float32 or float64");
  }

  static Result result(const ffi::AnyBuffer& buffer) {
    return {static_cast<char*>(buffer.untyped_data()), buffer.element_type()};
  }

  void set_groups() {
    for (Items& x : inputs) {
      if (!x) continue;
      x.each_row = x.axes == axes.size();
      if (!x.each_row) group_axes = std::max(group_axes, x.axes);
    }
    groups = product(0, group_axes);
    job.outer = product(group_axes, axes.size());
  }

  int64_t product(size_t first, size_t last) const {
    return std::accumulate(axes.begin() + first, axes.begin() + last, int64_t{1}, std::multiplies<>());
  }

  // The item of a group's first row.
  const char* item(const Items& x, int64_t group) const {
    return x.data + (x.each_row ? group * job.outer : group / product(x.axes, group_axes)) * x.bytes;
  }

  void set_matrices(Job& of, int64_t group) const {
    const auto matrix = [&](const char* data, bool each_row) -> Strided {
      return {const_cast<char*>(data), each_row ? job.classes : 0, 0, 1};
    };
    of.z = matrix(item(logits, group), logits.each_row);
    if (inputs[DENSE]) of.dense = matrix(item(inputs[DENSE], group), inputs[DENSE].each_row);
    if (gradient) of.out = matrix(gradient.data + group * job.outer * job.classes * ELEMENT_BYTES[job.storage], true);
  }

  bool block(Rows rows, int64_t group, int64_t first, int64_t last, const Columns& columns) const {
    const int64_t count = last - first, begin = group * job.outer;
    Job part = job;
    set_matrices(part, group);
    if (const Items& y = inputs[LABELS]) {
      const char* from = item(y, group) + (y.each_row ? first * y.bytes : 0);
      part.labels = counted(columns.labels(), first);
      if (y.type == DataType::S32)
        converted(reinterpret_cast<const int32_t*>(from), y.each_row, count, columns.labels());
      else if (y.each_row) part.labels = counted(reinterpret_cast<const int64_t*>(from), first);
      else converted(reinterpret_cast<const int64_t*>(from), false, count, columns.labels());
    }
    const auto numbers = [&](Input name) -> const double* {
      const Items& x = inputs[name];
      if (!x) return nullptr;
      const char* from = item(x, group) + (x.each_row ? first * x.bytes : 0);
      if (x.type == DataType::F64 && x.each_row) return counted(reinterpret_cast<const double*>(from), first);
      double* to = columns.input(name);
      if (x.type == DataType::F64) converted(reinterpret_cast<const double*>(from), x.each_row, count, to);
      else converted(reinterpret_cast<const float*>(from), x.each_row, count, to);
      return counted(static_cast<const double*>(to), first);
    };
    part.dl.data = numbers(DL), part.dx.data = numbers(DX), part.ds.data = numbers(DS);
    part.in_lse = numbers(LSE), part.in_log_prob = numbers(LOG_PROB), part.in_mass = numbers(MASS);

    const auto room = [&](Output name) -> double* {
      const Result& out = outputs[name];
      if (!out) return nullptr;
      if (out.type == DataType::F64) return reinterpret_cast<double*>(out.data) + begin;
      return counted(columns.output(name), first);
    };
    part.lse = room(OUT_LSE), part.log_prob = room(OUT_LOG_PROB), part.mass = room(OUT_MASS);
    part.dense_log_prob = room(OUT_DENSE_LOG_PROB), part.entropy = room(OUT_ENTROPY);
    if (outputs[OUT_ARGMAX]) part.argmax = counted(columns.argmax(), first);

    if (!rows(part, op, first, last)) return false;
    for (int name = 0; name < OUT_ARGMAX; ++name)
      if (const Result& out = outputs[name]; out && out.type == DataType::F32)
        converted(columns.output(name), true, count, reinterpret_cast<float*>(out.data) + begin + first);
    if (const Result& out = outputs[OUT_ARGMAX])
      converted(columns.argmax(), true, count, reinterpret_cast<int32_t*>(out.data) + begin + first);
    return true;
  }
};

template <Op op>
ffi::Error call(ffi::AnyBuffer logits, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view operands,
                std::string_view results, double inv_temperature, double softcap, double dl, double dx, double ds) {
  try {
    RowCall rows(op, logits, args, rets, operands, results, inv_temperature, softcap, dl, dx, ds);
    if (rows.run()) return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
  } catch (const std::exception& error) {
    return ffi::Error::InvalidArgument(error.what());
  }
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "not enough memory for the loss of rows");
}

auto binding() {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .RemainingArgs()
      .RemainingRets()
      .Attr<std::string_view>("operands")
      .Attr<std::string_view>("results")
      .Attr<double>("inv_temperature")
      .Attr<double>("softcap")
      .Attr<double>("dl")
      .Attr<double>("dx")
      .Attr<double>("ds");
}

XLA_FFI_DEFINE_HANDLER(row_stats, call<STATS>, binding());
XLA_FFI_DEFINE_HANDLER(row_grad, call<GRAD>, binding());
XLA_FFI_DEFINE_HANDLER(row_stats_and_grad, call<STATS_AND_GRAD>, binding());

nb::dict ffi_handlers() {
  nb::dict handlers;
  const auto add = [&](const char* name, XLA_FFI_Handler* handler) {
    handlers[name] = nb::capsule(reinterpret_cast<void*>(handler));
  };
  add("xent_row_stats", row_stats);
  add("xent_row_grad", row_grad);
  add("xent_row_stats_and_grad", row_stats_and_grad);
  return handlers;
}

}  // namespace

void xent::bind_ffi(nb::module_& m) { m.def("ffi_handlers", &ffi_handlers); }
