"""Times the choice of alpha beside one fit with that alpha and scikit-learn's: penalties.json and .md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import scipy
import sklearn
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

import xent
from bench import machine
from bench.fits import cases

Array = np.ndarray[Any, Any]

FOLDS = 5
ROUNDS, FEWER = 7, 3  # FEWER of what takes more than SLOW seconds
SLOW = 1.0
METHOD = f"""\
* Auto: `SoftmaxRegressionCV`, {FOLDS} stratified folds, and the training on all rows. Single:
  `SoftmaxRegression` with the alpha that auto chose. Both with the default tolerance, on rows in memory.
* A ratio is the median over rounds of auto / single, each once a round, in turn; both ran before. By
  processor time it is that of the time of all threads, which other work on the machine disturbs less.
* scikit-learn: `LogisticRegressionCV` with the same folds and the alphas that auto tried, scored by the log
  loss, at most 1000 steps; run once, after the rounds. The difference is the largest between the two curves
  of held-out losses, in standard errors. The bundled sets are standardised before.
"""


class Case(NamedTuple):
    """``make(small)`` gives features and labels."""

    make: Callable[[bool], tuple[Any, Array]]
    dtype: str = "float64"


def bundled(load: Callable[..., Any]) -> Callable[[bool], tuple[Any, Array]]:
    """One of scikit-learn's sets, standardised."""

    def make(small: bool) -> tuple[Any, Array]:
        x, y = load(return_X_y=True)
        return StandardScaler().fit_transform(x), y

    return make


def normal(rows: int, columns: int, classes: int, scale: float) -> Callable[[bool], tuple[Any, Array]]:
    """Normal features, and labels from a softmax model with normal weights of this scale."""

    def make(small: bool) -> tuple[Any, Array]:
        random = np.random.default_rng(0)
        x = random.standard_normal((rows // 100 if small else rows, columns))
        logits = x @ random.normal(size=(columns, min(classes, 4) if small else classes)) * scale
        return x, (logits + random.gumbel(size=logits.shape)).argmax(1)

    return make


def text(small: bool) -> tuple[Any, Array]:
    """Words, as in the benchmark of whole fits."""
    data = cases.text(300, 500, 5) if small else cases.text(10_000, 50_000, 20)
    return data.features, data.labels


CASES = {
    "wine": Case(bundled(load_wine)),
    "breast_cancer": Case(bundled(load_breast_cancer)),
    "digits": Case(bundled(load_digits)),
    "table": Case(normal(200_000, 30, 2, 0.3)),
    "classes": Case(normal(20_000, 50, 100, 0.3)),
    "normal": Case(normal(60_000, 784, 10, 0.1)),
    "normal-float32": Case(normal(60_000, 784, 10, 0.1), "float32"),
    "text": Case(text),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.penalties", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=ROUNDS, metavar="N")
    parser.add_argument("--small", action="store_true", help="a hundredth of the rows, to try the benchmark")
    parser.add_argument("--alone", nargs="*", choices=CASES, default=[], help="cases without scikit-learn")
    parser.add_argument("--out", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.small and options.out is None:
        parser.error("--small wants --out: its times say nothing")
    out = options.out or machine.RESULTS
    report = machine.describe((np, scipy, sklearn, xent), len(os.sched_getaffinity(0)), METHOD)
    warnings.simplefilter("ignore")  # a fit of scikit-learn that has not converged
    for name in options.cases:
        print(f"{name}: data", file=sys.stderr)
        report["cases"][name] = measure(CASES[name], options.small, options.rounds, name in options.alone)
        texts = {"penalties.json": json.dumps(report, indent=1) + "\n", "penalties.md": table(report)}
        machine.write(out, texts)


def measure(case: Case, small: bool, rounds: int, alone: bool) -> dict[str, Any]:
    """Both timed in turn, then scikit-learn."""
    x, y = case.make(small)
    x = x.astype(case.dtype, copy=False)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    auto = xent.SoftmaxRegressionCV(cv=folds)
    start = time.perf_counter()
    auto.fit(x, y)
    slow = time.perf_counter() - start > SLOW
    single = xent.SoftmaxRegression(alpha=auto.alpha_).fit(x, y)
    models = {"auto": auto, "single": single}
    times = {name: list[float]() for name in models}
    processor = {name: list[float]() for name in models}
    for turn in range(min(rounds, FEWER) if slow else rounds):
        for name in sorted(models, reverse=turn % 2 == 0):
            start, used = time.perf_counter(), time.process_time()
            models[name].fit(x, y)
            times[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
        print(f"  round {turn + 1}", file=sys.stderr)
    measured = {"samples_s": times, "processor_s": processor}
    return {
        "shape": x.shape,
        "dtype": case.dtype,
        "classes": len(auto.classes_),
        "alpha": auto.alpha_,
        "alphas": auto.alphas_.tolist(),
        "losses": auto.mean_scores_.tolist(),
        "standard_errors": auto.standard_errors_.tolist(),
        "solver": single.solver_,
        "ratio": machine.ratio(measured, "auto", "single"),
        "ratio_processor": machine.ratio({"samples_s": processor}, "auto", "single"),
        **measured,
        "scikit-learn": None if alone else theirs(x, y, folds, auto),
    }


def theirs(x: Any, y: Array, folds: Any, auto: Any) -> dict[str, Any]:
    """Seconds of scikit-learn, and how far its curve is from xent's."""
    rows = len(y) * (FOLDS - 1) / FOLDS  # of a training
    model = LogisticRegressionCV(
        Cs=1 / (auto.alphas_ * rows),
        cv=folds,
        scoring="neg_log_loss",
        max_iter=1000,
        use_legacy_attributes=False,
    )
    start = time.perf_counter()
    model.fit(x, y)
    seconds = time.perf_counter() - start
    losses = -np.reshape(model.scores_, (FOLDS, -1)).mean(0)
    return {
        "seconds": seconds,
        "losses": losses.tolist(),
        "difference": float(np.abs((losses - auto.mean_scores_) / auto.standard_errors_).max()),
        "alpha": float(auto.alphas_[losses.argmin()]),
    }


def table(report: dict[str, Any]) -> str:
    """One row a case; then what the report's head says."""
    head = ["case", "alpha", "alphas tried", "single", "auto", "auto / single", "by processor time"]
    rows = [[*head, "LogisticRegressionCV", "its alpha", "difference"]]
    for name, case in report["cases"].items():
        size = f"{name} {case['shape'][0]}×{case['shape'][1]} {case['dtype']}, {case['classes']} classes"
        times = [f"{1e3 * median(case['samples_s'][each]):.3g} ms" for each in ("single", "auto")]
        ratios = [f"{case[key]:.2f}" for key in ("ratio", "ratio_processor")]
        other, cells = case["scikit-learn"], ["", "", ""]
        if other is not None:
            cells = [
                f"{1e3 * other['seconds']:.3g} ms",
                f"{other['alpha']:.2g}",
                f"{other['difference']:.2f}",
            ]
        rows.append([size, f"{case['alpha']:.2g}", str(len(case["alphas"])), *times, *ratios, *cells])
    lines = ["# The choice of alpha, beside one fit", "", *machine.rows(rows)]
    return "\n".join([*lines, "", machine.facts(report), "", report["method"]])


if __name__ == "__main__":
    main()
