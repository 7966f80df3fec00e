"""The inner solver of Newton-CG on matrices: it solves, and says when a matrix curves downwards."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import xent.regression.solvers

newton_cg = sys.modules[
    "xent.regression.solvers.newton_cg"
]  # the package's attribute of that name is the function
assert newton_cg.__name__ == f"{xent.regression.solvers.__name__}.newton_cg"


@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_linear_system_is_solved(preconditioned):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((30, 30))
    hessian, gradient = root @ root.T + np.eye(30), rng.standard_normal(30)
    inverse = np.diag(1 / np.diag(hessian)) if preconditioned else np.eye(30)
    # The larger the value, the nearer the optimum, the more exactly.
    direction, _ = newton_cg._solve(hessian.dot, gradient, 1e12, inverse.dot, 30, 0.0)
    residual = hessian @ direction + gradient
    assert residual @ inverse @ residual <= 1e-6 * (gradient @ inverse @ gradient)
    loose, _ = newton_cg._solve(hessian.dot, gradient, 1e-12, inverse.dot, 30, 0.0)
    residual = hessian @ loose + gradient
    assert 1e-6 < (residual @ inverse @ residual) / (gradient @ inverse @ gradient) <= 0.1
    assert loose @ gradient < 0


def test_downward_curvature_leaves_the_way_down_so_far():
    hessian, gradient = np.diag([1.0, -1.0]), np.array([1.0, 0.5])
    assert newton_cg._solve(hessian.dot, gradient, 1.0, np.array, 2, 0.0)[0] @ gradient < 0
    np.testing.assert_array_equal(
        newton_cg._solve(np.negative, gradient, 1.0, np.array, 2, 0.0)[0], -gradient
    )


def test_a_gradient_that_certifies_is_enough():
    """The products end at the first residual that is small in the weights."""
    rng = np.random.default_rng(0)
    hessian, gradient = np.diag(np.geomspace(1e3, 1.0, 30)), rng.standard_normal(30)
    products = []

    def product(vector):
        products.append(vector)
        return hessian @ vector

    lengths = []
    for enough in (0.0, 1e-3, 1e-1):
        products.clear()
        direction, _ = newton_cg._solve(product, gradient, 1e12, np.array, 29, enough)
        residual = (hessian @ direction + gradient)[:29]
        assert not enough or residual @ residual <= 1.001 * enough
        lengths.append(len(products))
    assert lengths[0] > lengths[1] > lengths[2] > 1
