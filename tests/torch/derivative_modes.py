"""Every way to a derivative of a function of tensors: (function, inputs) → (value, gradients or slopes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Tensors = tuple[Any, ...]
Function = Callable[..., Any]


def along(inputs: Tensors) -> Tensors:
    """A direction: for the rows that are kept the same with and without the other, whose weight stays 0."""
    return tuple(torch.where(x.isfinite() & (x != 0), torch.cos(3 * x), 0.0).detach() for x in inputs)


def backward(f: Function, inputs: Tensors) -> Any:
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = f(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)


def twice(f: Function, inputs: Tensors) -> Any:
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    slope = sum((g * v).sum() for g, v in zip(gradients, along(inputs), strict=True))
    return slope.detach(), (*(g.detach() for g in gradients), *torch.autograd.grad(slope, leaves))


def batched(f: Function, inputs: Tensors) -> Any:
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = f(*leaves)
    upstream = torch.tensor([1.0, -2.0], dtype=value.dtype)
    return value.detach(), torch.autograd.grad(value, leaves, upstream, is_grads_batched=True)


def transformed(f: Function, inputs: Tensors) -> Any:
    gradients, value = torch.func.grad_and_value(f, argnums=tuple(range(len(inputs))))(*inputs)
    return value, gradients


def mapped(f: Function, inputs: Tensors) -> Any:
    return torch.func.vmap(lambda *x: transformed(f, x))(*(torch.stack([x, x / 2]) for x in inputs))


def forward(f: Function, inputs: Tensors) -> Any:
    return torch.func.jvp(f, inputs, along(inputs))


def forward_over_forward(f: Function, inputs: Tensors) -> Any:
    return torch.func.jvp(lambda *x: torch.func.jvp(f, x, along(inputs))[1], inputs, along(inputs))


def reverse_over_forward(f: Function, inputs: Tensors) -> Any:
    return transformed(lambda *x: torch.func.jvp(f, x, along(inputs))[1], inputs)


def forward_over_reverse(f: Function, inputs: Tensors) -> Any:
    gradients, slopes = torch.func.jvp(lambda *x: transformed(f, x)[1], inputs, along(inputs))
    return torch.zeros(()), (*gradients, *slopes)


def dual(f: Function, inputs: Tensors) -> Any:
    with torch.autograd.forward_ad.dual_level():
        duals = [
            torch.autograd.forward_ad.make_dual(x, v) for x, v in zip(inputs, along(inputs), strict=True)
        ]
        return tuple(torch.autograd.forward_ad.unpack_dual(f(*duals)))


def checkpointed(f: Function, inputs: Tensors) -> Any:
    return backward(lambda *x: torch.utils.checkpoint.checkpoint(f, *x, use_reentrant=False), inputs)


def offloaded(f: Function, inputs: Tensors) -> Any:
    with torch.autograd.graph.save_on_cpu():
        return backward(f, inputs)


def compiled(f: Function, inputs: Tensors) -> Any:
    return backward(torch.compile(f, backend="aot_eager", fullgraph=True), inputs)


def compiled_transformed(f: Function, inputs: Tensors) -> Any:
    graph = torch.compile(lambda *x: transformed(f, x), backend="aot_eager", fullgraph=True)
    return graph(*inputs)


MODES = {
    "backward": backward,
    "create_graph": twice,
    "batched": batched,
    "func.grad": transformed,
    "vmap of grad": mapped,
    "jvp": forward,
    "jvp of jvp": forward_over_forward,
    "grad of jvp": reverse_over_forward,
    "jvp of grad": forward_over_reverse,
    "forward AD": dual,
    "checkpoint": checkpointed,
    "save_on_cpu": offloaded,
    "compile": compiled,
    "compile of grad": compiled_transformed,
}
