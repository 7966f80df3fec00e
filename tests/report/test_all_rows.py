"""Runs that hold out no rows: what needs them is left out, and said; the numbers are those of all rows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import xent
from xent.command.cli import main
from xent.files import dataset
from xent.files.preprocess import Preprocessor
from xent.report import page, plain, training
from xent.report.training import Settings

OF_HELD_OUT = ["parts", "costliest", "classes", "errors"]  # sections of the page
CASES = {
    "plain": {},
    "alpha auto": {"auto_alpha": True},
    "balanced": {"balanced": True},
    "balanced, alpha auto": {"balanced": True, "auto_alpha": True},
    "focal": {"focal_gamma": 1.0},
}


@pytest.fixture(scope="module", params=CASES)
def run(request):
    return training.run(dataset.load("wine"), Settings(test_size=0.0, **CASES[request.param]))


def test_the_model_is_that_of_all_rows():
    data = dataset.load("wine")
    run = training.run(data, Settings(test_size=0.0))
    x = Preprocessor.fit(data.features, data.feature_names).transform(data.features)
    expected = xent.SoftmaxRegression().fit(x, data.labels)
    np.testing.assert_allclose(run.model.estimator.coef_, expected.coef_, atol=1e-6)
    assert run.train.rows == 178
    assert run.test is None
    labels = np.unique(data.labels, return_inverse=True)[1]
    assert run.train.loss == pytest.approx(xent.cross_entropy(expected.decision_function(x), labels))
    assert run.frequencies == pytest.approx(xent.information.entropy(np.bincount(labels) / 178))


def test_the_page_leaves_out_what_needs_held_out_rows(run):
    html = page.html(run, "xent fit wine --test-size 0")
    for name in OF_HELD_OUT:
        assert f'id="{name}"' not in html
        assert f'href="#{name}"' not in html
    for name in ("coefficients", "training", "data", "again"):
        assert f'id="{name}"' in html
    assert "No rows were held out" in html
    (numbers,) = re.findall(r'id="numbers">(.*?)</script>', html, re.DOTALL)
    facts = json.loads(numbers)
    assert facts["rows"] == {"training": 178, "held_out": 0, "unlabelled": 0, "sample": None}
    assert all(facts[name] is None for name in plain.OF_HELD_OUT)
    assert facts["curve"]["held_out"] is None
    assert facts["training"] == run.train._asdict()
    with_test = plain.run(training.run(dataset.load("wine"), Settings()), "")
    assert facts.keys() == with_test.keys()


def test_cross_validation_stands_in_where_there_is_one(run):
    facts, html = plain.run(run, ""), page.html(run, "")
    if run.tried is None:
        assert facts["cross_validated"] is None
        assert "Loss on held-out folds" not in html
        return
    chosen = int(np.argmin(run.tried.losses))
    loss, error = run.tried.losses[chosen], run.tried.standard_errors[chosen]
    assert facts["cross_validated"] == {"loss": loss, "standard_error": error}
    assert re.search(rf"Loss on held-out folds.{{1,60}}{loss:.4f}", html, re.DOTALL)
    assert f"{loss:.4f} ± {error:.4f} nats (one standard error)" in html


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["100.0% of 178 training rows are predicted right; the training loss is", "No rows were held"]),
        ("--alpha auto", ["the loss on held-out folds is", "The loss to expect of new rows is"]),
    ],
)
def test_the_screen_says_it(words, expected, capsys):
    assert main(["fit", "wine", "--test-size", "0", *words.split()]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(part in out for part in expected)
    assert " held out train " not in out


@pytest.mark.parametrize("words", ["data", "data/0.csv", "data/0.csv --memory 64MiB"])
def test_files_are_trained_on_whole(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    random = np.random.default_rng(0)
    for part in range(2):
        rows = [
            f"{a:.4f},{b:.4f},{'uv'[int(a + random.normal() > 0)]}" for a, b in random.normal(size=(60, 2))
        ]
        (tmp_path / "data" / f"{part}.csv").write_text("\n".join(["a,b,y", *rows]))
    line = ["fit", *words.split(), "--target", "y", "--test-size", "0", "--json", "--tol", "1e-9"]
    assert main([*line, "--model", "one", "--report", "r.html"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"]["training"] == (120 if words == "data" else 60)
    assert facts["rows"]["held_out"] == 0
    assert facts["held_out"] is None
    assert main([*line, "--checkpoint", "c", "--max-iter", "2"]) == 0
    assert main([*line, "--resume", "c", "--model", "two"]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_class_of_one_row_is_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.csv").write_text("a,y\n1,u\n2,v\n3,v\n")
    assert main(["fit", "f.csv", "--target", "y"]) == 2
    assert "class 'u' has one row" in capsys.readouterr().err
    assert main(["fit", "f.csv", "--target", "y", "--test-size", "0"]) == 0
