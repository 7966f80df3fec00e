"""Small problems of every kind, each with the optimum that scikit-learn finds."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from xent.core.spec import LossSpec
from xent.engine import checks
from xent.regression.objective import Objective
from xent.regression.solvers import minimise
from xent.regression.sums.partitions import Local, Partition

EXACT = ["lbfgs", "newton-cg"]


class Problem:
    """Data with an objective; the optimum is found once, by scikit-learn, from rows of one label each."""

    def __init__(
        self, X, y, *, num_classes, weight=None, class_weight=None, alpha=1e-3, intercept=True, **options
    ):
        spec = LossSpec(**options)
        self.alpha, self.intercept = alpha, intercept
        self.target = checks.as_target(y, np.zeros((len(y), num_classes)), spec, class_weight, weight)
        self.divisor = float(self.target.total)
        self.X = X
        partitions = Local([Partition(X, self.target)])
        self.objective = Objective(partitions, spec, self.divisor, alpha, intercept, num_classes)
        self.num_classes, self._optimum = num_classes, None

    @property
    def start(self):
        return np.zeros(self.objective.num_parameters)

    @property
    def optimum(self):
        """The least value that either scikit-learn or a tight fit of ours has found."""
        if self._optimum is None:
            t = sum(np.asarray(part) for part in self._measure())
            X = np.asarray(self.X.todense() if self.objective.is_sparse else self.X)
            rows, labels = np.nonzero(t)
            theirs = LogisticRegression(
                C=1 / (self.alpha * self.divisor) if self.alpha else np.inf,
                fit_intercept=self.intercept, solver="newton-cholesky", tol=1e-12, max_iter=500,
            )  # fmt: skip
            with warnings.catch_warnings():  # on some processors its line search ends early, at the optimum
                warnings.simplefilter("ignore", ConvergenceWarning)
                theirs.fit(X[rows].astype(float), labels, t[rows, labels])
            found = self.objective.pack(theirs.coef_.astype(float), theirs.intercept_)
            ours = minimise(self.objective, found, solver="newton-cg", max_iter=20, tol=0)
            self._optimum = min(self.objective(found)[0], self.objective(ours.params)[0])
        return self._optimum

    def _measure(self):
        target, rows = self.target, self.objective.num_rows
        weight = np.ones(rows) if target.weight is None else target.weight
        if target.dense is not None:
            yield weight[:, None] * target.beta * np.broadcast_to(target.dense, (rows, self.num_classes))
        if target.labels is not None:
            yield (weight * target.alpha)[:, None] * np.eye(self.num_classes)[target.labels]

    def excess(self, parameters):
        """(F − F*)/F."""
        value = self.objective(parameters)[0]
        return (value - self.optimum) / value


def table(rows=120, features=6, num_classes=3, seed=0, noise=1.0, scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % num_classes
    X = rng.standard_normal((num_classes, features))[y] + noise * rng.standard_normal((rows, features))
    return X * scale + offset, y


def problems():
    rng = np.random.default_rng(7)
    spread = np.geomspace(1e3, 1e-3, 6)
    X, y = table()
    yield "plain", Problem(X, y, num_classes=3)
    yield "two classes", Problem(*table(num_classes=2), num_classes=2)
    yield "no intercept", Problem(X, y, num_classes=3, intercept=False)
    yield "no intercept, two classes", Problem(*table(num_classes=2), num_classes=2, intercept=False)
    yield "hardly penalised", Problem(X, y, num_classes=3, alpha=1e-6)
    yield "heavily penalised", Problem(X, y, num_classes=3, alpha=10.0)
    yield "unscaled", Problem(*table(scale=spread), num_classes=3, alpha=1e-4)
    yield "far from the origin", Problem(*table(offset=100.0), num_classes=3)
    yield "separable", Problem(*table(noise=0.05), num_classes=3, alpha=1e-4)
    yield "separable, two classes", Problem(*table(noise=0.05, num_classes=2), num_classes=2, alpha=1e-4)
    yield "collinear", Problem(np.hstack([X, X[:, :2], np.ones((120, 1))]), y, num_classes=3, alpha=1e-5)
    yield "wide", Problem(*table(rows=30, features=80), num_classes=3, alpha=1e-2)
    yield "weighted", Problem(X, y, num_classes=3, weight=rng.uniform(0, 3, 120) * (rng.random(120) < 0.8))
    yield "class weights", Problem(X, y, num_classes=3, class_weight=np.array([1.0, 5.0, 0.1]))
    yield "rare class", Problem(X, np.where(np.arange(120) < 3, 2, y % 2), num_classes=3, alpha=1e-4)
    yield "smoothed", Problem(X, y, num_classes=3, label_smoothing=0.1)
    yield (
        "smoothed over others",
        Problem(
            X,
            y,
            num_classes=3,
            label_smoothing=0.2,
            smoothing_over="others",
            class_weight=np.array([1, 2, 3.0]),
        ),
    )
    yield "probabilities", Problem(X, rng.dirichlet([0.3] * 3, 120), num_classes=3, alpha=1e-5)
    yield "probabilities, two classes", Problem(X, rng.dirichlet([0.3] * 2, 120), num_classes=2)
    yield "csr", Problem(scipy.sparse.csr_array(X * (rng.random(X.shape) < 0.5)), y, num_classes=3)
    yield "many classes", Problem(*table(rows=400, num_classes=60), num_classes=60)


PROBLEMS = dict(problems())
