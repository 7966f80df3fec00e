"""Tensors laid out over two ranks, and losses of them beside those of one process."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.torch.distributed.ranks import arrays

N, D, K = 5, 4, 7  # of which the ranks have uneven parts
LAYOUTS = ("plain", "whole", "first axis", "last axis", "partial sums")


@functools.cache
def mesh():
    from torch.distributed.tensor import init_device_mesh

    return init_device_mesh("cpu", (2,))


def laid_out(x, layout):
    """``x``, the same on every rank, as a leaf in one of LAYOUTS."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    x = x.detach().clone()
    if layout == "plain":
        return x
    if layout == "partial sums":
        part = x if dist.get_rank() == 0 else torch.zeros_like(x)
        return DTensor.from_local(part, mesh(), [Partial()], run_check=False)
    placement = {"whole": Replicate(), "first axis": Shard(0), "last axis": Shard(x.ndim - 1)}[layout]
    return distribute_tensor(x, mesh(), [placement])


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def case():
    """The tensors of a call by their names, as one process has them."""
    x, w, b, z, omega, c = (torch.tensor(a) for a in arrays((N, D), (K, D), (K,), (N, K), (N,), (K,)))
    y = torch.tensor([0, 6, 3, -100, 2])
    q = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(K), N))
    tensors = {"input": x, "linear_weight": w, "linear_bias": b, "logits": z, "labels": y, "probabilities": q}
    factors = {"sample_weight": omega.abs(), "weight": c.abs()}
    return {**tensors, **factors, "temperature": 0.5 + omega.abs().flip(0)}


def compare(case, function, layouts, derived, **options):
    """Tensors of ``case()`` in ``layouts`` (name → layout) give what they give in one process.

    That is ``function(tensors, **options)`` and its gradients in those ``derived``.
    """
    found = []
    for lay in (laid_out, lambda x, layout: x.detach().clone()):
        tensors = {name: lay(case()[name], layout) for name, layout in layouts.items()}
        for name in derived:
            tensors[name].requires_grad_()
        loss = function(tensors, **options)
        upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
        (whole(loss) * upstream).sum().backward()
        found.append({"loss": whole(loss), **{name: whole(tensors[name].grad) for name in derived}})
        for name in derived:
            if layouts[name] != "partial sums":  # their gradient is whole
                grad, x = tensors[name].grad, tensors[name]
                assert getattr(grad, "placements", None) == getattr(x, "placements", None)
    for name, expected in found[1].items():
        message = f"{name} {layouts} {options}"
        torch.testing.assert_close(
            found[0][name], expected, rtol=1e-11, atol=1e-14, msg=lambda m, text=message: f"{text}: {m}"
        )


def in_step() -> None:
    """Raise unless the ranks are at the same collective."""
    count = torch.ones(1)
    dist.all_reduce(count)
    assert count.item() == 2


def assert_refused(call, *words):
    """An error with the ``words`` on every rank."""
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as refusal:
        call()
    for word in words:
        assert word in str(refusal.value), str(refusal.value)
    in_step()
