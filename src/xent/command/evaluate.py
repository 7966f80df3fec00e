"""`xent eval`: evaluate a file of logits or probabilities against a file of targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from xent.command import screen
from xent.files.phrases import counted

if TYPE_CHECKING:
    from xent.evaluation.stream import Evaluation


def evaluate(
    logits: Annotated[
        str, typer.Argument(help="npy, npz, safetensors or Parquet; FILE:NAME for one array of several.")
    ],
    labels: Annotated[
        str, typer.Argument(help="Integers (...), or probabilities in the logits' shape (..., classes).")
    ],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The first file holds probabilities.")
    ] = False,
    top_k: Annotated[int, typer.Option(help="Also count labels among the k most probable classes.")] = 5,
    ignore_index: Annotated[int, typer.Option(help="Leave out rows with this label.")] = -100,
    classes: Annotated[int, typer.Option(help="Show so many classes, the costliest first.")] = 10,
    json: screen.Json = False,
) -> int:
    """Score LOGITS against LABELS: loss, perplexity, accuracy, calibration, classes.

    Both files are read once, a few rows at a time, and may be larger than memory. Exit code 1 if a row
    has no loss because it holds NaN or infinity; such rows are counted and left out.
    """
    from xent.evaluation import scoring, stream
    from xent.files.formats import row_reader

    if classes < 0:
        raise ValueError(f"`--classes` must be >= 0; got {classes}")
    settings = scoring.Settings(probabilities, ignore_index, top_k)
    with row_reader.open_rows(logits) as outputs, row_reader.open_rows(labels) as targets:
        with screen.progress("reading", math.prod(outputs.shape) * outputs.itemsize) as advance:
            result = stream.evaluate(outputs, targets, settings, on_bytes=advance)
        if not result.rows:
            raise ValueError(
                f"{logits}: no row to score: {result.ignored:,} ignored, {result.undefined:,} without a loss"
            )
    if json:
        screen.print_json(_as_json(result))
    else:
        _print(screen.console(), logits, result, classes)
    return 1 if result.undefined else 0


def _as_json(result: Evaluation) -> dict[str, Any]:
    plain = result._asdict()
    plain["bins"] = [each._asdict() for each in result.bins]
    plain["classes"] = [each._asdict() for each in result.classes]
    uniform = math.log(result.num_classes)
    return {"bits": result.bits, "perplexity": result.perplexity, "uniform": uniform} | plain


def _print(console: Console, name: str, result: Evaluation, classes: int) -> None:
    left_out = f"; {result.ignored:,} ignored" if result.ignored else ""
    counts = f"{counted(result.rows, 'row')}, {counted(result.num_classes, 'class', 'classes')}"
    screen.say(console, f"{name}: {counts}{left_out}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    gap = result.calibration_gap
    leaning = "" if abs(gap) < 5e-4 else ", overconfident" if gap > 0 else ", underconfident"
    for row, value in (
        ("loss, nats", f"{result.loss:.6f}"),
        ("loss, bits", f"{result.bits:.6f}"),
        ("perplexity", f"{result.perplexity:,.4f}"),
        ("  entropy of the targets, H(q)", f"{result.entropy:.6f}"),
        ("  divergence from them, KL(q‖p)", f"{result.divergence:.6f}"),
        ("  guessing by class frequencies: their entropy", f"{result.frequencies:.6f}"),
        (f"  guessing uniformly: ln {result.num_classes:,}", f"{math.log(result.num_classes):.6f}"),
        ("accuracy", f"{result.accuracy:.2%}"),
        (f"label among the {result.top_k} most probable", f"{result.top_k_accuracy:.2%}"),
        ("calibration error, 15 bins", f"{result.calibration_error:.4f}"),
        (f"  mean confidence − accuracy{leaning}", f"{gap:+.4f}"),
    ):
        table.add_row(row, value, style="" if row.startswith(" ") else "bold")
    console.print(table)
    shown = sorted((c for c in result.classes if c.support), key=lambda c: (-(c.share or 0), c.label))
    if classes and shown:
        _print_classes(console, shown[:classes], len(shown))
    for note in notes(result):
        screen.say(console, f"note: {note}", "yellow", indent=6)


def _print_classes(console: Console, shown: list[Any], num_classes: int) -> None:
    which = (
        f"{len(shown)} of {counted(num_classes, 'class', 'classes')}, the costliest first"
        if len(shown) < num_classes
        else "classes"
    )
    screen.say(console, which)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("class", "rows", "recall", "precision", "loss, nats", "share of loss"):
        table.add_column(name, justify="right")
    for c in shown:
        table.add_row(
            f"{c.label}",
            f"{c.support:,}",
            f"{c.recall:.2%}",
            "-" if c.precision is None else f"{c.precision:.2%}",
            f"{c.loss:.4f}",
            "-" if c.share is None else f"{c.share:.2%}",
        )
    console.print(table)


def notes(result: Evaluation) -> list[str]:
    """Sentences that the user should know before trusting the numbers."""
    sentences = []
    if result.like_probabilities:
        sentences.append(
            "every row looked at lies in [0, 1] and sums to 1, like probabilities; they were read as "
            "logits. If they are probabilities, say --probabilities"
        )
    if result.undefined:
        first = f"row {result.first_undefined}"
        held = counted(result.undefined, "row holds", "rows hold")
        rows = f"{held} NaN or infinity{': ' if result.undefined == 1 else ', the first is '}{first}"
        sentences.append(f"{rows}; no loss, and no part in the numbers above")
    if result.infinite:
        rows = counted(result.infinite, "row gives its", "rows give their")
        sentences.append(f"{rows} target probability 0: an infinite loss")
    if result.unnormalised:
        rows = counted(result.unnormalised, "row of probabilities does", "rows of probabilities do")
        sentences.append(f"{rows} not sum to 1: divided by the sum")
    if result.unnormalised_targets:
        rows = counted(result.unnormalised_targets, "row of targets does", "rows of targets do")
        sentences.append(f"{rows} not sum to 1: taken without change")
    if not result.like_probabilities and result.loss > math.log(result.num_classes):
        sentences.append(
            "the loss is above that of guessing uniformly: do logits and labels belong together?"
        )
    return sentences
