"""`xent.jax.optax` against optax wherever that is right, and against the exact value where it is not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax").losses
import jax.numpy as jnp  # noqa: E402

import xent.jax  # noqa: E402

ours: Any = xent.jax.optax
Array = Any
INF, NAN = np.inf, np.nan

NAMES = (
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "safe_softmax_cross_entropy",
    "poly_loss_cross_entropy",
    "kl_divergence",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_optaxs(name: str) -> None:
    found, expected = (inspect.signature(getattr(library, name)).parameters for library in (ours, optax))
    assert [(p.name, p.kind, p.default) for p in found.values()] == [
        (p.name, p.kind, p.default) for p in expected.values()
    ]


class Drawn:
    """Arrays of one shape (3, 4), so that each function is compiled once."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        numbers = st.floats(-12, 12, width=32, allow_subnormal=False)
        self.logits = jnp.asarray(draw(arrays(np.float32, (3, 4), elements=numbers)))
        masses = draw(arrays(np.float32, (3, 4), elements=st.floats(0.0078125, 1, width=32)))
        self.q = jnp.asarray(masses / masses.sum(-1, keepdims=True))
        self.bits = jnp.asarray(draw(arrays(np.float32, (3, 4), elements=st.sampled_from([0.0, 1.0]))))
        self.labels = jnp.asarray(draw(arrays(np.int32, (3,), elements=st.integers(0, 3))))
        self.rows = jnp.asarray(draw(arrays(bool, (3,))))
        is_label = self.labels[:, None] == jnp.arange(4)
        self.classes = jnp.asarray(draw(arrays(bool, (3, 4)))) | is_label
        self.number = jnp.asarray(draw(st.floats(0.5, 3, width=32)))


fixed = jax.lax.stop_gradient

# name: (function of the library, logits, another array that is differentiated, the rest)
CALLS: dict[str, Callable[[Any, Drawn, Array, Array], Array]] = {
    "probabilities": lambda f, d, z, q: f.softmax_cross_entropy(z, q),
    "probabilities on axis 0": lambda f, d, z, q: f.softmax_cross_entropy(z, q, 0),
    "probabilities of rows": lambda f, d, z, q: f.softmax_cross_entropy(z, fixed(q), where=d.rows),
    "probabilities of classes": lambda f, d, z, q: f.softmax_cross_entropy(z, fixed(q), where=d.classes),
    "probabilities on all axes": lambda f, d, z, q: f.softmax_cross_entropy(z, q, axis=None),
    "one row for all": lambda f, d, z, q: f.softmax_cross_entropy(z, q[0]),
    "labels": lambda f, d, z, q: f.softmax_cross_entropy_with_integer_labels(z, d.labels) * q[:, 0],
    "labels of rows": lambda f, d, z, q: f.softmax_cross_entropy_with_integer_labels(
        z * q, d.labels, where=d.rows
    ),
    "labels on two axes": lambda f, d, z, q: f.softmax_cross_entropy_with_integer_labels(
        (z * q).reshape(2, 3, 2), d.labels, axis=(2, 0)
    ),
    "labels among classes": lambda f, d, z, q: f.softmax_cross_entropy_with_integer_labels(
        z * q, d.labels, where=d.classes
    ),
    "poly of probabilities": lambda f, d, z, q: f.poly_loss_cross_entropy(z, q, epsilon=d.number),
    "safe": lambda f, d, z, q: f.safe_softmax_cross_entropy(z, q),
    "poly": lambda f, d, z, q: f.poly_loss_cross_entropy(z, fixed(q), epsilon=d.number, where=d.classes),
    "divergence": lambda f, d, z, q: f.kl_divergence(jax.nn.log_softmax(z), q, where=d.classes),
    "binary": lambda f, d, z, q: f.sigmoid_binary_cross_entropy(z, q),
    "binary labels": lambda f, d, z, q: f.sigmoid_binary_cross_entropy(z * q, d.bits.astype(int)),
    "focal": lambda f, d, z, q: f.sigmoid_focal_loss(z, q, gamma=d.number, alpha=q[0]),
    "focal labels": lambda f, d, z, q: f.sigmoid_focal_loss(z * q, d.bits),
    "smoothed": lambda f, d, z, q: f.smooth_labels(q, jax.nn.sigmoid(z)),
    "smoothed classes": lambda f, d, z, q: jnp.where(
        d.classes, f.smooth_labels(q, d.number / 4, where=d.classes), 0 * z
    ),
}


def evaluated(library: Any, drawn: Drawn) -> dict[str, tuple[Array, tuple[Array, Array]]]:
    """Values, and gradients in two arrays of their sum with weights, of every call."""
    found = {}
    for name, call in CALLS.items():

        def weighted(z: Array, q: Array, call: Any = call) -> tuple[Array, Array]:
            losses = call(library, drawn, z, q)
            return (losses * jnp.cos(jnp.arange(losses.size).reshape(losses.shape))).sum(), losses

        gradients, losses = jax.grad(weighted, (0, 1), has_aux=True)(drawn.logits, drawn.q)
        found[name] = losses, gradients
    return found


jax.tree_util.register_pytree_node(
    Drawn,
    lambda drawn: (tuple(vars(drawn).values()), tuple(vars(drawn))),
    lambda names, values: _restored(dict(zip(names, values, strict=True))),
)


def _restored(fields: dict[str, Any]) -> Drawn:
    drawn = object.__new__(Drawn)
    vars(drawn).update(fields)
    return drawn


of_ours, of_optax = (jax.jit(lambda drawn, f=library: evaluated(f, drawn)) for library in (ours, optax))


@settings(max_examples=25)
@given(st.composite(lambda draw: Drawn(draw))())
def test_values_and_gradients_are_optaxs(drawn: Drawn) -> None:
    found, expected = of_ours(drawn), of_optax(drawn)
    for name in CALLS:
        for mine, theirs in zip(
            jax.tree_util.tree_leaves(found[name]), jax.tree_util.tree_leaves(expected[name]), strict=True
        ):
            assert mine.dtype == theirs.dtype
            # optax rounds log p to the last digit of the largest logit.
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5, err_msg=name)


# Where optax is not right: (call, exact value). docs/differences.md has the reasons.
A = jnp.asarray
HALF, ONE = [0.5, 0.5, 0.0], [1.0, 0.0]
WRONG: dict[str, tuple[Callable[[Any], Array], Any]] = {
    "a label whose class is left out": (
        lambda f: f.softmax_cross_entropy_with_integer_labels(
            A([1.0, 2.0, 3.0]), A(2), where=A([True, True, False])
        ),
        INF,
    ),
    "the tail of probabilities": (
        lambda f: f.softmax_cross_entropy(A([20.0, 0.0]), A(ONE)),
        np.log1p(np.exp(-20)),
    ),
    "the tail of labels": (
        lambda f: f.softmax_cross_entropy_with_integer_labels(A([20.0, 0.0]), A(0)),
        np.log1p(np.exp(-20)),
    ),
    "the tail of a label's gradient": (
        lambda f: jax.grad(f.softmax_cross_entropy_with_integer_labels)(A([20.0, 0.0]), A(0))[0],
        np.expm1(-np.log1p(np.exp(-20))),
    ),
    "the tail of the poly loss": (
        lambda f: f.poly_loss_cross_entropy(A([20.0, 0.0]), A(ONE)),
        3 * np.exp(-20.0),
    ),
    "the gradient in probabilities of a row that is left out": (
        lambda f: jax.grad(lambda q: f.softmax_cross_entropy(A([ONE]), q, where=A([False])).sum())(A([ONE])),
        [[0.0, 0.0]],
    ),
    "half precision": (
        lambda f: f.softmax_cross_entropy(A([7.125, 0.0], jnp.bfloat16), A(ONE, jnp.bfloat16)),
        np.log1p(np.exp(-7.125)),
    ),
    "half precision, binary": (
        lambda f: f.sigmoid_binary_cross_entropy(A([1.0], jnp.bfloat16), A([1]))[0],
        np.log1p(np.exp(-1.0)),
    ),
    "a class of logit -inf": (
        lambda f: f.softmax_cross_entropy(A([0.0, 0.0, -INF]), A(HALF)),
        np.log(2),
    ),
    "a class of logit -inf, poly": (
        lambda f: f.poly_loss_cross_entropy(A([0.0, 0.0, -INF]), A(HALF)),
        np.log(2) + 1,
    ),
    "a class of logit -inf, forward mode": (
        lambda f: jax.jacfwd(lambda z: f.safe_softmax_cross_entropy(z, A(HALF)))(A([0.0, 0.0, -INF])),
        [0.0, 0.0, 0.0],
    ),
    "a prediction of probability 0": (lambda f: f.kl_divergence(A([0.0, -INF]), A(ONE)), 0.0),
    "a binary logit of -inf": (
        lambda f: f.sigmoid_binary_cross_entropy(A([-INF]), A([0.0]))[0],
        0.0,
    ),
    "a focal logit of -inf": (lambda f: f.sigmoid_focal_loss(A([-INF]), A([0.0]))[0], 0.0),
    "the gradient of a focal logit of -inf": (
        lambda f: jax.grad(lambda z: f.sigmoid_focal_loss(z, A(1.0)))(A(-INF)),
        -1.0,
    ),
    "a label of -1": (
        lambda f: jax.jit(f.softmax_cross_entropy_with_integer_labels)(A([1.0, 2.0, 3.0]), A(-1)),
        NAN,
    ),
    "smoothing onto a class that is left out": (
        lambda f: f.smooth_labels(A([0.0, 1.0, 0.0]), 0.1, where=A([True, True, False])).sum(),
        1.0,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_where_optax_is_not_right(name: str) -> None:
    call, exact = WRONG[name]
    np.testing.assert_allclose(call(ours), exact, rtol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(np.asarray(call(optax), np.float64), exact, rtol=1e-4)


def test_labels_of_the_aliases_are_the_options_of_the_losses() -> None:
    rng = np.random.default_rng(0)
    z, y = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), rng.integers(0, 5, 6)
    one_hot = jax.nn.one_hot(y, 5)
    poly = xent.jax.cross_entropy(z, y, poly1_epsilon=1.5, reduction="none")
    np.testing.assert_allclose(ours.poly_loss_cross_entropy(z, one_hot, epsilon=1.5), poly, rtol=1e-6)
    focal = xent.jax.binary_cross_entropy(z, one_hot, focal_gamma=1.5, alpha=0.3, reduction="none")
    np.testing.assert_allclose(ours.sigmoid_focal_loss(z, one_hot, gamma=1.5, alpha=0.3), focal, rtol=2e-6)
    smoothed = xent.jax.cross_entropy(z, y, label_smoothing=0.1, reduction="none")
    found = ours.softmax_cross_entropy(z, ours.smooth_labels(one_hot, 0.1))
    np.testing.assert_allclose(found, smoothed, rtol=1e-6)


def test_rows_that_are_left_out_are_not_read() -> None:
    z = jnp.array([[1.0, 2.0], [NAN, 1.0], [3.0, INF]])
    y, where = np.array([1, -5, 7]), jnp.array([True, False, False])
    q = jnp.array([[0.5, 0.5], [NAN, 1.0], [1.0, NAN]])

    def losses(z: Array) -> Array:
        return jnp.stack(
            [
                ours.softmax_cross_entropy_with_integer_labels(z, y, where=where),
                ours.softmax_cross_entropy(z, q, where=where),
                ours.poly_loss_cross_entropy(z, q, where=where),
                ours.kl_divergence(z, q, where=where[:, None]),
            ]
        )

    def total(z: Array) -> Array:
        return losses(z).sum()

    second = (lambda z: jax.jacfwd(jax.jacrev(total))(z)[1:], lambda z: jax.jacrev(jax.jacrev(total))(z)[1:])
    every = jax.jit(lambda z: (jax.grad(total)(z)[1:], jax.jacfwd(losses)(z)[:, 1:], *(f(z) for f in second)))
    for found in (losses(z)[:, 1:], *every(z)):
        np.testing.assert_array_equal(found, 0)
    with pytest.raises(ValueError, match=r"must be in \[0, 2\) or equal ignore_index=-100; got -5 at row 1"):
        ours.softmax_cross_entropy_with_integer_labels(z, y)


Z, Q = jnp.zeros((2, 3)), jnp.zeros((2, 4))
REFUSED: dict[str, Callable[[], Any]] = {
    r"`labels` must have a shape that broadcasts with that of `logits`, \(2, 3\); got \(2, 4\)": lambda: (
        ours.softmax_cross_entropy(Z, Q)
    ),
    r"`labels` must have the classes of `logits`, \(2, 1\); got \(2, 3\)": lambda: ours.softmax_cross_entropy(
        Z[:, :1], Z
    ),
    r"`targets` must have a shape that broadcasts with that of `log_predictions`": lambda: ours.kl_divergence(
        Z, Q
    ),
    "`labels` must have an integer dtype; got float32": lambda: (
        ours.softmax_cross_entropy_with_integer_labels(Z, Z[:, 0])
    ),
    r"`labels` must have a shape that broadcasts .*, \(2,\); got \(3,\)": lambda: (
        ours.softmax_cross_entropy_with_integer_labels(Z, np.zeros(3, int))
    ),
    "`where` must be boolean; got float32": lambda: ours.softmax_cross_entropy(Z, Z, where=Z),
    r"`where` must broadcast to \(2,\); got \(4, 1, 2\)": lambda: ours.softmax_cross_entropy(
        Z, Z, where=np.ones((4, 1, 2), bool)
    ),
    r"`axis` must be in \[-2, 2\)": lambda: ours.softmax_cross_entropy(Z, Z, axis=2),
    r"`axis` must name each axis once; got \(0, -2\)": lambda: ours.softmax_cross_entropy(Z, Z, axis=(0, -2)),
    "`axis` must be an integer; got 'a'": lambda: ours.kl_divergence(Z, Z, axis="a"),
    "`labels` must be an array of float64, .*; got int": lambda: ours.smooth_labels(np.ones(3, int), 0.1),
    "`labels` must be an array of numbers; got complex64": lambda: ours.sigmoid_focal_loss(Z, Z * 1j),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        REFUSED[message]()


def test_shapes_that_broadcast() -> None:
    """As in optax: labels and logits of rows meet; without classes a loss is 0."""
    z, q, y = jnp.arange(6.0).reshape(2, 3), jnp.array([0.2, 0.3, 0.5]), np.array([0, 2])
    for f in (ours, optax):
        assert f.softmax_cross_entropy(z[0], jnp.stack([q, q])).shape == (2,)
        assert f.softmax_cross_entropy(z[:, :0], z[:, :0]).tolist() == [0.0, 0.0]
        assert f.softmax_cross_entropy_with_integer_labels(z[:1], y).shape == (2,)
        assert f.softmax_cross_entropy_with_integer_labels(z, y[:1]).shape == (2,)
        assert f.sigmoid_binary_cross_entropy(z, q).shape == (2, 3)
        assert f.sigmoid_focal_loss(z[0], z).shape == (2, 3)
        assert f.kl_divergence(z, q).shape == (2,)
