"""What the subcommands share: where they print, and how they say how far they are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

Separator = Annotated[
    str | None, typer.Option(metavar="CHARACTER", help="Between the fields of a CSV file, if not found.")
]
Decimal = Annotated[
    str | None, typer.Option(metavar="MARK", help="Of fractions in a CSV file, a point or a comma.")
]
Missing = Annotated[
    list[str] | None,
    typer.Option(metavar="WORD", help="Also means a missing value; may be repeated."),
]
NoMissing = Annotated[
    bool, typer.Option("--no-missing", help="NA, None and the like are text; only empty is missing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says how far it is, on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(what) as line:
        yield lambda text: line.update(Text(f"{what}: {text}"))


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr of ``total`` bytes, on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, advance=count)


def console() -> Console:
    """Standard output, in colour on a terminal unless NO_COLOR is set."""
    return Console(highlight=False)


def print_json(value: dict[str, Any]) -> None:
    """One line; NaN and infinity, which JSON cannot say, are null."""
    print(json.dumps(_sayable(value), ensure_ascii=False, allow_nan=False))


def _sayable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _sayable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
