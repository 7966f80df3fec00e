"""The choice of alpha in a run: by the training rows alone; on the screen, the page and in JSON."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

import xent
from xent.command.cli import main
from xent.files import dataset
from xent.regression.estimator import SoftmaxRegression
from xent.report import page, plots, training, verdict
from xent.report.training import Settings, TriedAlphas


@pytest.fixture(scope="module")
def run():
    return training.run(dataset.load("wine"), Settings(auto_alpha=True, seed=3))


def test_alpha_is_chosen_on_the_training_rows_alone(run):
    data = run.data
    training_rows = np.setdiff1d(np.arange(len(data.labels)), run.held_out)
    rows = training.InMemory(data, Settings(seed=3)).train
    assert sorted(rows) == training_rows.tolist()
    x = run.model.preprocessor.transform(data.features[rows])
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    expected = xent.SoftmaxRegressionCV(cv=folds, random_state=3).fit(x, data.labels[rows])
    assert run.settings.alpha == expected.alpha_
    np.testing.assert_array_equal(run.tried.losses, expected.mean_scores_)
    np.testing.assert_array_equal(run.tried.standard_errors, expected.standard_errors_)


def test_the_model_is_a_plain_one_of_that_alpha(run):
    assert type(run.model.estimator) is SoftmaxRegression
    assert run.model.estimator.alpha == run.settings.alpha == run.tried.alphas[np.argmin(run.tried.losses)]
    assert run.gradient.passed
    assert run.optimality_gap < 1e-4
    assert run.model.notes["settings"]["alpha"] == run.settings.alpha


def test_the_page_has_the_curve_and_json_its_numbers(run):
    html = page.html(run, "xent fit wine --alpha auto")
    (svg,) = re.findall(r'<svg[^>]*aria-label="Held-out loss by alpha.*?</svg>', html, re.DOTALL)
    circles = re.findall(r'<circle[^>]*\br="([^"]+)"[^>]*><title>([^<]*)</title>', svg)
    assert len(circles) == len(run.tried.alphas)
    chosen = [title for radius, title in circles if radius == "7"]
    best = int(np.argmin(run.tried.losses))
    loss, error = run.tried.losses[best], run.tried.standard_errors[best]
    assert chosen == [f"alpha {run.settings.alpha:.3g}: {loss:.4f} ± {error:.4f} nats"]
    (numbers,) = re.findall(r'id="numbers">(.*?)</script>', html, re.DOTALL)
    assert json.loads(numbers)["alpha_choice"] == run.tried._asdict()
    plain = page.html(training.run(dataset.load("wine"), Settings()), "xent fit wine")
    assert "choice of alpha" not in plain
    assert '"alpha_choice":null' in plain


def test_the_screen_says_it(capsys):
    assert main(["fit", "wine", "--alpha", "auto", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^alpha +0\.\d+, the best of \d+ on 5 folds of the training rows: a loss of 0\.", out, re.M
    )


@pytest.mark.parametrize(
    ("losses", "words"),
    [([3, 1, 2], "nats (one standard error)"), ([1, 2, 3], "; a larger one"), ([3, 2, 1], "; a smaller one")],
)
def test_an_alpha_at_the_end_of_those_tried_is_said(losses, words):
    alphas = [0.1, 0.01, 0.001]
    tried = TriedAlphas(alphas, losses, [0.1] * 3, 5)
    sentence = verdict.about_alpha(tried, alphas[losses.index(1)])
    assert words in sentence
    assert ("may be better" in sentence) is (";" in words)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_curve_of_any_length_is_drawn(count):
    tried = TriedAlphas([10.0**-k for k in range(count)], [0.5] * count, [0.0] * count, 5)
    assert plots.loss_by_alpha(tried, 1.0).count("<circle") == count


def test_no_advice_to_change_what_was_chosen(run):
    curve = [(1.1, 1.1), (0.5, 1e-6), (0.03, 0.12)]
    spoilt = run._replace(curve=curve)
    assert not any("--alpha" in caution for caution in verdict.verdict(spoilt)[1])
    cautions = verdict.verdict(spoilt._replace(tried=None))[1]
    assert any("--alpha auto" in caution for caution in cautions)


def test_classes_of_few_rows_have_fewer_folds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.csv").write_text("a,b,y\n" + "".join(f"{k % 3},{k},{'xyz'[k % 3]}\n" for k in range(12)))
    assert main(["fit", "f.csv", "--target", "y", "--alpha", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alpha_choice"]["folds"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["iris", "--alpha", "much"], "`--alpha` must be a number or auto; got 'much'"),
        (["iris", "--alpha=-1"], "`--alpha` must be a number, finite and >= 0"),
        (["iris", "--alpha", "nan"], "`--alpha` must be a number, finite and >= 0"),
        (
            ["f.csv", "--target", "y", "--memory", "1GiB", "--alpha", "auto"],
            "read in parts, as cross-validation would",
        ),
        (
            ["f.csv", "--target", "y", "--memory", "1GiB", "--drop-rare"],
            "`--drop-rare` is for rows in memory",
        ),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.csv").write_text("a,y\n" + "1,u\n2,v\n" * 20)
    assert main(["fit", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
