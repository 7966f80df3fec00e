// The functions of `xent eval`: results of a block of rows, and sums over rows in their order.
#include "../evaluate/evaluate.h"

#include <nanobind/stl/array.h>

#include <array>
#include <new>

#include "arguments.h"

namespace {

using namespace xent;

using Narrow = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Block rows_of(const Labels& labels, const OutDoubles& loss, const OutDoubles& confidence, const OutDoubles& brier,
              const Narrow& predicted, const Narrow& above) {
  Block block;
  block.rows = labels.size();
  block.labels = data_of(labels);
  block.loss = pointer(Maybe<OutDoubles>(loss), block.rows);
  block.confidence = pointer(Maybe<OutDoubles>(confidence), block.rows);
  block.brier = pointer(Maybe<OutDoubles>(brier), block.rows);
  block.predicted = pointer(Maybe<Narrow>(predicted), block.rows);
  block.above = pointer(Maybe<Narrow>(above), block.rows);
  return block;
}

void evaluate_rows(const Rows& outputs, const Labels& labels, bool probabilities, const OutDoubles& loss,
                   const OutDoubles& confidence, const OutDoubles& brier, const Narrow& predicted, const Narrow& above,
                   const Maybe<OutDoubles>& mass, const Maybe<OutDoubles>& lowest) {
  Block block = rows_of(labels, loss, confidence, brier, predicted, above);
  if (int64_t(outputs.shape(0)) != block.rows) throw std::invalid_argument("labels need one value a row");
  block.outputs = data_of(outputs);
  block.classes = outputs.shape(1);
  if (block.classes < 1 || block.classes > MOST_CLASSES)
    throw std::invalid_argument("outputs must have 1 to 2^31 - 1 classes");
  block.mass = pointer(mass, block.rows);
  for (int64_t i = 0; i < block.rows; ++i)
    if (block.labels[i] >= block.classes) throw std::invalid_argument("a label is no class");
  block.lowest = pointer(lowest, block.rows);
  if (probabilities && !(mass && lowest)) throw std::invalid_argument("probabilities need mass and lowest");
  const Storage type = storage(outputs.dtype());
  const Evaluates& all = *chosen->evaluates;
  bool enough_memory = true;
  {
    nb::gil_scoped_release release;
    enough_memory = (probabilities ? all.probabilities : all.logits)[type](block);
  }
  if (!enough_memory) throw std::bad_alloc();
}

using Matrix = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Adds rows to sums (evaluate/evaluate.h); (rows without a label, rows with a loss of NaN, the first of these or −1).
std::array<int64_t, 3> evaluate_fold(const Labels& labels, const OutDoubles& loss, const OutDoubles& confidence,
                                     const OutDoubles& brier, const Narrow& predicted, const Narrow& above,
                                     int64_t top_k, double shift, const Matrix& by_class, const OutDoubles& guessed,
                                     const Matrix& by_bin, const OutDoubles& moments) {
  Block block = rows_of(labels, loss, confidence, brier, predicted, above);
  Sums sums;
  sums.classes = by_class.shape(0);
  sums.bins = by_bin.shape(0);
  sums.top_k = top_k;
  if (by_class.shape(1) != 4 || by_bin.shape(1) != 4)
    throw std::invalid_argument("sums are (classes, 4) and (bins, 4)");
  if (sums.bins < 1) throw std::invalid_argument("there must be at least one bin");
  sums.by_class = data_of(by_class);
  sums.by_bin = data_of(by_bin);
  sums.guessed = pointer(Maybe<OutDoubles>(guessed), sums.classes);
  sums.shift = shift;
  sums.moments = pointer(Maybe<OutDoubles>(moments), 4);
  bool classes = true;
  {
    nb::gil_scoped_release release;
    classes = chosen->evaluates->fold(block, sums);
  }
  if (!classes) throw std::invalid_argument("a label is no class");
  return {sums.unlabelled, sums.undefined, sums.first_undefined};
}

}  // namespace

void xent::bind_evaluate(nb::module_& m) {
  m.def("evaluate_rows", &evaluate_rows, array("outputs"), array("labels"), "probabilities"_a, array("loss"),
        array("confidence"), array("brier"), array("predicted"), array("above"), maybe("mass"), maybe("lowest"));
  m.def("evaluate_fold", &evaluate_fold, array("labels"), array("loss"), array("confidence"), array("brier"),
        array("predicted"), array("above"), "top_k"_a, "shift"_a, array("by_class"), array("guessed"), array("by_bin"),
        array("moments"));
}
