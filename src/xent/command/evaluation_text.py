"""What `xent eval` prints: numbers with 95% intervals, the comparison of two models, classes, notes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console

from xent.command import screen, tables
from xent.command.tables import Column, Row
from xent.evaluation.words import class_name, half_interval, notes, numbers
from xent.files.phrases import counted

if TYPE_CHECKING:
    from xent.evaluation.comparison import Comparison, Difference
    from xent.evaluation.stream import Results
    from xent.evaluation.tally import Evaluation

MOST_DIFFERENCES = 3  # rows to show on which each model is worse


def show(console: Console, files: list[str], names: list[str] | None, results: Results, classes: int) -> None:
    """Print the results of one model or two, of the files LOGITS, perhaps OTHER, and LABELS."""
    for name, result in zip(files, results.evaluations, strict=False):
        left_out = f"; {result.ignored:,} ignored" if result.ignored else ""
        counts = f"{counted(result.rows, 'row')}, {counted(result.num_classes, 'class', 'classes')}"
        screen.say(console, f"{name}: {counts}{left_out}")
        _print_numbers(console, result)
        order = result.classes.costliest()
        if classes and len(order) and results.comparison is None:
            _print_classes(console, result.classes.of(order[:classes]), len(order), names)
        for note in notes(result):
            screen.say(console, f"note: {note}", "yellow", indent=6)
    if results.comparison is not None:
        _print_comparison(console, files, names, results.comparison)


def _print_numbers(console: Console, result: Evaluation) -> None:
    _print_values(console, numbers(result), result.groups)


def _print_values(console: Console, values: list[tuple[str, str, str]], groups: int | None) -> None:
    """Print [(name, value, its interval)]; names that begin with blanks are beneath others."""
    clustered = "" if groups is None else f", {counted(groups, 'group')}"
    columns = (Column("", is_text=True), Column(""), Column(f"95%{clustered}"))
    tables.show(console, columns, [Row(row, "" if row[0].startswith(" ") else "bold") for row in values])


def _print_classes(console: Console, shown: list[Any], num_classes: int, names: list[str] | None) -> None:
    which = (
        f"{len(shown)} of {counted(num_classes, 'class', 'classes')}, the costliest first"
        if len(shown) < num_classes
        else "classes"
    )
    screen.say(console, which)
    heads = ("rows", "recall", "precision", "loss, nats", "share of loss")
    columns = [Column("class", is_text=names is not None), *map(Column, heads)]
    rows = [
        Row(
            (
                class_name(c.label, names),
                f"{c.support:,}",
                f"{c.recall:.2%}",
                "-" if c.precision is None else f"{c.precision:.2%}",
                f"{c.loss:.4f}",
                "-" if c.share is None else f"{c.share:.2%}",
            )
        )
        for c in shown
    ]
    tables.show(console, columns, rows)


def _print_comparison(
    console: Console, files: list[str], names: list[str] | None, result: Comparison
) -> None:
    screen.say(console, f"{files[0]} less {files[1]}, paired over {counted(result.rows, 'row')}")
    half = result.difference_interval[1] - result.difference
    shares = [count / result.rows if result.rows else math.nan for count in result.wins]
    values = [
        ("difference of the losses, nats", f"{result.difference:+.6f}", half_interval(half, "{:.4f}")),
        (
            "difference of the accuracies",
            f"{result.accuracy_difference:+.2%}",
            half_interval(1.96 * result.accuracy_difference_se, "{:.2%}"),
        ),
        ("rows on which the first has the lower loss", f"{result.wins.first:,}", f"{shares[0]:.1%}"),
        ("rows on which the second has", f"{result.wins.second:,}", f"{shares[1]:.1%}"),
        ("  ties", f"{result.wins.ties:,}", f"{shares[2]:.1%}"),
        ("  only the first is right", f"{result.only_right[0]:,}", ""),
        ("  only the second is right", f"{result.only_right[1]:,}", ""),
        (
            "correlation of the losses",
            "-" if math.isnan(result.correlation) else f"{result.correlation:.4f}",
            "",
        ),
    ]
    _print_values(console, values, result.groups)
    for which, rows in (("first", result.first_worse), ("second", result.second_worse)):
        if rows:
            screen.say(console, f"the {which} loses most to the other on: {_rows(rows, names)}", indent=2)


def _rows(rows: list[Difference], names: list[str] | None) -> str:
    """ "row 12 of class 3, 5.20 against 0.10; ..."."""
    return "; ".join(
        f"row {each.row:,} of class {class_name(each.label, names)}, {each.losses[0]:.2f} and "
        f"{each.losses[1]:.2f} nats"
        for each in rows[:MOST_DIFFERENCES]
    )
