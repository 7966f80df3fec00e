"""A function of a linear layer's logits, derivable in the layer's operands, without the logits in memory.

Where nothing but plain reverse mode watches, the kernels go chunk by chunk and recompute what they did not
keep; all else (second order, transforms, forward mode) is ordinary PyTorch code on the same chunks.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from xent.engine.chunked_projection import Gradients, Wanted
from xent.torch import devices, modes
from xent.torch.linear.products import TensorProjection, default_chunk_bytes

Tensor = torch.Tensor

TWICE_DERIVED = 16  # matrices of a chunk's size that autograd keeps for a second derivative


class Operands(NamedTuple):
    """``inputs (M, D)``, ``weight (K, D)``, ``bias (K,)`` or None."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None


class ChunkedFunction:
    """A function of a linear layer's logits, chunk by chunk: one column or several, one element a row.

    ``places`` are those of the rows that count, None for all; ``silent`` says which of these have no
    gradient: 0 is read in their place.
    """

    def __init__(self, places: Tensor | None, chunk_bytes: int | None, silent: Tensor | None = None) -> None:
        self.places, self.chunk_bytes, self.silent = places, chunk_bytes, silent

    def evaluate_chunk(self, logits: Tensor, part: slice, dloss: Any) -> tuple[tuple[Tensor, ...], Any]:
        """By the kernels: the columns of a chunk, and the gradient of Σ dloss·column in its logits.

        Without ``dloss`` there is no gradient. The logits may be written over.
        """
        raise NotImplementedError

    def columns(self, logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        """The columns of a chunk in ordinary operations."""
        raise NotImplementedError

    def total(self, operands: Operands, scale: Any) -> Tensor:
        """``scale`` times the sum of the first column, float64; only reverse mode watches, and the operands.

        Three products with its gradient, one without.
        """
        if isinstance(scale, Tensor) and scale.device.type == "cpu":
            scale = scale.item()
        if modes.has_saved_tensor_hooks():
            return self.values(operands)[0].sum() * scale
        if _is_derived(operands):
            return cast(Tensor, _Total.apply(*operands, self, scale))
        (losses, *_), _ = self.sweep(operands)
        return cast(Tensor, losses.sum() * scale)

    def values(self, operands: Operands) -> tuple[Tensor, ...]:
        """The columns (M,), as `total`: one product, and three in the backward."""
        if _is_derived(operands):
            return cast("tuple[Tensor, ...]", _Columns.apply(*operands, self))
        return cast("tuple[Tensor, ...]", self.sweep(operands)[0])

    def derivable(self, operands: Operands) -> tuple[Tensor, ...]:
        """The columns (M,) in ordinary operations, for every transform and order.

        In plain reverse mode the logits of a part are computed again when they are needed, not kept.
        """
        inputs, weight, bias = operands = self._read(operands)
        keeps = torch.compiler.is_compiling() or modes.is_transformed() or modes.is_forward()
        x = inputs if self.places is None else inputs[self.places]

        def columns(part: slice, x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, ...]:
            return self.columns(torch.nn.functional.linear(x, w, b), part)

        again = partial(checkpoint, columns, use_reentrant=False, preserve_rng_state=False)
        call = columns if keeps else again
        # An exported graph may have any number of rows, and no loop over them.
        is_whole = torch.compiler.is_exporting()
        parts = (slice(None),) if is_whole else self.projection(operands).chunks()
        pieces = [call(part, x[part], weight, bias) for part in parts]
        found = tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        if self.places is None:
            return found
        return tuple(c.new_zeros(inputs.shape[0]).index_put((self.places,), c) for c in found)

    def sweep(self, operands: Operands, dloss: Any = None, wanted: Wanted | None = None) -> Any:
        """See `Projection.sweep`; gradients are as wide as they were summed."""
        with torch.no_grad(), torch.autocast(operands.inputs.device.type, enabled=False):
            return self.projection(operands).sweep(self.evaluate_chunk, dloss, wanted)

    def projection(self, operands: Operands, copies: int = 1) -> TensorProjection:
        """The logits, chunk by chunk; so many matrices of a chunk's size share the budget."""
        budget = self.chunk_bytes or default_chunk_bytes(operands.inputs.device)
        return TensorProjection(*self._read(operands), self.places, max(1, budget // copies))

    def _read(self, operands: Operands) -> Operands:
        """The operands without what silent rows hold: a gradient of 0 times NaN would be none."""
        silent, inputs = self.silent, operands.inputs
        if silent is None:
            return operands
        if self.places is not None:
            silent = silent.new_zeros(inputs.shape[0]).index_put((self.places,), silent)
        return operands._replace(inputs=torch.where(silent[:, None], 0.0, inputs))


def is_plain(operands: Operands, *others: Tensor | None) -> bool:
    """Whether nothing watches but reverse-mode autograd, and that only for the operands."""
    return modes.is_plain(operands, others) and operands.inputs.device.type in devices.KERNELS


def _is_derived(operands: Operands) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)


class _Total(Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, function: ChunkedFunction, scale: Any
    ) -> Tensor:
        operands = Operands(inputs, weight, bias)
        ctx.save_for_backward(*operands)
        ctx.function, ctx.scale = function, scale
        # Half precision would lose small entries of dlogits to a factor 1/D: it comes last, in float32.
        ctx.early = 1.0 if inputs.dtype.itemsize == 2 or isinstance(scale, Tensor) else scale
        (losses, *_), ctx.gradients = function.sweep(operands, ctx.early, tuple(ctx.needs_input_grad[:3]))
        return losses.sum() * scale

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        operands = Operands(*ctx.saved_tensors)  # raises if they were written since
        if torch.is_grad_enabled() or modes.is_batched(dloss):
            dcolumn = (dloss * ctx.scale).expand(operands.inputs.shape[0])
            return *_slope(operands, ctx.function, dcolumn), None, None
        gradients, ctx.gradients = ctx.gradients, None  # given away once; the caller may add to them
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
        ctx.derived = [k for k, v in enumerate(values) if v.is_floating_point()]
        ctx.mark_non_differentiable(*(v for v in values if not v.is_floating_point()))
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
    """The gradients of Σ dcolumn·column, derivable again; None for what is frozen."""
    if any(modes.is_batched(d) for d in dcolumns):
        return _vjp(operands, function, dcolumns, torch.is_grad_enabled())
    found = iter(_Slope.apply(*operands, function, *dcolumns))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in operands)


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
        along = iter(vectors)
        vector = Operands(*(next(along) if w else None for w in ctx.needs_input_grad[:3]))  # type: ignore[arg-type]
        if torch.is_grad_enabled() or any(modes.is_batched(v) for v in vectors):
            further = torch.is_grad_enabled()
            with torch.enable_grad():
                slopes = [g for g in _vjp(operands, ctx.function, dcolumns, True) if g is not None]
            of = [x for x in (*operands, *dcolumns) if x is not None and x.requires_grad]
            found = iter(torch.autograd.grad(slopes, of, vectors, create_graph=further, allow_unused=True))
            there = [x is not None and x.requires_grad for x in (*operands, *dcolumns)]
            product = [next(found) if t else None for t in there]
            return *product[:3], None, *product[3:]
        return _curvature(operands, ctx.function, dcolumns, vector, ctx.needs_input_grad)


def _curvature(
    operands: Operands, function: ChunkedFunction, dcolumns: Any, vector: Operands, wanted: Any
) -> tuple[Tensor | None, ...]:
    """The Hessian of Σ dcolumn·column times ``vector``, and each column's slope along it, by chunks.

    Equation (20), by the kernels where they have it: ``columns`` is derived twice on each chunk.
    """
    projection = function.projection(operands, TWICE_DERIVED)
    inputs, weight, bias = operands
    wide = devices.loss_dtype(inputs)
    sums = Gradients(
        *(
            torch.zeros_like(x, dtype=wide) if w and x is not None else None
            for x, w in zip(operands, wanted, strict=False)
        )
    )
    slopes = [torch.zeros_like(d) for d in dcolumns]
    for part in projection.chunks():
        place = part if function.places is None else function.places[part]
        x = inputs[place]
        r: Any = 0.0
        for term in (
            None if vector.inputs is None else vector.inputs[place] @ weight.T,
            None if vector.weight is None else x @ vector.weight.T,
            vector.bias,
        ):
            r = r if term is None else r + term
        with torch.enable_grad():
            z = torch.nn.functional.linear(x, weight, bias).detach().requires_grad_()
            upstream = [d[place].detach().requires_grad_() for d in dcolumns]
            columns = [c for c in function.columns(z, part) if c.is_floating_point()]
            (dlogits,) = torch.autograd.grad(columns, z, upstream, create_graph=True)
            bent, *along = torch.autograd.grad((dlogits * r).sum(), [z, *upstream], allow_unused=True)
        dlogits = dlogits.detach()
        if sums.inputs is not None:
            product = (bent @ weight).to(wide)
            if vector.weight is not None:
                product += dlogits @ vector.weight
            sums.inputs[place] = product
        if sums.weight is not None:
            sums.weight.add_(bent.T @ x)
            if vector.inputs is not None:
                sums.weight.add_(dlogits.T @ vector.inputs[place])
        if sums.bias is not None:
            sums.bias.add_(bent.sum(0))
        for slope, found in zip(slopes, along, strict=True):
            if found is not None:
                slope[place] = found
    return *finished(sums, operands, None), None, *slopes


def _vjp(
    operands: Operands, function: ChunkedFunction, dcolumns: Any, further: bool
) -> tuple[Tensor | None, ...]:
    """`_slope` by ordinary operations."""
    with torch.enable_grad():
        columns = [c for c in function.derivable(operands) if c.is_floating_point()]
    asked = [x for x in operands if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(columns, asked, dcolumns, create_graph=further, allow_unused=True))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in operands)


def side_by_side(columns: Any) -> Tensor:
    """Columns as a matrix; a single one as it is."""
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
