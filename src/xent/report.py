"""The verdict on a run in sentences, its numbers, and both with the pictures as one HTML file."""

from __future__ import annotations

import platform
from importlib.resources import files
from typing import NamedTuple

from xent import information, plots
from xent.training import Run, versions


class Figure(NamedTuple):
    """A number of the report with its name and what to compare it with."""

    name: str
    value: str
    note: str


def verdict(run: Run) -> tuple[str, list[str]]:
    """(the finding, what to be careful about), each a sentence."""
    saved = 1 - run.test.loss / run.frequencies
    right = f"{run.test.accuracy:.1%} of {run.test.rows:,} held-out rows are predicted right"
    if saved > 0:
        finding = f"{right}; the loss is {saved:.0%} below guessing by class frequencies."
    else:
        finding = f"{right}, but the loss is no better than guessing by class frequencies."
    cautions = []
    if not run.converged:
        cautions.append(f"Training ended after {run.steps} steps, above its tolerance: raise --max-iter.")
    if not run.gradient.passed:
        cautions.append(
            f"The gradient is {run.gradient.error:.1e} away from finite differences: do not trust this run."
        )
    held_out = [loss for _, loss in run.curve]
    best = min(held_out)
    if best < 0.95 * run.test.loss and best < run.test.loss - 0.005:
        cautions.append(
            f"The held-out loss was {best:.4f} at step {held_out.index(best)} and is {run.test.loss:.4f} at "
            "the end: the model has learnt its training rows by heart; a larger --alpha may help."
        )
    if run.test.rows < 100:
        cautions.append(f"{run.test.rows} held-out rows are few: the last digits above are noise.")
    return finding, cautions


def key_numbers(run: Run) -> list[Figure]:
    """The four numbers at the top of the page."""
    g = run.gradient
    part = f"all {g.total}" if g.checked == g.total else f"{g.checked} of {g.total}"
    return [
        Figure(
            "Held-out loss", f"{run.test.loss:.4f}", f"nats a row; {run.train.loss:.4f} on the training rows"
        ),
        Figure(
            "Held-out accuracy", f"{run.test.accuracy:.2%}", f"{run.train.accuracy:.2%} on the training rows"
        ),
        Figure(
            "Guessing",
            f"{run.frequencies:.4f}",
            f"entropy of the class frequencies; ln K = {run.uniform:.4f}",
        ),
        Figure("Gradient error", f"{g.error:.1e}", f"against central differences, {part} parameters"),
    ]


def html(run: Run, command: str) -> str:
    """The page: no script, no reference to anything outside it; the same run gives the same bytes."""
    import jinja2
    from markupsafe import Markup

    source = files("xent").joinpath("templates/report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    finding, cautions = verdict(run)
    return environment.from_string(source).render(
        run=run,
        finding=finding,
        cautions=cautions,
        figures=key_numbers(run),
        loss_curve=Markup(plots.loss_curve(run)),
        confusion=Markup(plots.confusion_matrix(run)),
        reliability=Markup(plots.reliability(run)),
        bits=information.bits,
        perplexity=information.perplexity,
        command=command,
        versions=versions() | {"python": platform.python_version()},
    )
