"""Printing for all subcommands: text, JSON and progress; the options that several of them have."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from xent.files.json_values import finite_or_null
from xent.files.phrases import printable

if TYPE_CHECKING:
    from xent.regression.fitting import Step

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
    """Show a status line on stderr if it is a terminal; yields a function that changes its text."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(Text(printable(what))) as line:
        yield lambda text: line.update(Text(printable(f"{what}: {text}")))


class Passes:
    """A bar on stderr, if it is a terminal, of the bytes of passes that follow one another."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar, self._what, self._note = bar, "", ""
        self._task = None if bar is None else bar.add_task("opening the files", total=None)

    def read(self, what: str, done: int, total: int) -> None:
        """Show how much of a pass is done, in bytes, and the time left."""
        if self._bar is None or self._task is None:
            return
        if what != self._what:
            self._what = what
            self._bar.reset(self._task)
        self._bar.update(self._task, completed=done, total=total, description=printable(what + self._note))

    def stepped(self, step: Step) -> None:
        """Show the objective after a step, and its gap, beside the passes from now on."""
        gap = "" if step.optimality_gap is None else f", gap {step.optimality_gap:.1e}"
        self._note = f", step {step.iteration}: objective {step.objective:.6f}{gap}"


@contextmanager
def passes() -> Iterator[Passes]:
    """Yield a `Passes` that is shown until the end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Passes(None)
        return
    with _bar(console) as bar:
        yield Passes(bar)


def _bar(console: Console, in_bytes: bool = True) -> Progress:
    """A bar of one line in any terminal, followed by how much is done and the time left."""
    text, count, left = (Column(no_wrap=True) for _ in range(3))
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=text),
        BarColumn(None),
        DownloadColumn(table_column=count) if in_bytes else MofNCompleteColumn(table_column=count),
        TimeRemainingColumn(table_column=left),
        console=console,
        transient=True,
    )


@contextmanager
def progress(what: str, total: int, in_bytes: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar of ``total`` bytes, or things, on stderr if it is a terminal; yields what advances it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with _bar(console, in_bytes) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, advance=count)


def console() -> Console:
    """A console on standard output, in colour on a terminal unless NO_COLOR is set.

    A character that the encoding of the output lacks is printed as an escape, unless `spelled` knows it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False)
    if console.is_dumb_terminal:  # for which rich takes 80 columns
        console.size = ConsoleDimensions(*shutil.get_terminal_size())
    return console


SIGNS = dict(
    zip("−±→‖≤·²∘∂ℓΣ…", ("-", "+-", "->", "||", "<=", "*", "^2", "o", "d", "loss", "sum", "..."), strict=True)
)


def spelled(console: Console, text: str) -> str:
    """``text``; for an output that may not take them, signs in ASCII. Letters of names stay."""
    return "".join(SIGNS.get(c, c) for c in text) if console.options.ascii_only else text


def formula(console: Console, text: str) -> str:
    """As `spelled`, with the Greek letters of a formula by their names."""
    if not console.options.ascii_only:
        return text
    pattern = r"(?<=\w)(?=[α-ω])|(?<=[α-ω])(?=\w)|[α-ω]"
    return re.sub(pattern, lambda match: _letter(match[0]), spelled(console, text))


def _letter(c: str) -> str:
    """The name of a Greek letter; a blank where two letters would touch."""
    return unicodedata.name(c).split()[-1].lower().replace("lamda", "lambda") if c else " "


def number(option: str, word: str, or_word: str) -> float | None:
    """The number that an option is given; None for ``or_word``, and ValueError for anything else."""
    try:
        return None if word == or_word else float(word)
    except ValueError:
        raise ValueError(f"`{option}` must be a number or {or_word}; got {word!r}") from None


def say(console: Console, text: str, style: str = "", indent: int = 0) -> None:
    """Print `printable` ``text``: in a pipe as one line, on a terminal wrapped between words.

    All lines except the first begin with ``indent`` blanks.
    """
    line = spelled(console, printable(text))
    if console.is_terminal:
        line = f"\n{' ' * indent}".join(wrapped(line, console.width, indent))
    console.print(Text(line, style), soft_wrap=True)


def wrapped(text: str, width: int, indent: int) -> list[str]:
    """``text`` wrapped between words to ``width`` cells, and to ``indent`` fewer after the first line."""
    lines: list[str] = []
    line, room = "", width
    for word in re.split(r"(?<=\S) (?=\S)", text):
        if line and cell_len(line) + 1 + cell_len(word) > room:
            lines.append(line)
            line, room = word, width - indent
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def print_json(value: dict[str, Any]) -> None:
    """Print ``value`` as JSON on one line, with null for NaN and infinity."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = not encoding.lower().startswith("utf")
    print(json.dumps(finite_or_null(value), ensure_ascii=escaped, allow_nan=False))
