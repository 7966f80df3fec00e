"""Two models on the same rows, against NumPy and SciPy on the losses of each row."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, ttest_rel

from tests.evaluation.evaluations import GROUPS, LABELS, OTHER, ROWS, TRUE, clustered, losses, results
from xent.evaluation.stream import RowColumns

A, B = losses(TRUE), losses(OTHER)
RIGHT = [z.argmax(1) == LABELS for z in (TRUE, OTHER)]


def compare(folder, first=TRUE, second=OTHER, labels=LABELS, **more):
    return results(folder, [first, second], labels, **more).comparison


@pytest.mark.parametrize("clusters", [False, True])
def test_the_paired_difference(tmp_path, clusters):
    c = compare(tmp_path, columns=RowColumns(GROUPS, 40) if clusters else RowColumns())
    groups = GROUPS if clusters else np.arange(ROWS)
    right = RIGHT[0].astype(float) - RIGHT[1]
    assert c.difference == pytest.approx((A - B).mean(), rel=1e-12)
    assert c.difference_se == pytest.approx(clustered(A - B, groups), rel=1e-9)
    assert c.accuracy_difference == pytest.approx(right.mean())
    assert c.accuracy_difference_se == pytest.approx(clustered(right, groups), rel=1e-9)
    assert c.groups == (40 if clusters else None)
    assert c.wins == ((A < B).sum(), (A > B).sum(), 0)
    assert c.only_right == ((right > 0).sum(), (right < 0).sum())
    assert c.correlation == pytest.approx(pearsonr(A, B).statistic, rel=1e-9)
    if not clusters:
        low, high = ttest_rel(A, B).confidence_interval()
        assert c.difference_interval == pytest.approx((low, high), rel=1e-6)


def test_both_evaluations_are_those_of_each_model_alone(tmp_path):
    both = results(tmp_path, [TRUE, OTHER], LABELS).evaluations
    assert both == [results(tmp_path, [z], LABELS).evaluations[0] for z in (TRUE, OTHER)]


def test_a_model_is_no_better_than_itself(tmp_path):
    c = compare(tmp_path, TRUE, TRUE, columns=RowColumns(GROUPS, 40))
    assert (c.difference, c.difference_se, c.accuracy_difference_se) == (0, 0, 0)
    assert (c.wins, c.only_right) == ((0, 0, ROWS), (0, 0))
    assert c.correlation == pytest.approx(1)
    assert c.first_worse == c.second_worse == []


def test_where_they_differ_most(tmp_path):
    c = compare(tmp_path)
    for rows, order in ((c.first_worse, np.argsort(B - A)), (c.second_worse, np.argsort(A - B))):
        assert [each.row - 1 for each in rows] == order[:10].tolist()
        for each in rows:
            n = each.row - 1
            assert each.label == LABELS[n]
            assert each.losses == pytest.approx((A[n], B[n]))
            assert each.predicted == (TRUE[n].argmax(), OTHER[n].argmax())


def test_exchanged_models_change_the_sign(tmp_path):
    c, d = compare(tmp_path), compare(tmp_path, OTHER, TRUE)
    assert (d.difference, d.difference_se) == pytest.approx((-c.difference, c.difference_se))
    assert (d.wins.first, d.wins.second, d.only_right) == (c.wins.second, c.wins.first, c.only_right[::-1])
    assert [each.row for each in d.first_worse] == [each.row for each in c.second_worse]


def test_rows_that_one_model_cannot_score_are_not_compared(tmp_path):
    second, labels = OTHER.copy(), LABELS.copy()
    second[[3, 7]], labels[[7, 11]] = np.nan, -100
    c = compare(tmp_path, TRUE, second, labels)
    kept = np.delete(np.arange(ROWS), [3, 7, 11])
    assert c.rows == len(kept)
    assert c.difference == pytest.approx((A - B)[kept].mean())


def test_infinite_losses(tmp_path):
    first, second = TRUE.copy(), OTHER.copy()
    first[[3, 5], LABELS[[3, 5]]] = -np.inf
    second[5, LABELS[5]] = -np.inf
    c = compare(tmp_path, first, second, columns=RowColumns(GROUPS, 40))
    assert (c.difference, c.wins.ties, c.first_worse[0].row) == (np.inf, 1, 4)
    assert np.isnan([c.difference_se, c.correlation]).all()
    assert c.accuracy_difference_se > 0


def test_the_costliest_rows_of_the_first_model(tmp_path):
    found = results(tmp_path, [TRUE, OTHER], LABELS, costliest=7).costliest
    assert [row.row - 1 for row in found] == np.argsort(-A)[:7].tolist()
    for row in found:
        np.testing.assert_array_equal(row.outputs, TRUE[row.row - 1])
        assert (row.label, row.predicted) == (LABELS[row.row - 1], TRUE[row.row - 1].argmax())


def test_equal_losses_are_kept_in_the_order_of_the_rows(tmp_path):
    found = results(tmp_path, [np.zeros((ROWS, 5))], LABELS, costliest=4).costliest
    assert [row.row for row in found] == [1, 2, 3, 4]
