"""Smoothing over the others, also where the label has less than they or a logit is −inf: the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent

torch = pytest.importorskip("torch")

Array = np.ndarray[Any, Any]
INF = np.inf
Z = np.random.default_rng(0).normal(size=(4, 3))
LABELS = np.array([0, 2, 1, 2])
EPSILONS = [0.3, 2 / 3, 0.9, 1.0]  # with 3 classes, the label has less than the others from 2/3 on
VALUES = {
    "finite": Z,
    "label of −inf": np.where(np.eye(3)[LABELS] == 1, -INF, Z),
    "another of −inf": np.where(np.eye(3)[(LABELS + 1) % 3] == 1, -INF, Z),
    "label far below": np.where(np.eye(3)[LABELS] == 1, -1e6, Z),
}


def target(labels: Array, num_classes: int, epsilon: float) -> Array:
    one_hot = np.eye(num_classes)[labels]
    if num_classes == 1:
        return one_hot
    return np.where(one_hot == 1, 1 - epsilon, epsilon / (num_classes - 1))


def definition(logits: Array, t: Array) -> tuple[Array, Array]:
    """−⟨t, log p⟩ with 0·(−inf) = 0, and Σt p − t."""
    logits = logits - logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.where(t == 0, 0.0, t * np.where(t == 0, 0.0, log_p)).sum(-1)
    return losses, t.sum(-1, keepdims=True) * np.exp(log_p) - t


def options(epsilon: float, **more: Any) -> dict[str, Any]:
    return {"label_smoothing": epsilon, "smoothing_over": "others", "reduction": "none", **more}


def eager(z: Any, y: Any, **o: Any) -> Any:
    return xent.cross_entropy(z, y, **o)


def linear(z: Any, y: Any, **o: Any) -> Any:
    return xent.linear_cross_entropy(z, torch.eye(z.shape[-1], dtype=z.dtype), y, chunk_bytes=1, **o)


MODES = {
    "eager": eager,
    "checkpoint": lambda z, y, **o: torch.utils.checkpoint.checkpoint(
        lambda z: eager(z, y, **o), z, use_reentrant=False
    ),
    "compiled": torch.compile(eager, backend="aot_eager", dynamic=False),
    "vmap": lambda z, y, **o: torch.vmap(lambda z, y: eager(z, y, **o))(z, y),
    "module": lambda z, y, **o: xent.torch.CrossEntropyLoss(**o)(z, y),
    "linear": linear,
}


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("factors", [None, np.array([0.5, 2.0, 3.0])], ids=["", "weights"])
def test_arrays(value: str, epsilon: float, factors: Array | None) -> None:
    z, t = VALUES[value], target(LABELS, 3, epsilon)
    losses, gradient = definition(z, t if factors is None else t * factors)
    o = options(epsilon, class_weight=factors)
    for y in (LABELS, np.eye(3)[LABELS]):
        found, dz = xent.cross_entropy_with_grad(z, y, **o)
        np.testing.assert_allclose(found, losses, rtol=1e-13)
        np.testing.assert_allclose(dz, gradient, atol=1e-15)
        np.testing.assert_allclose(xent.cross_entropy(z, y, **o), losses, rtol=1e-13)
        r = np.random.default_rng(1).normal(size=z.shape)
        p = xent.softmax(z)
        mass = (t if factors is None else t * factors).sum(-1, keepdims=True)
        expected = mass * p * (r - (p * r).sum(-1, keepdims=True))
        np.testing.assert_allclose(xent.cross_entropy_hvp(z, y, r, **o), expected, atol=1e-15)
    narrow = xent.cross_entropy(z.astype(np.float32), LABELS, **o)
    np.testing.assert_allclose(narrow, losses, rtol=1e-6)
    if np.isfinite(z).all():  # no product with a hidden state has −inf
        found, (dz, *_) = xent.linear_cross_entropy_with_grad(z, np.eye(3), LABELS, chunk_bytes=1, **o)
        np.testing.assert_allclose(found, losses, rtol=1e-13)
        np.testing.assert_allclose(dz, gradient, atol=1e-15)


@pytest.mark.parametrize("epsilon", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("mode", MODES)
def test_tensors(mode: str, value: str, epsilon: float) -> None:
    if mode == "linear" and not np.isfinite(VALUES[value]).all():
        pytest.skip("no product with a hidden state has −inf")
    losses, gradient = definition(VALUES[value], target(LABELS, 3, epsilon))
    z = torch.tensor(VALUES[value], requires_grad=True)
    found = MODES[mode](z, torch.tensor(LABELS), **options(epsilon))
    np.testing.assert_allclose(found.detach(), losses, rtol=1e-13)
    (dz,) = torch.autograd.grad(found.sum(), z, create_graph=mode != "compiled")
    np.testing.assert_allclose(dz.detach(), gradient, atol=1e-15)
    if mode == "compiled":
        return
    r = torch.tensor(np.random.default_rng(1).normal(size=Z.shape))
    (product,) = torch.autograd.grad(dz, z, r)
    expected = xent.cross_entropy_hvp(VALUES[value], LABELS, r.numpy(), **options(epsilon))
    np.testing.assert_allclose(product, expected, atol=1e-14)


@pytest.mark.parametrize("num_classes", [1, 2, 9])
@pytest.mark.parametrize("epsilon", [0.4, 0.6, 1.0])
def test_numbers_of_classes(num_classes: int, epsilon: float) -> None:
    labels = np.array([0, num_classes - 1])
    z = np.random.default_rng(0).normal(size=(2, num_classes))
    losses, gradient = definition(z, target(labels, num_classes, epsilon))
    found, dz = xent.cross_entropy_with_grad(z, labels, **options(epsilon))
    np.testing.assert_allclose(found, losses, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(dz, gradient, atol=1e-15)
    if num_classes == 2 and epsilon == 1:
        z[0, 0] = z[1, 1] = -INF
        np.testing.assert_array_equal(xent.cross_entropy(z, labels, **options(epsilon)), 0)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_rows_that_do_not_count_and_labels_that_are_no_class(as_tensor: bool) -> None:
    labels = np.array([0, -100, 7, 2])
    z = VALUES["label of −inf"].copy()
    z[1] = np.nan
    weight = np.array([1.0, 1.0, 1.0, 0.0])
    make = torch.tensor if as_tensor else np.array
    arrays = {"sample_weight": make(weight), "class_weight": make(np.ones(3))}
    losses = xent.cross_entropy(make(z), make(labels), validate=False, **options(1.0, **arrays))
    expected = definition(z[:1], target(labels[:1], 3, 1.0))[0][0]
    np.testing.assert_allclose(losses, [expected, 0.0, np.nan, 0.0], rtol=1e-13)
    labels[2] = 1
    mean = xent.cross_entropy(make(z), make(labels), **options(1.0, **arrays) | {"reduction": "mean"})
    third = definition(z[2:3], target(labels[2:3], 3, 1.0))[0][0]
    np.testing.assert_allclose(mean, (expected + third) / 2, rtol=1e-13)
