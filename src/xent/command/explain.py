"""`xent explain`: one row of logits, each number beside its formula."""

from __future__ import annotations

import re
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.text import Text

from xent.command import screen, tables
from xent.command.tables import Column, Row

if TYPE_CHECKING:
    from xent.core.spec import Options
    from xent.explain.steps import Explanation


class SmoothingOver(StrEnum):
    """Choices of --smoothing-over."""

    ALL = "all"
    OTHERS = "others"


class LogitsCommand(typer.core.TyperCommand):
    """A command whose first argument may begin with a negative number, "-1 2 3", or lack its quotes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the words before the options to one argument; put an argument like "-1 2 3" behind "--"."""
        words = list(takewhile(lambda word: re.match(r"-[\d.i]|[^-]", word), args))
        if words:
            args = [" ".join(words), *args[len(words) :]]
        for i, word in enumerate(args):
            if re.match(r"-[\d.i]", word) and not (i and args[i - 1].startswith("--")):
                args = [*args[:i], *args[i + 1 :], "--", word]
                break
        return super().parse_args(ctx, args)


def explain(
    logits: Annotated[str, typer.Argument(help='Logits of one row, such as "2 3 4".')],
    label: Annotated[int, typer.Option(help="The true class, counted from 0.")],
    label_smoothing: Annotated[float, typer.Option(help="Probability moved from the label.")] = 0.0,
    smoothing_over: Annotated[
        SmoothingOver, typer.Option(help="Moved to all classes, or to the others.")
    ] = SmoothingOver.ALL,
    focal_gamma: Annotated[float, typer.Option(help="gamma of -(1-p)^gamma log p.")] = 0.0,
    poly1_epsilon: Annotated[float, typer.Option(help="epsilon of -log p + epsilon (1-p).")] = 0.0,
    temperature: Annotated[float, typer.Option(help="T of z/T.")] = 1.0,
    softcap: Annotated[float | None, typer.Option(help="C of C tanh(z/C).")] = None,
    z_loss: Annotated[float, typer.Option(help="lambda of lambda logsumexp^2.")] = 0.0,
    class_weight: Annotated[str | None, typer.Option(help='One weight a class, such as "1 2 1".')] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page here that computes while logits and options move.")
    ] = None,
    json: screen.Json = False,
) -> None:
    """Show logits, probabilities, target, loss and gradient, each beside its formula."""
    from xent.explain import explorer
    from xent.explain import steps as explaining
    from xent.files import storage

    numbers = explaining.parse_numbers(logits, "logits")
    if not 0 <= label < len(numbers):
        raise ValueError(f"`--label` must be in [0, {len(numbers)}), one of the logits; got {label}")
    options: Options = {
        "label_smoothing": label_smoothing,
        "smoothing_over": smoothing_over.value,
        "focal_gamma": focal_gamma,
        "poly1_epsilon": poly1_epsilon,
        "temperature": temperature,
        "softcap": softcap,
        "z_loss": z_loss,
        "class_weight": None
        if class_weight is None
        else explaining.parse_numbers(class_weight, "--class-weight"),
    }
    explanation = explaining.explain(numbers, label, options)
    if html is not None:
        storage.require_writable(html)
        storage.write(html, explorer.html(numbers, label, options).encode())
    if json:
        numbers_by_name: dict[str, Any] = {line.name: line.value for line in explanation.lines}
        numbers_by_name |= {column.name: column.values.tolist() for column in explanation.columns}
        numbers_by_name |= {"label": label, "formula": explanation.gradient, "html": html and str(html)}
        screen.print_json(
            {re.sub(r"\W+", "_", name).strip("_"): value for name, value in numbers_by_name.items()}
        )
        return
    console = screen.console()
    _print(console, explanation)
    if html is not None:
        console.print(Text(f"page      {html}"), soft_wrap=True)


def _print(console: Console, explanation: Explanation) -> None:
    from xent.explain.steps import number

    columns = [
        Column("class\nk"),
        *(Column(screen.formula(console, f"{c.name}\n{c.formula}")) for c in explanation.columns),
    ]
    rows = []
    for k, values in enumerate(zip(*(column.values for column in explanation.columns), strict=True)):
        is_label = k == explanation.label
        name = f"label → {k}" if is_label else str(k)
        rows.append(Row([name, *map(number, values)], "bold" if is_label else ""))
    tables.show(console, columns, rows)
    screen.say(console, screen.formula(console, explanation.gradient))
    heads = ("quantity", "formula", "in numbers")
    columns = [*(Column(head, is_text=True) for head in heads), Column("value")]
    lines = [(line.name, line.formula, line.numbers, number(line.value)) for line in explanation.lines]
    rows = [Row([screen.formula(console, cell) for cell in line]) for line in lines]
    tables.show(console, columns, rows)
