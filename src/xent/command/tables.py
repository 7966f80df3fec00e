"""Tables in a terminal of any width: names wrap, numbers are never cut, columns without room follow below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from xent.command import screen

LONGEST = 20  # cells of a word that a column of names makes room for; longer ones are broken


ASCII_HEAD = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)  # rich's has sides


class Column(NamedTuple):
    """A column: names or words, which are wrapped, or numbers, which are not; heads are wrapped."""

    head: str
    is_text: bool = False
    footer: str = ""


class Row(NamedTuple):
    """The cells of a row, one for each column, and their style."""

    cells: Sequence[str | Text]
    style: str = ""


def show(console: Console, columns: Sequence[Column], rows: Sequence[Row], padding: int = 1) -> None:
    """Print the table, with ``padding`` blanks around a column.

    If it is wider than the console, the first column comes again below with the columns that had no room, and
    with those of the rows that have something in them.
    """
    columns = [column._replace(head=screen.spelled(console, column.head)) for column in columns]
    rows = [row._replace(cells=[_spelled(console, cell) for cell in row.cells]) for row in rows]
    between = 2 * padding + 1
    room = console.width - 2  # a blank on either side
    longest = min(LONGEST, room // 2)
    cells = [[row.cells[i] for row in rows] for i in range(len(columns))]
    least = [_least(column, own, longest) for column, own in zip(columns, cells, strict=True)]
    whole = [_whole(column, own) for column, own in zip(columns, cells, strict=True)]
    for part in _parts(least, room, between):
        widths = _widths([least[i] for i in part], [whole[i] for i in part], room - between * (len(part) - 1))
        table = Table(
            box=ASCII_HEAD if console.options.ascii_only else box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, padding),
            show_footer=any(column.footer for column in columns),
        )
        for i, width in zip(part, widths, strict=True):
            column = columns[i]
            table.add_column(
                column.head,
                column.footer,
                justify="left" if column.is_text else "right",
                width=width,
                overflow="fold",
            )
        for row in rows:
            if len(part) == len(columns) or any(str(row.cells[i]) for i in part[1:]):
                table.add_row(*(_cell(columns[i], row.cells[i]) for i in part), style=row.style)
        console.print(table)


def _parts(least: list[int], room: int, between: int) -> Iterator[list[int]]:
    """Indices of the columns of each table: the first, with as many of the others as there is room for."""
    part, width = [0], least[0]
    for i in range(1, len(least)):
        if width + between + least[i] > room and len(part) > 1:
            yield part
            part, width = [0], least[0]
        part.append(i)
        width += between + least[i]
    yield part


def _widths(least: list[int], whole: list[int], room: int) -> list[int]:
    """The widths of columns: ``least``, and where something is wrapped more, as far as there is room."""
    widths = list(least)
    for _ in range(room - sum(least)):
        lacks = [most / max(width, 1) for most, width in zip(whole, widths, strict=True)]
        if max(lacks) > 1:
            widths[lacks.index(max(lacks))] += 1
    return widths


def _whole(column: Column, cells: list[str | Text]) -> int:
    """The width at which nothing is wrapped."""
    return max(map(cell_len, [column.footer, *column.head.split("\n"), *map(str, cells)]))


def _least(column: Column, cells: list[str | Text], longest: int) -> int:
    """The least width at which no word of up to ``longest`` cells is broken, and no number."""
    words = [column.footer, *column.head.split()]
    if column.is_text:
        names = [_Name(str(cell)) for cell in cells]
        return max([*map(cell_len, words), *(min(longest, name.least) for name in names)])
    return max(map(cell_len, [*words, *map(str, cells)]))


def _spelled(console: Console, cell: str | Text) -> str | Text:
    return screen.spelled(console, cell) if isinstance(cell, str) else cell


def _cell(column: Column, cell: str | Text) -> Text | _Name:
    if column.is_text:
        return _Name(str(cell))
    return cell if isinstance(cell, Text) else Text(cell)


class _Name:
    """A name that is wrapped between words; the lines after the first are indented by two more blanks."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.indent = len(text) - len(text.lstrip()) + 2
        first, *others = text.split() or [""]
        self.least = max(self.indent - 2 + cell_len(first), *(self.indent + cell_len(w) for w in others), 0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = screen.wrapped(self.text, options.max_width, self.indent)
        yield Text(f"\n{' ' * self.indent}".join(lines), overflow="fold")
