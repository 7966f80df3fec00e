"""The scores of classes are made when asked for, and ordered by cost without making them."""

from __future__ import annotations

import numpy as np
import pytest

from xent.evaluation.class_scores import ClassScore, ClassScores

#                     rows, right, right in the top k, loss
BY_CLASS = np.array([[4.0, 1, 2, 2.0], [0, 0, 0, 0], [2, 2, 2, 6.0], [5, 0, 5, 2.0]])
PREDICTED = np.array([2.0, 1, 0, 8])
EXPECTED = [
    ClassScore(0, 4, 0.25, 0.5, 0.5, 0.2),
    ClassScore(1, 0, None, 0.0, None, 0.0),
    ClassScore(2, 2, 1.0, None, 3.0, 0.6),
    ClassScore(3, 5, 0.0, 0.0, 0.4, 0.2),
]


def test_each_class_has_its_scores():
    scores = ClassScores(BY_CLASS, PREDICTED)
    assert len(scores) == 4
    assert list(scores) == EXPECTED
    assert scores[2] == EXPECTED[2]
    assert scores.of([3, 0]) == [EXPECTED[3], EXPECTED[0]]


def test_the_costliest_come_first_and_classes_without_rows_not_at_all():
    scores = ClassScores(BY_CLASS, PREDICTED)
    assert scores.costliest().tolist() == [2, 0, 3]  # of two with the same loss the first comes first


@pytest.mark.parametrize("total", [0.0, np.inf])
def test_a_total_that_has_no_shares_orders_by_class(total):
    sums = BY_CLASS.copy()
    sums[:, 3] = 0.0
    sums[2, 3] = total
    scores = ClassScores(sums, PREDICTED)
    assert scores.costliest().tolist() == [0, 2, 3]
    assert {each.share for each in scores} == {None}


def test_scores_are_equal_where_their_values_are():
    assert ClassScores(BY_CLASS, PREDICTED) == ClassScores(BY_CLASS.copy(), PREDICTED)
    assert ClassScores(BY_CLASS, PREDICTED) != ClassScores(BY_CLASS + 1, PREDICTED)
