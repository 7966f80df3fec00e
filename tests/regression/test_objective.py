"""Objective: derivatives against differences and autograd; the same numbers on every path through X."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from tests.tables.variants import VARIANTS
from xent.core.spec import LossSpec
from xent.engine import checks
from xent.regression import objective
from xent.regression.objective import Objective
from xent.regression.sums import partition_sums
from xent.regression.sums.partitions import Local, Partition

torch = pytest.importorskip("torch")

ROWS, FEATURES = 37, 5

# Of each variant of labels; the weights are the problem's.
OPTIONS = {
    variant.name: {k: v for k, v in variant.options.items() if not callable(v)}
    for variant in VARIANTS
    if "labels" in variant.kinds and not {"sample_weight", "ignore_index"} & set(variant.options)
}
PATHS = ["fused", "blocks", "csr"]


def data(num_classes, soft=False, weighted=False, seed=0):
    """(X, targets, class weight, row weight)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((ROWS, FEATURES)) * (rng.random((ROWS, FEATURES)) < 0.6)
    y = rng.dirichlet(np.ones(num_classes), ROWS) if soft else np.arange(ROWS) % num_classes
    if not weighted:
        return X, y, None, None
    return X, y, rng.uniform(0.5, 2.0, num_classes), rng.uniform(0.0, 3.0, ROWS)


def make(X, y, class_weight, weight, num_classes, *, intercept=True, alpha=0.1, **options):
    spec = LossSpec(**options)
    target = checks.as_target(y, np.zeros((len(y), num_classes)), spec, class_weight, weight)
    partitions = Local([Partition(X, target)])
    return Objective(partitions, spec, float(target.total), alpha, intercept, num_classes)


def on(path, X, *rest, monkeypatch, **options):
    """The objective on one of PATHS; blocks of few rows, so that there are several."""
    if path == "blocks":
        monkeypatch.setattr(objective, "FUSED_SCORES", 0)
    monkeypatch.setattr(objective, "SMALL", 0)
    monkeypatch.setattr(partition_sums, "BLOCK", 8 * FEATURES)
    monkeypatch.setattr(partition_sums, "SPARSE_BLOCK", 24)
    return make(scipy.sparse.csr_array(X) if path == "csr" else X, *rest, **options)


def somewhere(function, seed=1):
    return np.random.default_rng(seed).standard_normal((2, function.num_parameters))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_derivatives_are_differences(path, options, num_classes, intercept, monkeypatch):
    problem = data(num_classes, weighted=True)
    function = on(path, *problem, num_classes, monkeypatch=monkeypatch, intercept=intercept, **options)
    at, along = somewhere(function)
    h = 1e-5
    (above, gradient_above), (below, gradient_below) = function(at + h * along), function(at - h * along)
    assert (above - below) / (2 * h) == pytest.approx(function(at)[1] @ along, rel=1e-7)
    difference = (gradient_above - gradient_below) / (2 * h)
    np.testing.assert_allclose(function.hvp(at, along), difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("path", PATHS)
def test_value_gradient_and_hessian_are_torchs(path, smoothing, num_classes, soft, monkeypatch):
    X, y, _, weight = data(num_classes, soft, weighted=True)
    function = on(path, X, y, None, weight, num_classes, monkeypatch=monkeypatch, label_smoothing=smoothing)
    at, along = somewhere(function)

    def theirs(parameters):
        scores = function.num_scores
        flat, intercept = parameters[:-scores], parameters[-scores:]
        coef = flat.reshape(-1, scores).T if path == "csr" else flat.reshape(scores, -1)
        logits = torch.from_numpy(X) @ coef.T + intercept
        if scores == 1:
            logits = torch.nn.functional.pad(logits, (1, 0))
        rows = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(y), reduction="none", label_smoothing=smoothing
        )
        omega = torch.from_numpy(weight)
        return (omega * rows).sum() / omega.sum() + 0.05 * (coef**2).sum()

    point = torch.from_numpy(at)
    value, product = torch.autograd.functional.hvp(theirs, point, torch.from_numpy(along))
    gradient = torch.autograd.functional.jacobian(theirs, point)
    ours, our_gradient = function(at)
    assert ours == pytest.approx(float(value), rel=1e-13)
    np.testing.assert_allclose(our_gradient, gradient, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(function.hvp(at, along), product, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_the_hessian_as_a_matrix_has_the_products_as_columns(num_classes, soft, intercept, monkeypatch):
    problem = data(num_classes, soft, weighted=True)
    function = on("blocks", *problem, num_classes, monkeypatch=monkeypatch, intercept=intercept)
    at, _ = somewhere(function)
    columns = [function.hvp(at, unit) for unit in np.eye(len(at))]
    np.testing.assert_allclose(function.hessian_matrix(at), np.transpose(columns), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounded_products_are_near_and_others_exact(dtype, path, num_classes, monkeypatch):
    monkeypatch.setattr(objective, "SMALL", 0)
    X, *rest = data(num_classes, weighted=True)
    X = X.astype(np.float32).astype(np.float64)  # the same numbers in both
    exact = make(X, *rest, num_classes)
    function = on(path, X.astype(dtype), *rest, num_classes, monkeypatch=monkeypatch)
    at, along = somewhere(exact)

    def there(vector):  # W may lie by columns
        return function.pack(*exact.unpack(vector))

    value, gradient = exact(at)
    product = there(exact.hvp(at, along))
    for ours, tolerance in ((function, 1e-13), (function.rounded, 1e-5)):
        assert ours(there(at))[0] == pytest.approx(value, rel=tolerance)
        np.testing.assert_allclose(ours(there(at))[1], there(gradient), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(ours.hvp(there(at), there(along)), product, rtol=tolerance, atol=tolerance)
    assert function.rounded.dtype == np.float32


@pytest.mark.parametrize("num_classes", [2, 3])
def test_labels_are_one_hot_rows_and_weights_are_repetitions(num_classes):
    X, y, _, _ = data(num_classes)
    times = np.arange(ROWS) % 3
    repeated = make(np.repeat(X, times, 0), np.repeat(y, times), None, None, num_classes)
    weighted = make(X, y, None, times.astype(float), num_classes)
    one_hot = make(X, np.eye(num_classes)[y], None, times.astype(float), num_classes)
    at, _ = somewhere(repeated)
    for other in (weighted, one_hot):
        assert other(at)[0] == pytest.approx(repeated(at)[0], rel=1e-13)
        np.testing.assert_allclose(other(at)[1], repeated(at)[1], rtol=1e-12, atol=1e-15)


def test_the_parts_of_an_objective_add_up():
    function = make(*data(3, weighted=True), 3, alpha=0.0)
    at, _ = somewhere(function)
    parts = [function.subset(np.arange(i, ROWS, 4), function.divisor)(at) for i in range(4)]
    value, gradient = function(at)
    assert sum(part[0] for part in parts) == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(sum(part[1] for part in parts), gradient, rtol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("path", ["blocks", "csr"])
def test_sums_for_preconditioner_and_certificate(path, num_classes, soft, monkeypatch):
    X, y, class_weight, weight = data(num_classes, soft, weighted=True)
    function = on(path, X, y, class_weight, weight, num_classes, monkeypatch=monkeypatch, label_smoothing=0.1)
    at, _ = somewhere(function)
    _, gradient = function(at)
    coef, _ = function.unpack(at)
    _, dintercept = function.unpack(gradient)
    held, total, by_class = function.target_moments()
    scores = X @ coef.T + function.unpack(at)[1]
    logits = scores if num_classes > 2 else np.pad(scores, ((0, 0), (1, 0)))
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
    base = class_weight * (0.9 * (y if soft else np.eye(num_classes)[y]) + 0.1 / num_classes)
    t = weight[:, None] * base / function.divisor
    np.testing.assert_allclose(held, t.sum(0), rtol=1e-12)
    np.testing.assert_allclose(by_class, t.T @ X, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(total, t.sum(1) @ X, rtol=1e-11, atol=1e-14)
    mass = t.sum(1, keepdims=True) * probabilities
    used = function.num_scores
    np.testing.assert_allclose(dintercept, (mass - t).sum(0)[-used:], rtol=1e-9, atol=1e-13)
    eye = np.eye(used) * mass.sum(0)[-used:, None]
    expected = eye - (mass.T @ probabilities)[-used:, -used:]
    predicted, hessian = function.intercept_model(at)
    np.testing.assert_allclose(predicted, mass.sum(0)[-used:], rtol=1e-11)
    np.testing.assert_allclose(hessian, expected, rtol=1e-11, atol=1e-14)


def test_packing_is_undone_by_unpacking():
    for intercept in (True, False):
        function = make(*data(3), 3, intercept=intercept)
        at, _ = somewhere(function)
        np.testing.assert_array_equal(function.pack(*function.unpack(at)), at)


def test_the_input_is_not_written():
    X, y, class_weight, weight = data(3, weighted=True)
    X.flags.writeable = False
    function = make(X, y, class_weight, weight, 3)
    at, along = somewhere(function)
    at.flags.writeable = False
    function(at)
    function.hvp(at, along)
