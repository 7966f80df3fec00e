"""Who is timed: each provider makes a call without arguments, that returns (loss, array), of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

import xent
from bench.data import Data

Array = np.ndarray[Any, Any]
Call = Callable[[], tuple[Any, Any]]


def copy(d: Data) -> Call:
    """The logits into the buffer, on all threads: what every ratio is measured in."""
    return lambda: (None, d.buffer_tensor.copy_(d.logits_tensor))


def xent_buffer(d: Data) -> Call:
    return lambda: xent.cross_entropy_with_grad(d.logits, d.labels, out=d.buffer)


def xent_fresh(d: Data) -> Call:
    return lambda: xent.cross_entropy_with_grad(d.logits, d.labels)


def xent_loss(d: Data) -> Call:
    return lambda: (xent.cross_entropy(d.logits, d.labels), None)


def xent_hvp(d: Data) -> Call:
    return lambda: (None, xent.cross_entropy_hvp(d.logits, d.labels, d.vector, out=d.buffer))


def torch_eager(d: Data) -> Call:
    return _autograd(d, F.cross_entropy)


def torch_compile(d: Data) -> Call:
    torch._dynamo.reset()

    def loss(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(input, target)

    return _autograd(d, torch.compile(loss, dynamic=False))


def numpy(d: Data) -> Call:
    """softmax − one_hot as in a textbook; halves, which NumPy cannot sum, by way of float32."""
    logits, label = d.logits, d.labels[..., None]
    dtype = np.result_type(logits.dtype, np.float32)

    def call() -> tuple[Any, Array]:
        z = logits.astype(dtype, copy=False)
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        p = e / e.sum(axis=-1, keepdims=True)
        p_label = np.take_along_axis(p, label, -1)
        np.put_along_axis(p, label, p_label - 1, -1)
        return -np.log(p_label).mean(), (p / label.size).astype(logits.dtype, copy=False)

    return call


def _autograd(d: Data, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Call:
    z = d.logits_tensor.detach().requires_grad_()

    def call() -> tuple[Any, torch.Tensor]:
        value = loss(z, d.labels_tensor)
        return value.detach(), torch.autograd.grad(value, z)[0]

    return call


PROVIDERS: dict[str, Callable[[Data], Call]] = {
    f.__name__: f
    for f in (copy, xent_buffer, xent_fresh, xent_loss, xent_hvp, torch_eager, torch_compile, numpy)
}

# How often a provider must at least read or write an array of the logits' size.
PASSES = {name: {"xent_loss": 1, "xent_hvp": 3}.get(name, 2) for name in PROVIDERS}
