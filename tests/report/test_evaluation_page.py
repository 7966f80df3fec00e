"""The page of `xent eval`: whole in itself whatever the names and the numbers are, true to the results."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import xent
from tests.evaluation.evaluations import CLASSES, GROUPS, LABELS, OTHER, TRUE, results
from tests.report.test_page import Page
from xent.evaluation.stream import RowColumns
from xent.report import evaluation_page

NAMES = ['<img src="x" onerror="alert(1)">', '"><script>alert(2)</script>', "</text></svg>&amp;", "d", "e"]
IMPOSSIBLE = TRUE.copy()
IMPOSSIBLE[3, LABELS[3]] = -np.inf
SOFT = xent.softmax(TRUE)
# name → (outputs of the models, targets, options)
CASES = {
    "one model": ([TRUE], LABELS, {}),
    "two models": ([TRUE, OTHER], LABELS, {}),
    "groups": ([TRUE, OTHER], LABELS, {"columns": RowColumns(GROUPS, 40, {"byte": 5000.0})}),
    "a model and itself": ([TRUE, TRUE], LABELS, {}),
    "distributions": ([3 * TRUE, OTHER], SOFT, {}),
    "probabilities": ([SOFT], LABELS, {"probabilities": True}),
    "an infinite loss": ([IMPOSSIBLE], LABELS, {}),
    "an infinite difference": ([TRUE, IMPOSSIBLE], LABELS, {}),
    "all right": ([40 * np.eye(CLASSES)[LABELS]], LABELS, {}),
    "one class": ([np.zeros((9, 1))], np.zeros(9, int), {}),
    "one row": ([TRUE[:1], OTHER[:1]], LABELS[:1], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_whole_and_true(case, tmp_path):
    outputs, targets, options = CASES[case]
    found = results(tmp_path, outputs, targets, costliest=20, **options)
    names = NAMES if outputs[0].shape[1] == CLASSES else None
    files = ["<b>.npy", "b&amp;.npy"][: len(outputs)]
    html = evaluation_page.html([*files, "y.npy"], names, found, "xent eval <&>")
    page = Page(html)
    assert page.open == page.unnamed == []
    assert (page.tags.count("script"), page.tags.count("img")) == (2, 0)
    assert page.tags.count("svg") == 1 + len(found.costliest)
    assert all(reference[1:] in page.ids for reference in page.references)
    assert len(page.ids) == len(set(page.ids))
    assert not {"nan", "inf", "none"} & set(re.findall(r"[a-z]+", page.text.partition("{")[0].lower()))
    (source,) = re.findall(r'id="numbers">(.*?)</script>', html)
    numbers = json.loads(source)
    first = found.evaluations[0]
    assert numbers["models"][0]["loss"] == (first.loss if np.isfinite(first.loss) else None)
    assert f"{first.accuracy:.2%}" in page.text
    for row in found.costliest:
        assert f"row {row.row:,}" in page.text
    if found.comparison is not None:
        assert numbers["comparison"]["wins"] == found.comparison.wins._asdict()


FINDINGS = {
    "one model": "of 600 rows are predicted right; the loss is ",
    "two models": "The loss of a.npy is 0.",
    "a model and itself": "of the losses of a.npy and b.npy can be told from chance: 0.0000 ± 0.0000",
    "one row": "the difference of their losses has no standard error",
}


@pytest.mark.parametrize("case", FINDINGS)
def test_the_verdict(case, tmp_path):
    outputs, targets, options = CASES[case]
    found = results(tmp_path, outputs, targets, **options)
    assert FINDINGS[case] in evaluation_page.finding(["a.npy", "b.npy"][: len(outputs)], found)


def test_files_are_called_by_their_last_part_if_that_tells_them_apart():
    assert evaluation_page.model_names(["x/a.npy", "y/b.npy:z"]) == ["a.npy", "b.npy:z"]
    assert evaluation_page.model_names(["x/a.npy", "y/a.npy"]) == ["x/a.npy", "y/a.npy"]


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_cards_show_probabilities_and_their_difference_from_the_target(tmp_path, probabilities):
    outputs = 2 * SOFT if probabilities else TRUE  # rows are divided by their sum
    found = results(tmp_path, [outputs], LABELS, costliest=5, probabilities=probabilities)
    for row in found.costliest:
        sample = evaluation_page.card(row, found.evaluations[0], NAMES, probabilities).sample
        np.testing.assert_allclose(sample.probs, SOFT[row.row - 1])
        np.testing.assert_allclose(sample.gradient, SOFT[row.row - 1] - np.eye(CLASSES)[LABELS[row.row - 1]])
