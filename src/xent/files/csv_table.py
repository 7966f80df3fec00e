"""CSV files as text: their separator, header and decimals, their rows whole or in pieces."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from xent.files import row_numbers
from xent.files.faults import DataError, polars_faults
from xent.files.row_numbers import RowNumbers

if TYPE_CHECKING:
    import polars

HEAD = 1 << 18  # bytes that separator and decimals are found in
RECORDS = 1000  # of them
MARKS = "\t;,|"  # separators that are found without being named, of equals the first
ESCAPED = {r"\t": "\t", "tab": "\t"}
# One comma that can only be a decimal one, and the same of the point: no three digits after one to three.
FRACTION = r"[-+]?(?:\d*{0}(?:\d{{1,2}}|\d{{4,}})|0?{0}\d+|\d{{4,}}{0}\d+|\d{{1,3}}(?:{1}\d{{3}})+{0}\d+)"
EXPONENT = r"(?:[eE][-+]?\d+)?"
FRACTIONS = {
    mark: re.compile(FRACTION.format(re.escape(mark), re.escape(other)) + EXPONENT)
    for mark, other in ((",", "."), (".", ","))
}


class Dialect(NamedTuple):
    """How a table is to be read, where the file does not say it.

    ``separator`` and ``decimal`` are None if they are to be found out. ``missing`` are words that mean a
    missing value, beside those that mean one anyway unless ``usual_missing`` is False.
    """

    separator: str | None = None
    decimal: str | None = None
    missing: tuple[str, ...] = ()
    usual_missing: bool = True

    @classmethod
    def from_json(cls, entry: Any) -> Self:
        """Of what ``_asdict`` gave; ValueError for anything else."""
        try:
            found = cls(**entry | {"missing": tuple(entry["missing"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"how tables are to be read is not complete: {error!r}") from None
        words = [word for word in (found.separator, found.decimal) if word is not None]
        if not all(isinstance(word, str) for word in (*words, *found.missing)):
            raise ValueError("how tables are to be read must be text")
        return found.checked()

    def over(self, other: Dialect) -> Dialect:
        """Both; what is said here comes first."""
        return Dialect(
            self.separator or other.separator,
            self.decimal or other.decimal,
            self.missing or other.missing,
            self.usual_missing and other.usual_missing,
        )

    def checked(self) -> Self:
        """With the separator as one character; ValueError for one that cannot be."""
        mark = ESCAPED.get(self.separator or "", self.separator)
        if mark is not None and (len(mark) != 1 or not mark.isascii() or mark in '"\r\n\0' or mark.isalnum()):
            raise ValueError(
                f"`--separator` must be one ASCII character, neither letter, digit nor quote, or \\t; got "
                f"{self.separator!r}" + (": replace it in the file first" if len(mark) > 1 else "")
            )
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"`--decimal` must be a point or a comma; got {self.decimal!r}")
        if mark is not None and mark == self.decimal:
            raise ValueError(f"`--separator` and `--decimal` must differ; got {mark!r} for both")
        return self._replace(separator=mark)


class Layout(NamedTuple):
    """What the first lines of a file say of all of it."""

    separator: str
    names: list[str]  # of the columns
    nameless: list[str]  # those of them that say a place
    before: int  # lines above the header
    decimal: str = "."
    grouped: bool = False  # whether the other mark may stand between thousands


def look(path: Path, dialect: Dialect) -> Layout:
    """Of the file. Raises DataError if it is no CSV file at first sight."""
    lines, whole = _head(path)
    before = next(k for k, line in enumerate(lines) if line.strip())
    said = re.fullmatch(r'"?sep=(.)"?\s*', lines[before], re.IGNORECASE | re.DOTALL)
    before += bool(said)
    separator = dialect.separator or (said.group(1) if said else None)
    if separator is None:
        separator = max(MARKS, key=lambda mark: _evenness(_records(path, lines[before:], mark, whole)))
    records = _records(path, lines[before:], separator, whole)
    blank = next((k for k, (_, record) in enumerate(records) if any(map(str.strip, record))), None)
    if blank is None:
        raise DataError(f"{path}: holds no header; expected one line of names, then a row a line")
    first = records[blank - 1][0] if blank else 0  # of the lines from ``before`` on
    header = records[blank][1]
    if any(re.search("[\ud800-\udfff]", name) for name in header):
        raise DataError(f"{path}: is not a CSV file: {_not_utf8(before + first + 1)}")
    cells = (cell.strip() for _, record in records[blank + 1 :] for cell in record)
    decimal = dialect.decimal or ("." if separator == "," else _decimal(cells))
    names, nameless = plain_names(path, header)
    return Layout(separator, names, nameless, before + first, decimal, dialect.decimal is not None)


def read(path: Path, layout: Layout) -> tuple[polars.DataFrame, RowNumbers]:
    """All cells as text, null where empty; and what the rows are called. Raises DataError."""
    import polars

    with _faults(path, layout):
        table = polars.read_csv(path, **_options(layout), new_columns=layout.names)
    numbers = row_numbers.of_csv(path, layout.before + 1)
    _require_count(path, table.height, numbers)
    return table, numbers


def batches(path: Path, layout: Layout, cells: int) -> Iterator[tuple[polars.DataFrame, RowNumbers]]:
    """The same in pieces of about so many ``cells``, of fewer rows than the file has never."""
    import polars

    numbers = row_numbers.of_csv(path, layout.before + 1)
    count = 0
    with _faults(path, layout):
        frame = polars.scan_csv(path, **_options(layout), with_column_names=lambda _: layout.names)
        rows = max(1, cells // max(1, len(layout.names)))
        pieces = frame.collect_batches(chunk_size=rows, maintain_order=True)
    while True:
        with _faults(path, layout):
            batch = next(pieces, None)
        if batch is None:
            break
        count += batch.height
        yield batch, numbers
    _require_count(path, count, numbers)


def plain_names(path: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """(names without blanks around, those made up). A column without a name is named by its place.

    Raises DataError for a name that is there twice.
    """
    stripped = [name.strip() for name in names]
    twice = [name for name, count in Counter(stripped).items() if name and count > 1]
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} is there twice")
    found = [name or by_place(place, stripped) for place, name in enumerate(stripped)]
    return found, [name for name in found if name not in stripped]


def by_place(place: int, names: list[str]) -> str:
    """The name of a column that has none, unless another column among ``names`` has just that name."""
    name = f"column {place + 1}"
    while name in names:
        name += " without a name"
    return name


def _head(path: Path) -> tuple[list[str], bool]:
    """(the first lines, whether they are all). At least one line that is not blank, however long it is."""
    size, whole = HEAD, False
    while not whole:
        with path.open("rb") as file:
            head = file.read(size)
        whole = len(head) < size
        if b"\n" in head.removeprefix(b"\xef\xbb\xbf").strip():
            break
        size *= 4
    if not head.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{path}: is empty; expected a CSV file with a header")
    if b"\0" in head:
        raise DataError(f"{path}: is not a CSV file: it holds binary data")
    if b"\r" in head and b"\n" not in head:
        raise DataError(f"{path}: its lines end with a carriage return alone; expected line feeds (\\n)")
    if not whole:
        head = head[: head.rindex(b"\n") + 1]
    text = head.decode("utf-8", "surrogateescape").removeprefix("\ufeff").replace("\r\n", "\n")
    return re.findall("[^\n]*\n|[^\n]+", text), whole


def _records(path: Path, lines: list[str], mark: str, whole: bool) -> list[tuple[int, list[str]]]:
    """(the number of the last line, fields) of the first records."""
    reader = csv.reader(lines, delimiter=mark)
    found = []
    try:
        for record in reader:
            found.append((reader.line_num, record))
            if len(found) == RECORDS:
                return found
    except csv.Error as error:
        if not found:
            raise DataError(f"{path}: is not a CSV file: line {reader.line_num}: {error}") from None
    return found if whole or len(found) < 2 else found[:-1]  # the last may be cut within quotes


def _evenness(records: list[tuple[int, list[str]]]) -> tuple[float, int]:
    """How well a separator fits: the share of records with as many fields as the first, of several."""
    widths = [len(record) for _, record in records if any(map(str.strip, record))]
    if not widths or widths[0] < 2:
        return 0.0, 0
    return sum(width == widths[0] for width in widths) / len(widths), widths[0]


def _decimal(cells: Iterable[str]) -> str:
    """A comma, if a number has a decimal one and none a decimal point."""
    found = {mark for cell in cells for mark in FRACTIONS if mark in cell and FRACTIONS[mark].fullmatch(cell)}
    return "," if found == {","} else "."


def _options(layout: Layout) -> dict[str, Any]:
    return {
        "infer_schema": False,
        "separator": layout.separator,
        "skip_lines": layout.before,
        "glob": False,
    }


def _require_count(path: Path, count: int, numbers: RowNumbers) -> None:
    if count != numbers.total:
        raise DataError(
            f"{path}: {count:,} rows could be read of {numbers.total:,} in the file: a quote may be missing"
        )


@contextmanager
def _faults(path: Path, layout: Layout) -> Iterator[None]:
    """A fault of polars, with the line, which it does not tell."""
    try:
        with polars_faults(path, "is not a CSV file"):
            yield
    except DataError:
        line = _first_bad_line(path, layout)
        if not line:
            raise
        raise DataError(f"{path}: is not a CSV file: {line}") from None


def _first_bad_line(path: Path, layout: Layout) -> str:
    """What polars refuses without saying where: text that is not UTF-8, a row with too many fields."""
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").split("\n")[layout.before :]
    except UnicodeDecodeError as error:
        return _not_utf8(content.count(b"\n", 0, error.start) + 1)
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=layout.separator)
    line = layout.before + 1
    try:
        for record in reader:
            if len(record) > len(layout.names):
                return f"line {line} has {len(record)} fields, the header {len(layout.names)}"
            line = layout.before + reader.line_num + 1
    except csv.Error as error:
        return f"line {line}: {error}"
    return ""


def _not_utf8(line: int) -> str:
    return f"line {line} is not UTF-8 text (save it so, or convert it: iconv -f cp1252 -t UTF-8)"
