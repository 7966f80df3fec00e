"""Recode text in UTF-16 or UTF-32, such as Excel's "Unicode text", to UTF-8."""

from __future__ import annotations

from pathlib import Path

from xent.files.errors import DataError

PIECE = 1 << 20  # characters to recode at a time
UTF8_MARK = b"\xef\xbb\xbf"
MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def encoding(head: bytes) -> str | None:
    """The encoding of a file that begins with ``head``, if it is UTF-32 or UTF-16, with or without a mark."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    high, low = head[1::2], head[: len(head) & ~1 : 2]
    if len(head) > 3 and not any(high) and all(low):
        return "UTF-16LE"
    if len(head) > 3 and not any(low) and all(high):
        return "UTF-16BE"
    return None


def recode(path: Path, encoding: str, target: Path) -> None:
    """Write the text of ``path`` to ``target`` in UTF-8; DataError if it is not in ``encoding``."""
    with (
        path.open(encoding=encoding, newline="") as text,
        target.open("w", encoding="utf-8", newline="") as file,
    ):
        try:
            while piece := text.read(PIECE):
                file.write(piece)
        except UnicodeError as error:
            raise DataError(f"{path}: is damaged: not all of it is text in {encoding}: {error}") from None
