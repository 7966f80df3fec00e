"""A temperature that is a tensor: it gets its derivative through the tensors that it scales."""

from __future__ import annotations

from typing import Any

import torch

from xent.torch import devices, modes

Tensor = torch.Tensor


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
    return number, *(_scale(x, ratio, keep_dtype) for x in parts)


def _is_number(temperature: Tensor) -> bool:
    """Whether the tensor can be used as a number without losing a derivative."""
    if modes.is_graphed() or modes.is_dispatched() or modes.is_wrapped(temperature):
        return False
    return not modes.is_derived(temperature)


def _scale(x: Any, ratio: Tensor, keep_dtype: bool) -> Any:
    """``x · ratio``; infinite elements are unchanged and do not contribute to the derivative."""
    if not isinstance(x, Tensor) or x.dtype not in devices.FLOATING:
        return x
    wide = devices.widened(x)
    finite = wide.isfinite()
    product = torch.where(finite, torch.where(finite, wide, 0.0) * ratio.to(x.device), wide)
    return product.to(x.dtype) if keep_dtype else product
