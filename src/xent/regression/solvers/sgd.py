"""Stochastic gradient descent on mini-batches with momentum; the result is an average of the iterates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from xent.regression.objective import Objective
from xent.regression.solvers.line_search import evaluate, step_of_intercept
from xent.regression.solvers.progress import Progress
from xent.regression.solvers.state import Draws, Point
from xent.regression.sums.partitions import Partition

Array = np.ndarray[Any, Any]

BATCH = 64  # rows in a mini-batch
STAGES = (4, 16, 64, 256, 1024)  # passes after which the step length is halved
MOMENTUM = 0.9
DECAY = 3.0  # iterate t has weight t^DECAY in the average (Shamir & Zhang, 2013)


class Stream(NamedTuple):
    """What one pass passes to the next."""

    iterate: Array
    velocity: Array
    average: Array
    steps: int = 0
    smoothness: float = 0.0  # bound on the curvature of a mini-batch's objective

    @classmethod
    def begin(cls, parameters: Array) -> Stream:
        """Before the first pass."""
        return cls(parameters, np.zeros_like(parameters), parameters)


class State(NamedTuple):
    """The average of the iterates, evaluated, and what the next pass needs."""

    point: Point
    stream: Stream
    draws: Draws

    @classmethod
    def begin(cls, objective: Objective, point: Point, random: np.random.RandomState) -> State:
        """The state before the first pass."""
        return cls(point, Stream.begin(point.parameters), Draws.of(random))

    @property
    def is_exact(self) -> bool:
        """The average is evaluated in float64."""
        return True


def sgd(objective: Objective, state: State, progress: Progress) -> Point:
    """Make passes until ``progress`` ends; return the average of the iterates. One step is one pass.

    After each of `STAGES` the step length is halved and a new average begins, without the noise of the
    longer steps.
    """
    point, stream, _ = state
    while not (progress.exhausted or progress.ended):
        if progress.steps in STAGES:
            stream = stream._replace(smoothness=2 * stream.smoothness, steps=0)
        stream = one_pass(objective, stream, progress.random)
        before, point = point, evaluate(objective, stream.average, progress)
        if progress.within_reach <= 0.5 * progress.tol < 0.5 * progress.gap:
            point = step_of_intercept(point, objective, progress) or point
        progress.promised(abs(before.value - point.value), point.value)
        progress.stepped(State(point, stream, Draws.of(progress.random)))
    return point


def one_pass(objective: Objective, stream: Stream, random_state: Any) -> Stream:
    """What ``stream`` is after a pass over all rows, from its iterate. ``average`` is the result so far."""
    random = check_random_state(random_state)
    x, v, average, steps, smoothness = stream
    smoothness = max(smoothness, _smoothness(objective))
    step = 1.0 / (smoothness or 1.0)  # heavy-ball is stable up to 2(1 + MOMENTUM) of it
    order = random.permutation(objective.num_rows)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        share = len(rows) / len(order)
        _, gradient = objective.subset(rows, objective.divisor * share)(x)
        v = MOMENTUM * v + gradient
        x = x - step * v
        steps += 1
        average = average + (DECAY + 1) / (steps + DECAY) * (x - average)
    return Stream(x, v, average, steps, smoothness)


def _smoothness(objective: Objective) -> float:
    """Curvature of a mini-batch: the mean of ‖Σωxxᵀ/D‖ and its bound from the largest ω‖x‖², plus alpha."""
    bound = objective.partitions.sum_over(_smoothness_of_rows, objective.divisor, objective.fit_intercept)
    return float(bound) + objective.alpha


def _smoothness_of_rows(partition: Partition, divisor: float, fit_intercept: bool) -> float:
    """The same without alpha, for the only partition."""
    X, target = partition.features, partition.target
    weight = target.alpha + (0.0 if target.dense is None else target.beta * target.dense.sum(-1))
    if target.weight is not None:
        weight = weight * target.weight
    weight = weight / divisor
    bias = float(fit_intercept)
    v = np.ones(X.shape[1] + 1)
    for _ in range(10):  # power iteration, a lower bound
        v /= np.linalg.norm(v) or 1.0
        u = weight * (X @ v[:-1] + bias * v[-1])
        v = np.append(X.T @ u, bias * u.sum())
    squares = X.multiply(X).sum(axis=1) if partition.is_sparse else np.einsum("nd,nd->n", X, X)
    rows = weight * (np.asarray(squares, np.float64).ravel() + bias)
    largest = float(rows.max()) * len(rows) / min(BATCH, len(rows))
    return 0.5 * (float(np.linalg.norm(v)) + largest)
