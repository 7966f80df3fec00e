"""What the explorer computes and says, against xent: every option, every label of 2 to 10, logits to 1e3."""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import shlex

import numpy as np
import pytest

import xent
from tests.explain.explorer_rows import OPTIONS, named, row, state
from xent import information
from xent.command.cli import main
from xent.explain import steps

SCALES = (0.02, 1.0, 30.0, 1e3)


def table():
    """Every option × 2 to 10 classes × every scale × every label; and rows whose loss is in the tail."""
    rng = np.random.default_rng(0)
    for options, num_classes, scale in itertools.product(OPTIONS, range(2, 11), SCALES):
        given = named(options, num_classes)
        logits = (scale * rng.standard_normal(num_classes)).tolist()
        for label in range(num_classes):
            yield logits, label, given
    for logits, options in itertools.product(
        ([20.0, 0.0], [700.0, -30.0, 0.0], [3.0, 3.0]), ({}, {"focal_gamma": 2.0})
    ):
        for label in range(len(logits)):
            yield logits, label, options


def test_the_browser_computes_what_xent_computes(visit):
    rows = list(table())
    states = json.dumps([state(*r) for r in rows])  # as text: playwright is slow with many objects
    found = visit(row()).evaluate("states => JSON.stringify(JSON.parse(states).map(xent.compute))", states)
    assert len(rows) > 3000
    for (logits, label, options), ours in zip(rows, json.loads(found), strict=True):
        shown = f"{logits}, {label}, {options}"

        def agree(name, theirs, terms=0.0, ours=ours, shown=shown):
            """To 1e-12; where terms of opposite sign cancel in (1) or (2), it is relative to them."""
            allowed = 1e-12 * np.abs(theirs) + 1e-15 * terms + 1e-300
            assert (np.abs(np.subtract(ours[name], theirs)) <= allowed).all(), (name, shown)

        one_hot, p, v = np.arange(len(logits)) == label, np.array(ours["p"]), np.array(ours["v"])
        loss, gradient = xent.cross_entropy_with_grad([logits], [label], reduction="sum", **options)
        agree("loss", loss, abs(ours["alpha"] * ours["x"]) + abs(ours["beta"] * ours["sigma"]))
        brackets = abs(ours["s"]) * p + abs(ours["b"] * (one_hot - p)) + abs(ours["beta"]) * v
        capped = 1.0 if "softcap" in options else 0.0  # the cap's slope is 1 − tanh²
        agree("gradient", gradient[0], np.maximum(ours["slope"], capped) * brackets)

        explained = steps.explain(logits, label, options)
        columns = {column.name: column.values for column in explained.columns}
        lines = {line.name: line.value for line in explained.lines}
        agree("p", columns["probability"], p * max(map(abs, ours["u"])))  # explain's is exp(u − l)
        agree("t", columns["target"], 1.0)
        agree("lse", lines["log-sum-exp"], 1.0)
        agree("x", lines["log p of the label"])
        if ours["total"]:
            q = np.array(ours["t"]) / ours["total"]
            agree("entropy", information.entropy(q), 1.0)
            agree("crossEntropy", ours["entropy"] + ours["divergence"], 1.0)
            assert ours["divergence"] >= 0
            if p.min() > 1e-300:
                agree("divergence", information.kl_divergence(q, p), 100.0)


def test_the_tail_keeps_its_digits(visit):
    found = visit(row()).evaluate("s => xent.compute(s)", state([20.0, 0.0], 0, {}))
    assert found["loss"] == pytest.approx(math.log1p(math.exp(-20)), rel=1e-15)
    assert found["gradient"] == pytest.approx([-1 / (1 + math.exp(20)), 1 / (1 + math.exp(20))], rel=1e-15)


@pytest.mark.parametrize("options", [o for o in OPTIONS if "softcap" not in o], ids=str)
def test_the_curve_is_the_loss_as_the_labels_logit_moves(visit, options):
    logits = [1.0, -2.0, 0.5, 3.0]
    given = named(options, 4)
    rows = list(itertools.product(range(4), (-30.0, -1.0, 0.0, 2.0, 30.0)))
    script = "([s, by]) => { const c = xent.lossAtGap(s); return [c.loss(c.gap), c.loss(c.gap + by)]; }"
    moves = [[state(logits, label, given), moved / given.get("temperature", 1.0)] for label, moved in rows]
    found_rows = visit(row()).evaluate(f"moves => moves.map({script})", moves)
    for (label, moved), (here, there) in zip(rows, found_rows, strict=True):
        elsewhere = [z + moved * (k == label) for k, z in enumerate(logits)]
        for found, z in ((here, logits), (there, elsewhere)):
            expected = xent.cross_entropy([z], [label], reduction="sum", **given)
            assert found == pytest.approx(float(expected), rel=1e-12, abs=1e-15)


def test_a_softcap_bounds_the_curve(visit):
    script = "s => { const c = xent.lossAtGap(s); return [c.reach, c.reach.map(c.loss)]; }"
    (least, most), (dear, cheap) = visit(row()).evaluate(script, state([1.0, 2.0, 3.0], 0, {"softcap": 4.0}))
    u = 4 * np.tanh(np.array([2.0, 3.0]) / 4)
    rest = math.log(np.exp(u).sum())
    assert (least, most) == pytest.approx((-4 - rest, 4 - rest), rel=1e-14)
    for found, logit in ((dear, -1e4), (cheap, 1e4)):
        expected = xent.cross_entropy([[logit, 2.0, 3.0]], [0], reduction="sum", softcap=4.0)
        assert found == pytest.approx(float(expected), rel=1e-12)


def evaluated(html):
    """The number that a sum of shown numbers comes to, and the largest number in it."""
    text = html.replace("<sup>", "**(").replace("</sup>", ")").replace("<var>e</var>", "E")
    text = re.sub(r"×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda m: "e" + m[1].translate(SUPERSCRIPTS), text)
    text = text.lstrip("= ").replace("−", "-").replace("·", "*").replace("[", "(").replace("]", ")")
    assert re.fullmatch(r"[-\d.e+*/() Elog]+", text), text
    numbers = [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", text)]
    return eval(text, {"E": math.e, "log": math.log}), max(numbers)


SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_equations_shown_give_the_numbers_shown(visit, options):
    given = named(options, 4)
    page = visit(row(logits=(1.5, -0.5, 2.0, 0.25), label=2, options=given))
    rows = page.locator(".equations tr").all()
    assert len(rows) == 7 + ("label_smoothing" in options)
    for line in rows:
        _, numbers, value = (cell.inner_html() for cell in line.locator("td").all())
        found, largest = evaluated(numbers)
        assert found == pytest.approx(evaluated(value)[0], abs=3e-3 * max(1, largest))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_commands_shown_give_the_loss_shown(visit, options, capsys):
    given = named(options, 3)
    page = visit(row(logits=(-1.5, 0.25, 3.0), label=1, options=given))
    call = ast.parse(page.locator("#python").inner_text(), mode="eval").body
    assert ast.unparse(call.func) == "xent.cross_entropy_with_grad"
    arguments = [ast.literal_eval(argument) for argument in call.args]
    loss, gradient = xent.cross_entropy_with_grad(
        *arguments, **{keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    )
    ours = page.evaluate("xent.compute(xent.state())")
    assert ours["loss"] == pytest.approx(float(loss), rel=1e-12)
    np.testing.assert_allclose(ours["gradient"], gradient[0], rtol=1e-11, atol=1e-15)
    program, *words = shlex.split(page.locator("#command").inner_text())
    assert program == "xent"
    assert main(words) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if "loss, bits" in line)
    assert float(printed.split()[-1]) == pytest.approx(ours["loss"] / math.log(2), abs=1e-6)
