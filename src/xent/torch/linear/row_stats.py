"""The row statistics of a linear layer's logits, by chunks, and as custom operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from xent.core import head, softmax
from xent.core.contract import Cotangents, RowStatistics, RowStats
from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.engine import row_columns, valid_rows
from xent.torch import arguments, devices, modes
from xent.torch.linear import chunked, operators
from xent.torch.linear.chunked import ChunkedFunction, Operands, finished, row_blocks
from xent.torch.linear.products import Chunking
from xent.torch.linear.tempered import tempered, with_derivative
from xent.torch.operator_numbers import as_floats, link_numbers
from xent.torch.statistics import autograd
from xent.torch.statistics.softmax_derivatives import Softmax
from xent.torch.targets import as_int64, kernel_labels, require_labels, zero_if_valid
from xent.torch.temperature import checked_rows

Tensor = torch.Tensor

SCHEMA = (
    "Tensor x, Tensor w, Tensor? b, Tensor? dense, Tensor? labels, Tensor? counts, Tensor? temperature, "
    f"SymInt shift, float[] link, Tensor? dynamic, str names, {operators.CHUNKING}"
)

OPERANDS = ("inputs", "weight", "bias")


class Request(NamedTuple):
    """The arguments of row statistics, except the operands of the layer."""

    labels: Tensor | None
    spec: LossSpec
    wanted: tuple[str, ...]
    shift: int
    chunking: Chunking
    validate: bool | None
    temperature: Tensor | None = None  # (...), one for each row; that of all rows is in ``spec``

    def checked(self, inputs: Tensor, name: str = OPERANDS[0]) -> Request:
        """Itself with defaults filled in, checked against ``inputs (..., D)``, but for the labels' values."""
        valid_rows.shifted_rows(inputs.shape[:-1], self.shift, torch, inputs.device)
        if self.labels is not None:
            require_labels(self.labels, inputs.shape[:-1])
        arguments.require_row_temperature(self.temperature, inputs.shape[:-1])
        arguments.require_together(**{name: inputs}, labels=self.labels, temperature=self.temperature)
        return self._replace(chunking=self.chunking.checked(inputs))

    def tempered_operands(self, operands: Operands) -> tuple[Operands, Tensor | None]:
        """`with_derivative` of operands with inputs (M, D); without temperatures of rows, None for them."""
        if self.temperature is None:
            return operands, None
        return with_derivative(operands, self.row_temperature(self.temperature))

    def row_temperature(self, temperature: Tensor) -> Tensor:
        """The ``temperature (...)`` as (M,), by `checked_rows`."""
        if self.labels is None:
            counts = torch.ones_like(temperature, dtype=torch.bool)
        else:
            counts = as_int64(self.labels) != self.spec.ignore_index
        counts = valid_rows.align_targets(counts, self.shift, False, torch)
        return checked_rows(temperature, counts, self.validate)

    def collect(self, columns: tuple[Tensor, ...], inputs: Tensor, num_classes: int) -> RowStatistics:
        """The statistics from their columns (M,), of the rows of ``inputs (..., D)``."""
        shape = inputs.shape[:-1]
        loss_shape, _ = valid_rows.shifted_rows(shape, self.shift, torch, inputs.device)
        by_row = (valid_rows.unflatten_rows(column, shape, loss_shape) for column in columns)
        by_name = dict(zip(row_columns.column_names(self.wanted), by_row, strict=True))
        labels, dtype = self.labels, devices.loss_dtype(inputs)
        if labels is not None:
            labels = labels[..., self.shift :] if self.shift else labels
            labels = kernel_labels(labels, num_classes, self.spec.ignore_index)
        return row_columns.collect(by_name, self.wanted, labels, lambda column: column.to(dtype))


def linear_row_statistics(operands: Operands, request: Request) -> RowStatistics:
    """The statistics of the operands' rows; see `statistics.linear_row_statistics`."""
    inputs, weight, bias = operands
    given = {"labels": request.labels, "temperature": request.temperature}
    arguments.require_local(inputs=inputs, weight=weight, bias=bias, **given)
    request = request.checked(inputs)
    labels, spec, wanted, shift, chunking, validate, _ = request
    shape, num_classes, names = inputs.shape[:-1], weight.shape[0], row_columns.column_names(wanted)
    flat, t = request.tempered_operands(operands._replace(inputs=valid_rows.as_matrix(inputs)))
    is_plain = chunked.is_plain(flat, labels, t)
    zero = y = None
    if labels is not None:
        zero = zero_if_valid(labels, num_classes, spec.ignore_index, "labels", validate)
    if modes.is_recorded():
        counts: Tensor | None = None
        if labels is not None:
            y = kernel_labels(labels, num_classes, spec.ignore_index)
            y = valid_rows.align_targets(y, shift, -1, torch)
        elif shift:
            counts = valid_rows.align_targets(inputs.new_ones(shape, dtype=torch.bool), shift, False, torch)
        columns = row_stats(flat, y, None, counts, t, 0, spec.link, names, chunking)
    else:
        _, index = valid_rows.shifted_rows(shape, shift, torch, inputs.device)
        if labels is not None:
            y = kernel_labels(valid_rows.flatten_rows(labels, shift), num_classes, spec.ignore_index)
            if is_plain and not modes.is_captured(y):
                index, (y,) = valid_rows.select_rows(y < 0, None, index, (y,), torch)
        silent = None if y is None or is_plain else y < 0
        function = tempered(Statistics(index, y, None, 0, spec.link, names, chunking, silent), t)
        columns = function.values(flat) if is_plain else function.derivable(flat)
    if zero is not None:
        columns = tuple(column + zero.to(column.dtype) for column in columns)
    return request.collect(columns, inputs, num_classes)


class Statistics(ChunkedFunction):
    """The row statistics of a linear layer's logits, one column each."""

    def __init__(
        self,
        row_index: Tensor | None,
        labels: Tensor | None,
        dense: Tensor | None,
        shift: int,
        link: Link,
        names: tuple[str, ...],
        chunking: Chunking,
        silent: Tensor | None = None,
        ddense: Tensor | None = None,
    ) -> None:
        """``row_index (n,)`` has the indices of the rows among those of the inputs, None for all.

        ``labels (n,)`` are −1 for rows that are not read. ``dense`` is (K,) or (M, K), where the row of input
        i is at i + ``shift``; its gradient is added to ``ddense``. ``names`` of the columns are among
        `row_columns.COLUMNS`, in that order.
        """
        super().__init__(row_index, chunking, silent)
        self.labels, self.dense, self.shift, self.link, self.names = labels, dense, shift, link, names
        self.ddense = ddense

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        return self._columns(autograd.row_stats, logits, part)

    def evaluate_chunk(
        self, logits: Tensor, part: slice, dloss: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk; or, for ``dloss (n, derived columns)``, its gradient without them.

        Where PyTorch's operations take part, in blocks of rows: what they make of one stays in the cache.
        """
        by_operations = OF_OTHERS.keys() if dloss is not None else WIDENED
        blocks = [(slice(0, logits.shape[0]), part)]
        if self.dense is not None or not by_operations.isdisjoint(self.names):
            blocks = list(row_blocks(logits, part))
        if dloss is not None:
            for block, rows in blocks:
                self._write_gradient(logits[block], rows, dloss[block])
            return (), logits
        columns = (self._columns(devices.row_stats, logits[block], rows) for block, rows in blocks)
        return tuple(torch.cat(column) for column in zip(*columns, strict=True)), None

    def _write_gradient(self, logits: Tensor, part: slice, dloss: Tensor) -> None:
        """Overwrite the logits of some rows by the gradient of Σ dloss·column."""
        labels, dense = self._labels(part), self._dense(part)
        if dense is not None:
            dense = dense.to(devices.loss_dtype(logits))
        derived = [name for name in self.names if name != "argmax"]
        upstream = dict(zip(derived, dloss.reshape(-1, len(derived)).unbind(-1), strict=True))
        if self.ddense is not None:
            formulas = Softmax(logits, labels, dense, self.link)
            self._add_dense(self.ddense, part, formulas, upstream["dense_log_prob"])
        # The logits are overwritten last.
        others = None
        for name, gradient in OF_OTHERS.items():
            d = upstream.pop(name, None)
            # On a GPU without a test of the values, for which the host would wait.
            if d is not None and (d.device.type != "cpu" or d.any()):
                product = gradient(logits, labels, self.link, d.contiguous())
                others = product if others is None else others.add_(product)
        fields = ("lse", "log_prob", "mass")
        present = True, labels is not None, dense is not None
        want = tuple(name for name, is_present in zip(fields, present, strict=True) if is_present)
        stats = devices.row_stats(logits, labels, dense, self.link, want)
        cotangents = Cotangents(**{name: d.contiguous() for name, d in upstream.items()})
        dlogits = devices.row_grad(logits, labels, dense, self.link, stats, cotangents, logits)
        if others is not None:
            dlogits.add_(others)

    def _columns(self, kernel: Callable[..., RowStats], logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        return row_columns.columns(
            kernel,
            logits,
            self._labels(part),
            self._dense(part),
            self.link,
            self.names,
            devices.widened,
            torch,
        )

    def _labels(self, part: slice) -> Tensor | None:
        return None if self.labels is None else self.labels[part]

    def _dense_rows(self, part: slice) -> Any:
        """The index of a chunk's rows into ``dense``."""
        if self.row_index is None:
            return part
        return self.row_index[part] + self.shift

    def _dense(self, part: slice) -> Tensor | None:
        if self.dense is None or self.dense.ndim == 1:
            return self.dense
        return self.dense[self._dense_rows(part)]

    def _add_dense(self, ddense: Tensor, part: slice, softmax: Softmax, dsigma: Tensor) -> None:
        """Add the gradient of σ in v, dσ·log p, to ``ddense``; 0·(−inf) counts as 0."""
        log_p = torch.where((softmax.dense == 0) & ~softmax.log_p.isfinite(), 0.0, softmax.log_p)
        if softmax.labels is not None:
            dsigma = torch.where(softmax.labels < 0, 0.0, dsigma)
        slope = head.multiply(dsigma[:, None], log_p, torch)
        if ddense.ndim == 1:
            ddense += slope.sum(0)
        else:
            ddense[self._dense_rows(part)] = slope.to(ddense.dtype)


def _entropy_grad(logits: Tensor, labels: Tensor | None, link: Link, dentropy: Tensor) -> Tensor:
    """Equation (26) times ``dentropy``, in float32 or float64, by few operations in place."""
    wide = devices.widened(logits)
    entropy = devices.row_stats(logits, labels, None, link, ("entropy",)).entropy.to(wide.dtype)
    log_p = torch.log_softmax(link.value(wide, torch), -1)
    p = log_p.exp()
    factor = -link.slope(wide, torch) * dentropy[:, None].to(wide.dtype)
    # A finite minimum: p = 0 makes its product 0.
    product = log_p.clamp_(min=torch.finfo(wide.dtype).min / 2).add_(entropy[:, None]).mul_(p).mul_(factor)
    unread = dentropy == 0 if labels is None else (dentropy == 0) | (labels < 0)
    return product.masked_fill_(unread[:, None], 0.0)


def _log_sum_sq_probs_grad(logits: Tensor, labels: Tensor | None, link: Link, dcolumn: Tensor) -> Tensor:
    """Equation (25) times ``dcolumn``, in float32 or float64, by the two terms of (24)."""
    logits = devices.widened(logits)
    argmax = devices.row_stats(logits, labels, None, link, ("argmax",)).argmax
    likeliest = row_columns.likeliest_class(argmax, labels, logits.shape[-1], torch)
    one, two = (
        devices.row_grad(
            logits,
            likeliest,
            None,
            phi,
            devices.row_stats(logits, likeliest, None, phi, ("lse", "log_prob")),
            Cotangents(log_prob=factor * dcolumn),
        )
        for factor, phi in row_columns.likeliest_terms(link)
    )
    return one.add_(two)


def _mean_logits_grad(logits: Tensor, labels: Tensor | None, link: Link, dmean: Tensor) -> Tensor:
    wide = devices.widened(logits)
    return softmax.mean_logits_grad(wide, labels, link, dmean.to(wide.dtype), torch)


WIDENED = {"log_sum_sq_probs", "mean_logits"}  # columns that are computed from a float32 copy of the logits

# The gradients of columns that `devices.row_grad` lacks, from (logits (n, K), labels, link, dcolumn (n,)).
OF_OTHERS = {
    "entropy": _entropy_grad,
    "log_sum_sq_probs": _log_sum_sq_probs_grad,
    "mean_logits": _mean_logits_grad,
}


def row_stats(
    operands: Operands,
    labels: Tensor | None,
    dense: Tensor | None,
    counts: Tensor | None,
    temperature: Tensor | None,
    shift: int,
    link: Link,
    names: tuple[str, ...],
    chunking: Chunking,
) -> tuple[Tensor, ...]:
    """The columns (M,) of `Statistics` in a graph; derivable once in the operands and ``dense``.

    Rows with a negative label in ``labels (M,)``, or False in ``counts (M,)``, are 0. The logits are divided
    by the ``temperature (M,)`` of their rows, a constant, if there is one.
    """
    numbers = link_numbers(link, operands.inputs.device)
    # One text: torch.jit does not trace a list of them.
    words = " ".join(names)
    tensors = dense, labels, counts, temperature
    return tuple(linear_statistics(*operands, *tensors, shift, *numbers, words, *chunking))


def _function(inputs: Sequence[Any], ddense: Tensor | None = None) -> tuple[Operands, ChunkedFunction]:
    """The operands and the function, from the arguments of the operators below."""
    x, w, b, dense, labels, counts, temperature, shift, numbers, dynamic, words, *chunking = inputs
    ignored = None if labels is None else labels < 0
    index = silent = None
    if not modes.is_captured(x):
        index, (labels,) = valid_rows.select_rows(ignored, counts, None, (labels,), torch)
    elif counts is not None:
        silent = ~counts if ignored is None else ignored | ~counts
    else:
        silent = ignored
    if index is None and shift:  # the last rows have no target
        index = torch.arange(max(0, x.shape[0] - shift), device=x.device)
        labels, silent = (None if a is None else a[: index.shape[0]] for a in (labels, silent))
    link = Link(*as_floats(numbers, dynamic))
    names = tuple(words.split())
    function = Statistics(index, labels, dense, shift, link, names, Chunking(*chunking), silent, ddense)
    return Operands(x, w, b), tempered(function, temperature)


@torch.library.custom_op("xent::linear_statistics", mutates_args=(), schema=f"({SCHEMA}) -> Tensor[]")
def linear_statistics(*inputs: Any) -> list[Tensor]:
    """The columns (M,) of `Statistics.names`."""
    operands, function = _function(inputs)
    return list(function.sweep(operands)[0])


@linear_statistics.register_fake
def _(x: Tensor, *others: Any) -> list[Tensor]:
    *_, words, _, _ = others
    dtypes = [torch.int64 if name == "argmax" else torch.float64 for name in words.split()]
    return [x.new_empty(x.shape[:1], dtype=dtype) for dtype in dtypes]


@torch.library.custom_op(
    "xent::linear_statistics_grad",
    mutates_args=(),
    schema=f"(Tensor[] dcolumns, {SCHEMA}, bool[] wanted) -> Tensor[]",
)
def linear_statistics_grad(dcolumns: list[Tensor], *inputs: Any) -> list[Tensor]:
    """The gradients of Σ dcolumn·column in the ``wanted`` ones of x, w, b and dense."""
    *arguments, wanted = inputs
    dense = arguments[3]
    ddense = (
        torch.zeros_like(dense, dtype=devices.loss_dtype(dense), memory_format=torch.contiguous_format)
        if wanted[3]
        else None
    )
    operands, function = _function(arguments, ddense)
    *_, words, _, _ = arguments
    derived = torch.stack(
        [d for d, name in zip(dcolumns, words.split(), strict=True) if name != "argmax"], -1
    )
    _, gradients = function.sweep(operands, derived, tuple(wanted[:3]))
    results = [g for g in finished(gradients, operands, None) if g is not None]
    return results if ddense is None else [*results, ddense.to(dense.dtype)]


linear_statistics_grad.register_fake(operators.like_inputs)
linear_statistics.register_autograd(
    operators.backward_by(linear_statistics_grad, 4), setup_context=operators.keep_inputs
)
