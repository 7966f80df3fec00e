"""The page of `xent eval`: what stored outputs of one model, or two, show on stored targets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xent.api.cross_entropy import softmax
from xent.evaluation import plain, words
from xent.evaluation.calibration.refinement import Refinement
from xent.evaluation.comparison import Comparison
from xent.evaluation.stream import CostlyRow, Results
from xent.evaluation.tally import Evaluation
from xent.files.json_values import finite_or_null
from xent.files.phrases import counted, printable
from xent.html import render
from xent.regression.estimator import versions
from xent.report import page, plots
from xent.report.diagnosis import Parts, Sample
from xent.report.effects import signed
from xent.report.page import Figure
from xent.report.verdict import judged

FEW = 100  # rows below which the page says that they are few


class Card(NamedTuple):
    """One of the costliest rows."""

    sample: Sample
    bars: str


def html(files: list[str], class_names: list[str] | None, results: Results, command: str) -> str:
    """The page of the results of the ``files`` LOGITS, perhaps OTHER, and LABELS; complete in itself.

    ``class_names`` are None where the classes are known by their indices.
    """
    first, names = results.evaluations[0], _names(class_names, results.evaluations[0].num_classes)
    order = first.classes.costliest()
    shown = sorted(order[: page.MOST_CLASSES].tolist())
    models = model_names(files[:-1])
    numbers = json.dumps(finite_or_null(facts(class_names, results, shown, command)), ensure_ascii=False)
    return render.render(
        "evaluation.html.j2",
        models=models,
        labels=files[-1],
        results=results,
        first=first,
        names=names,
        finding=finding(models, results),
        cautions=cautions(models, results),
        scale=page.scale(
            [(name, e.loss, _half(e)) for name, e in zip(models, results.evaluations, strict=True)],
            first.frequencies,
            "guessing by class frequencies",
        )
        if all(math.isfinite(e.loss) for e in results.evaluations)
        else None,
        figures=figures(first, results.comparison),
        steps=None if first.refinement is None else page.sum_of_parts(parts(first, first.refinement), "Loss"),
        temperature=None if first.refinement is None else about_refinement(first, first.refinement),
        reliability=plots.reliability(first.bins),
        cards=[card(row, first, names, results.probabilities) for row in results.costliest],
        cost_share=cost_share(first, results.costliest),
        shown=shown,
        present=len(order),
        widest=max((c.share or 0.0 for c in first.classes.of(order[:1])), default=0.0) or 1.0,
        tables=[(name, words.numbers(e)) for name, e in zip(models, results.evaluations, strict=True)],
        signed=signed,
        counted=counted,
        command=command,
        versions=versions(),
        numbers=numbers.replace("<", "\\u003c"),
    )


def model_names(files: list[str]) -> list[str]:
    """Short names of the files: without their folders if that leaves them distinct."""
    short = [Path(name).name or name for name in files]
    return [printable(name) for name in (short if len(set(short)) == len(files) else files)]


def facts(class_names: list[str] | None, results: Results, shown: list[int], command: str) -> dict[str, Any]:
    """The numbers of the page, for JSON, with the classes that it shows."""
    models = []
    for each in results.evaluations:
        values = plain.evaluation(each, class_names)
        values["classes"] = [values["classes"][k] for k in shown]
        models.append(values)
    comparison = None if results.comparison is None else plain.comparison(results.comparison)
    costliest = [
        {"row": row.row, "label": row.label, "predicted": row.predicted, "loss": row.loss}
        for row in results.costliest
    ]
    return {"command": command, "models": models, "comparison": comparison, "costliest": costliest}


def finding(models: list[str], results: Results) -> str:
    """The verdict, in a sentence."""
    first = results.evaluations[0]
    if results.comparison is not None:
        return compared(models, results.comparison)
    skill = 1 - first.loss / first.frequencies if first.frequencies > 0 else 0.0
    right = f"{first.accuracy:.1%} of {counted(first.rows, 'row')} are predicted right"
    return judged(right, "the loss", skill, "guessing by class frequencies")


def compared(models: list[str], c: Comparison) -> str:
    """Which of two models has the lower loss, if one can be told to have."""
    half = c.difference_interval[1] - c.difference
    size = f"{page.nats(abs(c.difference))} ± {page.nats(half)} nats"
    if not math.isfinite(half):
        return f"{models[0]} and {models[1]}: the difference of their losses has no standard error."
    if abs(c.difference) <= half:
        return f"No difference of the losses of {models[0]} and {models[1]} can be told from chance: {size}."
    better, worse = models if c.difference < 0 else models[::-1]
    return f"The loss of {better} is {size} below that of {worse}, over the same {counted(c.rows, 'row')}."


def cautions(models: list[str], results: Results) -> list[str]:
    """What to know before trusting the numbers."""
    sentences = []
    for name, e in zip(models, results.evaluations, strict=True):
        before = f"{name}: " if len(models) > 1 else ""
        sentences += [f"{before}{note}." for note in words.notes(e)]
    units = results.evaluations[0].groups
    count, what = (results.evaluations[0].rows, "row") if units is None else (units, "group")
    if count < FEW:
        sentences.append(
            f"{counted(count, what)} are few: the last digits are noise, and so may intervals be."
        )
    return sentences


def figures(first: Evaluation, comparison: Comparison | None) -> list[Figure]:
    """The four numbers at the top of the page."""
    most = first.classes[int(first.classes.support.argmax())]
    share = most.support / first.rows
    low, high = first.accuracy_interval
    c = first.calibration
    result = [
        Figure(
            "Loss",
            page.nats(first.loss),
            f"± {page.nats(_half(first) or math.nan)} nats a row: {page.nats(first.bits)} bits, a perplexity "
            f"of {page.perplexity(first.loss, 2)}"
            if math.isfinite(first.loss)
            else "a row has probability 0 for its label",
        ),
        Figure(
            "Accuracy",
            f"{first.accuracy:.2%}",
            f"{words.interval(low, high, '{:.2%}')}; {share:.2%} by always saying the commonest class",
        ),
        Figure(
            "Calibration error",
            f"{100 * c.error:.1f} points",
            f"{words.points(*c.interval)} without the bias of few rows; a calibrated model would show "
            f"{100 * c.expected:.1f} by chance",
        ),
    ]
    if comparison is None:
        note = f"± {page.nats(1.96 * first.brier_se)}; 0 is certain and right, 2 certain and wrong"
        return [*result, Figure("Brier score", f"{first.brier:.4f}", note)]
    wins = comparison.wins
    half = comparison.difference_interval[1] - comparison.difference
    note = (
        f"± {page.nats(half)} nats, paired; the first has the lower loss on {wins.first:,} rows, the second "
    )
    return [
        *result,
        Figure("First less second", signed(comparison.difference, "+.4f"), f"{note}on {wins.second:,}"),
    ]


def parts(first: Evaluation, refinement: Refinement) -> Parts:
    """Equation (18) of the rows: (48) with the entropy of the class frequencies."""
    return Parts(
        first.frequencies,
        first.frequencies - refinement.refinement,
        refinement.calibration,
        refinement.temperature,
    )


def about_refinement(first: Evaluation, refinement: Refinement) -> str:
    """What the temperature means, and on how many rows it was fitted."""
    sample = "" if refinement.rows == first.rows else f" Fitted on a sample of {refinement.rows:,} rows."
    error = f" Its standard error is {refinement.temperature_se:.2g}; what it saves is known to "
    error += f"± {page.nats(1.96 * refinement.calibration_se)} nats."
    known = error if math.isfinite(refinement.temperature_se * refinement.calibration_se) else ""
    return f"{page.about_temperature(parts(first, refinement))}{known}{sample}"


def cost_share(first: Evaluation, costliest: list[CostlyRow]) -> float | None:
    """The share of these rows in the sum of the losses, None if that is infinite or 0."""
    total = first.loss * first.rows
    return sum(row.loss for row in costliest) / total if 0 < total < math.inf else None


def card(row: CostlyRow, first: Evaluation, names: list[str], probabilities: bool) -> Card:
    """One of the costliest rows, with bars of its probabilities and of their difference from the target."""
    p = row.outputs / row.outputs.sum() if probabilities else softmax(row.outputs)
    target = np.zeros_like(p)
    if row.target is None:
        target[row.label] = 1
    else:
        target[:] = row.target
    sample = Sample(row.row, row.label, row.predicted, row.loss, p, p - target)
    return Card(sample, plots.sample_bars(sample, names))


def _names(class_names: list[str] | None, num_classes: int) -> list[str]:
    return (
        [str(k) for k in range(num_classes)] if class_names is None else [printable(n) for n in class_names]
    )


def _half(e: Evaluation) -> float | None:
    half = e.loss_interval[1] - e.loss
    return half if math.isfinite(half) else None
