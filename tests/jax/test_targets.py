"""Masks of rows and classes, against the same loss of what they leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402
from xent.jax.targets import kernel_labels  # noqa: E402

Array = Any
RNG = np.random.default_rng(0)
N, K = 5, 6
Z = RNG.normal(size=(N, K)).astype(np.float32) * 2
Q = RNG.dirichlet(np.ones(K), N).astype(np.float32)
FACTORS = RNG.uniform(0.5, 2, K).astype(np.float32)
MASK = np.array([[1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [1] * 6, [0] * 6], bool)
Y = np.array([3, 0, 2, 5, 1])


def left(row: int, targets: Array, **options: Any) -> tuple[float, Array]:
    """The loss of a row's classes that are left, and its gradient, 0 for the others."""
    kept, gradient = MASK[row], np.zeros(K)
    if not kept.any():
        return 0.0, gradient
    if "class_weight" in options:
        options["class_weight"] = options["class_weight"][kept]
    is_soft = targets.ndim == 2
    target = targets[row][kept] if is_soft else np.count_nonzero(kept[: targets[row]])
    logits = Z[row][kept].astype(float)
    loss, gradient[kept] = xent.cross_entropy_with_grad(logits, target, reduction="sum", **options)
    return loss, gradient


@pytest.mark.parametrize("targets", [Y, Q], ids=["labels", "probabilities"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.2, "z_loss": 0.1, "class_weight": FACTORS},
        {"label_smoothing": 0.3, "smoothing_over": "others", "temperature": 0.7},
    ],
    ids=["plain", "all", "others"],
)
def test_classes_that_are_left_out(targets: Array, options: dict[str, Any]) -> None:
    """As if the row had the other classes only; a row without any has no loss."""

    def rows(z: Array) -> tuple[Array, Array]:
        losses = xent.jax.cross_entropy(z, targets, where=MASK, reduction="none", **options)
        return losses.sum(), losses

    (_, losses), dlogits = jax.jit(jax.value_and_grad(rows, has_aux=True))(Z)
    expected = [left(row, targets, **options) for row in range(N)]
    np.testing.assert_allclose(losses, [loss for loss, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(dlogits, [gradient for _, gradient in expected], rtol=1e-4, atol=1e-6)
    forward = jax.jit(jax.jacfwd(lambda z: rows(z)[0]))(Z)
    np.testing.assert_allclose(forward, dlogits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(N,), (N, 1)], ids=["rows", "broadcast"])
@pytest.mark.parametrize("targets", [Y, Q], ids=["labels", "probabilities"])
def test_rows_that_are_left_out(targets: Array, shape: tuple[int, ...]) -> None:
    """Neither in the loss nor in what a mean divides by, whatever they hold."""
    kept = np.array([True, False, True, True, False])
    z = np.where(kept[:, None], Z, np.nan)
    for denominator in (None, "rows"):
        named = {"denominator": denominator, "class_weight": FACTORS}
        loss, gradient = xent.cross_entropy_with_grad(Z[kept], targets[kept], **named)

        def mean(x: Array, named: Any = named) -> Array:
            return xent.jax.cross_entropy(x, targets, where=kept.reshape(shape), **named)

        value, dlogits = jax.value_and_grad(mean)(z)
        np.testing.assert_allclose(value, loss, rtol=1e-6)
        np.testing.assert_allclose(dlogits[kept], gradient, rtol=1e-5, atol=1e-7)
        assert not dlogits[~kept].any()


def test_one_mask_for_all_rows_on_any_axis() -> None:
    classes = np.array([True, False, True, True, True, True])
    labels = np.array([3, 0, 2, 5, 4])
    kept = np.where(classes, Z, -np.inf)
    expected = xent.cross_entropy(kept, labels)
    for axis, z, mask in ((-1, Z, classes[None]), (0, Z.T, classes[:, None])):
        np.testing.assert_allclose(
            xent.jax.cross_entropy(z, labels, axis=axis, where=mask), expected, rtol=1e-6
        )


def test_a_label_that_is_left_out_is_impossible() -> None:
    """Loss +inf, and a finite gradient, that of −inf as its logit."""
    out = np.array([2, 1, 0, 0, 0])
    mask = np.where(MASK.any(-1, keepdims=True), MASK, True)
    mask[3, 0] = False

    def total(z: Array) -> Array:
        return xent.jax.cross_entropy(z, out, where=mask, reduction="sum")

    value, dlogits = jax.value_and_grad(total)(Z)
    assert value == np.inf
    expected = xent.cross_entropy_with_grad(np.where(mask, Z, -np.inf), out, reduction="sum")[1]
    np.testing.assert_allclose(dlogits, np.where(mask, expected, 0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_labels_for_the_kernels(dtype: str) -> None:
    """−1 where ignored, K where out of range, in integers that hold neither K nor the ignored label."""
    labels = jnp.asarray(np.array([0, 5, 6, 100, 127]), dtype)
    for num_classes, ignore_index, expected in (
        (6, -100, [0, 5, 6, 6, 6]),
        (6, 100, [0, 5, 6, -1, 6]),
        (101, 300, [0, 5, 6, 100, 101]),
        (1000, 0, [-1, 5, 6, 100, 127]),
    ):
        found, ignored = jax.jit(kernel_labels, static_argnums=(1, 2))(labels, num_classes, ignore_index)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(ignored, np.array(expected) == -1)


def test_masks_of_other_shapes_are_refused() -> None:
    with pytest.raises(TypeError, match="`where` must be boolean; got float32"):
        xent.jax.cross_entropy(Z, Y, where=np.ones(N, np.float32))
    for shape in ((K,), (N, 2), (1, N, K)):
        with pytest.raises(ValueError, match=r"`where` must have the shape of the rows, \(5,\), or"):
            xent.jax.cross_entropy(Z, Y, where=np.ones(shape, bool))
