"""`xent.jax.binary_cross_entropy` against NumPy's, which has tests of its own; derivatives of every order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xent
from tests.tables.tolerance import DTYPES
from tests.tables.variants import Variant, chosen

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import xent.jax  # noqa: E402

Array = Any
bce = xent.jax.binary_cross_entropy

OPTIONS: dict[str, dict[str, Any]] = {
    "weights": {"pos_weight": 2.5, "alpha": 0.3},
    "smoothing": {
        "label_smoothing": 0.1,
        "smoothing_over": "others",
        "pos_weight": 0.0,
        "z_loss": 0.1,
        "temperature": 0.5,
    },
    "focal": {"focal_gamma": 0.5, "alpha": 0.3, "softcap": 4.0, "z_loss": 0.1},
    "poly-1": {"poly1_epsilon": 2.0, "pos_weight": 2.5, "softcap": 3.0},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
NAN, INF = np.nan, np.inf


def grad_of_sum(losses: Any) -> Any:
    """The gradient of the sum of the losses, as NumPy's functions give it."""
    return jax.grad(lambda z: losses(z).sum())


@chosen(lambda variant, kind: "class_weight" not in variant.options)
def test_loss_and_gradient_are_numpys(variant: Variant, kind: Any) -> None:
    rng = np.random.default_rng(0)
    z = (3 * rng.normal(size=(7, 3))).astype(np.float32)
    q, options = variant.make(kind, (7, 3), 2, rng)
    options["denominator"] = variant.denominator
    if kind == "labels":
        options |= {"pos_weight": 2.5, "alpha": 0.3}
    else:
        q = q[..., 1]
    expected, gradient = xent.binary_cross_entropy_with_grad(z, q, **options)
    value, dlogits = jax.value_and_grad(lambda z: bce(z, q, **options))(jnp.asarray(z))
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    np.testing.assert_allclose(dlogits, gradient, rtol=3e-5, atol=1e-6 * abs(gradient).max())


def test_it_is_the_loss_of_jax_arrays() -> None:
    z, q = jnp.array([0.5, -1.0]), np.array([1, 0])
    given = {"pos_weight": 2.5, "alpha": 0.3, "focal_gamma": 2.0, "denominator": 3.0}
    found = jax.jit(lambda z: xent.binary_cross_entropy(z, q, **given))(z)
    np.testing.assert_array_equal(found, bce(z, q, **given))
    with pytest.raises(ValueError, match="got 2 at row 1"):
        xent.binary_cross_entropy(z, np.array([1, 2]))
    assert np.isnan(xent.binary_cross_entropy(z, np.array([1, 2]), validate=False))


@pytest.mark.parametrize(
    ("dtype", "reduction"), [*((dtype, "mean") for dtype in DTYPES), ("float16", "sum"), ("float16", "none")]
)
@pytest.mark.usefixtures("x64")
def test_dtypes_and_reductions(dtype: str, reduction: str) -> None:
    rng = np.random.default_rng(1)
    z = (3 * rng.normal(size=50)).astype(DTYPES[dtype])
    y = rng.random(50) < 0.4
    given = {**OPTIONS["focal"], "reduction": reduction}
    expected, gradient = xent.binary_cross_entropy_with_grad(z, y, **given)
    value = bce(jnp.asarray(z), y, **given)
    dlogits = grad_of_sum(lambda z: bce(z, y, **given))(jnp.asarray(z))
    assert value.dtype == expected.dtype
    assert dlogits.dtype == gradient.dtype
    eps = float(jnp.finfo(value.dtype).eps)
    np.testing.assert_allclose(value, expected, rtol=30 * eps)
    allowed = max(100 * eps, 2 * float(jnp.finfo(dlogits.dtype).eps))
    found, truth = (np.asarray(x, np.float64) for x in (dlogits, gradient))
    np.testing.assert_allclose(found, truth, rtol=allowed, atol=allowed * abs(truth).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("x64")
def test_both_ends_are_exact(dtype: str) -> None:
    """The loss is log1p(exp(-30)) where the plain formula gives 0 in single precision; derivatives too."""
    ends = np.array([-80.0, -30.0, -8.0, -1.0, -0.0, 0.0, 1e-3, 1.0, 8.0, 30.0, 80.0] * 2)
    ends = ends.astype(DTYPES[dtype])
    label = np.repeat([0, 1], len(ends) // 2)
    wrong = ends.astype(np.float64) * (1 - 2 * label)  # logit of the wrong class
    z = jnp.asarray(ends)

    def losses(z: Array) -> Array:
        return bce(z, label, reduction="none")

    eps = float(jnp.finfo(losses(z).dtype).eps)
    np.testing.assert_allclose(losses(z), np.logaddexp(0.0, wrong), rtol=4 * eps)
    p = np.exp(wrong) / (1 + np.exp(wrong))
    rounding, smallest = 8 * float(jnp.finfo(z.dtype).eps), float(jnp.finfo(z.dtype).smallest_normal)
    ones = jnp.ones_like(z)
    first = jax.jvp(losses, (z,), (ones,))[1]
    np.testing.assert_allclose(first, p * (1 - 2 * label), rtol=rounding, atol=smallest)
    second = jax.jvp(grad_of_sum(losses), (z,), (ones,))[1].astype(float)
    np.testing.assert_allclose(second, p / (1 + np.exp(wrong)), rtol=rounding, atol=smallest)


def derivatives(loss: Any, highest: int) -> Any:
    """A function of z (...): the derivatives of each element's loss, in any sequence of the modes."""

    def forward(f: Any) -> Any:
        return lambda z: jax.jvp(f, (z,), (jnp.ones_like(z),))[1]

    def reverse(f: Any) -> Any:
        return jax.grad(lambda z: f(z).sum())

    found = {"": loss}
    for _ in range(highest):
        found |= {a + name: m(f) for name, f in found.items() for a, m in (("f", forward), ("r", reverse))}
    return jax.jit(lambda z: {name: f(z) for name, f in found.items()})


@each_option
@pytest.mark.usefixtures("x64")
def test_derivatives_of_three_orders_in_any_modes(options: dict[str, Any]) -> None:
    """Each is the difference quotient of the one before."""
    rng = np.random.default_rng(2)
    z, y = jnp.asarray(rng.normal(size=5)), rng.random(5) < 0.5
    every = derivatives(
        lambda z: 3 * bce(z, y, sample_weight=jnp.arange(5.0), reduction="none", **options), 3
    )
    step = 1e-5
    found, above, below = every(z), every(z + step), every(z - step)
    assert len(found) == 15
    for name in found.keys() - {""}:
        quotient = (above[name[1:]] - below[name[1:]]) / (2 * step)
        np.testing.assert_allclose(found[name], quotient, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.slow
@each_option
@pytest.mark.usefixtures("x64")
def test_derivatives_of_three_orders_along_random_directions(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    z, y, weight = jnp.asarray(rng.normal(size=5)), rng.random(5) < 0.5, jnp.asarray(rng.random(5))

    def loss(z: Array, weight: Array) -> Array:
        return 3 * bce(z, y, sample_weight=weight, denominator=2.0, **options)

    check_grads(loss, (z, weight), order=3, modes=("fwd", "rev"))


@pytest.mark.usefixtures("x64")
def test_derivatives_in_probabilities_factors_and_denominator() -> None:
    rng = np.random.default_rng(3)
    z, q, weight = (jnp.asarray(rng.random((4, 3))) for _ in range(3))
    pi, divisor = jnp.asarray(rng.random(3)), jnp.asarray(2.5)

    @jax.jit
    def loss(z: Array, q: Array, weight: Array, pi: Array, divisor: Array) -> Array:
        given = {"sample_weight": weight, "pos_weight": pi, "denominator": divisor, "z_loss": 0.1}
        return bce(z, q, alpha=0.3, label_smoothing=0.1, validate=False, **given)

    arguments = z, q, weight, pi, divisor
    check_grads(loss, arguments, order=1, modes=("fwd", "rev"))
    columns = [
        xent.binary_cross_entropy(np.array(z[:, k]), np.array(q[:, k]), pos_weight=pi[k], reduction="none")
        for k in range(3)
    ]
    np.testing.assert_allclose(bce(z, q, pos_weight=pi, reduction="none").T, columns, rtol=1e-12)


@each_option
def test_values_that_are_not_finite_are_numpys(options: dict[str, Any]) -> None:
    """In loss and gradient of both modes; second derivatives are NaN where those are."""
    z = np.array([NAN, -INF, INF] * 2, np.float32)
    y = np.repeat([0, 1], 3)
    given = {**options, "reduction": "none"}
    expected, gradient = xent.binary_cross_entropy_with_grad(z, y, **given)
    found = derivatives(lambda z: bce(z, y, **given), 2)(jnp.asarray(z))
    np.testing.assert_allclose(found[""], expected, rtol=1e-6)
    np.testing.assert_allclose(found["f"], gradient, rtol=1e-6)
    np.testing.assert_allclose(found["r"], gradient, rtol=1e-6)
    for name in ("ff", "fr", "rf", "rr"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(gradient), err_msg=name)


@each_option
def test_elements_that_do_not_count_are_not_read(options: dict[str, Any]) -> None:
    """Ignored, of weight 0, masked: 0 in value and derivatives, whatever they hold."""
    z = np.array([0.5, NAN, INF, NAN, -1.0], np.float32)
    q = np.array([1.0, -100.0, NAN, NAN, 0.0], np.float32)
    weight, where = jnp.array([2.0, 1.0, 0.0, 1.0, 1.0]), np.array([True, True, True, False, True])
    kept = np.array([0, 4])
    expected, gradient = xent.binary_cross_entropy_with_grad(
        z[kept], q[kept], sample_weight=np.array(weight)[kept], **options
    )

    def loss(z: Array, weight: Array) -> Array:
        return bce(z, q, sample_weight=weight, where=where, validate=False, **options)

    def second(z: Array, weight: Array) -> tuple[Array, Array]:
        return jax.hessian(loss)(z, weight), jax.jacrev(jax.jacrev(loss))(z, weight)

    found = jax.jit(lambda *x: (loss(*x), *jax.grad(loss, (0, 1))(*x), second(*x)))
    value, first, of_weight, hessians = found(jnp.asarray(z), weight)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(first[kept], gradient, rtol=1e-5)
    for derivative in (first, *hessians, *(hessian.T for hessian in hessians)):
        np.testing.assert_array_equal(derivative[1:4], 0)
        assert np.isfinite(derivative).all()
    assert np.isfinite(of_weight).all()
    assert float(bce(z, np.full(5, -100), **options)) == 0


def test_the_derivative_in_a_weight_of_0_is_the_loss() -> None:
    z, q, weight = jnp.array([0.5, -1.0]), jnp.array([1.0, 0.25]), jnp.array([0.0, 2.0])
    found = jax.grad(lambda w: bce(z, q, sample_weight=w, reduction="sum"))(weight)
    np.testing.assert_allclose(found, bce(z, q, reduction="none"), rtol=1e-6)


def test_batched_and_compiled() -> None:
    """Each argument batched alone; under scan and checkpoint."""
    rng = np.random.default_rng(4)
    z, q, weight, pi = (jnp.asarray(rng.random((2, 3)), jnp.float32) for _ in range(4))
    where = jnp.asarray(rng.random((2, 3)) < 0.5)

    def grad(z: Array, q: Array, weight: Array, pi: Array, where: Array) -> Array:
        def loss(z: Array) -> Array:
            return bce(z, q, sample_weight=weight, pos_weight=pi, where=where, validate=False)

        return jax.grad(jax.checkpoint(loss))(z)

    arguments = z, q, weight, pi, where
    rows = [x[0] for x in arguments]
    compiled = jax.jit(grad)
    for i, batch in enumerate(arguments):
        axes = [0 if j == i else None for j in range(5)]
        mine = [batch if j == i else x for j, x in enumerate(rows)]
        expected = [compiled(*(batch[n] if j == i else x for j, x in enumerate(rows))) for n in range(2)]
        np.testing.assert_allclose(jax.vmap(grad, axes)(*mine), expected, rtol=1e-6)

    def scanned(z: Array) -> Array:
        return jax.lax.scan(lambda total, x: (total + bce(*x), None), 0.0, (z, q))[0]

    expected = xent.binary_cross_entropy_with_grad(np.array(z), np.array(q), reduction="sum")[1] / 3
    np.testing.assert_allclose(jax.grad(scanned)(z), expected, rtol=1e-5)


def test_shapes_without_elements_and_scalars() -> None:
    assert float(bce(jnp.zeros(0), jnp.zeros(0))) == 0
    assert jax.grad(bce)(jnp.zeros((2, 0)), jnp.zeros((2, 0))).shape == (2, 0)
    assert round(float(bce(jnp.zeros(()), 1, reduction="none")), 4) == 0.6931
    assert float(jax.grad(bce)(jnp.zeros(()), True)) == -0.5


def test_labels_out_of_range() -> None:
    """An error where values are known; else NaN in that element."""
    z = jnp.zeros(3)
    losses = jax.jit(lambda q: bce(z, q, focal_gamma=2.0, reduction="none"))
    for targets in (np.array([0, 1, 2]), np.array([0, 1, -1]), np.array([0.0, 1.0, 0.5])):
        with pytest.raises(ValueError, match=r"`targets` must be .*; got (2|-1|0\.5) at row 2"):
            bce(z, targets, focal_gamma=2.0)
        np.testing.assert_array_equal(np.isnan(losses(targets)), [False, False, True])
        assert np.isfinite(bce(z, targets, focal_gamma=2.0, where=np.array([True, True, False])))
    linear = bce(z, np.array([0, 1, 2]), reduction="none", validate=False)
    np.testing.assert_array_equal(np.isnan(linear), [False, False, True])


ZEROS = np.zeros(2, np.float32)
REFUSED: dict[str, dict[str, Any]] = {
    "`class_weight` has no place": {"class_weight": ZEROS},
    r"`targets` must have the shape of the logits, \(2,\); got \(3,\)": {"targets": np.zeros(3)},
    "`targets` must be integers or booleans .*; got complex64": {"targets": ZEROS.astype(np.complex64)},
    r"`targets` must be in \[0, 1\]; got 1.5 at row 0": {"targets": ZEROS + 1.5},
    "`where` must be boolean; got int32": {"where": np.ones(2, np.int32)},
    r"`pos_weight` must broadcast to the shape of the logits, \(2,\); got \(3,\)": {"pos_weight": np.ones(3)},
    "`pos_weight` must be finite and >= 0; got -1": {"pos_weight": -1},
    "`pos_weight` must be >= 0; got -1.0 at row 1": {"pos_weight": np.array([1.0, -1.0])},
    "`pos_weight` must be a number": {"pos_weight": "text"},
    r"`alpha` must be None or in \[0, 1\]; got 2": {"alpha": 2},
    r"`sample_weight` must have shape \(2,\); got \(1,\)": {"sample_weight": np.ones(1)},
    "`sample_weight` must be finite; got nan at row 0": {"sample_weight": ZEROS + NAN},
    '`denominator` needs `reduction`="mean"': {"denominator": 3.0, "reduction": "sum"},
    "`reduction` must be one of": {"reduction": "average"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    arguments = {"logits": jnp.zeros(2), "targets": ZEROS, **REFUSED[message]}
    with pytest.raises((ValueError, TypeError), match=message):
        bce(**arguments)


def test_what_would_lose_a_gradient_is_refused() -> None:
    z, q = jnp.zeros(2), jnp.ones(2)
    with pytest.raises(TypeError, match="`targets` must not be differentiated where `focal_gamma`"):
        jax.grad(lambda q: bce(z, q, focal_gamma=2.0))(q)
    assert jax.jit(jax.grad(lambda z: bce(z, q, focal_gamma=2.0)))(z).shape == (2,)
    with pytest.raises(TypeError, match="`alpha` must be a number here"):
        jax.grad(lambda alpha: bce(z, q, alpha=alpha))(0.5)
