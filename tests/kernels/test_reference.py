"""The oracle itself: the float64 reference against mpmath at 50 digits, from the definitions alone."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from mpmath import mpf

from xent.core.contract import Cotangents, Curvatures
from xent.core.link import Link
from xent.kernels import reference

Array = np.ndarray[Any, Any]
EPS = 2.0**-52
STATISTICS = ("lse", "log_prob", "dense_log_prob", "mass", "entropy", "argmax")

mpmath.mp.dps = 50

scales = st.sampled_from([0.02, 1.0, 30.0, 1e4])
elements = st.floats(-4, 4, allow_subnormal=False)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Array, int, Array]:
    """One row of logits (ties and −inf among them, one finite at least), its label, a dense v."""
    num_classes = draw(st.integers(1, 6))
    scale = draw(scales)
    logits = [draw(elements) * scale for _ in range(num_classes)]
    if draw(st.booleans()):
        logits = [float(round(z)) for z in logits]  # ties
    for k in range(1, num_classes):
        if draw(st.integers(0, 5)) == 0:
            logits[k] = -np.inf
    label = draw(st.integers(0, num_classes - 1))
    dense = [draw(st.sampled_from([0.0, 0.25, 1.0, 0.1])) for _ in range(num_classes)]
    return np.array(logits), label, np.array(dense)


links = st.sampled_from([Link(), Link(0.7), Link(1.0, 30.0), Link(2.0, 1.5)])
coefficients = st.tuples(*[st.sampled_from([0.0, 1.0, -1.0, 0.3])] * 3)


def phi(z: mpf, link: Link) -> mpf:
    if link.softcap is None or mpmath.isinf(z):
        return z / mpf(link.temperature)
    return link.softcap * mpmath.tanh(z / (mpf(link.temperature) * link.softcap))


def log_softmax(z: list[mpf], link: Link) -> tuple[list[mpf], mpf]:
    """From the definition: at 50 digits and logits of 1e4 nothing needs care but the range."""
    u = [phi(x, link) for x in z]
    total = mpmath.fsum(mpmath.exp(x) for x in u)
    lse = mpmath.log(total)
    return [x - lse for x in u], lse


def dot(a: Any, b: Any) -> mpf:
    return mpmath.fsum(x * y for x, y in zip(a, b, strict=True) if x != 0)


def total(
    z: list[mpf], y: int, v: list[mpf], link: Link, first: Cotangents, second: Curvatures, at: Any
) -> mpf:
    """A function of the statistics with these first and second partial derivatives at ``at``."""
    log_p, lse = log_softmax(z, link)
    dl, dx, ds = (mpf(c) for c in first)
    value = dl * lse + dx * (log_p[y] if dx else 0) + ds * dot(v, log_p)
    cl, cx = (mpf(c) for c in second)
    return value + cl * (lse - at[0]) ** 2 / 2 + (cx * (log_p[y] - at[1]) ** 2 / 2 if cx else 0)


def close(actual: Any, expected: Any, magnitude: Any) -> None:
    """To 64 roundings of the natural magnitude; infinities as they are."""
    for a, e in zip(np.atleast_1d(actual).tolist(), expected, strict=True):
        if mpmath.isinf(e):
            assert a == float(e)
        else:
            assert abs(a - e) <= 64 * EPS * magnitude + 1e-300, (a, e)


def largest(z: Array, link: Link) -> float:
    return 1 + max(abs(float(phi(mpf(x), link))) for x in z if np.isfinite(x)) + float(np.log(z.size))


@given(rows(), links)
@example((np.array([0.0, -np.inf, 0.0]), 0, np.zeros(3)), Link())
@example((np.array([20.0, 0.0]), 0, np.array([1.0, 0.0])), Link())
def test_statistics(row: tuple[Array, int, Array], link: Link) -> None:
    z, y, v = row
    stats = reference.row_stats(z[None], np.array([y]), v, link, STATISTICS)
    log_p, lse = log_softmax([mpf(float(x)) for x in z], link)
    p = [mpmath.exp(x) for x in log_p]
    size = largest(z, link)
    close(stats.lse, [lse], size)
    close(stats.log_prob, [log_p[y]], size)
    close(stats.dense_log_prob, [dot(v.tolist(), log_p)], size * v.size)
    close(stats.mass, [mpmath.fsum(v.tolist())], v.size)
    close(stats.entropy, [-dot(p, log_p)], size)
    assert stats.argmax[0] == int(np.flatnonzero(z == z.max())[0])


@given(st.integers(2, 6), st.floats(8, 300))
def test_statistics_of_the_tail(num_classes: int, gap: float) -> None:
    """log p_y to full relative precision where p_y → 1, down to 1e-130."""
    z = np.zeros(num_classes)
    z[-1] = gap
    y = np.array([num_classes - 1])
    with mpmath.workdps(200):
        x = log_softmax([mpf(float(zk)) for zk in z], Link())[0][-1]
        residual = -mpmath.expm1(x)

    def error(actual: float, expected: mpf) -> float:
        return float(abs(actual / expected - 1))

    stats = reference.row_stats(z[None], y, None, Link(), ("log_prob", "lse"))
    assert error(stats.log_prob[0], x) < 8 * EPS
    grad = reference.row_grad(z[None], y, None, Link(), stats, Cotangents(log_prob=1.0))
    assert error(grad[0, -1], residual) < 8 * EPS
    one_hot = np.eye(num_classes)[-1]
    grad = reference.row_grad(z[None], None, one_hot, Link(), stats, Cotangents(dense_log_prob=1.0))
    assert error(grad[0, -1], residual) < 8 * EPS


@given(rows(), links, coefficients)
def test_gradient(row: tuple[Array, int, Array], link: Link, first: tuple[float, ...]) -> None:
    """Row by row of the Jacobian, each class by a difference quotient at 50 digits."""
    z, y, v = row
    cotangents = Cotangents(*first)
    y_, stats = np.array([y]), reference.row_stats(z[None], np.array([y]), v, link, STATISTICS)
    grad = reference.row_grad(z[None], y_, v, link, stats, cotangents)[0]
    if z[y] == -np.inf or any(v[z == -np.inf]):
        assert np.isfinite(grad).all()  # the limit, tested below
        return
    expected = derivative(z, y, v, link, cotangents, Curvatures(), [])
    close(grad, expected, largest(z, link) * v.size)
    np.testing.assert_array_equal(grad[z == -np.inf][v[z == -np.inf] == 0], 0)


@given(rows(), links, coefficients, st.tuples(*[st.sampled_from([0.0, 0.5, -2.0])] * 2), st.integers(0, 9))
def test_hessian_product(
    row: tuple[Array, int, Array], link: Link, first: tuple[float, ...], second: tuple[float, ...], seed: int
) -> None:
    """The derivative of the gradient along r, by a difference quotient of exact gradients."""
    z, y, v = row
    r = np.random.default_rng(seed).normal(size=z.size)
    cotangents, curvatures = Cotangents(*first), Curvatures(*second)
    product = reference.row_hvp(z[None], np.array([y]), v, link, cotangents, curvatures, r[None])[0]
    if z[y] == -np.inf or any(v[z == -np.inf]):
        assert np.isfinite(product).all()
        return
    expected = derivative(z, y, v, link, cotangents, curvatures, [mpf(float(x)) for x in r])
    close(product, expected, 10 * largest(z, link) * v.size * (1 + np.abs(r).max()) ** 2)


def derivative(
    z: Array, y: int, v: Array, link: Link, first: Cotangents, second: Curvatures, r: list[mpf]
) -> list[mpf]:
    """∂/∂z_k of the total, or with a direction r ∂²/∂z_k∂r, by central differences of 120 digits."""
    with mpmath.workdps(150):
        h = mpf(10) ** -40
        exact = [mpf(float(x)) for x in z]
        v_exact = [mpf(float(x)) for x in v]
        log_p, lse = log_softmax(exact, link)
        at = (lse, log_p[y])

        def value(point: list[mpf]) -> mpf:
            return total(point, y, v_exact, link, first, second, at)

        def slope(point: list[mpf], k: int) -> mpf:
            if mpmath.isinf(point[k]):
                return mpf(0)
            up, down = ([x + s * h if i == k else x for i, x in enumerate(point)] for s in (1, -1))
            return (value(up) - value(down)) / (2 * h)

        classes = range(len(exact))
        if not r:
            return [slope(exact, k) for k in classes]
        up, down = ([x + s * h * d for x, d in zip(exact, r, strict=True)] for s in (1, -1))
        return [(slope(up, k) - slope(down, k)) / (2 * h) for k in classes]


def test_gradient_of_excluded_labels_and_mass() -> None:
    """At z = −inf: p = 0 there, so (2) leaves b(e_y − p) + c(v − V p) with what the others share."""
    z = np.array([[1.0, -np.inf, 2.0]])
    p = np.exp([1.0, -np.inf, 2.0]) / np.exp([1.0, 2.0]).sum()
    for labels, dense, cotangents in (
        (np.array([1]), None, Cotangents(log_prob=-1.0)),
        (None, np.array([0.0, 1.0, 0.0]), Cotangents(dense_log_prob=-1.0)),
    ):
        stats = reference.row_stats(z, labels, dense, Link(), ("lse",))
        grad = reference.row_grad(z, labels, dense, Link(), stats, cotangents)
        np.testing.assert_allclose(grad[0], p - np.array([0, 1, 0]), rtol=1e-14)
