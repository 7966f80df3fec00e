"""Workbooks of every format, with the rows that they are given; a cell of None is left out."""

from __future__ import annotations

import io
import struct
import zipfile
from xml.sax.saxutils import escape

import pytest

Rows = list[list[object]]

OFFICE = "urn:oasis:names:tc:opendocument:xmlns"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def xlsx(rows: Rows, more_sheets: int = 0, first: int = 0) -> bytes:
    """Excel's format since 2007, by XlsxWriter."""
    pytest.importorskip("fastexcel")
    xlsxwriter = pytest.importorskip("xlsxwriter")
    file = io.BytesIO()
    book = xlsxwriter.Workbook(file)
    sheet = book.add_worksheet("measured")
    for number, row in enumerate(rows, first):
        sheet.write_row(number, 0, row)
    for _ in range(more_sheets):
        book.add_worksheet()
    book.close()
    return file.getvalue()


def xls(rows: Rows) -> bytes:
    """Excel's format until 2003, by xlwt."""
    pytest.importorskip("fastexcel")
    book = pytest.importorskip("xlwt").Workbook()
    sheet = book.add_sheet("measured")
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell is not None:
                sheet.write(i, j, cell)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def ods(rows: Rows) -> bytes:
    """OpenDocument."""
    pytest.importorskip("fastexcel")
    lines = ("".join(map(_ods_cell, row)) for row in rows)
    body = "".join(f"<table:table-row>{line}</table:table-row>" for line in lines)
    names = " ".join(f'xmlns:{name}="{OFFICE}:{name}:1.0"' for name in ("office", "table", "text"))
    table = f'<table:table table:name="measured">{body}</table:table>'
    sheet = f"<office:body><office:spreadsheet>{table}</office:spreadsheet></office:body>"
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    entry = f'<manifest:file-entry manifest:full-path="/" manifest:media-type="{kind}"/>'
    manifest = f'<manifest:manifest xmlns:manifest="{OFFICE}:manifest:1.0">{entry}</manifest:manifest>'
    return _zipped(
        {
            "mimetype": kind,
            "content.xml": f"<office:document-content {names}>{sheet}</office:document-content>",
            "META-INF/manifest.xml": manifest,
        }
    )


def _ods_cell(cell: object) -> str:
    if cell is None:
        return "<table:table-cell/>"
    text = f"<text:p>{escape(str(cell))}</text:p>"
    kind = "string" if isinstance(cell, str) else f'float" office:value="{cell}'
    return f'<table:table-cell office:value-type="{kind}">{text}</table:table-cell>'


def xlsb(rows: Rows) -> bytes:
    """Excel's binary format: records of a number, a length and the data ([MS-XLSB], 2.1.4)."""
    pytest.importorskip("fastexcel")
    sheet = struct.pack("<II", 0, 1) + _wide("rId1") + _wide("measured")
    book = _record(0x183) + _record(0x18F) + _record(0x19C, sheet) + _record(0x190) + _record(0x184)
    cells = b"".join(_xlsb_row(number, row) for number, row in enumerate(rows))
    size = struct.pack("<IIII", 0, len(rows) - 1, 0, len(rows[0]) - 1)
    content = _record(0x181) + _record(0x194, size) + _record(0x191) + cells + _record(0x192)
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"
    one = f'<Relationship Id="rId1" Type="{kind}" Target="worksheets/sheet1.bin"/>'
    relations = f'<Relationships xmlns="{PACKAGE}/relationships">{one}</Relationships>'
    return _zipped(
        {
            "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"/>',
            "xl/workbook.bin": book,
            "xl/_rels/workbook.bin.rels": relations,
            "xl/worksheets/sheet1.bin": content + _record(0x182),
        }
    )


def _xlsb_row(number: int, row: list[object]) -> bytes:
    records = [_record(0, struct.pack("<I", number) + bytes(12))]
    for column, cell in enumerate(row):
        place = struct.pack("<II", column, 0)
        if isinstance(cell, str):
            records.append(_record(6, place + _wide(cell)))
        elif isinstance(cell, int | float):
            records.append(_record(5, place + struct.pack("<d", cell)))
    return b"".join(records)


def _record(number: int, data: bytes = b"") -> bytes:
    head = bytes([number]) if number < 128 else bytes([number & 255, number >> 8])
    return head + bytes([len(data) & 127 | 128, len(data) >> 7]) + data


def _wide(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode("utf-16-le")


def _zipped(members: dict[str, bytes | str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
