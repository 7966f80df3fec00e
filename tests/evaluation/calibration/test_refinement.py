"""The loss as refinement and calibration: the fit report's numbers, from a sample of the stream."""

from __future__ import annotations

import numpy as np
import pytest

import xent
from tests.evaluation.evaluations import CLASSES, LABELS, ROWS, TRUE, losses, results
from xent.evaluation.calibration import refinement
from xent.regression.calibration import fit_temperature
from xent.report import diagnosis


def evaluation(folder, logits, labels=LABELS, **settings):
    return results(folder, [logits], labels, **settings).evaluations[0]


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_parts_are_those_of_the_fit_report(tmp_path, factor):
    logits = factor * TRUE
    e, parts = evaluation(tmp_path, logits), diagnosis.parts(logits, LABELS)
    assert e.refinement.calibration == pytest.approx(parts.miscalibration, rel=1e-9, abs=1e-12)
    assert e.refinement.temperature == pytest.approx(parts.temperature, rel=1e-9)
    assert e.refinement.temperature == pytest.approx(fit_temperature(logits, LABELS), rel=1e-5)
    assert e.refinement.refinement == pytest.approx(parts.uncertainty - parts.discrimination)
    assert e.refinement.refinement + e.refinement.calibration == pytest.approx(e.loss)
    assert e.refinement.rows == ROWS


def test_the_temperature_has_the_spread_that_its_error_says():
    found = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        z = 2 * rng.standard_normal((300, 3))
        y = (z + rng.gumbel(size=z.shape)).argmax(1)
        fitted = refinement.cross_fitted(z, y)
        found.append((fitted.temperature, fitted.temperature_se))
    temperatures, errors = np.array(found).T
    assert temperatures.std() == pytest.approx(np.median(errors), rel=0.25)
    held = np.mean(np.abs(temperatures - 1) < 1.96 * errors)
    assert held > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 150)


@pytest.mark.parametrize("kind", ["probabilities", "distributions", "both"])
def test_probabilities_and_distributions(tmp_path, kind):
    logits, soft = 3 * TRUE, xent.softmax(TRUE)
    p = xent.softmax(logits)
    outputs, targets = (
        (p if kind != "distributions" else logits),
        (soft if kind != "probabilities" else LABELS),
    )
    e = evaluation(tmp_path, outputs, targets, probabilities=kind != "distributions")
    assert e.refinement.temperature == pytest.approx(fit_temperature(logits, targets), rel=1e-5)


def test_a_sample_stands_for_all_rows(tmp_path, monkeypatch):
    whole = evaluation(tmp_path, 3 * TRUE).refinement
    monkeypatch.setattr(refinement, "ENOUGH", 100)
    e = evaluation(tmp_path, 3 * TRUE)
    assert e.refinement.rows == ROWS // 6
    every = np.arange(0, ROWS, 6)
    expected = refinement.cross_fitted(3 * TRUE[every], LABELS[every])
    assert e.refinement.temperature == pytest.approx(expected.temperature)
    assert e.refinement.calibration == pytest.approx(expected.saved)
    assert abs(e.refinement.temperature - whole.temperature) < 3 * e.refinement.temperature_se
    assert e.refinement.refinement + e.refinement.calibration == pytest.approx(e.loss)
    assert e.loss == pytest.approx(losses(3 * TRUE).mean())


def test_rows_that_do_not_count_are_not_sampled(tmp_path):
    z, y = 3 * TRUE.copy(), LABELS.copy()
    z[5], y[[0, 9]] = np.nan, -100
    e = evaluation(tmp_path, z, y)
    assert e.refinement.rows == ROWS - 3
    kept = np.delete(np.arange(ROWS), [0, 5, 9])
    assert e.refinement.temperature == pytest.approx(fit_temperature(z[kept], y[kept]), rel=1e-5)


@pytest.mark.parametrize(
    "logits", [4 * np.eye(CLASSES)[LABELS], -np.eye(CLASSES)[LABELS]], ids=["all right", "all wrong"]
)
def test_without_a_best_temperature_there_are_no_parts(tmp_path, logits):
    assert evaluation(tmp_path, logits).refinement is None


def test_an_infinite_loss_has_no_parts(tmp_path):
    z = TRUE.copy()
    z[4, LABELS[4]] = -np.inf
    assert evaluation(tmp_path, z).refinement is None
