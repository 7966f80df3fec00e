"""`xent.jax.linear_cross_entropy` against NumPy's, and against the loss of whole logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent
from tests.tables.variants import Variant, chosen

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402
from tests.jax.linear.problems import (  # noqa: E402
    CHUNK,
    CLASSES,
    ROWS,
    assert_near,
    chunked,
    labels,
    operands,
    whole,
)

SOME = (
    "plain",
    "ignore_all",
    "smoothing_others_all",
    "poly1",
    "rows",
    "tokens",
    "all_linear",
    "all_smoothed",
    "all_focal",
)
PLAIN: dict[str, Any] = {}
ALL = {
    "focal_gamma": 2.0,
    "z_loss": 0.1,
    "softcap": 5.0,
    "temperature": 0.8,
    "class_weight": np.array([0.5, 1.0, 0.0, 2.0, 0.7]),
}


@chosen(lambda variant, kind: variant.name in SOME)
def test_loss_and_gradients_are_numpys(variant: Variant, kind: Any) -> None:
    x, w, b = operands(np.float32)
    targets, options = variant.make(kind, (ROWS,), CLASSES, np.random.default_rng(0))
    options["denominator"] = variant.denominator
    arrays = [np.asarray(a, np.float64) for a in (x, w, b)]
    expected = xent.linear_cross_entropy_with_grad(*arrays[:2], targets, bias=arrays[2], **options)
    found = jax.value_and_grad(lambda *a: chunked(*a, targets, **options), (0, 1, 2))(x, w, b)
    assert_near(found, expected, 3e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_transposed_weights_shifts_and_masks(reduction: str) -> None:
    x, w, b = (np.asarray(a) for a in operands(np.float32))
    x, y = np.stack([x, -x]), np.stack([labels(), labels(1)])
    where, weight = np.arange(14).reshape(2, 7) % 3 > 0, np.linspace(0, 2, 14).reshape(2, 7)
    expected = xent.linear_cross_entropy(
        x, w, y, bias=b, shift=1, sample_weight=weight * where, reduction=reduction
    )
    given = {"where": where, "sample_weight": weight, "shift": 1, "reduction": reduction}
    for kernel, axis in ((w, 0), (w.T, 1)):
        loss = xent.jax.linear_cross_entropy(x, kernel, y, bias=b, class_axis=axis, **given, **CHUNK)
        np.testing.assert_allclose(loss, expected, 3e-6)


def test_arrays_are_handed_over() -> None:
    x, w, b = operands(np.float32)
    y = labels()
    np.testing.assert_array_equal(
        xent.linear_cross_entropy(x, w, y, bias=b, z_loss=0.1),
        xent.jax.linear_cross_entropy(x, w, y, bias=b, z_loss=0.1),
    )


@pytest.mark.parametrize(("reduction", "options"), [("mean", PLAIN), ("mean", ALL), ("none", ALL)])
def test_second_derivatives_are_those_of_whole_logits(reduction: str, options: Any, x64: None) -> None:
    arguments = (*operands(), jnp.linspace(0.5, 2.0, ROWS))
    vector = tuple(jnp.sin(a + 1) for a in arguments)

    def derivatives(loss: Any) -> Any:
        def total(*a: Any) -> Any:
            values = loss(*a[:3], labels(), sample_weight=a[3], reduction=reduction, **options)
            return 3 * (values if reduction == "mean" else jnp.sin(values).sum())  # a cotangent that is not 1

        def along(*a: Any) -> Any:
            return jax.jvp(total, a, vector)[1]

        gradient = jax.grad(total, (0, 1, 2, 3))
        return (
            jax.value_and_grad(along, (0, 1, 2, 3))(*arguments),
            jax.jvp(gradient, arguments, vector),
            jax.vjp(gradient, *arguments)[1](vector),
        )

    assert_near(jax.jit(lambda: derivatives(chunked))(), jax.jit(lambda: derivatives(whole))())


def test_third_derivatives(x64: None) -> None:
    from jax.test_util import check_grads

    x, w, b = operands()

    def loss(w: Any) -> Any:
        return chunked(x, w, b, labels(), focal_gamma=2.0)

    check_grads(jax.jit(loss), (w,), order=3, modes=("rev",), atol=1e-3, rtol=1e-3)


def test_derivatives_in_probabilities_and_class_weights(x64: None) -> None:
    x, w, b = operands()
    q = jax.nn.softmax(jnp.sin(jnp.arange(35.0)).reshape(7, 5))
    c = jnp.linspace(0.2, 2.0, CLASSES)

    def gradients(loss: Any) -> Any:
        def total(x: Any, q: Any, c: Any) -> Any:
            return loss(x, w, b, q, class_weight=c, label_smoothing=0.1, reduction="sum")

        gradient = jax.grad(total, (0, 1, 2))
        return gradient(x, q, c), jax.vjp(gradient, x, q, c)[1]((x, q, c))

    assert_near(jax.jit(lambda: gradients(chunked))(), jax.jit(lambda: gradients(whole))())


def test_batches_of_one_operand_alone() -> None:
    x, w, b = operands(np.float32)
    mask = jnp.arange(21).reshape(3, 7) % 4 > 0
    heads = jnp.stack([w, -w, 2 * w])
    gradient = jax.grad(lambda w, mask: chunked(x, w, b, labels(), where=mask))
    of_heads = jax.jit(jax.vmap(gradient, (0, None)))(heads, mask[0])
    of_masks = jax.jit(jax.vmap(gradient, (None, 0)))(w, mask)
    assert_near(of_heads, jnp.stack([gradient(head, mask[0]) for head in heads]), 1e-6)
    assert_near(of_masks, jnp.stack([gradient(w, each) for each in mask]), 1e-6)


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0}], ids=["plain", "focal"])
def test_chunks_that_the_kernels_compute(options: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(1000, 3)).astype(np.float32)
    y = np.where(np.arange(40) % 7, rng.integers(0, 1000, 40), -100)

    def loss(x: Any, w: Any) -> Any:
        return 3 * xent.jax.linear_cross_entropy(x, w, y, chunk_bytes=17 * 4000, **options)

    gradient = jax.grad(loss, (0, 1))
    _, expected = xent.linear_cross_entropy_with_grad(x, w, y, **options)
    assert_near(gradient(jnp.asarray(x), w), [3 * expected.dinputs, 3 * expected.dweight], 1e-5)
    heads = jnp.stack([w, -w])
    assert_near(
        jax.jit(jax.vmap(gradient, (None, 0)))(x, heads),
        jax.tree_util.tree_map(lambda *each: jnp.stack(each), *(gradient(x, head) for head in heads)),
        1e-5,
    )


def test_accumulation_in_a_scan() -> None:
    x, w, b = operands(np.float32)
    parts = jnp.stack([x, 2 * x, -x])

    def step(total: Any, part: Any) -> Any:
        loss = jax.checkpoint(lambda w: chunked(part, w, b, labels(), denominator=20))
        return total + jax.grad(loss)(w), None

    found = jax.jit(lambda: jax.lax.scan(step, jnp.zeros_like(w), parts)[0])()
    y = np.tile(labels(), 3)
    expected = jax.grad(lambda w: whole(parts.reshape(-1, 4), w, b, y, denominator=20))(w)
    assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_silent_rows_are_zero_whatever_they_hold(reduction: str) -> None:
    x, w, b = operands(np.float32)
    silent = np.array([1, 2, 4])
    x, y = x.at[silent].set(jnp.array([np.nan, np.inf, -np.inf])[:, None]), labels()
    where, weight = np.arange(ROWS) != 1, jnp.ones(ROWS).at[4].set(0)

    def loss(x: Any, w: Any) -> Any:
        given = {"where": where, "sample_weight": weight, "reduction": reduction}
        return chunked(x, w, b, y, **given).sum()

    clean = x.at[silent].set(0)
    gradient = jax.grad(loss, (0, 1))
    found, expected = gradient(x, w), gradient(clean, w)
    assert (np.asarray(found[0])[silent] == 0).all()
    assert_near(found, expected, 1e-6)
    second = jax.jvp(gradient, (x, w), (clean, w))[1]
    assert (np.asarray(second[0])[silent] == 0).all()
    assert_near(second, jax.jvp(gradient, (clean, w), (clean, w))[1], 1e-5)


def test_a_label_out_of_range_is_nan_in_its_row() -> None:
    x, w, b = operands(np.float32)
    y = labels()
    y[3] = CLASSES
    with pytest.raises(ValueError, match="`targets` must be in"):
        chunked(x, w, b, y)

    def loss(x: Any, w: Any) -> Any:
        losses = chunked(x, w, b, y, reduction="none", validate=False)
        return jnp.where(np.arange(ROWS) == 3, 0, losses).sum() + losses[3], losses

    (dx, dw), losses = jax.grad(loss, (0, 1), has_aux=True)(x, w)
    for rows in (losses, dx):
        assert (np.isnan(rows).reshape(ROWS, -1).any(1) == (np.arange(ROWS) == 3)).all()
    assert np.isnan(dw).all()


@pytest.mark.parametrize("is_soft", [False, True])
def test_a_class_of_probability_0(is_soft: bool) -> None:
    x, w, b = operands(np.float32)
    b = b.at[0].set(-np.inf)
    y: Any = np.full(ROWS, 1)
    y = np.eye(CLASSES, dtype=np.float32)[y] if is_soft else y

    def loss(x: Any, w: Any) -> Any:
        return chunked(x, w, b, y)

    expected = whole(x, w[1:], b[1:], y[:, 1:] if is_soft else y - 1)
    np.testing.assert_allclose(loss(x, w), expected, 1e-6)
    for mode in (jax.jacfwd, jax.jacrev):
        assert (np.asarray(mode(loss, 1)(x, w))[0] == 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_operands(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 16)), dtype)
    w = jnp.asarray(4 * rng.normal(size=(50, 16)), dtype)
    y = rng.integers(0, 50, 64)
    wide = [np.asarray(a, np.float64) for a in (x, w)]
    expected, gradient = xent.linear_cross_entropy_with_grad(*wide, y)

    def loss(x: Any, w: Any, **options: Any) -> Any:
        return xent.jax.linear_cross_entropy(x, w, y, chunk_bytes=4000, **options)

    found, (dx, dw) = jax.value_and_grad(loss, (0, 1))(x, w)
    assert (found.dtype, dx.dtype, dw.dtype) == (np.float32, dtype, dtype)
    np.testing.assert_allclose(found, expected, 1e-6)
    rounding = float(jnp.finfo(dtype).eps)
    for a, e in ((dx, gradient.dinputs), (dw, gradient.dweight)):
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rounding, 2 * rounding * np.abs(e).max())
    # XLA may keep the digits of the sums that this asks it to round.
    np.testing.assert_allclose(loss(x, w, logits_dtype=dtype), expected, 2 * rounding)


def test_a_large_denominator_leaves_the_gradients_of_float16() -> None:
    x, w = jnp.full((2, 1), 1e-2, jnp.float16), jnp.zeros((3, 1), jnp.float16)

    def loss(x: Any, w: Any) -> Any:
        return 2.0**20 * xent.jax.linear_cross_entropy(x, w, np.array([0, 1]), denominator=2.0**20)

    dw = jax.grad(loss, 1)(x, w)
    np.testing.assert_allclose(dw[:, 0], np.array([-1, -1, 2]) / 3 * 1e-2, rtol=2e-3)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    _, w, b = operands(np.float32)
    loss, dw = jax.value_and_grad(lambda w: chunked(jnp.zeros(shape), w, b, np.zeros(shape[:-1], int)))(w)
    assert loss == 0
    assert (np.asarray(dw) == 0).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": np.ones((5, 3))}, r"`weight` must have shape \(K, 4\)"),
        ({"weight": np.ones((5, 4)), "class_axis": 1}, r"`weight` must have shape \(4, K\)"),
        ({"class_axis": 2}, "`class_axis` must be 0"),
        ({"bias": np.ones(4)}, r"`bias` must have shape \(5,\)"),
        ({"where": np.ones((7, 5), bool)}, r"`where` must have the shape of the rows, \(7,\)"),
        ({"chunk_bytes": 0}, "`chunk_bytes` must be None or > 0"),
        ({"shift": -1}, "`shift` must be >= 0"),
        ({"logits_dtype": "float16"}, "`logits_dtype` must be None or float32"),
        ({"num_classes": 5}, "`num_classes` needs `axis_name`"),
        ({"reduction": "sum", "denominator": 2}, "`denominator` needs"),
    ],
)
def test_errors_name_the_argument(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"inputs": np.ones((7, 4)), "weight": np.ones((5, 4)), "targets": labels()}
    with pytest.raises(ValueError, match=message):
        xent.jax.linear_cross_entropy(**{**given, **changed})


def test_operands_of_different_dtypes() -> None:
    x, w, _ = operands(np.float32)
    with pytest.raises(TypeError, match="`weight` must have the dtype of `inputs`, float32; got float16"):
        xent.jax.linear_cross_entropy(x, w.astype(np.float16), labels())
