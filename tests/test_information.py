"""The information-theoretic companions: identities (14)–(17) of docs/maths.md, SciPy, and the corners."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import xent
from xent import information

Array = np.ndarray[Any, Any]


@st.composite
def distributions(draw: st.DrawFn) -> tuple[Array, Array]:
    """Two distributions over the same classes, zeros among them in the first."""
    num_classes = draw(st.integers(1, 8))
    p = np.array(draw(st.lists(st.floats(0, 1), min_size=num_classes, max_size=num_classes)))
    q = np.array(draw(st.lists(st.floats(1e-6, 1), min_size=num_classes, max_size=num_classes)))
    p[0] += 0.1
    return p / p.sum(), q / q.sum()


@given(distributions())
def test_identities(pair: tuple[Array, Array]) -> None:
    p, q = pair
    cross_entropy, entropy, kl = information.decompose(p, q)
    assert cross_entropy == pytest.approx(entropy + kl, abs=1e-12)
    assert kl >= 0
    assert 0 <= entropy <= math.log(p.size) + 1e-12
    js = information.js_divergence(p, q)
    assert js == information.js_divergence(q, p)
    assert 0 <= js <= math.log(2) + 1e-15
    mean = (p + q) / 2
    expected = information.entropy(mean) - (entropy + information.entropy(q)) / 2
    assert js == pytest.approx(expected, abs=1e-12)
    assert information.kl_divergence(p, p) == 0
    assert information.js_divergence(p, p) == 0


@given(distributions())
def test_scipy(pair: tuple[Array, Array]) -> None:
    p, q = pair
    assert information.entropy(p) == pytest.approx(scipy.stats.entropy(p), abs=1e-12)
    assert information.kl_divergence(p, q) == pytest.approx(scipy.stats.entropy(p, q), abs=1e-12)
    root = scipy.spatial.distance.jensenshannon(p, q)
    assert information.js_divergence(p, q) == pytest.approx(root**2, abs=1e-12)


def test_the_loss_is_the_cross_entropy_of_target_and_softmax() -> None:
    rng = np.random.default_rng(0)
    logits, q = rng.normal(size=(5, 4)), rng.dirichlet(np.ones(4), 5)
    losses = xent.cross_entropy(logits, q, reduction="none")
    p = xent.softmax(logits)
    np.testing.assert_allclose(losses, information.cross_entropy(q, p), rtol=1e-13)
    np.testing.assert_allclose(xent.row_statistics(logits).entropy, information.entropy(p), rtol=1e-12)
    labels = rng.integers(0, 4, 5)
    nll = -scipy.special.log_softmax(logits, -1)[np.arange(5), labels].sum()
    np.testing.assert_allclose(nll, 5 * xent.cross_entropy(logits, labels), rtol=1e-13)


def test_least_loss_is_the_entropy_of_the_target() -> None:
    """KL = 0, and the gradient is 0, where softmax is the target."""
    q = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    losses, grad = xent.cross_entropy_with_grad(np.log(q), q, reduction="none")
    np.testing.assert_allclose(losses, information.entropy(q), rtol=1e-13)
    np.testing.assert_allclose(grad, 0, atol=1e-15)


def test_corners() -> None:
    assert information.entropy([1.0, 0.0]) == 0
    assert information.cross_entropy([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert information.kl_divergence([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert information.kl_divergence([1.0, 0.0], [1.0, 0.0]) == 0
    assert information.js_divergence([1.0, 0.0], [0.0, 1.0]) == pytest.approx(math.log(2))
    assert information.entropy(np.zeros((0, 3))).shape == (0,)
    assert information.entropy(np.array([0.5, 0.5], np.float16)) == pytest.approx(math.log(2))
    np.testing.assert_allclose(
        information.kl_divergence(np.full((3, 2), 0.5), [0.25, 0.75]), [0.14384104] * 3
    )


SMALL = 5e-324  # the smallest number


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.5], [SMALL, 1.0]),
        ([1.0, 0.0], [SMALL, 1.0]),
        ([1e-9, 1.0], [1e-320, 1.0]),
        ([SMALL, 1.0], [SMALL, 1.0]),
        ([SMALL, 1.0], [1.0, SMALL]),
        ([1.0, SMALL], [0.5, 0.5]),
    ],
)
def test_the_smallest_probabilities(p: list[float], q: list[float]) -> None:
    """p/q is beyond the largest number, its logarithm is not."""
    with mpmath.workdps(400):
        pairs = [(mpmath.mpf(a), mpmath.mpf(b)) for a, b in zip(p, q, strict=True) if a]
        expected = float(sum(a * mpmath.log(a / b) for a, b in pairs))
    kl = information.kl_divergence(p, q)
    assert math.isfinite(kl)
    assert kl == pytest.approx(expected, rel=1e-14)
    whole, entropy, part = information.decompose(p, q)
    assert part == kl
    assert whole == pytest.approx(entropy + kl, rel=1e-14)


def test_js_of_the_smallest_probabilities() -> None:
    """Half of the smallest is 0: so is their mean, which must not divide."""
    assert information.js_divergence([SMALL, 1.0], [0.0, 1.0]) == pytest.approx(0, abs=1e-15)
    assert information.js_divergence([0.0, 1.0], [SMALL, 1.0]) == pytest.approx(0, abs=1e-15)
    assert information.js_divergence([SMALL, 1.0], [1.0, SMALL]) == pytest.approx(math.log(2))
    assert information.js_divergence([SMALL, 1.0], [SMALL, 1.0]) == 0


def exact_js(p: Array, q: Array) -> float:
    with mpmath.workdps(50):
        pairs = [(mpmath.mpf(float(a)), mpmath.mpf(float(b))) for a, b in zip(p, q, strict=True)]
        terms = [a * mpmath.log(2 * a / (a + b)) for p, q in pairs for a, b in ((p, q), (q, p)) if a]
        return float(sum(terms, mpmath.mpf(0)) / 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_js_is_exact_and_never_negative(dtype: Any) -> None:
    """Of pairs that are close, that share no class, with zeros, normalised or not, along any axes."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(4, 0.3), (300, 2))
    p[rng.random(p.shape) < 0.2] = 0
    apart = 10.0 ** rng.uniform(-14, 0, (300, 2, 1))
    q = np.clip(p * (1 + apart * rng.normal(size=p.shape)), 0, 1)
    q[::7] = rng.dirichlet(np.full(4, 0.3), 2)
    p, q = p.astype(dtype), q.astype(dtype)
    js = information.js_divergence(p, q)
    exact = [[exact_js(*pair) for pair in zip(*row, strict=True)] for row in zip(p, q, strict=True)]
    np.testing.assert_allclose(js, exact, rtol=2e-15)
    assert js.min() >= 0
    np.testing.assert_array_equal(js, information.js_divergence(q, p))
    below = np.nextafter(dtype(0.5), dtype(0))
    pair = np.array([below, 1 - below], dtype)
    assert information.js_divergence(pair, pair[::-1]) == pytest.approx(exact_js(pair, pair[::-1]), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_nothing_is_negative_for_rows_that_sum_to_1_but_for_rounding(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 2000)
    q = p * (1 + 1e-9 * rng.normal(size=p.shape))
    p, q = p.astype(dtype), (q / q.sum(-1, keepdims=True)).astype(dtype)
    assert information.kl_divergence(p, q).min() >= 0
    for found in (*information.decompose(p, q), information.js_divergence(p, q)):
        assert found.min() >= 0
    above = [1 + 1e-7, 0.0]  # as a float32 softmax gives it
    for found in (information.entropy(above), information.cross_entropy(above, above)):
        assert found == 0
        assert not np.signbit(found)


def test_kl_of_rows_of_other_sums_may_be_negative() -> None:
    assert information.kl_divergence([0.5, 0.4], [0.5, 0.5]) == pytest.approx(0.4 * math.log(0.8))


def test_too_large_is_infinite_without_a_warning() -> None:
    assert information.perplexity(800) == math.inf
    assert information.bits(1.7e308) == math.inf


def test_perplexity_and_bits() -> None:
    assert information.perplexity(math.log(50)) == pytest.approx(50)
    assert information.bits(math.log(2) * 3) == pytest.approx(3)
    np.testing.assert_allclose(information.bits([math.log(2), 0.0]), [1, 0])
    uniform = xent.cross_entropy(np.zeros((2, 8)), [0, 3])
    assert information.perplexity(uniform) == pytest.approx(8)
    assert information.bits(uniform) == pytest.approx(3)
