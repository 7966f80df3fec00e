"""The pictures of a run as inline SVG that takes its colours and its fonts from the page around it."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np

from xent.training import Run

# matplotlib draws with these stand-ins; the page's own colours take their place in the SVG, so that
# one picture serves the light theme, the dark theme and the printer.
INK, SOFT, RULE, ACCENT, SECOND, ON_ACCENT = (f"#01020{i}" for i in range(1, 7))
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    RULE: "--rule",
    ACCENT: "--accent",
    SECOND: "--second",
    ON_ACCENT: "--on-accent",
}
MOST_NUMBERS = 20  # classes up to which the confusion matrix shows its counts


def loss_curve(run: Run) -> str:
    """Training and held-out loss at each step, with the two baselines."""
    figure, axes = _figure(10.6, 4.2)
    axes.set_position((0.06, 0.13, 0.925, 0.84))
    steps = np.arange(len(run.curve))
    train, test = np.array(run.curve).T
    axes.axhline(run.frequencies, color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)))
    axes.plot(steps, train, color=ACCENT, linewidth=1.8)
    axes.plot(steps, test, color=SECOND, linewidth=1.8)
    axes.set_yscale("log")
    axes.set_xlabel("step of L-BFGS")
    axes.set_ylabel("cross-entropy, nats")
    axes.margins(x=0.01)
    low, high = min(train.min(), test.min()), max(run.uniform, train.max(), test.max())
    subs = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)
    axes.set_ylim(low * 0.6, high * 1.45)
    axes.yaxis.set_major_locator(_ticker().LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(_ticker().NullLocator())
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(integer=True))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    label = f"guessing by class frequencies {run.frequencies:.3f}"
    axes.annotate(label, (steps[-1], run.frequencies), (0, 4), textcoords="offset points", ha="right",
                  va="bottom", color=SOFT, fontsize=9)  # fmt: skip
    _end_labels(axes, steps[-1], [(train[-1], "train", ACCENT), (test[-1], "held out", SECOND)])
    return _svg(figure, "loss", "Loss at each step of the training")


def confusion_matrix(run: Run) -> str:
    """Held-out rows by true class (down) and predicted class (across), shaded by share of the row."""
    from matplotlib.patches import Rectangle

    table, size = run.confusion, len(run.confusion)
    figure, axes = _figure(5.2, 5.2)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    for i, j in zip(*np.nonzero(table), strict=True):
        colour = ACCENT if i == j else SECOND
        opacity = 0.12 + 0.88 * float(shares[i, j])
        axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, color=colour, alpha=opacity, linewidth=0))
        if size <= MOST_NUMBERS:
            ink = ON_ACCENT if opacity > 0.55 else INK
            axes.text(j, i, str(table[i, j]), ha="center", va="center", color=ink, fontsize=9)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    every = math.ceil(size / 30)
    names = [_shortened(str(name)) for name in run.classes]
    longest = max(len(name) for name in names)
    tilted = size > 4 and longest > 3
    left, bottom = 0.09 + 0.0135 * longest, 0.12 + 0.009 * longest * tilted
    axes.set_position((left, bottom, 0.98 - left, 0.98 - bottom))
    across = max(every, math.ceil(size / 15)) if tilted else every
    axes.set_xticks(range(0, size, across), names[::across], rotation=45 if tilted else 0,
                    ha="right" if tilted else "center", rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(0, size, every), names[::every])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    return _svg(figure, "confusion", "Confusion matrix of the held-out rows")


def reliability(run: Run) -> str:
    """Accuracy against confidence, by tenths, with 95% intervals; below it, how many rows each has."""
    figure, axes = _figure(5.2, 5.2)
    axes.set_position((0.14, 0.34, 0.83, 0.63))
    counts = figure.add_axes((0.14, 0.11, 0.83, 0.16))
    _style(counts)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)))
    for b in run.reliability:
        low, high = _wilson(b.accuracy, b.rows)
        axes.plot([b.confidence] * 2, [low, high], color=ACCENT, linewidth=1.2, alpha=0.55)
    points = [(b.confidence, b.accuracy) for b in run.reliability]
    axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=6, linewidth=0)
    tenths = [min(int(b.confidence * 10), 9) / 10 + 0.05 for b in run.reliability]
    counts.bar(tenths, [b.rows for b in run.reliability], width=0.092, color=ACCENT, alpha=0.55)
    for tenth, b in zip(tenths, run.reliability, strict=True):
        counts.annotate(str(b.rows), (tenth, b.rows), (0, 2), textcoords="offset points", ha="center",
                        color=SOFT, fontsize=8)  # fmt: skip
    for each in (axes, counts):
        each.set_xlim(0, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.set_ylabel("share that is right")
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_xticklabels([])
    counts.set_yticks([])
    counts.set_ylabel("rows")
    counts.set_ylim(0, max(b.rows for b in run.reliability) * 1.3)
    counts.set_xlabel("confidence: highest probability of the row")
    return _svg(figure, "reliability", "Reliability diagram of the held-out rows")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.11, 0.14, 0.87, 0.83))
    _style(axes)
    return figure, axes


def _style(axes: Any) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=SOFT, labelsize=9, length=0, pad=5)
    axes.xaxis.label.set(color=SOFT, fontsize=10)
    axes.yaxis.label.set(color=SOFT, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=RULE, linewidth=0.8)


def _end_labels(axes: Any, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Name each line at its end, on its outer side, instead of in a legend."""
    upper = max(ends)[0]
    for y, name, colour in ends:
        above = y == upper
        axes.annotate(f"{name} {y:.3g}", (x, y), (0, 6 if above else -6), textcoords="offset points",
                      ha="right", va="bottom" if above else "top", color=colour, fontsize=10)  # fmt: skip


def _wilson(share: float, count: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson, 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def _svg(figure: Any, name: str, title: str) -> str:
    """The figure as an SVG element: text kept as text, ids that differ between pictures, no date."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)  # keep what is referred to
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)  # the page decides
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _shortened(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:7]}…{text[-6:]}"


def _ticker() -> Any:
    import matplotlib.ticker

    return matplotlib.ticker
