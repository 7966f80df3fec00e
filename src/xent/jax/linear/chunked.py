"""Losses of the rows of linear layers by chunks of rows: the logits of one chunk exist at a time.

A loss that is summed takes three products: `with_gradient` makes the first derivatives in the one loop
that computes the value. Values of rows take four: the logits are computed again for their derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from xent.jax.dense import split_arrays
from xent.jax.derivatives import with_gradient
from xent.jax.linear.layers import Form, Layer, sum_dtype

Array = Any
Tree = Any  # of arrays


class RowLosses(Protocol):
    """The losses of the rows of one chunk. ``rows`` are its part of the arrays of all rows, ``shared``
    what all chunks have; both are trees of arrays."""

    def silent(self, rows: Tree, shared: Tree) -> Array | None:
        """Mask (M,) of the rows whose loss and gradient are 0 whatever they hold; None if there are none."""
        ...

    def losses(self, logits: list[Array], rows: Tree, shared: Tree, is_formula: bool) -> Array:
        """(M,) losses of the logits (M, K) of each layer; JAX differentiates them ``is_formula``."""
        ...

    def losses_and_grads(
        self, logits: list[Array], rows: Tree, shared: Tree, wanted: list[bool], is_formula: bool
    ) -> tuple[Array, list[Array]]:
        """The losses, and the gradient of their sum in the logits of each layer that is wanted."""
        ...


def loss_sum(
    layers: list[Layer], rows: Tree, shared: Tree, losses: RowLosses, form: Form, chunk_rows: int
) -> Array:
    """Σ of the losses of all rows of the layers (M, D); ``rows`` is a tree of arrays (M, ...)."""
    main, as_layers = split_arrays(layers)
    rest, as_trees = split_arrays((rows, shared))

    def evaluate(is_formula: bool) -> Callable[..., Any]:
        def value_and_grads(
            main: list[Array], rest: list[Array], wanted: tuple[bool, ...] = (False,) * len(main)
        ) -> tuple[Array, list[Array]]:
            sweep = _Sweep(losses, form, chunk_rows, as_layers(list(wanted)), is_formula)
            total, gradients = sweep.run(as_layers(main), *as_trees(rest))
            return total, [
                gradient
                for layer, gradient in zip(as_layers(main), gradients, strict=True)
                for x, gradient in zip(layer, gradient, strict=True)
                if x is not None
            ]

        return value_and_grads

    return with_gradient(evaluate(False), evaluate(True))(main, rest)


def row_values(
    function: Callable[..., Tree],
    layers: list[Layer],
    rows: Tree,
    shared: Tree,
    silent: Callable[[Tree, Tree], Array | None],
    form: Form,
    chunk_rows: int,
) -> Tree:
    """Values (M,) of ``function(logits of each layer, rows, shared)``, which JAX can differentiate."""

    def values(chunk: tuple[list[Array], Tree]) -> Tree:
        inputs, part = chunk
        mask = silent(part, shared)
        return function(
            [form.logits(_read(layer, x, mask)) for layer, x in zip(layers, inputs, strict=True)],
            part,
            shared,
        )

    num_rows = layers[0].inputs.shape[0]
    chunks = _split(([layer.inputs for layer in layers], rows), num_rows, chunk_rows)
    # One checkpoint holds for one derivative: with two nothing is kept for the second either.
    chunk_values = lax.map(_checkpoint(_checkpoint(values)), chunks)
    return jax.tree_util.tree_map(lambda x: _join(x, num_rows), chunk_values)


class _Sweep:
    """One loop over the chunks: the sum of the losses and its gradients in the ``wanted`` operands."""

    def __init__(
        self, losses: RowLosses, form: Form, chunk_rows: int, wanted: list[Layer], is_formula: bool
    ) -> None:
        self.losses, self.form, self.chunk_rows = losses, form, chunk_rows
        self.wanted, self.is_formula = wanted, is_formula

    def run(self, layers: list[Layer], rows: Tree, shared: Tree) -> tuple[Array, list[Layer]]:
        """(Σ losses, the gradients of each layer, None where they are not wanted)."""
        num_rows = layers[0].inputs.shape[0]
        zero = _zero(layers, rows, shared)

        def step(carry: Tree, chunk: Tree) -> tuple[Tree, Tree]:
            total, sums = carry
            inputs, part = chunk
            silent = self.losses.silent(part, shared)
            read = [_read(layer, x, silent) for layer, x in zip(layers, inputs, strict=True)]
            values, grads = self._values_and_grads([self.form.logits(x) for x in read], part, shared)
            each = list(zip(read, grads, self.wanted, strict=True))
            sums = [self._add(g, *args) for g, args in zip(sums, each, strict=True)]
            return (total + values.sum(), sums), [self._input_grad(*args, silent) for args in each]

        if self.is_formula:
            step = _checkpoint(step)
        chunks = _split(([layer.inputs for layer in layers], rows), num_rows, self.chunk_rows)
        start = zero, [self._zeros(x, w, zero) for x, w in zip(layers, self.wanted, strict=True)]
        (total, sums), inputs = lax.scan(step, start, chunks)
        joined = [None if x is None else _join(x, num_rows) for x in inputs]
        return total, [Layer(x, *g) for x, g in zip(joined, sums, strict=True)]

    def _values_and_grads(
        self, logits: list[Array], rows: Tree, shared: Tree
    ) -> tuple[Array, list[Array | None]]:
        wanted = [any(each) for each in self.wanted]
        if not any(wanted):
            return self.losses.losses(logits, rows, shared, self.is_formula), [None] * len(logits)
        values, grads = self.losses.losses_and_grads(logits, rows, shared, wanted, self.is_formula)
        return values, list(grads)

    def _zeros(self, layer: Layer, wanted: Layer, zero: Array) -> tuple[Array | None, Array | None]:
        """Where the gradients in weight and bias are summed."""
        return tuple(  # type: ignore[return-value]
            jnp.zeros(x.shape, zero.dtype) + zero if is_wanted else None
            for x, is_wanted in zip(layer[1:], wanted[1:], strict=True)
        )

    def _add(
        self, sums: tuple[Array | None, Array | None], layer: Layer, dlogits: Array, wanted: Layer
    ) -> tuple[Array | None, Array | None]:
        weight, bias = sums
        if wanted.weight:
            weight = self.form.add_weight_grad(weight, dlogits, layer)
        if wanted.bias:
            bias = bias + jnp.sum(dlogits, 0, dtype=bias.dtype)  # type: ignore[union-attr,operator]
        return weight, bias

    def _input_grad(self, layer: Layer, dlogits: Array, wanted: Layer, silent: Array | None) -> Array | None:
        if not wanted.inputs:
            return None
        gradient = self.form.input_grad(dlogits, layer)
        return gradient if silent is None else jnp.where(silent[:, None], 0, gradient)


def _checkpoint(step: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.checkpoint` of the body of a loop."""
    return jax.checkpoint(step, prevent_cse=False)


def _read(layer: Layer, inputs: Array, silent: Array | None) -> Layer:
    """The layer of a chunk of ``inputs``, 0 in silent rows, which may hold NaN."""
    return layer._replace(inputs=inputs if silent is None else jnp.where(silent[:, None], 0, inputs))


def _split(tree: Tree, num_rows: int, chunk_rows: int) -> Tree:
    """Arrays (M, ...) as (chunks, rows of a chunk, ...); of n chunks, chunk i has the rows i, i + n, ....

    Rows that are split over devices then stay where they are. M is a multiple of ``chunk_rows``.
    """
    count = num_rows // chunk_rows
    return jax.tree_util.tree_map(lambda x: x.reshape(chunk_rows, count, *x.shape[1:]).swapaxes(0, 1), tree)


def _join(x: Array, num_rows: int) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(0, 1).reshape(num_rows, *x.shape[2:])


def _zero(layers: list[Layer], rows: Tree, shared: Tree) -> Array:
    """0 that varies over the mesh as all arrays together do: in `shard_map` the sums of a loop must.

    https://docs.jax.dev/en/latest/notebooks/shard_map.html has the rule; this needs none of its functions.
    """
    dtype = sum_dtype(layers[0].inputs)
    arrays = jax.tree_util.tree_leaves((layers, rows, shared))
    return sum((jnp.sum(x[:0]).astype(dtype) for x in arrays), start=jnp.zeros((), dtype))
