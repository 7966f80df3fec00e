"""A temperature that is a tensor, of one number or of one for each row, and its derivative.

A single number gets its derivative through the tensors that it scales.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from xent.engine import checks
from xent.torch import devices, modes
from xent.torch.arguments import ArgumentError, Call
from xent.torch.targets import counted_rows

Tensor = torch.Tensor


def split(temperature: Any) -> tuple[Any, Tensor | None]:
    """(the temperature of all rows, that of each row or None)."""
    if isinstance(temperature, Tensor) and temperature.numel() != 1:
        return 1.0, temperature
    return temperature, None


def row_temperature(call: Call, shift: Any = 0) -> Tensor:
    """`checked_rows` of the temperature of a loss. ``shift`` may be several."""
    shifts = shift if isinstance(shift, tuple) else (shift,)
    counts = torch.stack([counted_rows(call, s) for s in shifts]).any(0)
    return checked_rows(cast(Tensor, call.temperature), counts, call.validate)


def checked_rows(temperature: Tensor, counts: Tensor, validate: bool | None) -> Tensor:
    """``temperature (...)`` as (M,), float64; NaN where it is out of range.

    Out of range in a row that does not count, by ``counts (M,)``, it is 1. Values are checked if the host
    need not wait.
    """
    t = temperature.double().reshape(-1)
    in_range = (t >= 1e-30) & (t <= 1e30)
    if modes.looks_at(temperature, validate) and bool((wrong := counts & ~in_range).any()):
        index = np.unravel_index(int(wrong.int().argmax()), temperature.shape)
        raise ArgumentError(
            "`temperature` must be finite and > 0 (1e-30 to 1e30) in every row that counts; got "
            f"{temperature[tuple(map(int, index))].item()} at {checks.describe_index(index)}"
        )
    return torch.where(in_range, t, torch.where(counts, torch.nan, 1.0))


def divided_rows(logits: Tensor, temperature: Tensor) -> Tensor:
    """The ``logits (..., K)`` divided by the ``temperature (M,)`` of their rows: a copy, derivable in both.

    Half precision becomes float32.
    """
    t = temperature.reshape(logits.shape[:-1])[..., None]
    if modes.is_derived(t):
        return scaled(logits, 1.0 / t)
    return devices.widened(logits) / t.to(devices.loss_dtype(logits))


def divided(temperature: Any, *parts: Any, keep_dtype: bool = False) -> tuple[Any, ...]:
    """(a number T₀, the ``parts`` times T₀/T), for logits that are linear in the parts together.

    If the value of T can be read, T₀ is that value: the ratio T₀/T is then 1, so that the parts keep their
    bits, but it has a derivative. In graphs, under transforms and on a GPU T₀ is 1. A temperature that is a
    number or needs no derivative is returned unchanged. Half precision becomes float32 unless ``keep_dtype``.
    """
    if not isinstance(temperature, Tensor) or _is_number(temperature):
        return temperature, *parts
    if any(hasattr(x, "to_local") for x in (temperature, *parts)):
        if not modes.is_derived(temperature):
            return temperature, *parts
        raise TypeError(
            "`temperature` must be a number beside DTensors; got a tensor that asks for a gradient: "
            "divide by it what the logits are computed from"
        )
    if temperature.numel() != 1 or temperature.is_complex():
        raise TypeError(
            "`temperature` must be a number, or a tensor of one real number; got "
            f"{temperature.dtype} of shape {tuple(temperature.shape)}"
        )
    t = temperature.reshape(()).double()
    number = 1.0
    if modes.is_readable(temperature):
        number = t.detach().item()
    else:  # NaN instead of an error, for which the host would have to wait
        t = torch.where((t >= 1e-30) & (t <= 1e30), t, torch.nan)
    ratio = number / t
    return number, *(scaled(x, ratio, keep_dtype) for x in parts)


def _is_number(temperature: Tensor) -> bool:
    """Whether the tensor can be used as a number without losing a derivative."""
    if modes.is_graphed() or modes.is_dispatched() or modes.is_wrapped(temperature):
        return False
    return not modes.is_derived(temperature)


def scaled(x: Any, ratio: Tensor, keep_dtype: bool = False) -> Any:
    """``x · ratio``; infinite elements are unchanged and do not contribute to the derivative."""
    if not isinstance(x, Tensor) or x.dtype not in devices.FLOATING:
        return x
    wide = devices.widened(x)
    finite = wide.isfinite()
    product = torch.where(finite, torch.where(finite, wide, 0.0) * ratio.to(x.device, wide.dtype), wide)
    return product.to(x.dtype) if keep_dtype else product
