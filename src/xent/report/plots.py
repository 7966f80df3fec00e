"""Draw the pictures of a run as inline SVG; the style sheet of the page sets colours and fonts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from xent.evaluation.calibration.bins import BINS, Bin
from xent.evaluation.standard_errors import wilson
from xent.files.phrases import counted
from xent.html.svg import Scale, distinct_names, element, number, picture, text, width_of
from xent.report.diagnosis import CLASS_BINS, Diagnosis, Sample, spread_rows
from xent.report.training import Run, TriedAlphas

Array = np.ndarray[Any, Any]

WIDTH = 460  # width of a picture that takes half the page
NARROW = 212  # width of a picture of one class
# The largest font sizes of the page, on phones: in these pictures, and in the narrow ones.
SIZE, NARROW_SIZE = 15.0, 12.5
NAME = 150.0  # largest width of a class's name beside a matrix
MOST_ROWS = 160  # rows in the map of the gradient
LEVELS = 20  # levels of opacity
MOST_BARS = 10  # classes shown of one row
SOLVERS = {"lbfgs": "L-BFGS", "newton-cg": "Newton-CG", "sgd": "SGD"}


def loss_curve(run: Run) -> str:
    """Training and, if rows are held out, held-out loss at each step, with the loss of guessing."""
    lines = [("training", "a", np.maximum([loss for loss, _ in run.curve], 1e-9))]
    if run.test is not None:
        lines.append(("held out", "b", np.maximum([loss for _, loss in run.curve if loss is not None], 1e-9)))
    train = lines[0][2]
    low = min(losses.min() for _, _, losses in lines)
    high = max(run.uniform, *(losses.max() for _, _, losses in lines))
    room = 1.05 * (high / low) ** 0.1
    y = Scale(low / room, high * room, 300, 8, log=True)
    ticks = {tick: f"{tick:g}" for tick in y.ticks(7)}
    first, last = run.first_step, run.first_step + max(1, len(train) - 1)
    of_step = width_of(str(last), SIZE)
    x = Scale(first, last, _left(ticks.values(), SIZE), WIDTH - max(8.0, of_step / 2))
    parts = [_rule_across(x, y(tick), words) for tick, words in ticks.items()]
    steps = x.ticks(max(2, min(8, int((x.end - x.start) / (of_step + 12)))))
    parts += [text(x(tick), 322, str(int(tick)), "middle") for tick in steps if tick == int(tick)]
    parts.append(text((x.start + x.end) / 2, 346, f"step of {SOLVERS[run.solver]}", "middle"))
    guess = y(run.frequencies)
    parts.append(element("path", d=f"M{number(x.start)} {number(guess)}H{number(x.end)}", class_="dotted"))
    parts.append(text(x.end, guess - 6, f"guessing {run.frequencies:.3g}", "end"))
    ends = []
    for name, css, losses in lines:
        points = " ".join(f"{number(x(i))},{number(y(loss))}" for i, loss in enumerate(losses, first))
        parts.append(element("polyline", points=points, class_=f"line {css}"))
        ends.append((y(losses[-1]), f"{name} {losses[-1]:.3g}", css))
    for (height, words, css), shift in zip(sorted(ends), (-8, 18), strict=False):  # the upper end first
        parts.append(text(x.end, height + shift, words, f"end {css} strong"))
    before = f" after the first {first:,}" if first else ""
    label = (
        f"Loss at each of {counted(run.steps - first, 'step')}{before} on a logarithmic scale: from "
        f"{run.curve[0][0]:.3g} nats to {run.curve[-1][0]:.3g} on training rows"
    )
    if run.test is not None:
        label += f" and {run.curve[-1][1]:.3g} on held-out rows"
    return picture(WIDTH, 354, parts, label)


def loss_by_alpha(tried: TriedAlphas, alpha: float) -> str:
    """Held-out loss of each alpha on the folds, with one standard error; the chosen one is marked."""
    losses, errors = np.array(tried.losses), np.array(tried.standard_errors)
    low, high = float((losses - errors).min()), float((losses + errors).max())
    room = 0.06 * (high - low) or 0.1 * high + 1e-3
    y = Scale(max(0.0, low - room), high + room, 300, 8)
    ticks = {tick: f"{tick:.6g}" for tick in y.ticks(6)}
    least, largest = min(tried.alphas), max(tried.alphas)
    x = Scale(least / 1.3, 1.3 * largest, _left(ticks.values(), SIZE), WIDTH - 8, log=True)
    parts = [_rule_across(x, y(tick), words) for tick, words in ticks.items()]
    parts += [text(x(tick), 322, f"{tick:g}", "middle") for tick in x.ticks(5)]
    parts.append(text((x.start + x.end) / 2, 346, "alpha", "middle"))
    points = " ".join(
        f"{number(x(a))},{number(y(loss))}" for a, loss in zip(tried.alphas, losses, strict=True)
    )
    parts.append(element("polyline", points=points, class_="line b"))
    for a, loss, error in zip(tried.alphas, losses, errors, strict=True):
        ends = f"M{number(x(a))} {number(y(loss - error))}V{number(y(loss + error))}"
        parts.append(element("path", d=ends, class_="interval"))
        title = element("title", f"alpha {a:.3g}: {loss:.4f} ± {error:.4f} nats")
        parts.append(element("circle", title, cx=x(a), cy=y(loss), r=7 if a == alpha else 4, class_="b"))
    description = "; ".join(f"{a:.3g}: {loss:.4f}" for a, loss in zip(tried.alphas, losses, strict=True))
    return picture(WIDTH, 354, parts, f"Held-out loss by alpha, {alpha:.3g} chosen: {description}")


def coefficient_image(scaled: Array, largest: float, name: str) -> str:
    """Coefficients (height, width) of pixels for one class, shaded by their share of ``largest``."""
    height, width = scaled.shape
    side = NARROW / max(height, width)
    cells = _Cells()
    level = np.round(LEVELS * scaled / (largest or 1.0)).astype(int)
    for i, j in zip(*np.nonzero(level), strict=True):
        cells.add("a" if level[i, j] > 0 else "b", abs(int(level[i, j])), j * side, i * side, side, side)
    frame = element("rect", x=0, y=0, width=width * side, height=height * side, class_="frame")
    (top, left), (bottom, right) = (
        np.unravel_index(k, scaled.shape) for k in (scaled.argmax(), scaled.argmin())
    )
    label = (
        f"Coefficients of the pixels for {name}: largest {scaled.max():+.2f} in row {top}, column {left}, "
        f"least {scaled.min():+.2f} in row {bottom}, column {right}"
    )
    return picture(width * side, height * side, [*cells.drawn(), frame], label)


def confusion_matrix(d: Diagnosis, classes: list[Any]) -> str:
    """Held-out rows by true class (down) and predicted class (across), shaded by share of the row."""
    frame = _Frame(classes)
    shares = d.confusion / np.maximum(d.confusion.sum(1, keepdims=True), 1)
    cells = _Cells()
    gap = min(1.0, frame.cell / 16)
    numbers: list[str] = []
    widest = width_of(str(d.confusion.max()), SIZE)
    for i, j in zip(*np.nonzero(d.confusion), strict=True):
        x, y, side = frame.left + j * frame.cell, frame.TOP + i * frame.cell, frame.cell - 2 * gap
        level = max(1, round(LEVELS * float(0.12 + 0.43 * shares[i, j])))
        cells.add("a" if i == j else "b", level, x + gap, y + gap, side, side)
        if widest <= frame.cell - 1:
            x, y = x + frame.cell / 2, y + frame.cell / 2 + 4.5
            numbers.append(text(x, y, str(d.confusion[i, j]), "middle ink"))
    parts = [frame.box(), *cells.drawn(), *numbers]
    middles = [frame.TOP + (k + 0.5) * frame.cell for k in range(len(classes))]
    parts += frame.names_down(middles)
    parts += frame.names_across("predicted class")
    wrong = int(d.confusion.sum() - np.trace(d.confusion))
    label = f"Confusion matrix: {np.trace(d.confusion)} rows on the diagonal, {wrong} off it"
    return picture(WIDTH, frame.height, parts, label)


def gradient_map(d: Diagnosis, classes: list[Any]) -> str:
    """∂ℓ/∂z of a sample of held-out rows (down, by true class) in each logit (across)."""
    frame = _Frame(classes)
    rows = spread_rows(d.labels, d.losses, MOST_ROWS)
    tall = frame.side / len(rows)
    cells = _Cells()
    level = np.round(LEVELS * np.sign(d.gradient[rows]) * np.sqrt(np.abs(d.gradient[rows]))).astype(int)
    for i, k in zip(*np.nonzero(np.abs(level) > 1), strict=True):  # 5% opacity is not visible
        css, x, y = "b" if level[i, k] > 0 else "a", frame.left + k * frame.cell, frame.TOP + i * tall
        cells.add(css, abs(int(level[i, k])), x, y, frame.cell, tall)
    parts = cells.drawn()
    edges = [0, *(np.flatnonzero(np.diff(d.labels[rows])) + 1), len(rows)]
    if len(edges) <= 40:
        parts += [
            element(
                "path",
                d=f"M{number(frame.left)} {number(frame.TOP + edge * tall)}h{number(frame.side)}",
                class_="rule",
            )
            for edge in edges[1:-1]
        ]
    parts.append(frame.box())
    present = d.labels[rows][edges[:-1]]
    middles = dict(
        zip(present.tolist(), (frame.TOP + (a + b) / 2 * tall for a, b in pairwise(edges)), strict=True)
    )
    parts += frame.names_down([middles.get(k) for k in range(len(classes))])
    parts += frame.names_across("logit of the class")
    label = (
        f"Gradient of {len(rows)} held-out rows, sorted by true class, in the logits of {len(classes)} "
        "classes: negative at the true class where the model is not yet sure, positive at the classes it "
        "takes it for"
    )
    return picture(WIDTH, frame.height, parts, label)


def reliability(bins: list[Bin]) -> str:
    """Accuracy against confidence in `BINS` bins with 95% intervals; below it the number of rows in each."""
    x, y = Scale(0, 1, _left(["100%"], SIZE), WIDTH - 8), Scale(0, 1, 246, 10)
    parts = [_rule_across(x, y(tick), f"{tick:.0%}") for tick in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(
        element("path", d=f"M{number(x(0))} {number(y(0))}L{number(x(1))} {number(y(1))}", class_="dotted")
    )
    parts += _points(bins, x, y, 5)
    parts += _counts(bins, BINS, x, 330, 52)
    parts += [text(x(tick), 350, f"{tick:.0%}", "middle") for tick in (0, 0.2, 0.4, 0.6, 0.8)]
    parts.append(text(x(1), 350, "100%", "end"))
    parts.append(text((x.start + x.end) / 2, 374, f"confidence, and rows in each of {BINS} bins", "middle"))
    description = "; ".join(
        f"{b.confidence:.0%} said, {b.accuracy:.0%} right of {counted(b.rows, 'row')}" for b in bins
    )
    return picture(WIDTH, 382, parts, f"Reliability of the highest probability: {description}")


def class_reliability(bins: list[Bin], name: str) -> str:
    """Frequency of the class against its stated probability, in `CLASS_BINS` bins, with numbers of rows."""
    x, y = Scale(0, 1, _left(["100%"], NARROW_SIZE), 206), Scale(0, 1, 132, 6)
    parts = [_rule_across(x, y(tick), f"{tick:.0%}") for tick in (0, 0.5, 1)]
    parts.append(
        element("path", d=f"M{number(x(0))} {number(y(0))}L{number(x(1))} {number(y(1))}", class_="dotted")
    )
    parts += _points(bins, x, y, 4)
    parts += _counts(bins, CLASS_BINS, x, 176, 22)
    description = "; ".join(
        f"{b.confidence:.0%} said, {b.accuracy:.0%} true of {counted(b.rows, 'row')}" for b in bins
    )
    return picture(NARROW, 180, parts, f"Reliability of class {name}: {description}")


def sample_bars(sample: Sample, classes: list[Any]) -> str:
    """Bars of one row's probabilities, and below them bars of the gradient of its loss."""
    left, right = _left(["p − t"], NARROW_SIZE), 298
    shown = _bars(sample, classes, right - left)
    wide = (right - left) / len(shown)
    thick = min(26.0, 0.62 * wide)
    top, base, zero = 14, 60, 118
    parts = [
        element("path", d=f"M{number(left)} {base}H{right}M{number(left)} {zero}H{right}", class_="rule"),
        text(left - 8, base - 4, "p", "end italic"),
        text(left - 8, zero + 4, "p − t", "end italic"),
    ]
    words = distinct_names([name for name, _, _ in shown], wide - 3, NARROW_SIZE, strong=True)
    for i, (_, p, g) in enumerate(shown):
        middle = left + (i + 0.5) * wide
        css = "b" if g > 0 else "a"
        parts.append(_bar(middle, thick, base, (base - top) * p, f"{css} bar"))
        if p >= 0.005:
            parts.append(text(middle, base - (base - top) * p - 3, f"{p:.2f}", "middle small ink"))
        parts.append(text(middle, base + 15, words[i], "middle" if g > 0 else "middle strong a"))
        parts.append(_bar(middle, thick, zero, 24 * g, f"{css} bar"))
        if abs(g) >= 0.005:
            y = zero - 24 * g - 3 if g > 0 else zero - 24 * g + 11
            # The label's number has a sign and may be wider than its bar; it is the only one below the line.
            last = 300 - width_of("−0.00", NARROW_SIZE) / 2 if g < 0 else right
            parts.append(text(min(middle, last), y, f"{g:.2f}".replace("-", "−"), "middle small ink"))
    description = "; ".join(f"{name}: probability {p:.3f}, gradient {g:+.3f}" for name, p, g in shown)
    return picture(300, 157, parts, f"True class {classes[sample.label]}. {description}")


def _bars(sample: Sample, classes: list[Any], width: float) -> list[tuple[str, float, float]]:
    """[(class, probability, gradient)] of the label and the likeliest others, and the sum of the rest."""
    names = [str(name) for name in classes]
    likeliest = {sample.label, *np.argsort(-sample.probs, kind="stable")[:MOST_BARS].tolist()}
    widest = max(width_of(names[k], NARROW_SIZE, strong=True) for k in likeliest)
    room = min(widest, width_of("0" * 9, NARROW_SIZE)) + 3
    most = max(4, min(MOST_BARS, int(width / room)))
    likely = [int(k) for k in np.argsort(-sample.probs, kind="stable") if k != sample.label]
    kept = len(names) if len(names) <= most else most - 1
    own = sorted([sample.label, *likely[: kept - 1]])
    shown = [(names[k], float(sample.probs[k]), float(sample.gradient[k])) for k in own]
    rest = likely[kept - 1 :]
    if rest:
        name = f"{len(rest)} more"
        if width_of(name, NARROW_SIZE, strong=True) > width / (len(shown) + 1) - 3:
            name = f"+{len(rest)}"
        shown.append((name, float(sample.probs[rest].sum()), float(sample.gradient[rest].sum())))
    return shown


class _Cells:
    """Rectangles, with one path for all of the same colour and opacity, which keeps the page small."""

    def __init__(self) -> None:
        self.paths: dict[tuple[str, int], list[str]] = {}

    def add(self, css: str, level: int, x: float, y: float, wide: float, tall: float) -> None:
        """Add a rectangle."""
        outline = f"M{number(x)} {number(y)}h{number(wide)}v{number(tall)}h-{number(wide)}z"
        self.paths.setdefault((css, level), []).append(outline)

    def drawn(self) -> list[str]:
        """The path elements."""
        return [
            element("path", d="".join(outlines), class_=css, fill_opacity=level / LEVELS)
            for (css, level), outlines in sorted(self.paths.items())
        ]


class _Frame:
    """The frame of a class × class matrix, with names on the left and at the bottom."""

    TOP = 6

    def __init__(self, classes: list[Any]) -> None:
        self.names = distinct_names([str(name) for name in classes], NAME, SIZE)
        longest = max(width_of(name, SIZE) for name in self.names)
        self.left = 36 + longest
        self.side = WIDTH - 6 - self.left
        self.cell = self.side / len(classes)
        self.tilted = longest > self.cell - 4 and longest > width_of("000", SIZE)
        self.height = self.TOP + self.side + 44 + (0.72 * longest if self.tilted else 0)

    def box(self) -> str:
        """The outline."""
        return element("rect", x=self.left, y=self.TOP, width=self.side, height=self.side, class_="frame")

    def names_down(self, middles: Iterable[float | None]) -> list[str]:
        """Names at heights ``middles``, without those that would touch the one before, and the axis label."""
        parts, last = [], -math.inf
        for name, middle in zip(self.names, middles, strict=True):
            if middle is not None and middle - last >= 14:
                parts.append(text(self.left - 8, middle + 4.5, name, "end"))
                last = middle
        x, y = 1.1 * SIZE, self.TOP + self.side / 2
        parts.append(text(x, y, "true class", "middle", transform=f"rotate(-90 {number(x)} {number(y)})"))
        return parts

    def names_across(self, what: str) -> list[str]:
        """Names at the bottom, as many as there is room for, and the axis label ``what``."""
        parts, y = [], self.TOP + self.side + 18
        room = 18 if self.tilted else max(width_of(name, SIZE) for name in self.names) + 4
        every = max(1, math.ceil(room / self.cell))
        for k in range(0, len(self.names), every):
            x = self.left + (k + 0.5) * self.cell
            if self.tilted:
                turn = f"rotate(-45 {number(x)} {number(y)})"
                parts.append(text(x + 4, y - 2, self.names[k], "end", transform=turn))
            else:
                parts.append(text(x, y, self.names[k], "middle"))
        parts.append(text(self.left + self.side / 2, self.height - 6, what, "middle"))
        return parts


def _left(labels: Iterable[str], size: float) -> float:
    """The x at which a scale starts that has ``labels`` on its left."""
    return 10 + max((width_of(words, size) for words in labels), default=0.0)


def _rule_across(x: Scale, y: float, name: str) -> str:
    line = element("path", d=f"M{number(x.start)} {number(y)}H{number(x.end)}", class_="rule")
    return line + text(x.start - 8, y + 4.5, name, "end")


def _points(bins: list[Bin], x: Scale, y: Scale, radius: float) -> list[str]:
    """A dot for each bin, on the line of its 95% interval."""
    parts = []
    for b in bins:
        low, high = wilson(b.accuracy, b.rows)
        at = number(x(b.confidence))
        parts.append(element("path", d=f"M{at} {number(y(low))}V{number(y(high))}", class_="interval"))
        title = element("title", f"stated {b.confidence:.1%}, true {b.accuracy:.1%}, rows {b.rows:,}")
        parts.append(element("circle", title, cx=x(b.confidence), cy=y(b.accuracy), r=radius, class_="a"))
    return parts


def _counts(bins: list[Bin], intervals: int, x: Scale, base: float, tall: float) -> list[str]:
    """A bar for each bin, with its number of rows over it."""
    parts = [element("path", d=f"M{number(x.start)} {number(base)}H{number(x.end)}", class_="rule")]
    wide, most = (x.end - x.start) / intervals, max(b.rows for b in bins)
    for b in bins:
        middle = x.start + (min(int(b.confidence * intervals), intervals - 1) + 0.5) * wide
        height = tall * b.rows / most
        parts.append(_bar(middle, 0.86 * wide, base, height, "a faint"))
        parts.append(text(middle, base - height - 3, _count(b.rows), "middle small"))
    return parts


def _bar(middle: float, wide: float, base: float, height: float, css: str) -> str:
    """A bar from ``base`` upwards, or downwards if ``height`` is negative."""
    y = base - max(height, 0.0)
    return element("rect", x=middle - wide / 2, y=y, width=wide, height=max(abs(height), 0.6), class_=css)


def _count(rows: int) -> str:
    """The number of rows in at most four characters."""
    if rows < 1000:
        return str(rows)
    value, unit = (rows / 1e3, "k") if rows < 999_500 else (rows / 1e6, "M")
    return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
