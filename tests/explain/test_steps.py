"""`xent explain`: the numbers against SciPy and the definition, the formulas as they should be read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.special import softmax as scipy_softmax

from xent.command.cli import main
from xent.explain.steps import explain, parse_numbers

Z = np.array([2.0, 3.0, 4.0])


def column(explanation, name):
    return next(c.values for c in explanation.columns if c.name == name)


def line(explanation, name):
    return next(item for item in explanation.lines if item.name == name)


def test_the_plain_loss_is_what_scipy_says():
    e = explain(Z, 1, {})
    np.testing.assert_allclose(column(e, "probability"), scipy_softmax(Z), rtol=1e-15)
    np.testing.assert_allclose(column(e, "gradient"), scipy_softmax(Z) - [0, 1, 0], rtol=1e-14)
    assert line(e, "log-sum-exp").value == pytest.approx(logsumexp(Z), rel=1e-15)
    assert line(e, "loss, nats").value == pytest.approx(-log_softmax(Z)[1], rel=1e-15)
    assert line(e, "loss, bits").value == pytest.approx(-log_softmax(Z)[1] / math.log(2), rel=1e-15)
    assert line(e, "loss, nats").formula == "ℓ = −x (1)"
    assert "p − t" in e.gradient


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({"class_weight": [1.0, 2.0, 3.0]}, "ℓ = −α x (1)"),
        ({"label_smoothing": 0.1}, "ℓ = −α x − βσ (1)"),
        ({"label_smoothing": 0.1, "smoothing_over": "others"}, "ℓ = −α x − βσ (1)"),
        ({"focal_gamma": 2.0}, "ℓ = −(1−eˣ)^γ x (1)"),
        ({"poly1_epsilon": 2.0, "class_weight": [1.0, 2.0, 3.0]}, "ℓ = −α x + α ε(1−eˣ) (1)"),
        ({"z_loss": 0.1}, "ℓ = −x + λl² (1)"),
        ({"temperature": 2.0}, "ℓ = −x (1)"),
        ({"softcap": 5.0, "focal_gamma": 0.5, "z_loss": 0.1}, "ℓ = −(1−eˣ)^γ x + λl² (1)"),
    ],
    ids=str,
)
def test_the_formula_shown_gives_the_number_shown(options, formula):
    e = explain(Z, 1, options)
    assert line(e, "loss, nats").formula == formula
    # The definition: −Σ t log p (focal: times (1−p)^γ), plus λ l²; its differences are the gradient.
    target = column(e, "target")

    def loss(z):
        u = z / options.get("temperature", 1.0)
        if "softcap" in options:
            u = options["softcap"] * np.tanh(u / options["softcap"])
        log_p = log_softmax(u)
        focus = (1 - np.exp(log_p)) ** options.get("focal_gamma", 0.0)
        poly1 = options.get("poly1_epsilon", 0.0) * (1 - np.exp(log_p))
        return (target * (poly1 - focus * log_p)).sum() + options.get("z_loss", 0.0) * logsumexp(u) ** 2

    assert line(e, "loss, nats").value == pytest.approx(loss(Z), rel=1e-14)
    numeric = [(loss(Z + 1e-6 * d) - loss(Z - 1e-6 * d)) / 2e-6 for d in np.eye(3)]
    np.testing.assert_allclose(column(e, "gradient"), numeric, atol=1e-8)
    # What is shown of (2): the gradient from the columns and the two weights.
    if "softcap" not in options and "temperature" not in options and e.lines[-2].name.startswith("weight"):
        s, b = line(e, "weight of p (2)").value, line(e, "weight of e_y − p (2)").value
        p, one_hot = column(e, "probability"), np.array([0, 1, 0])
        alpha = -b if not options.keys() & {"focal_gamma", "poly1_epsilon"} else target[1]
        np.testing.assert_allclose(
            column(e, "gradient"), s * p + b * (one_hot - p) - (target - alpha * one_hot), atol=1e-12
        )


def test_formulas_with_brackets_survive_the_printing(capsys):
    assert main(["explain", "2 3 4", "--label", "1", "--label-smoothing", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "[s p + b (e_y − p) − β v]" in out
    assert "label → 1" in out


@pytest.mark.parametrize("text", ["2 3 4", "2,3,4", " 2;  3\t4 ", "[2, 3, 4]", "(2.0 3e0 4)"])
def test_numbers_are_read_as_people_write_them(text):
    np.testing.assert_array_equal(parse_numbers(text, "logits"), Z)


def test_an_excluded_class_has_probability_and_gradient_0():
    e = explain(parse_numbers("-inf 0 0", "logits"), 1, {})
    assert column(e, "probability")[0] == column(e, "gradient")[0] == 0


@pytest.mark.parametrize(
    ("text", "value", "place"),
    [
        ("2 a 4", "'a'", 2),
        ("", "''", 1),
        ("1 nan", "'nan'", 2),
        ("1 2 1.5.2", "'1.5.2'", 3),
        ("inf 1", "'inf'", 1),
        ("1 2 +infinity", r"'\+infinity'", 3),
    ],
)
def test_what_is_no_number_is_named(text, value, place):
    with pytest.raises(ValueError, match=rf"`logits` must be numbers .*got {value}, number {place}"):
        parse_numbers(text, "logits")


@pytest.mark.parametrize("text", ["0,5 1,5", "0,5;1,5", "1,5, 2,5", "-1,5\t2"])
def test_decimal_commas_are_no_separators(text):
    with pytest.raises(ValueError, match=r"numbers such as 0\.5, .*not by both; got '"):
        parse_numbers(text, "logits")
