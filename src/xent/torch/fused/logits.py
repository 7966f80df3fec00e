"""Logits that are computed when they are asked for: their loss takes what they would be computed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from xent.torch.fused import operations, report
from xent.torch.fused.formula import Formula
from xent.torch.fused.guards import Source

Tensor = torch.Tensor
F = torch.nn.functional


class Step(NamedTuple):
    """An operation whose first argument is the logits."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Memory:
    """A block of memory that logits share with their views: the steps to it, its tensor once it exists."""

    __slots__ = ("source", "steps", "tensor")

    def __init__(self, source: Source, steps: tuple[Step, ...]) -> None:
        self.source, self.steps = source, steps
        self.tensor: Tensor | None = None


class Logits:
    """Logits of a fused layer: a tensor to whoever computes with it, but not to ``isinstance``.

    ``meta`` is a tensor without elements that has their shape, strides and dtype; ``views`` are the steps
    from the memory to them.
    """

    __array_priority__ = 1000  # NumPy's operators leave the operation to those below
    __hash__ = object.__hash__

    def __init__(self, memory: Memory, views: tuple[Step, ...], formula: Formula, meta: Tensor) -> None:
        self.memory, self.views, self.formula, self.meta = memory, views, formula, meta
        self.values: Tensor | None = None

    @classmethod
    def of_layer(cls, source: Source) -> Logits:
        """The logits of a linear layer."""
        inputs, weight, _ = source.operands
        shape = (*inputs.shape[:-1], weight.shape[0])
        meta = torch.empty(shape, dtype=inputs.dtype, device="meta")
        return cls(Memory(source, ()), (), Formula(*source.operands), meta)

    def followed_by(self, step: Step, formula: Formula, meta: Tensor) -> Logits:
        """The logits after a step."""
        if meta is self.meta:
            return self
        if meta._base is not None:
            return Logits(self.memory, (*self.views, step), formula, meta)
        steps = (*self.memory.steps, *self.views, step)
        return Logits(Memory(self.memory.source, steps), (), formula, meta)

    def is_lazy(self) -> bool:
        """Whether no element exists, and the caller's gradient mode is that of the layer's forward."""
        if self.memory.tensor is not None:
            return False
        is_lazy = torch.is_grad_enabled() or not self.requires_grad
        if not is_lazy and torch.compiler.is_compiling():
            torch._dynamo.graph_break()  # this may be an autograd.Function, for `require_unchanged` to refuse
        return is_lazy

    def computed(self, name: str) -> Tensor:
        """The logits as a tensor, for the operation ``name``, by PyTorch's operations.

        The gradient mode is that of the layer's forward. The tensor is kept: every later use and every view
        reads it, with what was written into it.
        """
        if self.values is None:
            device = self.formula.rows.device.type
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                if self.memory.tensor is None:
                    self.memory.source.require_unchanged()
                    report.count_computed(name)
                    layer_output = F.linear(*self.memory.source.operands)
                    self.memory.tensor = _after(layer_output, self.memory.steps)
                self.values = self.memory.source.watched(_after(self.memory.tensor, self.views))
        return self.values

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(function, args, kwargs or {})

    @property
    def requires_grad(self) -> bool:
        return self.memory.source.requires_grad

    def __len__(self) -> int:
        return len(self.meta)

    def __repr__(self) -> str:
        device = self.formula.rows.device
        return f"Logits(shape={tuple(self.meta.shape)}, dtype={self.meta.dtype}, device='{device}')"


def call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``function`` of arguments with logits among them: folded into a formula, or of computed logits."""
    first, *others = args or (None,)
    if type(first) is Logits and first.is_lazy() and not any(type(x) is Logits for x in others):
        if function in operations.LOSSES:
            first.memory.source.require_unchanged()
            loss = operations.cross_entropy(function, first.formula, first.meta, *others, **kwargs)
            if loss is not None:
                report.count("fused")
                first.memory.source.has_loss = True
                return first.memory.source.watched(loss)
        elif operations.is_change(function):
            kept = tuple(x.clone() if isinstance(x, Tensor) else x for x in others)  # may be written later
            after = operations.change(function, first.formula, first.meta, kept, kwargs)
            if after is not None:
                return first.followed_by(Step(function, kept, kwargs), *after)
    name = getattr(function, "__name__", str(function))
    if function in _OF_GRADIENTS and _have_loss((args, kwargs)):
        raise RuntimeError(
            f"`{name}` of logits of a fused layer must come before their loss, which was computed without "
            "them; move it there, or `unfuse` the layer"
        )
    return function(*_computed(args, name), **_computed(kwargs, name))


_OF_GRADIENTS = (Tensor.register_hook, Tensor.retain_grad, torch.autograd.grad, torch.autograd.backward)


def _have_loss(x: Any) -> bool:
    if type(x) is Logits:
        return x.memory.source.has_loss
    values = x.values() if type(x) is dict else x if type(x) in (list, tuple) else ()
    return any(_have_loss(value) for value in values)


def _computed(x: Any, name: str) -> Any:
    """``x`` with tensors in the place of logits, in lists, tuples and dictionaries too."""
    if type(x) is Logits:
        return x.computed(name)
    if type(x) in (list, tuple):
        return type(x)([_computed(each, name) for each in x])
    if type(x) is dict:
        return {key: _computed(value, name) for key, value in x.items()}
    return x


def _after(x: Any, steps: tuple[Step, ...]) -> Any:
    for step in steps:
        x = step.function(x, *step.args, **step.kwargs)
    return x


# What is known without an element: of a method or property, where it is.
_KNOWN = {
    **dict.fromkeys(("size", "dim", "numel", "stride", "is_contiguous", "element_size"), "meta"),
    **dict.fromkeys(("is_floating_point", "is_complex"), "meta"),
    **dict.fromkeys(("shape", "dtype", "ndim", "layout", "itemsize", "nbytes"), "meta"),
    **dict.fromkeys(("device", "is_cpu", "is_cuda", "is_sparse", "is_nested"), "rows"),
}
_OF_OBJECTS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__format__", "__reduce_ex__")


def _attribute(name: str) -> Any:
    """The method or property ``name`` of a tensor for `Logits`."""
    attribute, known = getattr(Tensor, name), _KNOWN.get(name)

    def method(self: Logits, *args: Any, **kwargs: Any) -> Any:
        if known is not None:
            return getattr(self.meta, name)(*args, **kwargs)
        return call(attribute, (self, *args), kwargs)

    def get(self: Logits) -> Any:
        if known is not None:
            return getattr(self.meta if known == "meta" else self.formula.rows, name)
        return getattr(self.computed(name), name)

    def put(self: Logits, value: Any) -> None:
        setattr(self.computed(name), name, value)

    return method if callable(attribute) else property(get, put)


def _add_attributes() -> None:
    """Give `Logits` the methods and properties of a tensor, except those that every object has."""
    for name in dir(Tensor):
        is_of_object = hasattr(object, name) and name not in _OF_OBJECTS
        is_data = name.startswith("__") and not callable(getattr(Tensor, name))
        if not (name in vars(Logits) or is_of_object or is_data or name.startswith("__torch_")):
            setattr(Logits, name, _attribute(name))


_add_attributes()
