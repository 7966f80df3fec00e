"""Convert the first sheet of an Excel or OpenDocument workbook to CSV, where fastexcel is installed."""

from __future__ import annotations

import zipfile
from pathlib import Path

from xent.files.errors import DataError, first_line
from xent.files.phrases import counted

OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def kind(path: Path, head: bytes) -> str | None:
    """ "Excel" or "OpenDocument" for a workbook of it; None for other files, and other documents."""
    if head.startswith(OLD_OFFICE):
        return "Excel"
    if not head.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged: the reader of npz files raises the error
        return None
    if any(name.startswith("xl/") for name in names):
        return "Excel"
    return "OpenDocument" if "content.xml" in names else None


def convert(path: Path, what: str, target: Path) -> list[str]:
    """Write the first sheet of ``path`` as CSV: row 5 of the sheet is line 5. Return notes, in sentences.

    The cells are text, so that what they mean is decided as for CSV. Raises DataError.
    """
    try:
        import fastexcel
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: is an {what} file; to read it: pip install fastexcel, or save the sheet as CSV (UTF-8)"
        ) from None
    try:
        book = fastexcel.read_excel(path)
        names = book.sheet_names
        sheet = book.load_sheet(0, header_row=None, skip_rows=0, dtypes="string").to_polars()
    except fastexcel.FastExcelError as error:
        raise DataError(f"{path}: is damaged or no {what} file: {first_line(error)}") from None
    sheet.write_csv(target, include_header=False)
    if len(names) == 1:
        return []
    return [f"only the first of {counted(len(names), 'sheet')} is read, {names[0]!r}"]
