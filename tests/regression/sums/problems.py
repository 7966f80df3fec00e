"""Rows of every kind, cut into partitions, and fits to them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from tests.regression.regressions import soft_targets
from xent.core.spec import LossSpec
from xent.regression.class_targets import as_target, class_factors, read_targets
from xent.regression.fitting import fit_partitions
from xent.regression.sums.partitions import (
    Local,
    Partition,
)

ROWS, FEATURES, CLASSES = 240, 6, 3


CUTS = {
    "1": [],
    "2": [100],
    "5": [0, 80, 80, 170],  # the first and the third are empty
    "by class": None,  # each partition has one class
    "20": list(range(12, ROWS, 12)),
}


KINDS = {
    "dense": (np.asarray, np.float64),
    "dense float32": (np.asarray, np.float32),
    "csr": (scipy.sparse.csr_array, np.float64),
    "csr float32": (scipy.sparse.csr_matrix, np.float32),
}


CASES = {
    "labels": ({}, False, False),
    "probabilities": ({}, True, False),
    "weights": ({"class_weight": "balanced", "label_smoothing": 0.1}, False, True),
    "weighted probabilities": ({"class_weight": {0: 2.0}}, True, True),
    "focal": ({"focal_gamma": 2.0}, False, False),
    "no intercept": ({"fit_intercept": False}, False, False),
}


# Each case and each kind with one solver, each solver with both.
FITS = [
    pytest.param(*case, kind, ("lbfgs", "newton-cg")[(i + j) % 2], id=f"{name}, {kind}")
    for i, (name, case) in enumerate(CASES.items())
    for j, kind in enumerate(KINDS)
]


def data(kind="dense", soft=False, weighted=False, num_classes=CLASSES, rows=ROWS):
    """(X, y, weight), the rows in the order of their classes."""
    rng = np.random.default_rng(3)
    y = np.sort(np.arange(rows) % num_classes)
    X = rng.standard_normal((num_classes, FEATURES))[y] + 1.5 * rng.standard_normal((rows, FEATURES))
    X[rng.random(X.shape) < 0.3] = 0
    make, dtype = KINDS[kind]
    weight = rng.uniform(0, 2, rows) if weighted else None
    return make(X.astype(dtype)), soft_targets(y, num_classes) if soft else y, weight


def split(model, X, y, weight, cuts, workers=1):
    """(partitions, classes) as a reader makes them, which knows the weights of the classes beforehand."""
    whole = read_targets(X, y, weight)
    cuts = np.flatnonzero(np.diff(y)) + 1 if cuts is None else cuts
    factors = class_factors(model.class_weight, whole.classes, whole.mass)
    spec = LossSpec(label_smoothing=model.label_smoothing, focal_gamma=model.focal_gamma)
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, X.shape[0]], strict=True):
        rows = slice(start, stop)
        some = whole._replace(
            labels=None if whole.labels is None else whole.labels[rows],
            probabilities=None if whole.probabilities is None else whole.probabilities[rows],
            weight=None if weight is None else whole.weight[rows],
        )
        parts.append(Partition(X[rows], as_target(some, factors, spec)))
    return Local(parts, workers=workers), whole.classes


def fitted(model, X, y, weight, cuts, workers=1):
    fit_partitions(model, *split(model, X, y, weight, cuts, workers))
    return model


def bits(model):
    return model.coef_.tobytes(), model.intercept_.tobytes(), model.loss_curve_, model.optimality_gap_
