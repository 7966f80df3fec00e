"""Intervals of calibration errors: against loops over rows and groups, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import foldnorm

from tests.evaluation.calibration.test_bins import fine
from tests.evaluation.evaluations import GROUPS, LABELS, ROWS, TRUE, clustered, results
from xent.evaluation.calibration import bins
from xent.evaluation.calibration.classwise import classwise
from xent.evaluation.stream import RowColumns
from xent.regression.calibration import cross_fitted

PARTS = bins.BINS * bins.FINE


def drawn(rng, rows, over, groups=None):
    """(confidence, right, groups): rows ``over(confidence)`` overconfident, alike within a group for 70%."""
    confidence = np.floor(rng.beta(4, 1, rows) * PARTS) / PARTS + 0.5 / PARTS  # one value in a fine bin
    u = rng.random(rows)
    if groups is not None:
        u = np.where(rng.random(rows) < 0.7, rng.random(groups.max() + 1)[groups], u)
    return confidence, u < confidence - over(confidence)


def sums_of(confidence, right, groups):
    if groups is None:
        return None
    sums = bins.GroupSums(groups.max() + 1)
    half = len(groups) // 2
    for part in (slice(half), slice(half, None)):
        sums.add(confidence[part], right[part], groups[part])
    return sums


@pytest.mark.parametrize("groups", [None, GROUPS, np.arange(ROWS)], ids=["rows", "groups", "single rows"])
def test_the_covariance_is_that_of_rows_or_groups_in_loops(groups):
    confidence, right = drawn(np.random.default_rng(0), ROWS, lambda c: 0.1)
    sums = fine(confidence, right)
    found = bins.gaps_of(sums, bins.widths_index(), sums_of(confidence, right, groups))
    units = np.arange(ROWS) if groups is None else groups
    index, gaps = (confidence * 15).astype(int), confidence - right
    own = [(index == b) for b in np.unique(index)]
    names = np.unique(units)
    residual = np.array([[(gaps * b - (gaps * b).mean())[units == g].sum() for b in own] for g in names])
    inner = np.array([[((gaps - gaps[b].mean()) * b)[units == g].sum() for b in own] for g in names])
    G, n = len(names), np.array([b.sum() for b in own])
    present = np.array([len(np.unique(units[b])) for b in own])
    scale = np.sqrt(present / (present - 1)) / n
    np.testing.assert_array_equal(found.rows, n)
    np.testing.assert_allclose(found.sums, [gaps[b].sum() for b in own])
    np.testing.assert_allclose(found.chance, [(confidence * (1 - confidence))[b].sum() for b in own])
    np.testing.assert_allclose(found.covariance, residual.T @ residual * G / (G - 1), rtol=1e-9, atol=1e-9)
    noise = inner.T @ inner * np.outer(scale, scale)
    if groups is not GROUPS:
        noise = np.diag(np.diag(noise))
    np.testing.assert_allclose(found.noise, noise, rtol=1e-9, atol=1e-12)
    assert (found.freedom, found.units.tolist()) == (G - 1, present.tolist())


@pytest.mark.parametrize("mean", [0.8, 0.9, 1.5, 4.0, 40.0])
def test_the_mean_of_a_folded_normal(mean):
    assert foldnorm.mean(bins._unfolded(mean)) == pytest.approx(mean, rel=1e-9)
    assert bins._unfolded(0.79) == pytest.approx(0, abs=1e-9)


def test_a_model_without_a_wrong_row_may_be_calibrated():
    """99.9% are claimed of 300 rows, which are all right: so would those of a calibrated model be, in 74%."""
    found = bins.calibration_errors(fine(np.full(300, 0.999), np.ones(300)))
    assert found.error == pytest.approx(0.001)
    for low, high in (found.interval, found.adaptive_interval, found.rms_interval):
        assert low == 0
        assert 0.001 < high < 0.01


OVER = {
    "calibrated": lambda c: 0.0,
    "overconfident": lambda c: 0.1 * (c > 0.2),
    "in the last bin": lambda c: 0.2 * (c > 14 / 15),
    "up and down": lambda c: np.where((c * 15).astype(int) % 2, 0.06, -0.06),
}  # fmt: skip


@pytest.mark.parametrize("clusters", [0, 60], ids=["rows", "groups"])
@pytest.mark.parametrize("case", OVER)
def test_intervals_hold_the_truth_19_times_of_20(case, clusters):
    """Of 360 rows, or as many in 60 groups whose rows agree; over 250 samples, the truth by 2e6 rows."""
    over, samples = OVER[case], 250
    rng = np.random.default_rng(5)
    confidence, _ = drawn(rng, 2_000_000, over)
    gap = confidence - np.clip(confidence - over(confidence), 0, 1)
    mean = np.bincount((confidence * 15).astype(int), gap) / len(gap)
    even = np.array([part.mean() for part in np.array_split(gap[np.argsort(confidence)], 15)])
    truth = {
        "interval": np.abs(mean).sum(),
        "adaptive_interval": np.abs(even).mean(),
        "rms_interval": np.sqrt((even**2).mean()),
        "gap_interval": gap.mean(),
    }
    held = dict.fromkeys(truth, 0)
    groups = np.repeat(np.arange(clusters), 6) if clusters else None
    for _ in range(samples):
        confidence, right = drawn(rng, 360, over, groups)
        found = bins.calibration_errors(fine(confidence, right), sums_of(confidence, right, groups))
        for name, value in truth.items():
            low, high = getattr(found, name)
            held[name] += low - 1e-9 <= value <= high
    least = 0.95 - 3 * np.sqrt(0.95 * 0.05 / samples)
    assert min(held.values()) / samples > least
    assert held["gap_interval"] / samples < 1


def test_intervals_of_dependent_rows_are_wider():
    """Each row ten times: in groups the intervals are about those of the rows once."""
    confidence, right = drawn(np.random.default_rng(2), 400, OVER["overconfident"])
    groups = np.repeat(np.arange(400), 10)
    once = bins.calibration_errors(fine(confidence, right))
    many = np.repeat(confidence, 10), np.repeat(right, 10)
    clustered_ = bins.calibration_errors(fine(*many), sums_of(*many, groups))
    for name in ("interval", "adaptive_interval", "rms_interval", "gap_interval"):
        np.testing.assert_allclose(getattr(clustered_, name), getattr(once, name), rtol=0.06, atol=2e-3)
    narrow = bins.calibration_errors(fine(*many))
    assert np.diff(narrow.interval) < 0.5 * np.diff(clustered_.interval)


def test_many_groups_are_put_together():
    rng = np.random.default_rng(3)
    groups = rng.permutation(np.repeat(np.arange(5000), 3))
    confidence, right = drawn(rng, 15000, OVER["overconfident"], groups)
    sums = sums_of(confidence, right, groups)
    assert sums.rows.shape == (PARTS, bins.GROUPS)
    found = bins.gaps_of(fine(confidence, right), bins.widths_index(), sums)
    exact = clustered(confidence - right, groups) * 15000
    assert found.covariance.sum() == pytest.approx(exact**2, rel=4 * np.sqrt(2 / bins.GROUPS))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("over", [1.0, 1.6], ids=["calibrated", "overconfident"])
@pytest.mark.parametrize("clusters", [0, 60], ids=["rows", "groups"])
def test_classwise_intervals_hold_the_truth(classes, over, clusters):
    """The logits are ``over`` times those that the labels are drawn from."""
    rng, samples = np.random.default_rng(7), 120

    def sample(rows, groups=None):
        noise = rng.gumbel(size=(rows, classes))
        z = 1.5 * rng.standard_normal((rows, classes))
        if groups is not None:
            alike = rng.random(rows) < 0.7
            noise[alike] = rng.gumbel(size=(groups.max() + 1, classes))[groups[alike]]
        p = np.exp(over * z)
        return p / p.sum(1, keepdims=True), (z + noise).argmax(1)

    large = classwise(*sample(300_000))
    truth = {"interval": max(0.0, large.error - large.expected * (over == 1)), "rms_interval": large.rms}
    groups = np.repeat(np.arange(clusters), 6) if clusters else None
    held = dict.fromkeys(truth, 0)
    for _ in range(samples):
        found = classwise(*sample(360, groups), groups)
        for name, value in truth.items():
            low, high = getattr(found, name)
            held[name] += low <= value + 1e-3 and value - 1e-3 <= high
    assert min(held.values()) / samples > 0.95 - 3 * np.sqrt(0.95 * 0.05 / samples)


def test_classwise_intervals_of_single_rows_and_of_groups():
    p = np.exp(TRUE) / np.exp(TRUE).sum(1, keepdims=True)
    rows = classwise(p, LABELS)
    single = classwise(p, LABELS, np.random.default_rng(0).permutation(ROWS))
    assert single.interval == pytest.approx(rows.interval, abs=1e-12)
    assert single.rms_interval == pytest.approx(rows.rms_interval, abs=1e-12)
    ten = classwise(np.repeat(p, 10, 0), np.repeat(LABELS, 10), np.repeat(np.arange(ROWS), 10))
    np.testing.assert_allclose(ten.interval, rows.interval, rtol=0.06, atol=2e-3)


def test_the_evaluation_has_the_intervals_of_its_groups(tmp_path):
    columns = RowColumns(GROUPS, 40)
    labels = np.where(np.arange(ROWS) % 7 == 3, -100, LABELS)
    kept = labels >= 0
    e = results(tmp_path, [TRUE], labels, columns=columns).evaluations[0]
    p = np.exp(TRUE) / np.exp(TRUE).sum(1, keepdims=True)
    confidence, right = p.max(1)[kept], (p.argmax(1) == LABELS)[kept]
    groups = sums_of(confidence, right, GROUPS[kept])
    expected = bins.calibration_errors(fine(confidence, right), groups)
    for name in expected._fields:
        assert getattr(e.calibration, name) == pytest.approx(getattr(expected, name), rel=1e-9)
    low, high = e.calibration.gap_interval
    assert (low + high) / 2 == pytest.approx(e.calibration_gap)
    expected = classwise(p[kept], LABELS[kept], GROUPS[kept])
    assert e.classwise.interval == pytest.approx(expected.interval)
    assert e.classwise.rms_interval == pytest.approx(expected.rms_interval)
    fitted = cross_fitted(TRUE[kept], LABELS[kept])
    se = clustered(fitted.losses - fitted.calibrated, GROUPS[kept])
    assert e.refinement.calibration_se == pytest.approx(se)
