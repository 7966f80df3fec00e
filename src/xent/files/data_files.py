"""Open data files, whatever they are packed in: what is read here, or a temporary file that is.

Standard input, compressed files, text in UTF-16, JSON Lines, Arrow files and workbooks are copied or
converted first. So each reader has a file of its own format, that it can read as often as it needs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from xent.files.errors import DataError, named_faults
from xent.files.formats import arrow, compressed, foreign, json_lines, svmlight, wide_text, workbook

BUNDLED = ("digits", "iris", "wine", "breast_cancer")
KINDS = "CSV, Parquet, npz, svmlight, JSON Lines, Arrow or Excel"
STANDARD_INPUT = "standard input"
MOST_STEPS = 5  # a file can be made that unpacks to itself

Convert = Callable[[Path, Path], list[str] | None]  # (from, to) → notes


class Opened(NamedTuple):
    """A file that can be read here."""

    kind: str  # bundled, csv, parquet, npz, npy or svmlight
    path: Path  # a temporary file, or the one that was named
    name: str = ""  # for people, of the one that was named
    notes: tuple[str, ...] = ()  # how it was made, in sentences


class DataFiles:
    """Opens data files; the temporary ones are deleted by `close`, or when this object is.

    They are in the system's temporary folder, which TMPDIR chooses. ``notes`` say how those were made that
    `unpack` gave, in sentences.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._names: dict[str, str] = {}  # temporary file → name of the one that it stands for
        self._folder: Path | None = None

    @property
    def has_copies(self) -> bool:
        """Whether a file that was opened is read from a temporary one."""
        return bool(self._names)

    def open(self, data: str) -> Opened:
        """The bundled set or file ``data``; "-" is standard input. Raises DataError."""
        if data in BUNDLED:
            return Opened("bundled", Path(data), data)
        if data != "-" and not foreign.is_pipe(data):
            foreign.require_file(data, KINDS)
            if not Path(data).exists():
                raise DataError(f"{data}: no such file, and none of the bundled sets {', '.join(BUNDLED)}")
        path, name, notes = self.unpack(data)
        with self.named():
            return Opened(_kind(path), path, name, notes)

    def unpack(self, data: str) -> tuple[Path, str, tuple[str, ...]]:
        """(a file of a format that is read here, or of an unknown one; its name; how it was made).

        It is the file ``data`` itself, or a temporary one. Raises DataError, OSError.
        """
        name = STANDARD_INPUT if data == "-" else data
        notes: list[str] = []
        path = Path(data)
        if data == "-" or foreign.is_pipe(data):
            path = self._copied(data, name)
            notes.append(f"{name} was copied to a temporary file, which is deleted at the end")
        with self.named():
            for _ in range(MOST_STEPS):
                convert = _conversion(path)
                if convert is None:
                    return path, name, tuple(notes)
                target = self._temporary(name)
                with named_faults(f"{name}, copied to {target.parent}"):
                    notes += convert(path, target) or []
                if str(path) in self._names:  # an earlier step's
                    path.unlink()
                path = target
        raise DataError(f"{data}: is packed more than {MOST_STEPS} times: unpack it first")

    @contextmanager
    def named(self) -> Iterator[None]:
        """In a ValueError within, the name that was given stands for that of the temporary file."""
        try:
            yield
        except ValueError as error:
            text = str(error)
            for path, name in self._names.items():
                text = text.replace(path, name)
            if text == str(error):
                raise
            raise DataError(text) from None

    def given(self, path: Path) -> Path:
        """The file that was named, for messages, of the one that `open` said to read."""
        return Path(self._names.get(str(path), path))

    def close(self) -> None:
        """Delete the temporary files."""
        if self._folder is not None:
            self._delete()

    def _copied(self, data: str, name: str) -> Path:
        target = self._temporary(name)
        with target.open("wb") as file, named_faults(f"{name}, copied to {target.parent}"):
            if data != "-":
                with open(data, "rb") as pipe:
                    shutil.copyfileobj(pipe, file)
            elif sys.stdin is None:
                raise DataError(f"{name}: is closed")
            else:
                shutil.copyfileobj(sys.stdin.buffer, file)
        return target

    def _temporary(self, name: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="xent-"))
            self._delete = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / str(len(self._names)) / Path(name).name
        path.parent.mkdir()
        self._names[str(path)] = name
        return path


@contextmanager
def opened(data: str) -> Iterator[Opened]:
    """`DataFiles.open`, for one file; the temporary file is deleted at the end."""
    files = DataFiles()
    try:
        file = files.open(data)
        with files.named():
            yield file
    finally:
        files.close()


def _conversion(path: Path) -> Convert | None:
    """A function that writes a file that is nearer to one that can be read; None if this one can be."""
    head = _head(path)
    if foreign.is_safetensors(head):  # the length of its header may be the first bytes of another kind
        return None
    unpack = compressed.unpacker(path, head)
    if unpack is not None:
        return lambda _, target: unpack(target)
    sheet = workbook.kind(path, head)
    if sheet is not None:
        return lambda source, target: workbook.convert(source, sheet, target)
    encoding = wide_text.encoding(head)
    if encoding is not None:
        return lambda source, target: wide_text.recode(source, encoding, target)
    if head.startswith(arrow.MAGIC):
        return arrow.convert
    if not json_lines.is_json_lines(path, head):
        return None
    if head.startswith(wide_text.UTF8_MARK):  # which polars does not skip
        return lambda source, target: wide_text.recode(source, "UTF-8-SIG", target)
    return json_lines.convert


def _kind(path: Path) -> str:
    """csv, parquet, npz, npy or svmlight. Raises DataError for a file of another kind."""
    head = _head(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(foreign.NPY):
        return "npy"
    other = foreign.identify(path, KINDS)
    if other:
        raise other
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: is damaged or no npz file: the end of a zip archive is missing")
        return "npz"
    return "svmlight" if svmlight.is_svmlight(head) else "csv"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(foreign.HEAD)
