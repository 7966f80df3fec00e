"""The report of a run: one HTML page with numbers, sentences and pictures."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent import information
from xent.files.dataset import Dataset
from xent.files.phrases import counted, printable
from xent.html import render, thumbnails
from xent.regression.estimator import versions
from xent.report import coefficients, plain, plots
from xent.report.diagnosis import Diagnosis, Parts, Reason, Sample
from xent.report.effects import MOST_MULTIPLES, coefficient_images, effects, signed
from xent.report.training import Run, Settings
from xent.report.verdict import checked, checked_rows, commonest, reading, sampled, verdict, yardstick

Array = np.ndarray[Any, Any]

MOST_CLASSES = 60  # rows in the table of classes
MOST_NUMBERS = 20_000  # coefficients in the page's JSON
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Figure(NamedTuple):
    """A number at the top of the page, with its name and a note; ``passed`` is for the result of a test."""

    name: str
    value: str
    note: str
    passed: bool | None = None


class Mark(NamedTuple):
    """A loss on the scale from the largest loss shown, 0%, to certainty, 100%."""

    name: str
    loss: str
    percent: float


class Part(NamedTuple):
    """A line of the sum (18), with a bar from ``start`` to ``start + share`` in % of the widest."""

    name: str
    meaning: str
    value: str
    start: float
    share: float
    css: str


class Card(NamedTuple):
    """One of the costliest rows."""

    sample: Sample
    place: str  # "row 1,234", and the file if there are several
    picture: str | None
    bars: str
    reasons: list[Reason]  # empty if there is a picture


def key_numbers(run: Run) -> list[Figure]:
    """The four numbers at the top of the page."""
    g, gap = run.gradient, run.optimality_gap
    name, share = commonest(run)
    test, always = run.test, f"{share:.2%} by always saying {printable(str(name))}"
    if gap is not None and gap >= 1:  # this holds for any loss that is not negative
        optimum = Figure("Distance from the optimum", "unknown", "no bound on the training objective found")
    elif gap is not None:
        optimum = Figure(
            "Distance from the optimum", f"≤ {_percent(gap)}", "of the training objective, proved"
        )
    elif run.settings.focal_gamma:
        optimum = Figure("Distance from the optimum", "unknown", "the focal loss is not convex: no bound")
    else:
        optimum = Figure(
            "Distance from the optimum", "unknown", f"{plots.SOLVERS[run.solver]} gives no bound"
        )
    if test is not None:
        accuracy = Figure(
            "Accuracy", f"{test.accuracy:.2%}", f"{run.train.accuracy:.2%} on the training rows; {always}"
        )
    else:
        accuracy = Figure("Training accuracy", f"{run.train.accuracy:.2%}", f"no rows held out; {always}")
    return [
        _figure_of_loss(run),
        accuracy,
        optimum,
        Figure(
            "Gradient",
            "verified" if g.passed else "wrong",
            f"{_scientific(g.error)} from finite differences, in {checked(run)}",
            g.passed,
        ),
    ]


def _figure_of_loss(run: Run) -> Figure:
    """The loss on held-out rows, or else on held-out folds, or else on the training rows."""
    if run.test is not None:
        name, loss, where = "Held-out loss", run.test.loss, ""
    elif run.validated is not None:
        name, loss, where = "Loss on held-out folds", run.validated[0], "cross-validated; "
    else:
        name, loss, where = "Training loss", run.train.loss, "no rows held out; "
    unit = f"nats a row: {nats(information.bits(loss))} bits, a perplexity of {perplexity(loss, 2)}"
    return Figure(name, nats(loss), where + unit)


def loss_scale(run: Run) -> dict[str, Any]:
    """The losses, and that of the guess in `Yardstick`, as positions on a scale that ends at certainty."""
    guess = yardstick(run)
    name = "held-out folds" if run.test is None else "held out"
    first = [] if guess.held_out is None else [(name, guess.held_out, guess.interval)]
    return scale(
        [*first, ("training", guess.training, None)],
        guess.guess,
        guess.name,
    )


def scale(losses: list[tuple[str, float, float | None]], guess: float, name: str) -> dict[str, Any]:
    """As `loss_scale`, of [(name, loss, half of its 95% interval)]; the skill is that of the first."""
    widest = max(guess, *(loss for _, loss, _ in losses)) or 1.0
    return {
        "marks": [
            Mark(which, nats(loss) + ("" if half is None else f" ± {nats(half)}"), 100 * (1 - loss / widest))
            for which, loss, half in losses
        ],
        "name": name,
        "guess": 100 * (1 - guess / widest),
        "nats": f"{guess:.4f}",
        "skill": f"skill {1 - losses[0][1] / guess if guess > 0 else 0.0:,.1%}".replace("-", "−"),
    }


def sum_of_parts(parts: Parts, name: str = "Held-out loss") -> list[Part]:
    """Equation (18) as bars; the second number is rounded so that the printed numbers add up."""
    decimals = 4 if parts.loss >= 1e-3 else 6
    uncertainty, wrong, loss = (
        round(x, decimals) for x in (parts.uncertainty, parts.miscalibration, parts.loss)
    )
    gain = round(uncertainty + wrong - loss, decimals)
    unit = 100 / max(uncertainty, loss, uncertainty - gain)
    calibrated = uncertainty - gain
    return [
        Part(
            "Uncertainty",
            "the entropy of the class frequencies: the cost of guessing by them",
            f"{uncertainty:.{decimals}f}",
            0,
            unit * uncertainty,
            "plain",
        ),
        Part(
            "Discrimination",
            "what the features tell of the classes",
            f"{'−' if gain >= 0 else '+'} {abs(gain):.{decimals}f}",
            unit * min(calibrated, uncertainty),
            unit * abs(gain),
            "good",
        ),
        Part(
            "Miscalibration",
            "what stating the wrong confidence costs",
            f"+ {wrong:.{decimals}f}",
            unit * calibrated,
            unit * wrong,
            "bad",
        ),
        Part(name, "", f"= {loss:.{decimals}f}", 0, unit * loss, "total"),
    ]


def about_temperature(parts: Parts) -> str:
    """What the fitted temperature means, in words."""
    t = parts.temperature
    if t is None:
        return (
            "No temperature can be fitted: these rows are all right, or no better than guessed, so more "
            "confidence, or less, would always be better on them."
        )
    if abs(t - 1) < 0.02:
        words = "the stated confidence is right as it is"
    elif t > 1:
        words = "the model is surer than it should be, and its logits are best divided by that"
    else:
        words = "the model could be surer than it is, and its logits are best divided by that"
    effect = (
        "Fitted on four fifths of the rows, it lowers the loss of the other fifth."
        if parts.miscalibration > 0
        else "Fitted on four fifths of the rows, it does not lower the loss of the other fifth: no "
        "miscalibration can be told from chance."
    )
    return f"Fitted temperature {t:.3g}: {words}. {effect}"


def objective(settings: Settings) -> str:
    """The function that the training minimised, in words."""
    words = "mean cross-entropy"
    if settings.focal_gamma:
        words = f"mean focal loss, γ = {settings.focal_gamma:g},"
    if settings.label_smoothing:
        words += f", its labels smoothed by ε = {settings.label_smoothing:g},"
    if settings.balanced:
        words += " with all classes weighed alike"
    return f"{words} + α/2·‖W‖², α = {settings.alpha:g}"


def cards(run: Run) -> list[Card]:
    """The costliest rows, with a picture if the columns are pixels."""
    shape = thumbnails.image_shape(run.data.feature_names)
    names = page_names(run)
    low, high = (float(f(run.data.features)) for f in (np.min, np.max)) if shape else (0.0, 1.0)
    result: list[Card] = []
    if run.diagnosis is None:
        return result
    for sample, reasons in zip(run.diagnosis.costliest, run.reasons, strict=True):
        row, picture = int(run.held_out[sample.position]), None
        if shape and high > low:
            values = np.asarray(run.data.features[row : row + 1], np.float64).reshape(shape)
            picture = thumbnails.data_uri((values - low) / (high - low))
        result.append(
            Card(
                sample,
                place(run.data, row),
                picture,
                plots.sample_bars(sample, names),
                [] if picture else reasons,
            )
        )
    return result


def place(data: Dataset, row: int) -> str:
    """Where a row stands: "line 1,234" or "row 1,234 of part-3.parquet"."""
    words = f"{data.word} {data.number(row):,}"
    return words if data.files is None else f"{words} of {Path(data.files[row]).name}"


def page_names(run: Run) -> list[str]:
    """The classes as the page shows them."""
    return [printable(str(name)) for name in run.classes]


def html(run: Run, command: str) -> str:
    """The page. It refers to nothing outside itself; the same run gives the same bytes."""
    names = page_names(run)
    finding, cautions = verdict(run)
    numbers = json.dumps(plain.run(run, command, MOST_NUMBERS), ensure_ascii=False, separators=(",", ":"))
    share = run.class_rows if run.diagnosis is None else [c.share for c in run.diagnosis.classes]
    order = sorted(range(len(names)), key=lambda k: -share[k])
    return render.render(
        "report.html.j2",
        run=run,
        names=names,
        finding=finding,
        cautions=cautions,
        figures=key_numbers(run),
        scale=loss_scale(run),
        cards=cards(run),
        odd=any(f.text for f in run.findings) or bool(run.surprises),
        effects=effects(run, order),
        pixels=coefficient_images(run, order),
        curve=plots.loss_curve(run),
        alphas=None if run.tried is None else plots.loss_by_alpha(run.tried, run.settings.alpha),
        objective=objective(run.settings),
        reading=reading(run),
        sampled="" if run.sample is None else sampled(run),
        checked_rows="" if run.sample is None else checked_rows(run),
        against=coefficients.coefficients(run.model).against,
        signed=signed,
        counted=counted,
        solver=plots.SOLVERS[run.solver],
        bits=information.bits,
        perplexity=perplexity,
        command=command,
        versions=versions() | {"python": platform.python_version()},
        numbers=numbers.replace("<", "\\u003c"),
        **({"d": None} if run.diagnosis is None else _of_held_out(run.diagnosis, names, order)),
    )


def _of_held_out(d: Diagnosis, names: list[str], order: list[int]) -> dict[str, Any]:
    """What the page shows of the held-out rows; the classes of most loss are first in ``order``."""
    multiples = [k for k in sorted(order[:MOST_MULTIPLES]) if d.classes[k].reliability]
    return {
        "d": d,
        "steps": sum_of_parts(d.parts),
        "temperature": about_temperature(d.parts),
        "cost_share": sum(sample.loss for sample in d.costliest) / (d.losses.sum() or 1.0),
        "shown": sorted(order[:MOST_CLASSES]),
        "widest": max(c.share for c in d.classes) or 1.0,
        "multiples": [(k, plots.class_reliability(d.classes[k].reliability, names[k])) for k in multiples],
        "pictures": {
            "confusion": plots.confusion_matrix(d, names),
            "gradient": plots.gradient_map(d, names),
            "reliability": plots.reliability(d.reliability),
        },
        "row_sum": _scientific(float(np.abs(d.gradient.sum(1)).max())),
    }


def perplexity(loss: float, decimals: int) -> str:
    """exp(loss) with ``decimals`` decimals, or as a power of ten if it is large."""
    with np.errstate(over="ignore"):
        value = float(information.perplexity(loss))
    if not math.isfinite(value):
        return "∞"
    return f"{value:.{decimals}f}" if value < 1e6 else _scientific(value)


def nats(loss: float) -> str:
    """The loss with four decimals, or as a power of ten if it is small."""
    if not math.isfinite(loss):
        return "∞" if loss > 0 else "unknown"
    return f"{loss:.4f}" if loss == 0 or loss >= 1e-3 else _scientific(loss)


def _percent(share: float) -> str:
    """A small share as 0.002%, or as 3 × 10⁻⁹ if that is shorter."""
    return f"{100 * share:.2g}%" if share >= 1e-5 else _scientific(share)


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits} × 10{str(int(power)).translate(SUPERSCRIPTS)}"
