"""Labels, groups and outputs of `xent eval` in every packing and format; a damaged file is one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from tests.files import workbooks
from tests.files.test_data_files import DAMAGED, FORMATS, ROWS, TABLE, zipped, zstd
from xent.command.cli import main
from xent.files.arrays import stored_rows
from xent.files.data_files import DataFiles

P = np.random.default_rng(0).random((TABLE.height, 1)) * [1, 0] + [0, 1]
KINDS = (TABLE["kind"] == "v").to_numpy().astype(int)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """The temporary folder, in which nothing may be left; an empty directory, with two classes u and v."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    p = P / P.sum(1, keepdims=True)
    pl.DataFrame({"p_u": p[:, 0], "p_v": p[:, 1]}).write_csv("p.csv")
    yield folder
    assert not list(folder.iterdir())


@pytest.mark.parametrize("case", FORMATS)
def test_a_column_of_labels_and_one_of_groups(case):
    Path("f[1].data").write_bytes(FORMATS[case]())
    files = DataFiles()
    with (
        stored_rows.open_outputs("p.csv", files) as outputs,
        stored_rows.open_labels("f[1].data:kind", outputs, -100, files) as labels,
    ):
        np.testing.assert_array_equal(labels.take(TABLE.height), KINDS)
    groups = stored_rows.row_values("f[1].data:count", outputs.shape[:-1], files)
    np.testing.assert_array_equal(groups.astype(float), TABLE["count"])
    assert files.notes == []
    files.close()


# name → (file, its content)
OUTPUTS = {
    "npy in gzip": ("z.npy.gz", lambda: gzip.compress(npy(P))),
    "npy in zstd": ("z.npy.zst", lambda: zstd(npy(P))),
    "CSV in zip": ("z.zip", lambda: zipped(**{"z.csv": pl.DataFrame(P).write_csv().encode()})),
    "lists in JSON Lines": ("z.jsonl", lambda: pl.DataFrame({"z": P.tolist()}).write_ndjson().encode()),
    "safetensors in gzip": ("z.gz", lambda: gzip.compress(safetensors.numpy.save({"z": P}))),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs(case):
    name, content = OUTPUTS[case]
    Path(name).write_bytes(content())
    files = DataFiles()
    with stored_rows.open_outputs(name, files) as reader:
        assert reader.shape == P.shape
        np.testing.assert_array_equal(reader.take(len(P)), P)
    files.close()


def test_a_pattern_of_packed_files_is_one_array():
    for k, part in enumerate(np.split(P, [7, 30])):
        Path(f"z{k}.npy.gz").write_bytes(gzip.compress(npy(part)))
    files = DataFiles()
    with stored_rows.open_outputs("z*.npy.gz", files) as reader:
        np.testing.assert_array_equal(reader.take(len(P)), P)
    files.close()


@pytest.mark.parametrize("length", [0x1F8B, 0xFEFF], ids=["as gzip", "as UTF-16"])
def test_a_safetensors_file_is_none_of_the_packings(length):
    """The length of its header, in its first bytes, is what another format begins with."""
    length = int.from_bytes(length.to_bytes(2, "big"), "little")
    content = safetensors.numpy.save({"z": P})
    own = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + own].ljust(length)
    Path("z.data").write_bytes(length.to_bytes(8, "little") + header + content[8 + own :])
    with stored_rows.open_outputs("z.data", DataFiles()) as reader:
        np.testing.assert_array_equal(reader.take(len(P)), P)


@pytest.mark.parametrize("through", ["standard input", "a pipe"])
def test_labels_through_a_pipe(through, monkeypatch, capsys):
    content = gzip.compress(TABLE.write_csv().encode())
    if through == "a pipe":
        os.mkfifo("f")
        threading.Thread(target=Path("f").write_bytes, args=(content,)).start()
        code = main(["eval", "p.csv", "f:kind", "--json"])
    else:
        reader = io.BufferedReader(io.BytesIO(gzip.compress(TABLE[["kind"]].write_csv().encode())))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(reader))
        code = main(["eval", "p.csv", "-", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["rows"], len(found["notes"])) == (0, TABLE.height, 1)
    assert "was copied to a temporary file" in found["notes"][0]


def test_only_the_first_sheet_is_read_and_a_note_says_so(capsys):
    Path("y.xlsx").write_bytes(workbooks.xlsx([[row[-1]] for row in ROWS], more_sheets=1))
    assert main(["eval", "p.csv", "y.xlsx"]) == 0
    assert "note: only the first of 2 sheets is read, 'measured'" in capsys.readouterr().out


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(case, capsys, folder):
    Path("f.data").write_bytes(DAMAGED[case][0]())
    assert main(["eval", "p.csv", "f.data:kind"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "f.data" in err
    assert str(folder) not in err
