"""A linear layer and its fused twin, used in the same way: the same result, the same gradients."""

from __future__ import annotations

import copy

import torch

import xent.torch as xt
from xent.torch import fused

B, T, D, K = 2, 5, 6, 11


def case(dtype=torch.float32, bias=True):
    """(layer, hidden states, labels, of which some are ignored)."""
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(D, K, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, K, (B, T), generator=generator)
    labels[0, 1] = labels[1, 4] = -100
    return layer, hidden, labels


def outcome(use, layer, hidden, labels):
    """(result, gradients) of ``use(logits, labels)``, or (the error that is raised, none)."""
    hidden = hidden.clone().requires_grad_()
    try:
        result = use(layer(hidden * 1.0), labels)
        leaves = [hidden, *layer.parameters()]
        upstream = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype).reshape(result.shape)
        return result, torch.autograd.grad(result, leaves, upstream, allow_unused=True)
    except Exception as error:
        return error, ()


def twins(use, **kind):
    """The outcomes of a layer and of its fused copy."""
    layer, hidden, labels = case(**kind)
    twin = xt.fuse(copy.deepcopy(layer))
    return outcome(use, layer, hidden, labels), outcome(use, twin, hidden, labels)


def events():
    """The counts of the test so far that are not 0."""
    return {event: number for event, number in fused.counts.items() if number}


def assert_close(found, expected, tolerance=2e-6):
    """Results and gradients up to rounding; ``tolerance=0`` to the bit."""
    (result, gradients), (expected_result, expected_gradients) = found, expected
    assert not isinstance(expected_result, Exception), expected_result
    assert not isinstance(result, Exception), result
    assert type(result) is torch.Tensor
    assert result.dtype == expected_result.dtype
    for a, e in zip((result, *gradients), (expected_result, *expected_gradients), strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            scale = e.detach().abs().max().clamp_min(1e-30)
            assert ((a - e).abs().max() / scale).item() <= tolerance
