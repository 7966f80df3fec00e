"""`xent eval` as it is called: two models, groups, units, standard input, tables, and errors in one line."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.evaluation.evaluations import CLASSES, GROUPS, LABELS, OTHER, ROWS, TRUE, clustered, losses
from xent.command.cli import main


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, array in (("a", TRUE), ("b", OTHER), ("y", LABELS), ("g", GROUPS), ("u", np.full(ROWS, 2))):
        np.save(f"{name}.npy", array)


def called(capsys, *arguments, code=0):
    assert main(["eval", *arguments]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def scored(capsys, *arguments):
    return json.loads(called(capsys, *arguments, "--json"))


def test_two_models_in_json(capsys):
    found = scored(capsys, "a.npy", "b.npy", "y.npy", "--groups", "g.npy")
    A, B = losses(TRUE), losses(OTHER)
    assert found["loss_se"] == pytest.approx(clustered(A, GROUPS))
    assert found["second"]["loss"] == pytest.approx(B.mean())
    assert found["difference"] == pytest.approx((A - B).mean())
    assert found["difference_se"] == pytest.approx(clustered(A - B, GROUPS))
    assert found["wins"] == {"first": (A < B).sum(), "second": (A > B).sum(), "ties": 0}
    assert found["first_worse"][0]["row"] == 1 + int((A - B).argmax())


def test_a_group_that_one_model_cannot_score_counts_for_the_other(capsys):
    np.save("b.npy", np.where((GROUPS == 3)[:, None], np.nan, OTHER))
    found = json.loads(called(capsys, "a.npy", "b.npy", "y.npy", "--groups", "g.npy", "--json", code=1))
    assert (found["groups"], found["second"]["groups"]) == (40, 39)
    assert (found["rows"], found["compared_rows"]) == (ROWS, ROWS - (GROUPS == 3).sum())


def test_two_models_on_the_screen(capsys):
    out = called(
        capsys, "a.npy", "b.npy", "y.npy", "--groups", "g.npy", "--units", "4321", "--units", "word=900"
    )
    for part in (
        "95%, 40 groups",
        "bits per byte",
        "word perplexity",
        "a.npy less b.npy, paired over 600 rows",
        "the first loses most to the other on: row ",
        f"{(losses(TRUE) - losses(OTHER)).mean():+.6f}",
    ):
        assert part in out
    lines = [line for line in out.splitlines() if "loses most" not in line]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("groups", "count"),
    [
        (np.array([f"doc {g}" for g in GROUPS]), 40),
        (GROUPS.reshape(-1, 1), 40),
        (GROUPS > 20, 2),
        (GROUPS * 7 - 9, 40),
    ],
    ids=["text", "a column", "booleans", "any integers"],
)
def test_groups_are_numbers_or_names(capsys, groups, count):
    if groups.dtype.kind == "U":
        pl.DataFrame({"id": groups, "n": groups}).write_csv("g.csv")
        name = "g.csv:id"
    else:
        np.save("h.npy", groups)
        name = "h.npy"
    found = scored(capsys, "a.npy", "y.npy", "--groups", name)
    assert found["groups"] == count
    assert found["loss_se"] == pytest.approx(clustered(losses(TRUE), groups.ravel()))


def test_units_of_each_row(capsys):
    (unit,) = scored(capsys, "a.npy", "y.npy", "--units", "token=u.npy")["units"]
    assert (unit["name"], unit["total"]) == ("token", 2 * ROWS)
    assert unit["bits"] == pytest.approx(losses(TRUE).mean() / 2 / np.log(2))


def test_standard_input_and_a_pattern(capsys, monkeypatch):
    expected = scored(capsys, "a.npy", "y.npy")
    content = io.BytesIO()
    np.save(content, TRUE)
    content.seek(0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(content)))
    assert scored(capsys, "-", "y.npy") == expected
    for k, part in enumerate(np.split(TRUE, [100])):
        np.save(f"part-{k}.npy", part)
    assert scored(capsys, "part-*.npy", "y.npy") == expected


def test_predictions_and_text_labels(capsys):
    names = [f"class {k}" for k in range(CLASSES)]
    p = np.exp(TRUE) / np.exp(TRUE).sum(1, keepdims=True)
    pl.DataFrame({f"p_{n}": p[:, k] for k, n in enumerate(names)}).write_csv("p.csv")
    pl.DataFrame({"text": "x", "truth": [names[k] for k in LABELS]}).write_csv("y.csv")
    found, expected = scored(capsys, "p.csv", "y.csv:truth"), scored(capsys, "a.npy", "y.npy")
    assert found["class_names"] == names
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12)
    assert (found["accuracy"], found["like_probabilities"]) == (expected["accuracy"], False)
    assert "class 3" in called(capsys, "p.csv", "y.csv:truth")


@pytest.mark.parametrize("booleans", [False, True])
def test_one_score_a_row(capsys, booleans):
    score, y = TRUE[:, 1] - TRUE[:, 0], LABELS > 2
    np.save("s.npy", score)
    np.save("p.npy", 1 / (1 + np.exp(-score)))
    np.save("t.npy", y if booleans else y.astype(int))
    loss = np.log1p(np.exp(np.where(y, -score, score))).mean()
    for arguments in (["s.npy", "t.npy"], ["p.npy", "t.npy", "--probabilities"]):
        found = scored(capsys, *arguments)
        assert (found["num_classes"], found["loss"]) == (2, pytest.approx(loss))


def test_the_page_holds_the_numbers(capsys):
    expected = scored(capsys, "a.npy", "b.npy", "y.npy")
    assert "report: page.html" in called(capsys, "a.npy", "b.npy", "y.npy", "--report", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', page, re.DOTALL)[1])
    assert numbers["models"][0]["loss"] == expected["loss"]
    assert numbers["comparison"]["difference"] == expected["difference"]
    assert numbers["costliest"][0]["row"] == 1 + int(losses(TRUE).argmax())
    assert f"row {1 + int(losses(TRUE).argmax()):,}" in page
    assert "The loss of a.npy is" in page


# name → (arguments, what the one line must say)
BAD = {
    "labels of other rows": (
        "a.npy u2.npy",
        ["u2.npy: expected labels of shape (600,)", "row of a.npy", "(599,)"],
    ),
    "one file": ("a.npy", ["LOGITS", "LABELS are missing", "got 1 file"]),
    "four files": ("a.npy b.npy a.npy y.npy", ["got 4 files", "in quotes"]),
    "standard input for groups too": ("- y.npy --groups -", ["can be read once only"]),
    "standard input twice": ("- - y.npy", ["can be read once only"]),
    "rows of two models": ("a.npy short.npy y.npy", ["short.npy: has shape (598, 5), a.npy (600, 5)"]),
    "rows of a second model": ("a.npy long.npy y.npy", ["long.npy: has shape (602, 5), a.npy (600, 5)"]),
    "classes of two models": ("a.npy narrow.npy y.npy", ["narrow.npy: has 3 classes, a.npy 5"]),
    "groups": ("a.npy y.npy --groups short.npy", ["short.npy: expected one value for each row", "(600,)"]),
    "groups of numbers with a fraction": ("a.npy y.npy --groups f.npy", ["f.npy: expected integers or text"]),
    "no units": ("a.npy y.npy --units 0", ["`--units` must be > 0", "got 0"]),
    "units without a file": ("a.npy y.npy --units x", ["x: No such file"]),
    "units of other rows": ("a.npy y.npy --units short.npy", ["short.npy: expected one value for each row"]),
    "negative units": ("a.npy y.npy --units minus.npy", ["minus.npy: `--units`", "got -1 in row 3"]),
    "units twice": ("a.npy y.npy --units 5 --units 6", ["'byte' twice"]),
    "report over a file": ("a.npy y.npy --report y.npy", ["y.npy: is read from"]),
    "distributions of one axis": ("a.npy f.npy", ["f.npy: numbers with a fraction are probabilities"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_one_line(case, capsys):
    np.save("short.npy", OTHER[:598])
    np.save("long.npy", np.pad(OTHER, ((0, 2), (0, 0))))
    np.save("narrow.npy", OTHER[:, :3])
    np.save("f.npy", np.full(ROWS, 0.5))
    np.save("u2.npy", LABELS[1:])
    np.save("minus.npy", np.where(np.arange(ROWS) == 2, -1.0, 1.0))
    arguments, expected = BAD[case]
    assert main(["eval", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    for part in expected:
        assert part in err
