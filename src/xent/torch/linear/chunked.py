"""A function of a linear layer's logits, derivable in the layer's operands, without the logits in memory.

In plain reverse mode the kernels compute one chunk after the other, and the logits again in the backward.
Second order, transforms and forward mode use ordinary PyTorch operations on the same chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from xent.engine.chunked_projection import Gradients, Wanted
from xent.torch import devices, modes
from xent.torch.linear.products import Chunking, TensorProjection, linear

Tensor = torch.Tensor

CPU_BLOCK_BYTES, CUDA_BLOCK_BYTES = 1 << 20, 64 << 20  # of the logits of a block of rows
DERIVED = 6  # matrices of a chunk's size, if its gradient is computed by PyTorch operations
TWICE_DERIVED = 16  # matrices of a chunk's size that autograd keeps for a second derivative


class Operands(NamedTuple):
    """``inputs (M, D)``, ``weight (K, D)``, ``bias (K,)`` or None."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None


class ChunkedFunction:
    """A function of a linear layer's logits, computed by chunks: columns with one element for each row.

    ``row_index`` has the rows that count, None for all; ``silent`` is the mask of those among them whose
    gradient is 0: zeros are read instead of their inputs.
    """

    copies = 1  # matrices of the size of a chunk's logits that exist at a time, with the logits
    num_derived: int | None = None  # the number of first columns that have a derivative; None: all of floats

    def __init__(self, row_index: Tensor | None, chunking: Chunking, silent: Tensor | None = None) -> None:
        self.row_index, self.chunking, self.silent = row_index, chunking, silent

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """The columns of a chunk by the kernels, and the gradient of Σ dloss·column in its logits.

        Without ``dloss`` the gradient is None. The logits may be overwritten.
        """
        raise NotImplementedError

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations, for derivatives of any order."""
        raise NotImplementedError

    def scaled_sum(self, operands: Operands, scale: Any) -> Tensor:
        """``scale`` times the sum of the first column, float64, in plain reverse mode for the operands.

        It takes three products with the gradient, one without.
        """
        return self.scaled_sum_and_columns(operands, scale)[0]

    def scaled_sum_and_columns(self, operands: Operands, scale: Any) -> tuple[Tensor, ...]:
        """`scaled_sum`, and the other columns, which have no derivative."""
        if isinstance(scale, Tensor) and scale.device.type == "cpu":
            scale = scale.item()
        if modes.has_saved_tensor_hooks():
            first, *others = self.values(operands)
            return first.sum() * scale, *others
        if _is_derived(operands):
            return cast("tuple[Tensor, ...]", _ScaledSum.apply(*operands, self, scale))
        (first, *others), _ = self.sweep(operands)
        return first.sum() * scale, *others

    def values(self, operands: Operands) -> tuple[Tensor, ...]:
        """The columns (M,) in plain reverse mode: one product, and three in the backward."""
        if _is_derived(operands):
            return cast("tuple[Tensor, ...]", _Columns.apply(*operands, self))
        return cast("tuple[Tensor, ...]", self.sweep(operands)[0])

    def derivable(self, operands: Operands) -> tuple[Tensor, ...]:
        """The columns (M,) in ordinary operations, for every transform and order.

        In plain reverse mode the logits of a chunk are recomputed in the backward, not saved.
        """
        inputs, weight, bias = operands = self._read(operands)
        keeps = torch.compiler.is_compiling() or modes.is_transformed() or modes.is_forward()
        x = inputs if self.row_index is None else inputs[self.row_index]

        def columns(part: slice, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
            return self.columns(linear(x, w, b, self.chunking.logits_dtype), part)

        recomputed = partial(checkpoint, columns, use_reentrant=False, preserve_rng_state=False)
        chunk_columns = columns if keeps else recomputed
        # An exported graph takes any number of rows, so it cannot loop over chunks.
        is_whole = torch.compiler.is_exporting()
        parts = (slice(None),) if is_whole else self.projection(operands).chunks()
        pieces = [chunk_columns(part, x[part], weight, bias) for part in parts]
        joined = tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        if self.row_index is None:
            return joined
        return tuple(c.new_zeros(inputs.shape[0]).index_put((self.row_index,), c) for c in joined)

    def sweep(self, operands: Operands, dloss: Any = None, wanted: Wanted | None = None) -> Any:
        """`Projection.sweep` without autograd; the gradients have the dtype in which they were summed."""
        with torch.no_grad(), torch.autocast(operands.inputs.device.type, enabled=False):
            return self.projection(operands).sweep(self.evaluate_chunk, dloss, wanted)

    def derived_columns(self, columns: tuple[Tensor, ...]) -> list[Tensor]:
        """Those of the columns that have a derivative."""
        return [c for c in columns[: self.num_derived] if c.is_floating_point()]

    def projection(self, operands: Operands, copies: int = 1) -> TensorProjection:
        """The projection to logits; ``copies`` matrices of a chunk's size share the budget."""
        return TensorProjection(
            *self._read(operands), self.row_index, self.chunking, copies=copies * self.copies
        )

    def _read(self, operands: Operands) -> Operands:
        """The operands with 0 for the inputs of silent rows, whose gradient could be 0·NaN."""
        silent, inputs = self.silent, operands.inputs
        if silent is None:
            return operands
        if self.row_index is not None:
            silent = silent.new_zeros(inputs.shape[0]).index_put((self.row_index,), silent)
        return operands._replace(inputs=torch.where(silent[:, None], 0.0, inputs))


def is_plain(operands: Operands, *others: Tensor | None) -> bool:
    """Whether only plain reverse mode is active, and only for the operands."""
    return modes.is_plain(operands, others) and operands.inputs.device.type in devices.KERNELS


def _is_derived(operands: Operands) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)


def row_blocks(logits: Tensor, part: slice) -> Iterator[tuple[slice, slice]]:
    """(slice of a chunk's rows, the same rows among all) of few rows, for operations with temporaries."""
    size = CPU_BLOCK_BYTES if logits.device.type == "cpu" else CUDA_BLOCK_BYTES
    num_rows, rows = logits.shape[0], max(1, size // max(1, logits[:1].nbytes))
    for start in range(0, max(1, num_rows), rows):
        stop = min(start + rows, num_rows)
        yield slice(start, stop), slice(part.start + start, part.start + stop)


class _ScaledSum(Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, function: ChunkedFunction, scale: Any
    ) -> tuple[Tensor, ...]:
        operands = Operands(inputs, weight, bias)
        ctx.save_for_backward(*operands)
        ctx.function, ctx.scale = function, scale
        # In half precision 1/D is applied last. In float16 small entries of dlogits would be 0; in bfloat16
        # those of the labels, which are near -1, would all be rounded alike.
        ctx.early = 1.0 if inputs.dtype.itemsize == 2 or isinstance(scale, Tensor) else scale
        wanted = tuple(ctx.needs_input_grad[:3])
        (losses, *others), ctx.gradients = function.sweep(operands, ctx.early, wanted)
        ctx.mark_non_differentiable(*others)
        return losses.sum() * scale, *others

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Any) -> Any:
        operands = Operands(*ctx.saved_tensors)  # raises if they were written since
        if torch.is_grad_enabled() or modes.is_batched(dloss):
            dcolumn = (dloss * ctx.scale).expand(operands.inputs.shape[0])
            return *_slope(operands, ctx.function, dcolumn), None, None
        gradients, ctx.gradients = ctx.gradients, None  # used once: the caller may add to them in place
        if gradients is None:
            _, gradients = ctx.function.sweep(operands, ctx.early, tuple(ctx.needs_input_grad[:3]))
        factor: Any = dloss * ctx.scale if ctx.early == 1.0 else dloss
        return *finished(gradients, operands, factor), None, None


class _Columns(Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, function: ChunkedFunction
    ) -> tuple[Tensor, ...]:
        operands = Operands(inputs, weight, bias)
        ctx.save_for_backward(*operands)
        ctx.function = function
        values, _ = function.sweep(operands)
        ctx.derived = [k for k, v in enumerate(values[: function.num_derived]) if v.is_floating_point()]
        ctx.mark_non_differentiable(*(v for k, v in enumerate(values) if k not in ctx.derived))
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *dcolumns: Tensor) -> Any:
        operands = Operands(*ctx.saved_tensors)
        derived = [dcolumns[k] for k in ctx.derived]
        if torch.is_grad_enabled() or any(modes.is_batched(d) for d in derived):
            return *_slope(operands, ctx.function, *derived), None
        _, gradients = ctx.function.sweep(operands, side_by_side(derived), tuple(ctx.needs_input_grad[:3]))
        return *finished(gradients, operands, None), None


def _slope(operands: Operands, function: ChunkedFunction, *dcolumns: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of Σ dcolumn·column, derivable again; None for frozen operands."""
    if any(modes.is_batched(d) for d in dcolumns):
        return _vjp(operands, function, dcolumns, torch.is_grad_enabled())
    gradients = iter(_Slope.apply(*operands, function, *dcolumns))
    return tuple(next(gradients) if x is not None and x.requires_grad else None for x in operands)


class _Slope(Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        function: ChunkedFunction,
        *dcolumns: Tensor,
    ) -> tuple[Tensor, ...]:
        operands = Operands(inputs, weight, bias)
        ctx.save_for_backward(*operands, *dcolumns)
        ctx.function = function
        _, gradients = function.sweep(operands, side_by_side(dcolumns), tuple(ctx.needs_input_grad[:3]))
        return tuple(g for g in finished(gradients, operands, None) if g is not None)

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor) -> Any:
        inputs, weight, bias, *dcolumns = ctx.saved_tensors
        operands = Operands(inputs, weight, bias)
        remaining = iter(vectors)
        vector = Operands(*(next(remaining) if w else None for w in ctx.needs_input_grad[:3]))  # type: ignore[arg-type]
        if torch.is_grad_enabled() or any(modes.is_batched(v) for v in vectors):
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                slopes = [g for g in _vjp(operands, ctx.function, dcolumns, True) if g is not None]
            is_derived = [x is not None and x.requires_grad for x in (*operands, *dcolumns)]
            derived = [x for x in (*operands, *dcolumns) if x is not None and x.requires_grad]
            products = iter(
                torch.autograd.grad(slopes, derived, vectors, create_graph=create_graph, allow_unused=True)
            )
            product = [next(products) if d else None for d in is_derived]
            return *product[:3], None, *product[3:]
        return _curvature(operands, ctx.function, dcolumns, vector, ctx.needs_input_grad)


def _curvature(
    operands: Operands, function: ChunkedFunction, dcolumns: Any, vector: Operands, wanted: Any
) -> tuple[Tensor | None, ...]:
    """The Hessian of Σ dcolumn·column times ``vector``, and each column's derivative along it, by chunks.

    Equation (20): ``columns`` is differentiated twice on each chunk, by the kernels where possible.
    """
    projection = function.projection(operands, TWICE_DERIVED)
    inputs, weight, bias = operands
    dtype = devices.loss_dtype(inputs)
    sums = Gradients(
        *(
            torch.zeros_like(x, dtype=dtype) if w and x is not None else None
            for x, w in zip(operands, wanted, strict=False)
        )
    )
    slopes = [torch.zeros_like(d) for d in dcolumns]
    for part in projection.chunks():
        row_index = part if function.row_index is None else function.row_index[part]
        x = inputs[row_index]
        r: Any = 0.0
        for term in (
            None if vector.inputs is None else vector.inputs[row_index] @ weight.T,
            None if vector.weight is None else x @ vector.weight.T,
            vector.bias,
        ):
            r = r if term is None else r + term
        with torch.enable_grad():
            z = linear(x, weight, bias, function.chunking.logits_dtype).detach().requires_grad_()
            upstream = [d[row_index].detach().requires_grad_() for d in dcolumns]
            columns = function.derived_columns(function.columns(z, part))
            (dlogits,) = torch.autograd.grad(columns, z, upstream, create_graph=True)
            hvp, *derivatives = torch.autograd.grad((dlogits * r).sum(), [z, *upstream], allow_unused=True)
        hvp, dlogits = hvp.to(weight.dtype), dlogits.detach().to(weight.dtype)
        if sums.inputs is not None:
            product = (hvp @ weight).to(dtype)
            if vector.weight is not None:
                product += dlogits @ vector.weight
            sums.inputs[row_index] = product
        if sums.weight is not None:
            sums.weight.add_(hvp.T @ x)
            if vector.inputs is not None:
                sums.weight.add_(dlogits.T @ vector.inputs[row_index])
        if sums.bias is not None:
            sums.bias.add_(hvp.sum(0, dtype=dtype))
        for slope, derivative in zip(slopes, derivatives, strict=True):
            if derivative is not None:
                slope[row_index] = derivative
    return *finished(sums, operands, None), None, *slopes


def _vjp(
    operands: Operands, function: ChunkedFunction, dcolumns: Any, create_graph: bool
) -> tuple[Tensor | None, ...]:
    """As `_slope`, in ordinary operations."""
    with torch.enable_grad():
        columns = function.derived_columns(function.derivable(operands))
    derived = [x for x in operands if x is not None and x.requires_grad]
    gradients = iter(
        torch.autograd.grad(columns, derived, dcolumns, create_graph=create_graph, allow_unused=True)
    )
    return tuple(next(gradients) if x is not None and x.requires_grad else None for x in operands)


def side_by_side(columns: Any) -> Tensor:
    """Columns as a matrix; a single column unchanged."""
    return columns[0] if len(columns) == 1 else torch.stack(tuple(columns), -1)


def finished(gradients: Gradients, operands: Operands, factor: Any) -> tuple[Tensor | None, ...]:
    """The gradients times ``factor``, in the dtypes of the operands."""
    if factor is not None and factor.device.type == "cpu":
        factor = factor.item()
    if factor is not None and not (isinstance(factor, float) and factor == 1.0):
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)
    return tuple(
        None if g is None or x is None else g.to(x.dtype) for g, x in zip(gradients, operands, strict=True)
    )
