"""The verdict on a run in sentences: the finding, the cautions, and the guess as a yardstick."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from rich.filesize import decimal

from xent.files.phrases import counted
from xent.regression.penalty.alpha_choice import FLAT
from xent.report.diagnosis import Summary
from xent.report.training import Run, TriedAlphas


class Yardstick(NamedTuple):
    """The loss that was minimised, on both sets of rows, and the loss of a guess without features."""

    held_out: float | None  # on held-out rows, or else on held-out folds; None without either
    training: float
    guess: float
    name: str  # of the guess
    interval: float | None  # half of the 95% interval of ``held_out``

    @property
    def skill(self) -> float:
        """``1 − loss/guess``: 1 is certain and right, 0 is the guess."""
        loss = self.training if self.held_out is None else self.held_out
        return 1 - loss / self.guess if self.guess > 0 else 0.0


def verdict(run: Run) -> tuple[str, list[str]]:
    """(the finding, the cautions), each a sentence."""
    guess = yardstick(run)
    rows, kind, loss = run.test, "held-out", "the loss"
    if rows is None:
        rows, kind, loss = run.train, "training", "the training loss"
    right = f"{rows.accuracy:.1%} of {rows.rows:,} {kind} rows are predicted right"
    if run.settings.balanced:
        right += f", {rows.balanced_accuracy:.1%} averaged over the classes"
        loss += ", with all classes weighed alike,"
    elif run.test is None and run.validated is not None:
        loss = "the loss on held-out folds"
    finding = judged(right, loss, guess.skill, guess.name)
    cautions = []
    if run.test is None:
        cautions.append(about_no_held_out(run))
    elif run.settings.balanced:
        cautions.append(
            "--balanced moves the probabilities away from the class frequencies on purpose: the loss of all "
            f"rows alike, {run.test.loss:.4f}, and the calibration are not what was trained for."
        )
    if not run.converged and run.settings.alpha == 0 and run.train.accuracy == 1:
        cautions.append(
            "The classes of the training rows are separable: without a penalty no finite weights are the "
            "best; set --alpha above 0."
        )
    elif not run.converged:
        mend = "--max-iter" if run.steps >= run.settings.max_iter else "--alpha"
        cautions.append(
            f"Training ended after {counted(run.steps, 'step')}, further from the optimum than --tol asks "
            f"for: raise {mend} or --tol."
        )
    if not run.gradient.passed:
        cautions.append(
            f"The gradient is {run.gradient.error:.1e} away from finite differences: do not trust this run."
        )
    if run.test is not None:
        cautions += _of_held_out(run, run.test)
    cautions += [found.sentence for found in run.findings if found.grave]
    return finding, cautions


def _of_held_out(run: Run, test: Summary) -> list[str]:
    """Cautions about the held-out loss."""
    cautions = []
    curve = [(train, loss) for train, loss in run.curve if loss is not None]
    step, (train, best) = min(enumerate(curve, run.first_step), key=lambda each: each[1][1])
    by_heart = run.train.loss < train
    rose = best < 0.95 * test.loss and best < test.loss - 0.005
    if rose and run.tried is None and (by_heart or run.settings.is_plain):
        why = (
            "the model has learnt its training rows by heart; a larger --alpha may help: try --alpha auto."
            if by_heart
            else "the training loss rose too, for the sake of the penalty; a smaller --alpha may help."
        )
        cautions.append(
            f"The held-out loss was {best:.4f} at step {step} and is {test.loss:.4f} at the end: {why}"
        )
    if test.rows < 100:
        cautions.append(f"{test.rows} held-out rows are few: the last digits above are noise.")
    return cautions


def about_no_held_out(run: Run) -> str:
    """What a run says of new rows that has held out none."""
    if run.validated is None:
        return "No rows were held out: nothing here says how well new rows are predicted."
    loss, error = run.validated
    return (
        "No rows were held out for good. The loss to expect of new rows is that on held-out folds, "
        f"{loss:.4f} ± {error:.4f} nats (one standard error), a little too small as it is the least of "
        f"{counted(len(run.tried.alphas) if run.tried else 0, 'alpha')}."
    )


def judged(right: str, loss: str, skill: float, guess: str) -> str:
    """A sentence on the accuracy, ``right``, and the ``loss`` beside that of a guess."""
    if skill >= 0.005:
        return f"{right}; {loss} is {skill:.0%} below {guess}."
    return f"{right}, but {loss} is no better than {guess}."


def yardstick(run: Run) -> Yardstick:
    """The losses to compare: means over rows; with --balanced means over classes, which it minimises."""
    test = run.test
    if not run.settings.balanced:
        loss, error = (test.loss, run.error) if test is not None else run.validated or (None, None)
        interval = None if error is None else 1.96 * error
        name = "guessing by class frequencies"
        return Yardstick(loss, run.train.loss, run.frequencies, name, interval)
    uniform = math.log(np.count_nonzero(run.class_rows))
    balanced = None if test is None else test.balanced_loss
    return Yardstick(balanced, run.train.balanced_loss, uniform, "guessing uniformly", None)


def commonest(run: Run) -> tuple[Any, float]:
    """(the commonest class of the held-out rows, or of all, its share), the accuracy of predicting it."""
    rows = run.class_rows
    return run.classes[int(rows.argmax())], float(rows.max() / rows.sum())


def checked(run: Run) -> str:
    """How many parameters, and on how many rows, the gradient check compared, in words."""
    g = run.gradient
    part = f"all {g.total:,}" if g.checked == g.total else f"{g.checked:,} of {g.total:,}"
    if g.rows is None or g.rows == run.train.rows:
        return f"{part} parameters"
    return f"{part} parameters, checked on {counted(g.rows, 'row')}"


def reading(run: Run) -> list[str]:
    """What was read how often, of files that were read in parts, and of how many rows numbers are."""
    reads = run.reads
    if reads is None:
        return []
    files, cache = decimal(reads.file_bytes), decimal(reads.cache_bytes)
    sentences = [
        f"{files} of files read {reads.file_passes} times",
        f"{cache} of prepared rows written, and read {reads.cache_passes:.0f} times",
        f"{len(run.held_out):,} of {counted(run.train.rows + len(run.held_out), 'row')} held out",
    ]
    if run.sample is not None:
        sentences.append(f"the data checked in {checked_rows(run)}")
    return sentences


def checked_rows(run: Run) -> str:
    """The rows in memory, if they are not all, in words."""
    return f"{'the held-out rows and ' if len(run.held_out) else ''}{sampled(run)}"


def sampled(run: Run) -> str:
    """The training rows in memory, if they are not all, in words."""
    return f"a sample of {run.sample:,} of the {counted(run.train.rows, 'training row')}"


def about_alpha(tried: TriedAlphas, alpha: float) -> str:
    """How alpha was chosen, and whether one beyond those tried may be better."""
    chosen = tried.alphas.index(alpha)
    loss, error = tried.losses[chosen], tried.standard_errors[chosen]
    sentence = (
        f"{alpha:.3g}, the best of {len(tried.alphas)} on {tried.folds} folds of the training rows: a loss "
        f"of {loss:.4f} ± {error:.4f} nats (one standard error)"
    )
    saved = tried.losses[chosen - 1] - loss if chosen else error
    if chosen in (0, len(tried.alphas) - 1) and saved > FLAT * error:
        sentence += f"; a {'smaller' if chosen else 'larger'} one may be better"
    return sentence
