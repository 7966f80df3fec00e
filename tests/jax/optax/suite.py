"""optax's own tests, from its wheel, of the functions that `xent.jax.optax` has: test_suite.py runs it.

Its arguments are seeds. For each it prints a line of JSON: how many cases of each class passed, and the
names of those that did not.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from optax.losses import _classification, _smoothing

import xent.jax

# What the cases of each class test. They look the functions up in these modules at each call.
SUBJECTS: dict[str, tuple[ModuleType, str]] = {
    "SoftmaxCrossEntropyTest": (_classification, "softmax_cross_entropy"),
    "SafeSoftmaxCrossEntropyTest": (_classification, "safe_softmax_cross_entropy"),
    "SoftmaxCrossEntropyWithIntegerLabelsTest": (
        _classification,
        "softmax_cross_entropy_with_integer_labels",
    ),
    "PolyLossTest": (_classification, "poly_loss_cross_entropy"),
    "SigmoidCrossEntropyTest": (_classification, "sigmoid_binary_cross_entropy"),
    "SigmoidFocalLossTest": (_classification, "sigmoid_focal_loss"),
    "KLDivergenceTest": (_classification, "kl_divergence"),
    "SmoothLabelsTest": (_smoothing, "smooth_labels"),
}


class OneSeed:
    """A plugin of pytest: random numbers from ``seed``, and what became of each case."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.passed: Counter[str] = Counter()
        self.others: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the cases of our functions."""
        items[:] = [item for item in items if item.cls.__name__ in SUBJECTS]

    def pytest_runtest_setup(self) -> None:
        """Seed NumPy's generator, which the cases share."""
        np.random.seed(self.seed)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a case."""
        if report.when == "call" and report.passed:
            self.passed[report.nodeid.split("::")[1]] += 1
        elif report.when == "call" or not report.passed:
            self.others.append(report.nodeid)


def main(seeds: list[int]) -> None:
    """Run the cases of `SUBJECTS` with each seed, with our functions in the place of optax's."""
    for module, name in SUBJECTS.values():
        setattr(module, name, getattr(xent.jax.optax, name))
    modules = {module.__file__ for module, _ in SUBJECTS.values()}
    files = sorted(str(file).removesuffix(".py") + "_test.py" for file in modules)
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "--import-mode=importlib"]
    key = jax.random.key
    for seed in seeds:
        jax.random.key = lambda fixed, seed=seed: key(fixed + seed)  # the seed in the file is a constant
        plugin = OneSeed(seed)
        sys.stdout = sys.stderr
        pytest.main([*options, *files], plugins=[plugin])
        sys.stdout = sys.__stdout__
        print(json.dumps({"passed": plugin.passed, "others": plugin.others}), flush=True)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]])
