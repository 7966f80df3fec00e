"""Standard errors against NumPy, the jackknife, the bootstrap, and the formula of clusters in loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student

from tests.evaluation.evaluations import CLASSES, GROUPS, LABELS, ROWS, TRUE, clustered, losses, results
from xent.evaluation import standard_errors
from xent.evaluation.standard_errors import Estimate, UnitSums
from xent.evaluation.stream import RowColumns

EACH = losses(TRUE)
RIGHT = (TRUE.argmax(1) == LABELS).astype(float)
P = np.exp(TRUE) / np.exp(TRUE).sum(1, keepdims=True)
BRIER = ((P - np.eye(CLASSES)[LABELS]) ** 2).sum(1)
NEAR = ((TRUE[np.arange(ROWS), LABELS][:, None] < TRUE).sum(1) < 2).astype(float)
COLUMNS = {"loss": EACH, "accuracy": RIGHT, "top_k_accuracy": NEAR, "brier": BRIER}


def evaluation(folder, logits=TRUE, labels=LABELS, **more):
    return results(folder, [logits], labels, top_k=2, **more).evaluations[0]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("grouping", ["none", "single rows", "groups", "one sequence after another"])
def test_standard_errors_are_those_of_numpy(tmp_path, grouping, shuffled):
    groups = {
        "none": None,
        "single rows": np.arange(ROWS),
        "groups": GROUPS,
        "one sequence after another": np.arange(ROWS) // 15,
    }[grouping]
    if groups is not None and shuffled:
        groups = np.random.default_rng(0).permutation(groups.max() + 1)[groups]
    columns = RowColumns() if groups is None else RowColumns(groups, int(groups.max()) + 1)
    e = evaluation(tmp_path, columns=columns)
    plain = groups is None or grouping == "single rows"
    assert e.groups == (None if groups is None else len(np.unique(groups)))
    for name, values in COLUMNS.items():
        se = values.std(ddof=1) / np.sqrt(ROWS) if plain else clustered(values, groups)
        assert getattr(e, name) == pytest.approx(values.mean(), rel=1e-12)
        assert getattr(e, f"{name}_se") == pytest.approx(se, rel=1e-9)
    half = student.ppf(0.975, (ROWS if groups is None else e.groups) - 1) * e.loss_se
    assert e.loss_interval == pytest.approx((e.loss - half, e.loss + half), rel=1e-7)
    assert e.perplexity_interval == pytest.approx(tuple(np.exp(e.loss_interval)))
    assert e.bits_se == pytest.approx(e.loss_se / np.log(2))


def test_ignored_rows_make_the_mean_a_ratio(tmp_path):
    """Clusters then differ in size, and one is left without rows; the jackknife agrees to first order."""
    labels = np.where(RNG_MASK, -100, LABELS)
    labels[GROUPS == 3] = -100
    kept = labels >= 0
    e = evaluation(tmp_path, labels=labels, columns=RowColumns(GROUPS, 40))
    assert (e.rows, e.groups) == (kept.sum(), len(np.unique(GROUPS[kept])))
    assert e.loss_se == pytest.approx(clustered(EACH[kept], GROUPS[kept]), rel=1e-9)
    left_out = np.array([EACH[kept & (g != GROUPS)].mean() for g in np.unique(GROUPS[kept])])
    G = len(left_out)
    jackknife = np.sqrt((G - 1) / G * ((left_out - left_out.mean()) ** 2).sum())
    assert e.loss_se == pytest.approx(jackknife, rel=0.1)


RNG_MASK = np.random.default_rng(2).random(ROWS) < 0.3


def test_rows_of_a_cluster_that_agree_are_as_good_as_one(tmp_path):
    """Each row ten times: clustered, the error is that of the rows once; unclustered, too small."""
    z, y = np.repeat(TRUE, 10, 0), np.repeat(LABELS, 10)
    once = evaluation(tmp_path)
    e = evaluation(tmp_path, z, y, columns=RowColumns(np.repeat(np.arange(ROWS), 10), ROWS))
    assert e.loss_se == pytest.approx(once.loss_se, rel=1e-9)
    assert evaluation(tmp_path, z, y).loss_se == pytest.approx(once.loss_se / np.sqrt(10), rel=1e-2)


def test_the_bootstrap_over_clusters_agrees(tmp_path):
    e = evaluation(tmp_path, columns=RowColumns(GROUPS, 40))
    rng = np.random.default_rng(0)
    sums, rows = np.bincount(GROUPS, EACH), np.bincount(GROUPS)
    drawn = rng.integers(0, 40, (4000, 40))
    assert e.loss_se == pytest.approx((sums[drawn].sum(1) / rows[drawn].sum(1)).std(), rel=0.1)


def test_a_constant_in_each_row_changes_nothing(tmp_path):
    e = evaluation(tmp_path)
    moved = evaluation(tmp_path, TRUE + np.arange(ROWS)[:, None])
    for name in ("loss", "loss_se", "accuracy_se", "brier", "brier_se", "calibration_error"):
        assert getattr(moved, name) == pytest.approx(getattr(e, name), rel=1e-8)
    assert moved.refinement == pytest.approx(e.refinement, rel=1e-5)


def test_equal_losses_have_no_error(tmp_path):
    e = evaluation(tmp_path, np.zeros((ROWS, CLASSES)))
    assert (e.loss, e.loss_se) == (pytest.approx(np.log(CLASSES)), pytest.approx(0, abs=1e-15))


@pytest.mark.parametrize("labels", [LABELS, np.eye(CLASSES)[LABELS]], ids=["labels", "distributions"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_brier_scores_of_any_kind_of_targets(tmp_path, labels, probabilities):
    outputs = 3 * P if probabilities else TRUE  # rows are divided by their sum
    e = evaluation(tmp_path, outputs, labels, probabilities=probabilities)
    assert e.brier == pytest.approx(BRIER.mean(), rel=1e-12)
    assert e.brier_se == pytest.approx(BRIER.std(ddof=1) / np.sqrt(ROWS), rel=1e-9)


UNITS = np.random.default_rng(3).integers(1, 9, ROWS).astype(float)


@pytest.mark.parametrize("clusters", [False, True])
def test_the_loss_per_byte(tmp_path, clusters):
    groups = GROUPS if clusters else np.arange(ROWS)
    own = RowColumns(GROUPS if clusters else None, 40, {"byte": 1234.0, "word": UNITS})
    whole, word = evaluation(tmp_path, columns=own).units
    assert whole.bits == pytest.approx(EACH.sum() / np.log(2) / 1234)
    assert whole.bits_se == pytest.approx(clustered(EACH, groups) * ROWS / 1234 / np.log(2))
    assert (word.name, word.total) == ("word", UNITS.sum())
    assert word.bits == pytest.approx(EACH.sum() / UNITS.sum() / np.log(2))
    assert word.bits_se == pytest.approx(clustered(EACH, groups, UNITS) / np.log(2))
    assert word.perplexity == pytest.approx(np.exp(EACH.sum() / UNITS.sum()))


@pytest.mark.parametrize("rows", [1, 2])
def test_one_row_has_no_error(tmp_path, rows):
    e = evaluation(tmp_path, TRUE[:rows], LABELS[:rows])
    assert np.isnan(e.loss_se) == (rows == 1)
    assert np.isnan(e.loss_interval).all() == (rows == 1)


def test_an_infinite_loss_leaves_the_accuracy_its_error(tmp_path):
    z = TRUE.copy()
    z[4, LABELS[4]] = -np.inf
    for columns in (RowColumns(), RowColumns(GROUPS, 40)):
        e = evaluation(tmp_path, z, columns=columns)
        assert (e.loss, np.isnan(e.loss_se)) == (np.inf, True)
        right = z.argmax(1) == LABELS
        expected = clustered(right.astype(float), np.arange(ROWS) if columns.groups is None else GROUPS)
        assert e.accuracy_se == pytest.approx(expected)


@pytest.mark.parametrize("freedom", [1, 2, 10, 30, 31, 100, 10**6])
def test_the_quantile_is_scipys(freedom):
    assert standard_errors.quantile(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=2e-8)


def test_intervals_hold_the_truth_19_times_of_20():
    """Of the loss with correlated clusters, and of a proportion of 3% in 100 rows."""
    rng, held, share = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        groups = np.repeat(np.arange(50), 8)
        values = rng.standard_normal(50)[groups] + rng.standard_normal(400)
        sums = UnitSums(2, 50)
        sums.add(np.stack([np.ones(400), values], 1), groups)
        low, high = standard_errors.ratio(*sums.totals, np.array([0.0, 1]), np.array([1.0, 0])).interval
        held += low <= 0 <= high
        right = np.mean(rng.random(100) < 0.03)
        low, high = standard_errors.proportion_interval(
            Estimate(right, np.sqrt(right * (1 - right) / 99), 99)
        )
        share += low <= 0.03 <= high
    spread = 4 * np.sqrt(0.95 * 0.05 / 1000)
    assert held / 1000 == pytest.approx(0.95, abs=spread)
    assert share / 1000 > 0.95 - spread
    assert norm.ppf(0.975) == standard_errors.NORMAL


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30), st.integers(0, 99))
def test_order_and_names_of_groups_are_of_no_matter(values, seed):
    rng = np.random.default_rng(seed)
    x = np.stack([np.ones(len(values)), values], 1)
    groups = rng.integers(0, 5, len(values))
    names, order = rng.permutation(5), rng.permutation(len(values))
    found = []
    for rows, of in ((x, groups), (x[order], names[groups][order])):
        sums = UnitSums(2, 5)
        sums.add(rows, of)
        found.append(standard_errors.ratio(*sums.totals, np.array([0.0, 1]), np.array([1.0, 0])))
    assert found[0].freedom == found[1].freedom == len(np.unique(groups)) - 1
    if found[0].freedom:
        assert found[0].se == pytest.approx(found[1].se, rel=1e-6, abs=1e-6)
