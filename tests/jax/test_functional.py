"""`xent.jax.cross_entropy` and `row_statistics` against NumPy's, which has tests of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import xent
from tests.api.test_errors import ARGUMENTS
from tests.tables.variants import Variant, every_case

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402
from tests.jax.modes import every_mode  # noqa: E402

Array = Any
INF = np.inf
Z = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 3
Y = np.array([0, 4, 2, 3, 1, 1])


@every_case
def test_loss_and_gradient_are_numpys(variant: Variant, kind: Any) -> None:
    targets, options = variant.make(kind, (6,), 5, np.random.default_rng(0))
    options["denominator"] = variant.denominator

    def loss(logits: Any) -> Any:
        return xent.jax.cross_entropy(logits, targets, **options)

    expected, gradient = xent.cross_entropy_with_grad(Z, targets, **options)
    value, dlogits = jax.value_and_grad(loss)(jnp.asarray(Z))
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    np.testing.assert_allclose(dlogits, gradient, rtol=3e-5, atol=1e-7)
    handed = xent.cross_entropy(jnp.asarray(Z), targets, **options)
    np.testing.assert_array_equal(handed, loss(jnp.asarray(Z)))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_dtypes_and_reductions(dtype: str, reduction: str, kind: str, x64: None) -> None:
    """One loss a row, or their sum, of any dtype; its cotangents are not 1, its classes on the first axis."""
    z = jnp.asarray(Z.T.reshape(5, 2, 3)).astype(dtype)
    targets = Y.reshape(2, 3) if kind == "labels" else np.abs(Z.T).reshape(5, 2, 3)
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "reduction": reduction}
    seven = np.arange(6.0).reshape(2, 3) if reduction == "none" else 7.0

    def loss(x: Array) -> Array:
        value = xent.jax.cross_entropy(x, targets, axis=0, **options)
        return (seven * value).sum(), value

    (_, value), dlogits = jax.value_and_grad(loss, has_aux=True)(z)
    rows, q = (np.moveaxis(np.asarray(x, np.float64), 0, -1) for x in (z, z if kind == "labels" else targets))
    expected, gradient = xent.cross_entropy_with_grad(rows, targets if kind == "labels" else q, **options)
    eps = float(jnp.finfo(dtype).eps)
    assert value.dtype == ("float64" if dtype == "float64" else "float32")
    assert dlogits.dtype == z.dtype
    np.testing.assert_allclose(value, expected, rtol=1e-12 if dtype == "float64" else 2e-6)
    gradient = np.moveaxis(gradient * np.asarray(seven)[..., None], -1, 0)
    np.testing.assert_allclose(
        np.asarray(dlogits, np.float64), gradient, rtol=max(2 * eps, 1e-12), atol=eps / 8
    )


def test_float16_loses_no_range_to_the_denominator() -> None:
    """A scaled mean over a million tokens: 1/D times 2^20 is near 1, but 1/D is no float16."""
    z = jnp.asarray(Z, jnp.float16)
    scaled = jax.grad(lambda x: 2.0**20 * xent.jax.cross_entropy(x, Y, denominator=2.0**21))(z)
    expected = xent.cross_entropy_with_grad(np.asarray(z), Y, denominator=2.0)[1]
    np.testing.assert_allclose(scaled, expected, rtol=2e-3, atol=1e-7)


# Rows that are infinite, NaN or out of range.

ODD = np.array(
    [[0, -INF, 1], [np.nan, 0, 1], [INF, 0, 1], [-INF] * 3, [1, 2, 3], [3, 2, -INF], [1, 2, 3]], np.float32
)
ODD_LABELS = np.array([1, 0, 1, 2, 7, 0, -5])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0},
        {"focal_gamma": 0.5},
        {"poly1_epsilon": 1.0, "class_weight": np.array([1, 0.5, 2])},
        {"smoothing_over": "others", "label_smoothing": 0.9},
    ],
    ids=str,
)
def test_odd_rows_keep_to_themselves(options: dict[str, Any]) -> None:
    """NaN in their own loss and gradient alone, whatever the mode; −inf has gradient 0, as a label too."""

    def mean(x: Array) -> Array:
        return xent.jax.cross_entropy(x, ODD_LABELS, validate=False, **options)

    def results(x: Array) -> tuple[Array, ...]:
        rows = partial(xent.jax.cross_entropy, targets=ODD_LABELS, validate=False, reduction="none")
        grad = jax.grad(mean)
        product = jax.jvp(grad, (x,), (jnp.ones_like(x),))[1]
        return rows(x, **options), mean(x), grad(x), jax.jacfwd(lambda x: rows(x, **options))(x), product

    rows, value, dlogits, forward, product = jax.jit(results)(ODD)
    named = {"validate": False, **options}
    expected, gradient = xent.cross_entropy_with_grad(ODD, ODD_LABELS, **named)
    np.testing.assert_allclose(
        rows, xent.cross_entropy(ODD, ODD_LABELS, reduction="none", **named), rtol=1e-5
    )
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(dlogits, gradient, rtol=1e-4, atol=1e-7)
    own = np.stack([forward[i, i] for i in range(len(ODD))])
    by_row = xent.cross_entropy_with_grad(ODD, ODD_LABELS, reduction="none", **named)[1]
    np.testing.assert_allclose(own, by_row, rtol=1e-4, atol=1e-7)
    hvp = xent.cross_entropy_hvp(ODD, ODD_LABELS, np.ones_like(ODD), **named)
    np.testing.assert_allclose(product, hvp, rtol=1e-4, atol=1e-6)


@partial(jax.jit, static_argnames=("way", "options"))
def modes_of(z: Array, targets: Array, omega: Array, way: str, options: Any) -> Any:
    def f(x: Array) -> Array:
        weight = None if way == "ignored" else omega
        where = omega > 0 if way == "where" else None
        weight = None if way == "where" else weight
        given = {"sample_weight": weight, "where": where, **dict(options)}
        return xent.jax.cross_entropy(x, targets, **given)

    return every_mode(f, z, jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape))


@pytest.mark.parametrize(
    ("kind", "way", "options"),
    [
        ("labels", "ignored", {"focal_gamma": 0.5, "softcap": 5.0}),
        ("labels", "weight", {"label_smoothing": 0.1, "z_loss": 0.1}),
        ("probabilities", "where", {"z_loss": 0.1}),
    ],
)
def test_silent_rows_are_not_read(kind: str, way: str, options: dict[str, Any]) -> None:
    """A traced weight of 0, a mask, an ignored label: the loss without the row, in every mode and order."""
    options, omega = tuple(options.items()), np.array([1.0, 0.0, 2.0], np.float32)
    targets = np.array([2, -100 if way == "ignored" else 1, 0])
    if kind == "probabilities":
        targets = np.full((3, 4), 0.25, np.float32)
    found = []
    for held in (0.0, np.nan, INF, -INF):
        z, t = Z[:3, :4].copy(), targets.copy()
        z[1] = held
        if kind == "probabilities":
            t[1] = held
        found.append(modes_of(z, t, omega, way, options))
    for other in found[1:]:
        for mode, value in other.items():
            np.testing.assert_array_equal(value, found[0][mode], mode)
            assert np.isfinite(value).all(), mode
            assert not value.ndim or not value[1].any(), mode


@pytest.mark.parametrize("way", ["sample_weight", "where"])
def test_class_weights_do_not_see_silent_probabilities(way: str) -> None:
    """In both modes: their gradient is that without the row."""
    kept, q = np.array([True, False, True]), np.full((3, 5), 0.2, np.float32)
    z = np.where(kept[:, None], Z[:3], np.nan)
    held = np.where(kept[:, None], q, np.nan)
    silent = {way: kept if way == "where" else kept.astype(np.float32)}

    def total(c: Array, z: Array, q: Array, **silent: Any) -> Array:
        options = {"validate": False, "reduction": "sum", "label_smoothing": 0.1}
        return xent.jax.cross_entropy(z, q, class_weight=c, **options, **silent)

    factors = jnp.ones(5)
    expected = jax.grad(total)(factors, Z[:3][kept], q[kept])
    for derivative in (jax.grad, jax.jacfwd):
        found = jax.jit(lambda c, d=derivative: d(total)(c, z, held, **silent))(factors)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_of_silent_rows_have_finite_gradients() -> None:
    z, omega = np.full((2, 3), np.nan, np.float32), jnp.array([1.0, 0.0])
    z[0] = 1, 2, 3
    grad = jax.grad(lambda w: xent.jax.cross_entropy(z, np.array([0, 1]), sample_weight=w, reduction="sum"))
    np.testing.assert_allclose(grad(omega), [xent.cross_entropy(z[0], 0), 0.0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 1), (5,), (2, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("kind", ["ignored", "labels", "probabilities"])
def test_shapes(shape: tuple[int, ...], kind: str) -> None:
    z = np.zeros(shape, np.float32)
    targets = np.full(shape[:-1], 0 if kind == "labels" and shape[-1] else -100)
    targets = np.full(shape, 1 / max(1, shape[-1]), np.float32) if kind == "probabilities" else targets
    for options in ({}, {"label_smoothing": 0.1, "smoothing_over": "others", "softcap": 5.0}):
        expected, gradient = xent.cross_entropy_with_grad(z, targets, **options)
        value, dlogits = jax.value_and_grad(xent.jax.cross_entropy)(z, targets, **options)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(dlogits, gradient, rtol=1e-5, atol=1e-7)


# What arrives.


@pytest.mark.parametrize(("logits", "targets", "options", "error", "words"), ARGUMENTS)
def test_errors_are_numpys(
    logits: Any, targets: Any, options: Any, error: Any, words: Any, x64: None
) -> None:
    with pytest.raises(error) as caught:
        xent.jax.cross_entropy(logits, targets, **options)
    for word in words:
        assert word.replace("float64, float32", "float64") in str(caught.value)


def test_arrays_of_any_kind() -> None:
    expected = xent.cross_entropy(Z, Y)
    for logits, labels in (
        (Z.tolist(), Y.tolist()),
        (Z.astype(">f4"), Y.astype(">i8")),
        (Z.astype(np.float64)[:, ::-1][:, ::-1], Y.astype(np.uint8)),
        (jnp.asarray(Z), Y.astype(np.uint64)),
    ):
        found = xent.jax.cross_entropy(logits, labels)
        assert (found.dtype, found.weak_type) == (jnp.float32, False)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert xent.jax.cross_entropy(np.arange(4).reshape(2, 2), [0, 1]).dtype == jnp.float32
    torch = pytest.importorskip("torch")
    for given in (
        {"logits": torch.tensor(Z)},
        {"targets": torch.tensor(Y)},
        {"sample_weight": torch.ones(6)},
        {"where": torch.ones(6, dtype=torch.bool)},
        {"denominator": torch.tensor(3.0)},
    ):
        with pytest.raises(TypeError, match=f"`{next(iter(given))}` must be .*[Tt]ensor"):
            xent.jax.cross_entropy(**{"logits": Z, "targets": Y, **given})


def test_values_that_are_known_are_checked_under_jit_too() -> None:
    bad = np.where(Y == 2, 9, Y)
    with pytest.raises(ValueError, match=r"`targets` must be in .*got 9 at row 2"):
        jax.jit(lambda z: xent.jax.cross_entropy(z, bad))(Z)
    with pytest.raises(ValueError, match=r"`class_weight` must be >= 0; got -1"):
        jax.jit(lambda z: xent.jax.cross_entropy(z, Y, class_weight=np.array([1, 1, -1, 1, 1])))(Z)
    rows = jax.jit(lambda z, y: xent.jax.cross_entropy(z, y, reduction="none", validate=True))(Z, bad)
    np.testing.assert_array_equal(np.isnan(rows), Y == 2)  # traced, so that nothing is known


def test_labels_beyond_32_bits_are_not_wrapped() -> None:
    wide = np.where(Y == 2, 2**32, Y)
    with pytest.raises(ValueError, match="got 4294967296 at row 2"):
        xent.jax.cross_entropy(Z, wide)
    rows = xent.jax.cross_entropy(Z, wide, reduction="none", validate=False)
    np.testing.assert_array_equal(np.isnan(rows), Y == 2)
    with pytest.raises(ValueError, match="`ignore_index` must fit into 32 bits"):
        xent.jax.cross_entropy(Z, wide, ignore_index=2**32)


@pytest.mark.parametrize(
    "name", ["temperature", "softcap", "label_smoothing", "focal_gamma", "z_loss", "ignore_index", "axis"]
)
def test_traced_options_are_refused(name: str) -> None:
    advice = "divide by it" if name == "temperature" else f"static_argnames='{name}'"
    with pytest.raises(TypeError, match=f"`{name}` must be .*traced.*{advice}"):
        jax.jit(lambda option: xent.jax.cross_entropy(Z, Y, **{name: option}))(1)


def test_denominators() -> None:
    for denominator in (3, np.float64(3), np.array(3), jnp.float32(3), jnp.bfloat16(3), jnp.int32(3)):
        np.testing.assert_allclose(
            xent.jax.cross_entropy(Z, Y, denominator=denominator), xent.cross_entropy(Z, Y, denominator=3)
        )
    assert xent.jax.cross_entropy(Z, Y, denominator=jnp.float32(0)) == 0
    for wrong, error in ((jnp.float32(-1), ValueError), (jnp.ones(2), TypeError), (jnp.array(1j), TypeError)):
        with pytest.raises(error, match="`denominator` must be None"):
            xent.jax.cross_entropy(Z, Y, denominator=wrong)


def test_new_values_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    whole = xent.jax.dense.loss
    monkeypatch.setattr(xent.jax.dense, "loss", lambda *args: (traces.append(args), whole(*args))[1])
    z, y = np.zeros((3, 11), np.float32), np.array([0, 1, 2])
    for i in range(3):
        xent.jax.cross_entropy(z + i, y + i, denominator=2.0 + i, sample_weight=np.full(3, 1.0 + i))
    assert len(traces) == 1


@pytest.mark.parametrize("is_formula", [False, True])
def test_no_second_array_of_the_size_of_the_logits(is_formula: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA's own account: beside the gradient the mean keeps columns only."""
    if is_formula:
        monkeypatch.setattr(xent.jax.kernels, "LEAST", 1 << 60)
    z, y = jnp.zeros((512, 4095 + is_formula)), jnp.zeros(512, jnp.int32)
    f = jax.jit(jax.value_and_grad(xent.jax.cross_entropy))
    assert f.lower(z, y).compile().memory_analysis().temp_size_in_bytes < z.nbytes / 20


def test_a_mean_of_millions_of_rows_keeps_its_digits() -> None:
    z = np.random.default_rng(0).normal(size=(2_000_000, 2)).astype(np.float32)
    y = np.zeros(len(z), np.int32)
    omega = np.full(len(z), 0.1, np.float32)
    expected = xent.cross_entropy(z.astype(np.float64), y)
    for options in ({}, {"sample_weight": omega}):
        found = xent.jax.cross_entropy(z, y, **options)
        np.testing.assert_allclose(found, expected, rtol=2e-6)


# Row statistics.


def test_row_statistics_are_numpys() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(3, 4, 7)).astype(np.float32), rng.integers(0, 7, (3, 4))
    y[1, 2] = -100
    names = xent.RowStatistics._fields
    expected = xent.row_statistics(z, y, want=names, softcap=5.0)
    found = xent.row_statistics(jnp.asarray(z), y, want=names, softcap=5.0)
    for name, a, b in zip(names, found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def test_row_statistics_of_odd_rows() -> None:
    names = xent.RowStatistics._fields
    expected = xent.row_statistics(ODD, ODD_LABELS, want=names, validate=False)
    found = xent.jax.row_statistics(ODD, ODD_LABELS, want=names, validate=False)
    is_defined = ~np.isnan(expected.lse)
    for name, a, b in zip(names, found, expected, strict=True):
        kept = is_defined if name == "argmax" else slice(None)
        np.testing.assert_allclose(a[kept], b[kept], rtol=1e-5, atol=1e-6, err_msg=name)


def test_row_statistics_have_derivatives(x64: None) -> None:
    names = ("lse", "log_prob", "entropy", "log_sum_sq_probs", "mean_logits")

    def total(z: Array) -> Array:
        stats = xent.jax.row_statistics(z, Y, want=names, softcap=5.0)
        return sum((i + 1) * (getattr(stats, name) ** 2).sum() for i, name in enumerate(names))

    from jax.test_util import check_grads

    check_grads(jax.jit(total), (jnp.asarray(Z, float),), order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


def test_the_derivative_in_a_weight_of_0_is_the_loss_of_its_row() -> None:
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32).at[3].set(jnp.nan)
    y, weight = jnp.array([0, 1, 2, 3, 9]), jnp.array([1.0, 0.0, 2.0, 0.0, 0.0])

    def loss(weight: Any, z: Any) -> Any:
        options = {"label_smoothing": 0.1, "validate": False}
        return xent.jax.cross_entropy(z, y, sample_weight=weight, reduction="sum", **options)

    rows = xent.jax.cross_entropy(z[:3], y[:3], reduction="none", label_smoothing=0.1)
    np.testing.assert_allclose(jax.grad(loss)(weight, z), [*rows, 0, 0], rtol=1e-6)
    row = jax.grad(lambda z: xent.jax.cross_entropy(z, y[1], label_smoothing=0.1))(z[1])
    for mode in (jax.jacfwd, jax.jacrev):
        mixed = mode(jax.grad(loss, 1))(weight, z)
        np.testing.assert_allclose(mixed[1, :, 1], row, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(mixed[3:], 0)
