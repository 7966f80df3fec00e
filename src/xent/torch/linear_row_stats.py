"""The row statistics of a linear layer's logits, chunk by chunk, and as operators of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from xent.core import head
from xent.core.contract import Cotangents, RowStats
from xent.core.link import Link
from xent.engine import valid_rows
from xent.torch import bridge, linear_ops, ops, statistics
from xent.torch.formulas import Softmax
from xent.torch.measured import is_captured
from xent.torch.projected import Operands, Swept, finished

Tensor = torch.Tensor

SCHEMA = (
    "Tensor x, Tensor w, Tensor? b, Tensor? dense, Tensor? labels, Tensor? counts, SymInt shift, "
    "float[] link, Tensor? moving, bool all, SymInt chunk_bytes"
)


class Statistics(NamedTuple):
    """Which statistics, of which rows: ``places (n,)`` of those of the inputs, or None for all."""

    places: Tensor | None
    labels: Tensor | None  # (n,), −1 for a row that is not read
    dense: Tensor | None  # (K,), or one row for each of the inputs', ``shift`` rows further on
    shift: int
    link: Link
    all: bool  # entropy and argmax too
    chunk_bytes: int

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of `RowStats` that the columns are."""
        there = (True, self.labels is not None, self.dense is not None, False, self.all, self.all)
        return tuple(name for name, is_there in zip(RowStats._fields, there, strict=True) if is_there)

    def swept(self, silent: Tensor | None = None, ddense: Tensor | None = None) -> Swept:
        """The columns of the rows; the gradient in ``dense`` is added to ``ddense``."""
        labels, link, names = self.labels, self.link, self.names

        def columns_of(part: slice, logits: Tensor) -> tuple[Tensor, ...]:
            of = None if labels is None else labels[part]
            stats = statistics.row_stats(logits, of, self._dense(part), link, self.all)
            return tuple(getattr(stats, name) for name in names)

        def step(logits: Tensor, part: slice, dcolumns: Tensor | None) -> tuple[tuple[Tensor, ...], Any]:
            of, dense = None if labels is None else labels[part], self._dense(part)
            if dense is not None:
                dense = dense.to(bridge.loss_dtype(logits))
            want = names if dcolumns is None or dense is None else (*names, "mass")
            stats = bridge.row_stats(logits, of, dense, link, want)
            columns = tuple(getattr(stats, name) for name in names)
            if dcolumns is None:
                return columns, None
            derived = (name for name in names if name != "argmax")
            upstream = dict(zip(derived, dcolumns.reshape(-1, len(names) - self.all).unbind(-1), strict=True))
            dentropy = upstream.pop("entropy", None)
            cotangents = Cotangents(**{name: d.contiguous() for name, d in upstream.items()})
            softmax = Softmax(logits, of, dense, link)
            bend = None
            # A GPU is not waited for.
            if dentropy is not None and (dentropy.device.type != "cpu" or dentropy.any()):
                bend = softmax.entropy_grad(dentropy)
            if ddense is not None:
                self._add_dense(ddense, part, softmax, upstream["dense_log_prob"])
            dlogits = bridge.row_grad(logits, of, dense, link, stats, cotangents, logits)
            return columns, dlogits if bend is None else dlogits.add_(bend)

        return Swept(self.places, step, columns_of, self.chunk_bytes, silent)

    def _place(self, part: slice) -> Any:
        """Where ``dense`` has the rows of a part."""
        if self.places is None:
            return part
        return self.places[part] + self.shift

    def _dense(self, part: slice) -> Tensor | None:
        if self.dense is None or self.dense.ndim == 1:
            return self.dense
        return self.dense[self._place(part)]

    def _add_dense(self, ddense: Tensor, part: slice, softmax: Softmax, dsigma: Tensor) -> None:
        """∂σ/∂v = log p; 0·(−inf) = 0."""
        log_p = torch.where((softmax.dense == 0) & ~softmax.log_p.isfinite(), 0.0, softmax.log_p)
        if softmax.labels is not None:
            dsigma = torch.where(softmax.labels < 0, 0.0, dsigma)
        slope = head.times(dsigma[:, None], log_p, torch)
        if ddense.ndim == 1:
            ddense += slope.sum(0)
        else:
            ddense[self._place(part)] = slope.to(ddense.dtype)


def row_stats(
    operands: Operands,
    labels: Tensor | None,
    dense: Tensor | None,
    counts: Tensor | None,
    shift: int,
    link: Link,
    all: bool,
    chunk_bytes: int,
) -> RowStats:
    """The statistics of a graph, one a row of the inputs; derivable once in the operands and ``dense``.

    ``labels (M,)`` and ``counts (M,)`` say which rows are left out; those are 0 throughout.
    """
    numbers = ops.link_numbers(link, operands.inputs.device)
    found = iter(linear_statistics(*operands, dense, labels, counts, shift, *numbers, all, chunk_bytes))
    there = (True, labels is not None, dense is not None, False, all, all)
    return RowStats(*(next(found) if is_there else None for is_there in there))


def _known(inputs: Sequence[Any], ddense: Tensor | None = None) -> tuple[Operands, Statistics, Swept]:
    """The arguments of the operators below, and how they go through the rows."""
    x, w, b, dense, labels, counts, shift, link, moving, all, chunk_bytes = inputs
    ignored = None if labels is None else labels < 0
    index = silent = None
    if not is_captured(x):
        index, (labels,) = valid_rows.counted(ignored, counts, None, (labels,), torch)
    elif counts is not None:
        silent = ~counts if ignored is None else ignored | ~counts
    else:
        silent = ignored
    if index is None and shift:  # the last rows of all have no target
        index = torch.arange(max(0, x.shape[0] - shift), device=x.device)
        labels, silent = (None if a is None else a[: index.shape[0]] for a in (labels, silent))
    known = Statistics(index, labels, dense, shift, Link(*ops.as_floats(link, moving)), all, chunk_bytes)
    return Operands(x, w, b), known, known.swept(silent, ddense)


@torch.library.custom_op("xent::linear_statistics", mutates_args=(), schema=f"({SCHEMA}) -> Tensor[]")
def linear_statistics(*inputs: Any) -> list[Tensor]:
    """Those of `Statistics.names`, as (M,) columns."""
    operands, _, swept = _known(inputs)
    return list(swept.sweep(operands)[0])


@linear_statistics.register_fake
def _(x: Tensor, w: Tensor, b: Any, dense: Any, labels: Any, *others: Any) -> list[Tensor]:
    count = 1 + (labels is not None) + (dense is not None) + others[-2]
    columns = [x.new_empty(x.shape[:1], dtype=torch.float64) for _ in range(count)]
    return columns + ([x.new_empty(x.shape[:1], dtype=torch.int64)] if others[-2] else [])


@torch.library.custom_op(
    "xent::linear_statistics_grad",
    mutates_args=(),
    schema=f"(Tensor[] dcolumns, {SCHEMA}, bool[] wanted) -> Tensor[]",
)
def linear_statistics_grad(dcolumns: list[Tensor], *inputs: Any) -> list[Tensor]:
    """The gradients of Σ dcolumn·column in those of x, w, b and dense that are ``wanted``."""
    *arguments, wanted = inputs
    dense = arguments[3]
    ddense = (
        torch.zeros_like(dense, dtype=bridge.loss_dtype(dense), memory_format=torch.contiguous_format)
        if wanted[3]
        else None
    )
    operands, known, swept = _known(arguments, ddense)
    derived = torch.stack(dcolumns[: len(dcolumns) - known.all], -1)
    _, gradients = swept.sweep(operands, derived, tuple(wanted[:3]))
    found = [g for g in finished(gradients, operands, None) if g is not None]
    return found if ddense is None else [*found, ddense.to(dense.dtype)]


linear_statistics_grad.register_fake(linear_ops.like_inputs)
linear_statistics.register_autograd(
    linear_ops.backward_by(linear_statistics_grad, 4), setup_context=linear_ops.keep_inputs
)
