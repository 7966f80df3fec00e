"""What held-out logits show, against definitions written out here and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)

from xent import SoftmaxRegression
from xent.regression.calibration import cross_fitted
from xent.regression.class_targets import ClassTargets, as_target, class_factors
from xent.regression.fitting import objective_of
from xent.regression.parameters import check_parameters
from xent.regression.sums import partition_sums
from xent.regression.sums.partitions import Local, Partition
from xent.report import diagnosis


def example(rows=500, classes=4, sharpness=2.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((rows, classes))
    labels = (logits / sharpness * 1.5 + rng.gumbel(size=logits.shape)).argmax(1)
    return logits, labels


@given(st.integers(2, 40), st.integers(2, 6), st.floats(0.01, 30), st.integers(0, 99))
def test_the_parts_add_up_to_the_loss(rows, classes, sharpness, seed):
    logits, labels = example(rows, classes, sharpness, seed)
    parts = diagnosis.parts(logits, labels)
    loss = -log_softmax(logits, axis=1)[np.arange(rows), labels].mean()
    assert parts.loss == pytest.approx(loss, rel=1e-12, abs=1e-12)
    shares = np.bincount(labels) / rows
    assert parts.uncertainty == pytest.approx(-sum(p * np.log(p) for p in shares if p), abs=1e-12)
    assert parts.miscalibration >= 0


def test_the_calibrated_loss_is_that_of_temperatures_of_the_other_rows():
    logits, labels = example(sharpness=6.0)
    calibrated, fold = 0.0, np.arange(len(labels)) % 5
    temperatures = np.geomspace(1, 10, 4001)
    for f in range(5):
        losses = [
            log_loss(labels[fold != f], softmax(logits[fold != f] / t, axis=1)) for t in temperatures[::40]
        ]
        near = temperatures[max(0, 40 * (np.argmin(losses) - 1)) : 40 * (np.argmin(losses) + 1)]
        losses = [log_loss(labels[fold != f], softmax(logits[fold != f] / t, axis=1)) for t in near]
        best = near[np.argmin(losses)]
        calibrated += log_loss(labels[fold == f], softmax(logits[fold == f] / best, axis=1)) / 5
    parts = diagnosis.parts(logits, labels)
    step = 2e-3 * cross_fitted(logits, labels).saved_se  # what one Newton step leaves
    assert parts.temperature == pytest.approx(6 / 1.5, rel=0.1)
    assert parts.miscalibration == pytest.approx(
        log_loss(labels, softmax(logits, axis=1)) - calibrated, abs=step
    )
    assert parts.uncertainty - parts.discrimination == pytest.approx(calibrated, abs=step)


def test_no_temperature_is_fitted_where_every_row_is_right():
    parts = diagnosis.parts(np.eye(3)[np.arange(9) % 3], np.arange(9) % 3)
    assert parts.temperature is None
    assert parts.miscalibration == 0


def test_calibrated_logits_are_not_called_miscalibrated():
    logits, labels = example(rows=20_000, sharpness=1.5)
    parts = diagnosis.parts(logits, labels)
    assert parts.temperature == pytest.approx(1, abs=0.03)
    assert parts.miscalibration < 2e-4


def test_measures_and_classes_against_scikit_learn():
    logits, labels = example()
    d = diagnosis.diagnose(logits, labels)
    probs, predicted = softmax(logits, axis=1), logits.argmax(1)
    assert d.summary.loss == pytest.approx(log_loss(labels, probs), rel=1e-12)
    assert d.summary.accuracy == np.mean(predicted == labels)
    np.testing.assert_array_equal(d.confusion, confusion_matrix(labels, predicted))
    precision, recall, _, support = precision_recall_fscore_support(labels, predicted)
    for k, c in enumerate(d.classes):
        own = labels == k
        assert (c.precision, c.recall, c.rows) == (
            pytest.approx(precision[k]),
            pytest.approx(recall[k]),
            support[k],
        )
        assert c.loss == pytest.approx(d.losses[own].mean())
        assert c.share == pytest.approx(d.losses[own].sum() / d.losses.sum())
        assert c.pull == pytest.approx(np.abs(probs[:, k] - own).sum())
        assert c.excess == pytest.approx(probs[:, k].sum() - own.sum())
        assert sum(b.rows for b in c.reliability) == len(labels)
    assert sum(c.share for c in d.classes) == pytest.approx(1)
    assert sum(c.excess for c in d.classes) == pytest.approx(0, abs=1e-9)
    assert d.error == pytest.approx(d.losses.std(ddof=1) / np.sqrt(len(labels)))


@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced", "label_smoothing": 0.2}])
@pytest.mark.parametrize("parts", [1, 4])
def test_the_summary_of_an_objective_is_that_of_its_rows(parts, options, monkeypatch):
    """Of the plain cross-entropy, whatever the objective is; scikit-learn has the means over the classes."""
    monkeypatch.setattr(partition_sums, "BLOCK", 400)
    logits, labels = example()
    estimator = SoftmaxRegression(**options)
    spec = check_parameters(estimator)
    factors = class_factors(estimator.class_weight, np.arange(4), np.bincount(labels))
    blocks = [
        Partition(x, as_target(ClassTargets(np.arange(4), y, None, None), factors, spec))
        for x, y in zip(np.array_split(logits, parts), np.array_split(labels, parts), strict=True)
    ]
    objective = objective_of(estimator, Local(blocks), 4, spec)
    summary = diagnosis.summarise_rows(objective, np.eye(4), np.zeros(4))
    assert summary == pytest.approx(diagnosis.summarise(logits, labels), rel=1e-12)
    p, weight = softmax(logits, axis=1), 1 / np.bincount(labels)[labels]
    assert (summary.rows, summary.loss) == (500, pytest.approx(log_loss(labels, p)))
    assert summary.accuracy == pytest.approx(accuracy_score(labels, p.argmax(1)))
    assert summary.balanced_loss == pytest.approx(log_loss(labels, p, sample_weight=weight))
    assert summary.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, p.argmax(1)))


def test_a_class_without_rows_has_no_recall():
    d = diagnosis.diagnose([[1.0, 0, -9], [0, 1, -9]], [0, 1])
    assert (d.classes[2].rows, d.classes[2].loss, d.classes[2].recall, d.classes[2].precision) == (
        0,
        None,
        None,
        None,
    )
    assert d.classes[2].share == 0


def test_rows_of_the_gradient_sum_to_zero():
    logits, labels = example(sharpness=20.0)
    d = diagnosis.diagnose(logits, labels)
    assert np.abs(d.gradient.sum(1)).max() < 1e-14
    np.testing.assert_allclose(d.gradient, softmax(logits, axis=1) - np.eye(4)[labels], atol=1e-14)


def test_the_costliest_come_first():
    logits, labels = example()
    d = diagnosis.diagnose(logits, labels)
    costs = [sample.loss for sample in d.costliest]
    assert costs == sorted(d.losses, reverse=True)[:20]
    for sample in d.costliest:
        assert d.losses[sample.position] == sample.loss
        assert sample.label == labels[sample.position]
        assert sample.predicted == logits[sample.position].argmax()
        np.testing.assert_array_equal(sample.gradient, d.gradient[sample.position])
        assert sample.probs[sample.label] == pytest.approx(np.exp(-sample.loss))


def test_the_reasons_are_the_largest_parts_of_the_difference_of_logits():
    coef = np.array([[1.0, 0, 2, 0, 0], [0.0, 3, 0, 5, 0.5], [0.0, 0, 0, 0, 9]])
    features = np.array([1.0, 2, -1, 0.1, 1])
    sample = diagnosis.Sample(0, 0, 1, 0.0, np.array([0.3, 0.4, 0.3]), np.zeros(3))
    found = diagnosis.reasons(sample, features, coef, list("abcde"))
    assert found == [("b", 6.0), ("c", 2.0), ("d", 0.5)]
    right = sample._replace(label=1)
    assert diagnosis.reasons(right, features, coef, list("abcde")) == [("a", 1.0)]


def test_equal_costs_keep_their_order():
    d = diagnosis.diagnose(np.zeros((30, 2)), np.arange(30) % 2)
    assert [sample.position for sample in d.costliest] == list(range(20))


@pytest.mark.parametrize(("right", "accuracy"), [([True, True, True, False], 0.75), ([False] * 4, 0.0)])
def test_reliability_of_an_honest_and_of_a_boastful_model(right, accuracy):
    (found,) = diagnosis.reliability(np.full(4, 0.75), np.array(right), 10)
    assert found == (4, pytest.approx(0.75), accuracy)


def test_the_ends_of_the_intervals_belong_somewhere():
    found = diagnosis.reliability(np.array([0.0, 0.1, 0.99, 1.0]), np.array([False, False, True, True]), 10)
    assert [(b.rows, b.accuracy) for b in found] == [(1, 0), (1, 0), (2, 1)]


@pytest.mark.parametrize(
    ("rows", "classes", "most"), [(1000, 7, 60), (10, 3, 60), (500, 100, 20), (300, 2, 1)]
)
def test_the_rows_of_the_map_are_spread_and_sorted(rows, classes, most):
    rng = np.random.default_rng(0)
    labels, losses = rng.integers(0, classes, rows), rng.random(rows)
    chosen = diagnosis.spread_rows(labels, losses, most)
    assert 0 < len(chosen) <= most
    assert len(set(chosen.tolist())) == len(chosen)
    assert sorted(zip(labels[chosen], losses[chosen], strict=True)) == list(
        zip(labels[chosen], losses[chosen], strict=True)
    )
    for k in np.unique(labels[chosen]):  # the costliest of each class is among them
        assert losses[labels == k].max() in losses[chosen]
