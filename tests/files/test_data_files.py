"""Files in every packing and format give the same rows; a damaged one is one line that names it."""

from __future__ import annotations

import bz2
import errno
import gc
import gzip
import io
import json
import lzma
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.files import workbooks
from xent.command.cli import main
from xent.files import dataset
from xent.files.dataset import DataError
from xent.files.parts import sources
from xent.files.preprocess import Preprocessor

TABLE = pl.DataFrame(
    {
        "size": [1.5, 2.25, None, -3e-9] * 10,
        "count": [1, 2, 3, 4, 5] * 8,
        "place": ["a, b", 'say "c"', None, "ü"] * 10,
        "kind": ["u", "v"] * 20,
    }
)
CSV = TABLE.write_csv().encode()
LINES = TABLE.write_ndjson().encode()


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return written(write)


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("backports.zstd").compress(content)


ROWS = [TABLE.columns, *map(list, TABLE.rows())]
# name → the content of the file
FORMATS: dict[str, Callable[[], bytes]] = {
    "CSV": lambda: CSV,
    "gzip": lambda: gzip.compress(CSV),
    "two gzip members": lambda: gzip.compress(CSV[:99]) + gzip.compress(CSV[99:]),
    "bzip2": lambda: bz2.compress(CSV),
    "two bzip2 streams": lambda: bz2.compress(CSV[:99]) + bz2.compress(CSV[99:]),
    "xz": lambda: lzma.compress(CSV),
    "two xz streams, padded": lambda: lzma.compress(CSV[:99]) + bytes(8) + lzma.compress(CSV[99:]) + bytes(4),
    "zstd": lambda: zstd(CSV),
    "two zstd frames": lambda: zstd(CSV[:99]) + zstd(CSV[99:]),
    "zip": lambda: zipped(**{"t.csv": CSV, "__MACOSX/._t.csv": b"x", "folder/": b""}),
    "gzip in zip": lambda: zipped(t=gzip.compress(CSV)),
    "UTF-16": lambda: CSV.decode().encode("utf-16"),
    "UTF-16, big-endian, with its mark": lambda: b"\xfe\xff" + CSV.decode().encode("utf-16-be"),
    "UTF-16 without its mark": lambda: CSV.decode().encode("utf-16-le"),
    "UTF-32": lambda: CSV.decode().encode("utf-32"),
    "UTF-16 in gzip": lambda: gzip.compress(CSV.decode().encode("utf-16")),
    "Parquet in gzip": lambda: gzip.compress(written(TABLE.write_parquet)),
    "JSON Lines": lambda: LINES,
    "JSON Lines with a mark and blanks": lambda: b"\xef\xbb\xbf\n" + LINES.replace(b"\n", b"\r\n\n"),
    "JSON Lines with NaN": lambda: LINES.replace(b'"size":null', b'"size": NaN'),
    "JSON Lines in gzip": lambda: gzip.compress(LINES),
    "Arrow": lambda: written(TABLE.write_ipc),
    "compressed Arrow": lambda: written(lambda file: TABLE.write_ipc(file, compression="zstd")),
    "Excel": lambda: workbooks.xlsx(ROWS),
    "Excel, below blank rows": lambda: workbooks.xlsx(ROWS, first=3),
    "Excel of 2003": lambda: workbooks.xls(ROWS),
    "Excel, binary": lambda: workbooks.xlsb(ROWS),
    "OpenDocument": lambda: workbooks.ods(ROWS),
}


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    """The temporary folder, in which nothing may be left."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    gc.collect()  # from Python 3.13 on an error in a test holds what its frames hold
    assert not list(folder.iterdir())


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    assert found.cast({"count": pl.Float64}).equals(expected.cast({"count": pl.Float64}))


@pytest.mark.parametrize("case", FORMATS)
def test_the_rows_are_those_of_the_table(case):
    Path("f[1].data").write_bytes(FORMATS[case]())
    expected = TABLE.drop("kind")
    whole = dataset.load("f[1].data", "kind")
    same(whole.features, expected)
    assert whole.labels.tolist() == TABLE["kind"].to_list()
    assert (whole.name, whole.notes) == ("f[1].data", ())
    learnt = Preprocessor.fit(whole.features, whole.feature_names)
    same(pl.concat([batch.features for batch in dataset.batches("f[1].data", learnt)]), expected)
    source = sources.open_files("f[1].data", "kind", cells=20)
    pieces = list(source.pieces(20))
    assert len(pieces) > 1
    assert {str(piece.path) for piece in pieces} == {"f[1].data"}
    same(pl.concat([piece.features for piece in pieces]), expected)
    del source, pieces


def test_nan_within_a_text_of_json_lines_is_text():
    words = ['NaN, "NaN"', "\\", "Infinity: NaN", "-Infinity"] * 10
    lines = (f'{{"a": NaN, "b": {n}, "word": {json.dumps(w)}, "kind": "u"}}' for n, w in enumerate(words))
    Path("f.data").write_text("\n".join(lines) + '\n{"a": 3, "b": 1, "word": "x", "kind": "v"}')
    found = dataset.load("f.data", "kind").features
    assert found["word"].to_list() == [*words, "x"]
    assert found["a"].to_list() == [None] * 40 + [3]


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def changed(content: bytes, place: int = -30) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


# name → (the content, words of the line)
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "gzip, cut": (lambda: cut(gzip.compress(CSV)), "is damaged: it cannot be unpacked as gzip"),
    "gzip, changed": (lambda: changed(gzip.compress(CSV)), "as gzip"),
    "gzip, then text": (lambda: gzip.compress(CSV) + b"more", "as gzip"),
    "bzip2, cut": (lambda: cut(bz2.compress(CSV)), "as bzip2: it ends too early"),
    "bzip2, changed": (lambda: changed(bz2.compress(CSV)), "as bzip2"),
    "bzip2, the second stream changed": (
        lambda: bz2.compress(CSV) + changed(bz2.compress(CSV), 2),
        "as bzip2",
    ),
    "bzip2, the start of a stream": (lambda: bz2.compress(CSV) + b"BZh", "as bzip2: it ends too early"),
    "xz, cut": (lambda: cut(lzma.compress(CSV)), "as xz: it ends too early"),
    "xz, changed": (lambda: changed(lzma.compress(CSV)), "as xz"),
    "xz, then text": (lambda: lzma.compress(CSV) + b"more than a header", "as xz"),
    "zstd, cut": (lambda: cut(zstd(CSV)), "as zstd: it ends too early"),
    "zstd, changed": (lambda: changed(zstd(CSV)), "as zstd|is not a CSV file|."),
    "zip, changed": (lambda: changed(zipped(t=CSV), 60), "as zip"),
    "a row too long in gzip": (lambda: gzip.compress(b"a,kind\n1,2,3\n"), "line 2 has 3 fields"),
    "gzip without end": (lambda: nested(6), "is packed more than 5 times"),
    "UTF-16, cut": (lambda: CSV.decode().encode("utf-16")[:-1], "not all of it is text in UTF-16"),
    "JSON Lines, a line cut": (lambda: LINES.replace(b'"v"}', b'"v"', 1), "line 2 is not one JSON object"),
    "JSON Lines, a number": (lambda: LINES + b"\n3\n", "line 42 is not one JSON object; got '3'"),
    "JSON Lines, infinity": (lambda: LINES.replace(b"2.25", b"-Infinity", 1), "line 2 holds Infinity, which"),
    "JSON Lines, NaN and a line cut": (
        lambda: LINES.replace(b"null", b"NaN", 1).replace(b'"v"}', b'"v"', 1),
        "line 2 is not one JSON object",
    ),
    "JSON Lines, two in a line": (lambda: LINES.replace(b"}\n", b"}", 1), "line 1 is not|is JSON"),
    "JSON Lines, kinds of values": (lambda: LINES.replace(b"2.25", b"true"), "is no JSON Lines file: "),
    "JSON Lines, an object as a value": (
        lambda: LINES.replace(b'"size":1.5', b'"size":{"cm":1.5}').replace(b"2.25", b"null"),
        "is no JSON Lines file|column 'size' holds Struct",
    ),
    "Arrow, cut": (lambda: cut(written(TABLE.write_ipc)), "is damaged or no Arrow file"),
    "Excel, cut": (
        lambda: cut(workbooks.xlsx(ROWS)),
        "is damaged or no npz file: the end of a zip",
    ),
    "Excel, changed": (
        lambda: changed(workbooks.xlsx(ROWS), workbooks.xlsx(ROWS).index(b"sheet1.xml") + 30),
        "is damaged or no Excel file",
    ),
}


def nested(times: int) -> bytes:
    content = CSV
    for _ in range(times):
        content = gzip.compress(content)
    return content


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(case, capsys, folder):
    make, words = DAMAGED[case]
    Path("f.data").write_bytes(make())
    whole = dataset.load
    with pytest.raises(DataError, match=f"f.data: .*({words})") as caught:
        whole("f.data", "kind")
    with pytest.raises(DataError, match=f"f.data: .*({words})"):
        list(sources.open_files("f.data", "kind").pieces(100))
    assert str(folder) not in str(caught.value)
    assert main(["fit", "f.data", "--target", "kind"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("case", ["CSV", "gzip", "JSON Lines", "Parquet in gzip"])
@pytest.mark.parametrize("through", ["standard input", "a pipe"])
def test_what_can_be_read_once_is_copied_and_that_is_said(case, through, monkeypatch, capsys):
    content = FORMATS[case]()
    Path("f").write_bytes(content)
    assert main(["fit", "f", "--target", "kind", "--model", "m.st", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["predict", "m.st", "f"]) == 0
    rows = capsys.readouterr().out
    threads = []

    def offered() -> str:
        if through == "standard input":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            return "-"
        Path("pipe").unlink(missing_ok=True)
        os.mkfifo("pipe")
        threads.append(threading.Thread(target=Path("pipe").write_bytes, args=(content,)))
        threads[-1].start()
        return "pipe"

    name = "pipe" if through == "a pipe" else through
    said = f"{name} was copied to a temporary file, which is deleted at the end"
    assert main(["fit", offered(), "--target", "kind", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"] == expected["held_out"]
    assert found["surprises"][0] == said
    assert main(["predict", "m.st", offered()]) == 0
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == (rows, f"xent: note: {said}")
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("case", ["JSON Lines", "Arrow"])
def test_rows_that_a_conversion_loses_are_an_error(case, monkeypatch):
    Path("f").write_bytes(FORMATS[case]())
    monkeypatch.setattr("xent.files.formats.parquet.rows", lambda path: 39)
    with pytest.raises(DataError, match=r"^f: is damaged: 39 of its 40 rows can be read"):
        dataset.load("f", "kind")


def test_damage_in_standard_input_is_called_that(monkeypatch, capsys):
    for content, words in ((b"", "standard input: is empty"), (b"a,y\n1,2,3\n", "line 2 has 3 fields")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main(["fit", "-", "--target", "y"]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.startswith("xent: error: standard input: ")


def test_a_full_temporary_folder_is_named(monkeypatch):
    Path("f").write_bytes(gzip.compress(CSV))

    def full(path, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        "xent.files.formats.compressed.unpacker", lambda *_: lambda target: full(None, target)
    )
    with pytest.raises(DataError, match=r"f, copied to .*temporary.*: cannot be read: no space left"):
        dataset.load("f", "kind")


@pytest.mark.parametrize(
    ("package", "make", "words"),
    [
        (
            "fastexcel",
            lambda: zipped(**{"xl/workbook.xml": b"", "y": b""}),
            "is an Excel file; to read it",
        ),
        (
            "fastexcel",
            lambda: zipped(**{"content.xml": b"", "y": b""}),
            "is an OpenDocument file",
        ),
        ("fastexcel", lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Excel file; to read it"),
        (
            "backports",
            lambda: b"\x28\xb5\x2f\xfd",
            "pip install backports.zstd, or unpack it",
        ),
    ],
)
def test_a_package_that_is_needed_is_named(package, make, words, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "compression", None)
    Path("f").write_bytes(make())
    with pytest.raises(DataError, match=f"^f: .*{words}"):
        dataset.load("f", "kind")


def test_of_several_sheets_the_first_is_read_and_that_is_said():
    Path("f.xlsx").write_bytes(workbooks.xlsx(ROWS, more_sheets=2))
    assert dataset.load("f.xlsx", "kind").notes == ("only the first of 3 sheets is read, 'measured'",)


def test_rows_of_a_sheet_have_its_numbers():
    Path("f.xlsx").write_bytes(workbooks.xlsx([*ROWS[:9], ["much", 1, "", "u"], *ROWS[9:]], first=3))
    with pytest.raises(DataError, match=r"f\.xlsx: expected a number in column 'size', line 13; got 'much'"):
        dataset.load("f.xlsx", "kind")


def test_svmlight_may_be_compressed(tmp_path):
    Path("f.svm.bz2").write_bytes(bz2.compress(b"1 1:2\n0 2:1\n" * 30))
    assert dataset.load("f.svm.bz2").features.shape == (60, 2)
    assert sum(len(piece.labels) for piece in sources.open_files("f.svm.bz2").pieces(8)) == 60


def test_rows_of_rare_classes_are_left_out_with_their_number():
    TABLE.with_columns(kind=pl.Series(["u", "v", "rare", "u"] + ["u", "v"] * 17 + ["odd", "v"])).write_csv(
        "f.csv"
    )
    kept = dataset.load("f.csv", "kind", drop_rare=True)
    assert kept.notes == ("2 rows left out, of classes with fewer than 2 rows: odd, rare",)
    assert set(kept.labels.tolist()) == {"u", "v"}
    assert kept.features.height == len(kept.labels) == 38
    assert (kept.number(1), kept.number(2)) == (3, 5)
    TABLE.write_csv("f.csv")
    assert dataset.load("f.csv", "kind", drop_rare=True).notes == ()
