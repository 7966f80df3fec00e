"""Calibration errors against NumPy on all rows, and their estimates against repeated samples."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.evaluations import LABELS, TRUE, results
from xent.evaluation.calibration import bins
from xent.evaluation.calibration.classwise import classwise


def fine(confidence, right):
    """The sums that the stream has."""
    number = bins.BINS * bins.FINE
    index = np.minimum((confidence * number).astype(int), number - 1)
    return np.stack([np.bincount(index, w, number) for w in (None, right, confidence)], 1).astype(float)


def test_equal_widths_are_bins_of_all_rows():
    rng = np.random.default_rng(0)
    confidence = np.append(rng.random(1000), [0, 1, 1 / 15, 2 / 3, 14 / 15])
    right = rng.random(1005) < confidence
    found = bins.equal_widths(fine(confidence, right))
    index = np.minimum((confidence * 15).astype(int), 14)
    for k, each in enumerate(found):
        own = index == k
        assert each == (own.sum(), pytest.approx(confidence[own].mean()), pytest.approx(right[own].mean()))


@pytest.mark.parametrize("rows", [1, 10, 3000])
def test_bins_of_equal_masses_have_equally_many_rows(rows):
    sums = fine(np.random.default_rng(0).beta(8, 1, rows), np.ones(rows))
    index = bins.masses_index(sums)
    assert (np.diff(index) >= 0).all()
    found = np.bincount(index, sums[:, 0], bins.BINS)
    assert (found.sum(), np.count_nonzero(found)) == (rows, min(rows, 15))
    if rows > 1000:
        assert np.ptp(found) < 0.15 * rows / 15


def test_rows_of_one_confidence_are_one_bin():
    sums = fine(np.full(100, 0.7), np.ones(100))
    assert bins.gaps_of(sums, bins.masses_index(sums)).rows.tolist() == [100]


def test_what_a_calibrated_model_would_show_is_its_mean_over_samples():
    rng, found, expected = np.random.default_rng(0), [], []
    for _ in range(300):
        confidence = rng.beta(3, 1, 400)
        e = bins.calibration_errors(fine(confidence, rng.random(400) < confidence))
        found.append((e.error, e.adaptive))
        expected.append((e.expected, e.adaptive_expected))
    np.testing.assert_allclose(np.mean(found, 0), np.mean(expected, 0), rtol=0.06)


def of_bins(rows, right):
    """Gaps of ``rows`` rows in each of the bins about `STATED`, of which ``right`` are right."""
    which = np.arange(rows) < right[:, None]
    sums = fine(np.repeat(STATED, rows), which.ravel())
    return bins.gaps_of(sums, bins.widths_index())


STATED = (np.arange(4, 15) + 0.5) / 15


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.2])
def test_the_squared_error_has_no_bias_and_its_interval_holds(gap):
    """Bins of 40 rows, whose accuracies are ``gap`` below the confidences; the mean over samples."""
    rng, squares, held = np.random.default_rng(0), [], 0
    for _ in range(1000):
        gaps = of_bins(40, rng.binomial(40, STATED - gap))
        squared = bins.squared_error(gaps)
        squares.append(squared.value)
        low, high = squared.root(gaps.freedom)[1]
        held += low <= gap <= high
    assert np.mean(squares) == pytest.approx(gap**2, abs=4 * np.std(squares) / np.sqrt(1000))
    assert 0.92 < held / 1000 <= 1


def test_bins_of_few_rows_have_no_bias_either():
    rng = np.random.default_rng(0)
    squares = [bins.squared_error(of_bins(3, rng.binomial(3, STATED))).value for _ in range(2000)]
    assert np.mean(squares) == pytest.approx(0, abs=4 * np.std(squares) / np.sqrt(2000))


def test_no_rows_and_bins_of_one_row():
    none = bins.calibration_errors(fine(np.zeros(0), np.zeros(0)))
    assert np.isnan([none.error, none.expected, none.adaptive, none.rms]).all()
    one = bins.calibration_errors(fine(np.array([0.5]), np.ones(1)))
    assert one.error == 0.5
    intervals = one.interval, one.adaptive_interval, one.rms_interval, one.gap_interval
    assert np.isnan(intervals).all()
    assert np.isnan(bins.squared_error(of_bins(1, np.ones(11))).value)


def test_classwise_is_the_mean_of_the_errors_of_each_class(tmp_path):
    p = np.exp(TRUE) / np.exp(TRUE).sum(1, keepdims=True)
    e = results(tmp_path, [TRUE], LABELS).evaluations[0]
    expected = []
    for k in range(p.shape[1]):
        index = np.minimum((p[:, k] * 15).astype(int), 14)
        gaps = [abs((p[:, k] - (k == LABELS))[index == b].sum()) for b in range(15)]
        expected.append(sum(gaps) / len(p))
    assert e.classwise.error == pytest.approx(np.mean(expected), rel=1e-9)
    assert e.classwise.rows == len(p)
    low, high = e.classwise.rms_interval
    assert low <= e.classwise.rms <= high
    same = classwise(p, LABELS)
    assert same.error == pytest.approx(e.classwise.error)
    assert same.expected == pytest.approx(same.error, rel=0.5)  # the labels are drawn from p
