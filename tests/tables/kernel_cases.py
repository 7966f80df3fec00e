"""The one table of what a kernel is asked for: targets, link and coefficients, in combinations that matter.

Kernels know no options (rule 2): an option of the loss needs no row here, and a new statistic does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from xent.core.contract import Cotangents, Curvatures
from xent.core.link import Link

Array = np.ndarray[Any, Any]
# A coefficient is one number for all rows, one number a row with zeros in about a fifth of them, or 0.0.
Coefficient = Literal["number", "column", "absent"]

NUMBER: Coefficient = "number"
COLUMN: Coefficient = "column"
ABSENT: Coefficient = "absent"


class Arguments(NamedTuple):
    """What the four calls of `contract.Kernels` take beside the logits."""

    labels: Array | None
    dense: Array | None
    link: Link
    cotangents: Cotangents
    curvatures: Curvatures

    @property
    def want(self) -> tuple[str, ...]:
        """The statistics that these targets have."""
        labels = () if self.labels is None else ("log_prob",)
        return ("lse", *labels, *(() if self.dense is None else ("dense_log_prob", "mass")))


@dataclass(frozen=True)
class KernelCase:
    """One row; labels are given by the share of them that is negative, None for no labels."""

    name: str
    labels: float | None = None
    dense: Literal["vector", "matrix"] | None = None
    link: Link = Link()  # noqa: RUF009
    cotangents: tuple[Coefficient, ...] = (ABSENT, ABSENT, ABSENT)  # of lse, log_prob, dense_log_prob
    curvatures: tuple[Coefficient, ...] = (ABSENT, ABSENT)  # of lse, log_prob

    def make(self, rows: tuple[int, ...], num_classes: int, rng: np.random.Generator) -> Arguments:
        """Read-only arrays for this shape; the rows where columns are 0 are the same in all columns."""
        labels = dense = None
        if self.labels is not None:
            labels = np.asarray(rng.integers(0, num_classes, rows))
            labels = np.where(rng.random(rows) < self.labels, -1, labels)
        if self.dense is not None:
            shape = (num_classes,) if self.dense == "vector" else (*rows, num_classes)
            dense = rng.uniform(0.2, 2.0, shape) * (rng.random(shape) > 0.2) * (2 / num_classes)
        read = rng.random(rows) > 0.2

        def made(kind: Coefficient) -> Any:
            if kind == "absent":
                return 0.0
            return rng.normal() if kind == "number" else np.asarray(rng.normal(size=rows) * read)

        cotangents, curvatures = map(made, self.cotangents), map(made, self.curvatures)
        arguments = Arguments(labels, dense, self.link, Cotangents(*cotangents), Curvatures(*curvatures))
        for array in (labels, dense, *arguments.cotangents, *arguments.curvatures):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        return arguments


CAP = Link(1.5, 5.0)
WARM = Link(0.7)

KERNEL_CASES = (
    KernelCase("labels", 0.0, cotangents=(ABSENT, NUMBER, ABSENT)),
    KernelCase("labels-columns", 0.2, cotangents=(ABSENT, COLUMN, ABSENT), curvatures=(ABSENT, COLUMN)),
    KernelCase("labels-lse", 0.2, None, WARM, (COLUMN, COLUMN, ABSENT), (NUMBER, COLUMN)),
    KernelCase("labels-cap", 0.0, None, CAP, (ABSENT, NUMBER, ABSENT)),
    KernelCase("labels-cap-columns", 0.2, None, CAP, (COLUMN, COLUMN, ABSENT), (COLUMN, COLUMN)),
    KernelCase("vector", None, "vector", WARM, (ABSENT, ABSENT, NUMBER)),
    KernelCase("vector-cap-columns", None, "vector", CAP, (COLUMN, ABSENT, COLUMN), (COLUMN, ABSENT)),
    KernelCase("matrix", None, "matrix", cotangents=(ABSENT, ABSENT, NUMBER)),
    KernelCase("matrix-columns", None, "matrix", WARM, (COLUMN, ABSENT, COLUMN), (NUMBER, ABSENT)),
    KernelCase("matrix-cap", None, "matrix", CAP, (ABSENT, ABSENT, COLUMN)),
    KernelCase("both-vector", 0.0, "vector", cotangents=(ABSENT, NUMBER, NUMBER)),
    KernelCase("both-vector-columns", 0.2, "vector", WARM, (ABSENT, COLUMN, COLUMN)),
    KernelCase("both-vector-cap", 0.2, "vector", CAP, (COLUMN, COLUMN, NUMBER), (COLUMN, COLUMN)),
    KernelCase("both-matrix", 0.2, "matrix", WARM, (COLUMN, COLUMN, COLUMN), (COLUMN, COLUMN)),
    KernelCase("none", link=CAP, cotangents=(COLUMN, ABSENT, ABSENT), curvatures=(NUMBER, ABSENT)),
    KernelCase("all-ignored", 1.0, "vector", cotangents=(NUMBER, NUMBER, NUMBER)),
)


def _chosen(cases: Sequence[KernelCase]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


# A few that between them use every part of the kernels, for sweeps over shapes and layouts.
FEW = ("labels", "labels-cap-columns", "matrix-cap", "both-vector-columns")
FEW_KERNEL_CASES = [case for case in KERNEL_CASES if case.name in FEW]
assert len(FEW_KERNEL_CASES) == len(FEW)

every_kernel_case = _chosen(KERNEL_CASES)
each_of_few_kernel_cases = _chosen(FEW_KERNEL_CASES)
