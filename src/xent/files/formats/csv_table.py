"""Read CSV files: detect separator, header and decimal mark; read the rows as text, whole or in batches."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from xent.files.errors import DataError, polars_faults
from xent.files.formats import row_numbers
from xent.files.formats.row_numbers import RowNumbers

if TYPE_CHECKING:
    import polars

HEAD = 1 << 18  # bytes from which separator and decimal mark are detected
RECORDS = 1000  # at most so many records of them
MARKS = "\t;,|"  # separators that can be detected; the first of equally good ones wins
ESCAPED = {r"\t": "\t", "tab": "\t"}
# A number with one comma that can only be a decimal mark (1,234 could have a thousands separator), and the
# same with a point.
FRACTION = r"[-+]?(?:\d*{0}(?:\d{{1,2}}|\d{{4,}})|0?{0}\d+|\d{{4,}}{0}\d+|\d{{1,3}}(?:{1}\d{{3}})+{0}\d+)"
EXPONENT = r"(?:[eE][-+]?\d+)?"
FRACTIONS = {
    mark: re.compile(FRACTION.format(re.escape(mark), re.escape(other)) + EXPONENT)
    for mark, other in ((",", "."), (".", ","))
}


class Dialect(NamedTuple):
    """Options for reading a table.

    ``separator`` and ``decimal`` are None to detect them. ``missing`` are words that mean a missing value, in
    addition to the usual ones, which ``usual_missing=False`` turns off.
    """

    separator: str | None = None
    decimal: str | None = None
    missing: tuple[str, ...] = ()
    usual_missing: bool = True

    @classmethod
    def from_json(cls, entry: Any) -> Self:
        """The inverse of ``_asdict``; ValueError for anything else."""
        try:
            dialect = cls(**entry | {"missing": tuple(entry["missing"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"how tables are to be read is not complete: {error!r}") from None
        words = [word for word in (dialect.separator, dialect.decimal) if word is not None]
        if not all(isinstance(word, str) for word in (*words, *dialect.missing)):
            raise ValueError("how tables are to be read must be text")
        return dialect.checked()

    def over(self, other: Dialect) -> Dialect:
        """Both combined; options of ``self`` take precedence."""
        return Dialect(
            self.separator or other.separator,
            self.decimal or other.decimal,
            self.missing or other.missing,
            self.usual_missing and other.usual_missing,
        )

    def checked(self) -> Self:
        """A copy with the separator as one character; ValueError for options that cannot be used."""
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
    """The format of a file, detected from its first lines."""

    separator: str
    names: list[str]  # column names
    nameless: list[str]  # those made up for columns without a name
    before: int  # lines above the header
    decimal: str = "."
    grouped: bool = False  # whether the other mark may separate thousands


def detect_layout(path: Path, dialect: Dialect) -> Layout:
    """Detect the layout of a file from its first lines. Raises DataError if they are not CSV."""
    lines, whole = _head(path)
    before = next(k for k, line in enumerate(lines) if line.strip())
    sep_line = re.fullmatch(r'"?sep=(.)"?\s*', lines[before], re.IGNORECASE | re.DOTALL)
    before += bool(sep_line)
    separator = dialect.separator or (sep_line.group(1) if sep_line else None)
    if separator is None:
        separator = max(MARKS, key=lambda mark: _evenness(_records(path, lines[before:], mark, whole)))
    records = _records(path, lines[before:], separator, whole)
    blank = next((k for k, (_, record) in enumerate(records) if any(map(str.strip, record))), None)
    if blank is None:
        raise DataError(f"{path}: holds no header; expected one line of names, then a row a line")
    first = records[blank - 1][0] if blank else 0  # line of the header, counted from ``before``
    header = records[blank][1]
    if any(re.search("[\ud800-\udfff]", name) for name in header):
        raise DataError(f"{path}: is not a CSV file: {_not_utf8(before + first + 1)}")
    cells = (cell.strip() for _, record in records[blank + 1 :] for cell in record)
    decimal = dialect.decimal or ("." if separator == "," else _decimal(cells))
    names, nameless = plain_names(path, header)
    return Layout(separator, names, nameless, before + first, decimal, dialect.decimal is not None)


def read(path: Path, layout: Layout) -> tuple[polars.DataFrame, RowNumbers]:
    """(all cells as text, null where empty; the numbers of the rows). Raises DataError."""
    import polars

    with _faults(path, layout):
        table = polars.read_csv(path, **_options(layout), new_columns=layout.names)
    numbers = row_numbers.csv_lines(path, layout.before + 1)
    _require_count(path, table.height, numbers)
    return table, numbers


def batches(path: Path, layout: Layout, cells: int) -> Iterator[tuple[polars.DataFrame, RowNumbers]]:
    """As `read`, in batches of about ``cells`` cells; DataError at the end if rows are missing."""
    import polars

    numbers = row_numbers.csv_lines(path, layout.before + 1)
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
    """(stripped names, those made up). A column without a name is named by its position.

    Raises DataError for a name that occurs twice.
    """
    stripped = [name.strip() for name in names]
    twice = [name for name, count in Counter(stripped).items() if name and count > 1]
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} is there twice")
    completed = [name or position_name(index, stripped) for index, name in enumerate(stripped)]
    return completed, [name for name in completed if name not in stripped]


def position_name(index: int, names: list[str]) -> str:
    """A name for the nameless column ``index`` that no column in ``names`` has."""
    name = f"column {index + 1}"
    while name in names:
        name += " without a name"
    return name


def _head(path: Path) -> tuple[list[str], bool]:
    """(the first lines, whether they are the whole file); they hold at least one line that is not blank."""
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
    """[(line number of the record's end, fields)] of the first records."""
    reader = csv.reader(lines, delimiter=mark)
    records = []
    try:
        for record in reader:
            records.append((reader.line_num, record))
            if len(records) == RECORDS:
                return records
    except csv.Error as error:
        if not records:
            raise DataError(f"{path}: is not a CSV file: line {reader.line_num}: {error}") from None
    return records if whole or len(records) < 2 else records[:-1]  # the last may be cut inside quotes


def _evenness(records: list[tuple[int, list[str]]]) -> tuple[float, int]:
    """Score of a separator: (share of records with as many fields as the first, that number of fields)."""
    widths = [len(record) for _, record in records if any(map(str.strip, record))]
    if not widths or widths[0] < 2:
        return 0.0, 0
    return sum(width == widths[0] for width in widths) / len(widths), widths[0]


def _decimal(cells: Iterable[str]) -> str:
    """The decimal mark: a comma if some number has a decimal comma and none a decimal point."""
    marks = {mark for cell in cells for mark in FRACTIONS if mark in cell and FRACTIONS[mark].fullmatch(cell)}
    return "," if marks == {","} else "."


def _options(layout: Layout) -> dict[str, Any]:
    return {
        "infer_schema": False,
        "separator": layout.separator,
        "skip_lines": layout.before,
        "glob": False,
    }


def _require_count(path: Path, count: int, numbers: RowNumbers) -> None:
    if count != numbers.num_rows:
        raise DataError(
            f"{path}: {count:,} rows could be read of {numbers.num_rows:,} in the file: "
            "a quote may be missing"
        )


@contextmanager
def _faults(path: Path, layout: Layout) -> Iterator[None]:
    """Turn an error of polars into a DataError with the line, which polars does not report."""
    try:
        with polars_faults(path, "is not a CSV file"):
            yield
    except DataError:
        line = _first_bad_line(path, layout)
        if not line:
            raise
        raise DataError(f"{path}: is not a CSV file: {line}") from None


def _first_bad_line(path: Path, layout: Layout) -> str:
    """The first line that polars refuses: text that is not UTF-8, or a row with too many fields; else ""."""
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
