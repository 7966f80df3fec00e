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
    assert kl >= -1e-15
    assert -1e-15 <= entropy <= math.log(p.size) + 1e-12
    js = information.js_divergence(p, q)
    assert js == pytest.approx(float(information.js_divergence(q, p)), abs=1e-15)
    assert -1e-15 <= js <= math.log(2) + 1e-15
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


def test_perplexity_and_bits() -> None:
    assert information.perplexity(math.log(50)) == pytest.approx(50)
    assert information.bits(math.log(2) * 3) == pytest.approx(3)
    np.testing.assert_allclose(information.bits([math.log(2), 0.0]), [1, 0])
    uniform = xent.cross_entropy(np.zeros((2, 8)), [0, 3])
    assert information.perplexity(uniform) == pytest.approx(8)
    assert information.bits(uniform) == pytest.approx(3)
