"""The benchmark of whole fits: the loosest tolerances are found, the clock kills, the textbook judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from bench.fits import __main__ as fits
from bench.fits import worker as fit_worker
from bench.fits.cases import CASES

ROOT = Path(__file__).parents[2]


class FakeWorker:
    """Reaches a gap of nine tolerances above an optimum of 2, faster without a second pool."""

    def __init__(self, killed_below: float = 0.0) -> None:
        self.killed_below = killed_below
        self.asked: list[tuple[str, float, str]] = []

    def fit(self, who: str, tol: float, limit: float, pools: str) -> dict[str, Any]:
        self.asked.append((who, tol, pools))
        if tol < self.killed_below:
            return {"tol": tol, "pools": pools, "over_s": limit}
        time = 1.0 if pools == "all single" else 2.0
        return {"tol": tol, "pools": pools, "objective": 2 * (1 + 9 * tol), "samples_s": [time]}


def test_a_small_run_reports(tmp_path: Path) -> None:
    skip = ["xent lbfgs", "xent newton-cg", *fits.SKLEARN[1:]]
    fits.main(["--small", "--cases", "text", "--skip", *skip, "--rounds", "1", "--out", str(tmp_path)])
    text = (tmp_path / "fits.json").read_text(encoding="utf-8")
    assert str(ROOT) not in text
    report = json.loads(text)
    assert report["versions"].keys() == {"python", "numpy", "scipy", "sklearn", "xent"}
    case = report["cases"]["text"]
    for who in ("xent auto", "sklearn lbfgs"):
        for key, target in fits.TARGETS.items():
            assert -2e-8 <= case["fits"][who][key]["gap"] <= target
    certified = case["fits"]["xent auto"]["1e-6"]
    assert certified["gap"] - 1e-8 <= certified["certificate"] <= certified["tol"]
    assert case["optimum"]["certificate"] <= 1e-8
    assert case["ratios"]["1e-4"]["fastest"] == "sklearn lbfgs"
    assert case["defaults"]["scikit-learn"]["gap"] > 0
    assert case["shape"] == [300, 500]
    assert case["nonzeros a row"] < 100
    rendered = (tmp_path / "fits.md").read_text(encoding="utf-8")
    assert "| text 300×500 float64, 20 classes | 1e-4 |" in rendered
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits.json", "fits.md"]
    assert fits.read_known(tmp_path / "fits.json").keys() == {"text"}


def test_small_numbers_do_not_replace_the_committed_ones() -> None:
    with pytest.raises(SystemExit, match="2"):
        fits.main(["--small"])


def test_the_loosest_tolerance_is_found() -> None:
    worker = FakeWorker()
    names = ["xent auto", "sklearn lbfgs", "sklearn sag"]
    found = fits.find_tolerances(worker, names, 2.0, {})
    for who in names:
        assert [found[who][key]["tol"] for key in ("1e-4", "1e-6")] == [1e-5, 1e-7]
    assert [found["sklearn lbfgs"][key]["pools"] for key in ("1e-4", "1e-6")] == ["all single"] * 2
    assert ("sklearn sag", 1e-5, "all single") not in worker.asked  # no matrix products in it
    assert len(set(worker.asked)) == len(worker.asked)


def test_known_tolerances_are_where_scikit_learn_begins() -> None:
    worker = FakeWorker()
    known = {"1e-4": {"tol": 1e-5, "pools": "as installed"}, "1e-6": {"tol": 1e-6, "pools": "as installed"}}
    found = fits.find_tolerances(worker, ["sklearn lbfgs"], 2.0, {"sklearn lbfgs": known})
    assert [tol for _, tol, _ in worker.asked] == [1e-5, 1e-6, 3.2e-7, 1e-7]
    assert found["sklearn lbfgs"]["1e-6"]["tol"] == 1e-7


def test_who_is_killed_is_not_asked_again() -> None:
    worker = FakeWorker(killed_below=3e-4)
    found = fits.find_tolerances(worker, ["sklearn sag"], 2.0, {})
    assert found == {"sklearn sag": {"1e-4": {"tol": 1e-4, "pools": "as installed", "over_s": fits.MOST}}}
    ours = {"1e-4": {"samples_s": [2.0], "gap": 5e-5}}
    ratio = fits.ratios({"xent auto": ours, **found})
    assert ratio == {"1e-4": {"fastest": None, "times": fits.MOST / 2}}


def test_nothing_is_below_the_optimum() -> None:
    with pytest.raises(ValueError, match="F\\* must be the least"):
        fits.judge({"objective": 1.999}, 2.0)


@pytest.mark.parametrize("name", ["digits", "gaussian-float32", "text", "table"])
def test_data_travel_whole_and_the_objective_is_the_textbook_s(tmp_path: Path, name: str) -> None:
    data = CASES[name].data(small=True)
    fit_worker.save(data, tmp_path)
    loaded = fit_worker.load(tmp_path)
    assert loaded.digest() == data.digest()
    changed = loaded.labels.copy()
    changed[0] = changed[1]
    assert loaded._replace(labels=changed[::-1]).digest() != data.digest()
    model = LogisticRegression(C=0.1).fit(data.features, data.labels)
    proba = model.predict_proba(data.features.astype(np.float64))
    want = log_loss(data.labels, proba) + 0.5 * data.alpha * (model.coef_.astype(np.float64) ** 2).sum()
    assert fit_worker.objective(loaded, model) == pytest.approx(want, rel=1e-6)


def test_the_clock_kills_and_the_next_fit_is_made(tmp_path: Path) -> None:
    fit_worker.save(CASES["digits"].data(small=True), tmp_path)
    with fit_worker.Worker(tmp_path) as worker:
        late = worker.fit("sklearn saga", 1e-10, 0.01)
        assert late == {"tol": 1e-10, "pools": "as installed", "over_s": 0.01}
        fit = worker.fit("sklearn lbfgs", 1e-2, 60.0)
        assert fit["steps"] > 0
        assert fit["objective"] < np.log(10)
        with pytest.raises(RuntimeError, match=r"sklearn nonsense .* must end"):
            worker.fit("sklearn nonsense", 1e-2, 60.0)
