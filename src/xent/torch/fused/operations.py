"""The operations on logits that only change their formula, and the loss that takes it.

Each returns None for arguments that it does not know; then the logits are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from xent.torch import functional, modes
from xent.torch.fused.formula import Formula

Tensor = torch.Tensor
F = torch.nn.functional

LINK = ("softcap", "temperature")  # options that are the formula's

Change = tuple[Formula, Tensor] | None
"""The formula and the ``meta`` tensor (shape, strides, dtype) after an operation."""


def _new(formula: Formula | None, meta: Tensor, dtype: torch.dtype | None = None) -> Change:
    """A result in memory of its own."""
    if formula is None:
        return None
    return formula, torch.empty(meta.shape, dtype=dtype or meta.dtype, device="meta")


def _multiply(function: Any, formula: Formula, meta: Tensor, factor: Any) -> Change:
    return _new(formula.scaled(factor), meta) if _is_number(factor) else None


def _divide(function: Any, formula: Formula, meta: Tensor, divisor: Any) -> Change:
    return _new(formula.scaled(1 / divisor), meta) if _is_number(divisor) and divisor else None


def _tanh(function: Any, formula: Formula, meta: Tensor) -> Change:
    return _new(formula.capped(), meta)


def _add(function: Any, formula: Formula, meta: Tensor, other: Any) -> Change:
    """Of a vector over the classes, which is a bias."""
    if type(other) not in modes.PLAIN or other.dtype != meta.dtype or other.device != formula.rows.device:
        return None
    if other.shape[-1:] != meta.shape[-1:] or other.numel() != other.shape[-1] or other.ndim > meta.ndim:
        return None
    return _new(formula.shifted(other.reshape(-1)), meta)


def _cast(function: Any, formula: Formula, meta: Tensor, *args: Any, **kwargs: Any) -> Change:
    """To the device where they are, to their own dtype, or from 16 bits to float32."""
    if len(args) + len(kwargs) != (function is Tensor.to) or not kwargs.keys() <= {"dtype", "device"}:
        return None
    (to,) = (*args, *kwargs.values()) or (torch.float32,)
    if isinstance(to, torch.dtype):
        if to == meta.dtype:
            return formula, meta
        return _new(formula, meta, to) if meta.dtype.itemsize == 2 and to == torch.float32 else None
    if isinstance(to, (str, torch.device)) and torch.device(to) == formula.rows.device:
        return formula, meta
    return None


def _contiguous(function: Any, formula: Formula, meta: Tensor) -> Change:
    return formula, function(meta)


def _reshape(function: Any, formula: Formula, meta: Tensor, *sizes: Any, **kwargs: Any) -> Change:
    """To other leading axes: rows keep their order where the last axis keeps its length."""
    if not all(_are_sizes(x) for x in (*sizes, *kwargs.values())):
        return None
    result = function(meta, *sizes, **kwargs)
    if not result.ndim or result.shape[-1] != meta.shape[-1] or not meta.shape[-1]:
        return None
    rows = formula.rows.reshape(*result.shape[:-1], formula.rows.shape[-1])
    return formula._replace(rows=rows), result


def _select(function: Any, formula: Formula, meta: Tensor, index: Any) -> Change:
    """Slices and numbers of rows, a mask of rows, and the first classes."""
    if type(index) in modes.PLAIN:
        return _select_mask(formula, meta, index)
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
        position = [part is Ellipsis for part in parts].index(True)
        filler = (slice(None),) * (meta.ndim + 1 - len(parts))
        parts = (*parts[:position], *filler, *parts[position + 1 :])
    parts = (*parts, *((slice(None),) * (meta.ndim - len(parts))))
    if len(parts) != meta.ndim or not all(isinstance(part, slice) or _is_int(part) for part in parts):
        return None
    *rows, classes = parts
    if not isinstance(classes, slice) or classes.start not in (None, 0) or classes.step not in (None, 1):
        return None
    result = meta[parts]
    formula = formula._replace(rows=formula.rows[tuple(rows)])
    if result.shape[-1] != meta.shape[-1]:
        formula = formula.of_classes(result.shape[-1])
    return formula, result


def _select_mask(formula: Formula, meta: Tensor, mask: Tensor) -> Change:
    if mask.dtype != torch.bool or not 0 < mask.ndim < meta.ndim:
        return None
    rows = formula.rows[mask]
    return formula._replace(rows=rows), meta.new_empty((*rows.shape[:-1], meta.shape[-1]))


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _is_int(x: Any) -> bool:
    return isinstance(x, (int, torch.SymInt)) and not isinstance(x, bool)


def _are_sizes(x: Any) -> bool:
    return all(_is_int(size) for size in x) if isinstance(x, (tuple, list)) else _is_int(x)


_RULES: dict[Any, tuple[Callable[..., Change], int | None]] = {
    **dict.fromkeys((Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul), (_multiply, 1)),
    **dict.fromkeys((Tensor.div, Tensor.__truediv__, torch.div), (_divide, 1)),
    **dict.fromkeys((Tensor.tanh, torch.tanh, F.tanh), (_tanh, 0)),
    **dict.fromkeys((Tensor.add, Tensor.__add__, torch.add), (_add, 1)),
    **dict.fromkeys((Tensor.float, Tensor.to), (_cast, None)),
    Tensor.contiguous: (_contiguous, 0),
    **dict.fromkeys(
        (Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten), (_reshape, None)
    ),
    Tensor.__getitem__: (_select, 1),
}
"""For each operation what it does, and the number of arguments after the logits; None if that checks them."""


def is_change(function: Any) -> bool:
    """Whether ``function`` may change the formula only; `change` says for which arguments."""
    return function in _RULES


def change(function: Any, formula: Formula, meta: Tensor, args: Any, kwargs: dict[str, Any]) -> Change:
    """What ``function(logits, *args, **kwargs)`` changes; None if the logits are to be computed for it."""
    rule, arity = _RULES[function]
    if arity is not None and (kwargs or len(args) != arity):
        return None
    return rule(function, formula, meta, *args, **kwargs)


LOSSES = (F.cross_entropy, functional.cross_entropy)


def cross_entropy(
    function: Any,
    formula: Formula,
    meta: Tensor,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    **options: Any,
) -> Tensor | None:
    """One of `LOSSES` of labels; None for what is to be computed from the logits."""
    if meta.ndim != 2 or size_average is not None or reduce is not None:
        return None
    if type(target) not in modes.PLAIN or target.dtype != torch.int64 or target.shape != meta.shape[:1]:
        return None
    device = formula.rows.device
    if target.device != device or reduction not in ("mean", "sum", "none"):
        return None
    if weight is not None and (
        type(weight) not in modes.PLAIN
        or (weight.shape, weight.dtype, weight.device) != (meta.shape[1:], meta.dtype, device)
        or weight.requires_grad
    ):
        return None
    if (formula.scale != 1.0 or formula.cap is not None) and not options.keys().isdisjoint(LINK):
        return None
    loss = formula.cross_entropy(
        target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        **options,
    )
    if function is functional.cross_entropy:
        return loss
    return loss.to(torch.float32 if torch.is_autocast_enabled(device.type) else meta.dtype)
