"""Files and values that `xent eval` cannot score: one line that says what and where, and 2."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.command.mistakes import require_one_line
from tests.evaluation.evaluations import tensors
from tests.evaluation.test_stream import EVERY, LABELS, LOGITS, ROWS, SOFT
from xent.command.cli import main


def objects(path: Path) -> None:
    np.save(path, np.array([{}, []], object), allow_pickle=True)


def cut(path: Path) -> None:
    np.save(path, LOGITS)
    path.write_bytes(path.read_bytes()[:-1])


def cut_archive(path: Path) -> None:
    np.savez(path, a=LOGITS)
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset
    content = bytearray(path.read_bytes())
    content[start + 500] ^= 255  # the checksum finds it
    path.write_bytes(content)


def no_rows(path: Path) -> None:
    np.save(path, np.zeros((0, 10**6)))
    path.write_bytes(path.read_bytes().replace(b"(0, 1000000), }      ", b"(0, 1000000000000), }"))


# name → (file, how it is made, what the one line must say)
BAD_FILES = {
    "missing": ("no.npy", lambda path: None, ["no.npy", "No such file"]),
    "directory": ("d", Path.mkdir, ["a directory without files"]),
    "empty": ("e.npy", lambda path: path.write_bytes(b""), ["is empty"]),
    "text": (
        "t.csv",
        lambda path: path.write_text("a,b\n3,4\n3,x\n"),
        ["expected a number in column 'b', line 3; got 'x'"],
    ),
    "objects": ("o.npy", objects, ["Python objects", "never loaded"]),
    "cut": ("c.npy", cut, ["is cut short", "bytes of"]),
    "header": (
        "h.npy",
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': 1} "),
        ["header"],
    ),
    "open brackets": (
        "b.npy",
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'shape': (3, (2\n"),
        ["its npy header cannot be read"],
    ),
    "no rows of many classes": ("n.npy", no_rows, ["no row to score", "(0, 1000000000000)"]),
    "a device": ("p", lambda path: path.symlink_to(os.devnull), ["is a pipe or a device"]),
    "later version": ("v.npy", lambda path: path.write_bytes(b"\x93NUMPY\x03\x00" + bytes(90)), ["header"]),
    "Fortran": (
        "f.npy",
        lambda path: np.save(path, np.asfortranarray(LOGITS)),
        ["Fortran order", "ascontiguousarray"],
    ),
    "one axis": ("1.npy", lambda path: np.save(path, LABELS), ["expected shape (..., classes)", "(700,)"]),
    "complex": ("j.npy", lambda path: np.save(path, LOGITS * 1j), ["floating-point numbers", "complex128"]),
    "key of an npy": ("k.npy:a", lambda path: np.save(path, LOGITS), ["without a name", "'a'"]),
    "no key": ("a.npz", lambda path: np.savez(path, a=LOGITS, b=LOGITS), ["name one array", "a, b"]),
    "wrong key": ("a.npz:c", lambda path: np.savez(path, a=LOGITS), ["has no array 'c'", "a"]),
    "damaged": ("a.npz", cut_archive, ["is damaged"]),
    "no archive": ("a.npz", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)), ["damaged or no npz"]),
    "not safe": ("a.safetensors", lambda path: path.write_bytes(bytes(100)), ["no safetensors file"]),
    "a long header": ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 100), ["cut short"]),
    "size and shape": (
        "a.safetensors",
        lambda path: tensors(path, shape=[2, 3]),
        ["another size"],
    ),
    "beyond the end": (
        "a.safetensors",
        lambda path: tensors(path, shape=[2, 9], data_offsets=[0, 72]),
        ["cut short"],
    ),
    "negative": ("a.safetensors", lambda path: tensors(path, shape=[-2, -2]), ["not as it should be"]),
    "unknown dtype": ("a.safetensors", lambda path: tensors(path, dtype="F4"), ["of dtype F4"]),
    "no entry": ("a.safetensors", lambda path: tensors(path, data_offsets=None), ["no safetensors file"]),
    "no Parquet": (
        "a.parquet",
        lambda path: path.write_bytes(b"PAR1" + bytes(50)),
        ["no Parquet"],
    ),
    "text column": (
        "a.parquet",
        lambda path: pl.DataFrame({"a": [1.0], "b": ["x"]}).write_parquet(path),
        ["column 'b' is no numbers", "COLUMN"],
    ),
    "missing values": (
        "a.parquet",
        lambda path: pl.DataFrame({"a": [1.0, None], "b": [1.0, 2.0]}).write_parquet(path),
        ["missing values"],
    ),
    "missing values in lists": (
        "a.parquet",
        lambda path: pl.DataFrame({"a": [[1.0, 2.0], [1.0, None]]}).write_parquet(path),
        ["missing values"],
    ),
    "missing values in arrays": (
        "a.parquet",
        lambda path: pl.DataFrame(
            {"a": [[1, 2], [1, None]]}, schema={"a": pl.Array(pl.Int64, 2)}
        ).write_parquet(path),
        ["missing values"],
    ),
    "ragged": (
        "a.parquet",
        lambda path: pl.DataFrame({"a": [[1.0], [1.0, 2.0]]}).write_parquet(path),
        ["differ in length: 1, 2"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line(case, tmp_path, capsys):
    name, make, expected = BAD_FILES[case]
    path = tmp_path / name.partition(":")[0]
    make(path)
    np.save(tmp_path / "labels.npy", np.zeros(ROWS if path.suffix == ".npz" else 2, int))
    assert main(["eval", str(tmp_path / name), str(tmp_path / "labels.npy")]) == 2
    require_one_line(capsys, expected)


# name → (outputs, targets, options, what the one line must say)
BAD_VALUES = {
    "label too large": (
        LOGITS,
        np.where(EVERY == 451, 11, LABELS),
        "",
        ["[0, 11)", "11 in row 452"],
    ),
    "label negative": (LOGITS, np.where(EVERY == 9, -1, LABELS), "", ["got -1 in row 10"]),
    "labels too few": (LOGITS, LABELS[1:], "", ["labels of shape (700,)", "(699,)"]),
    "labels with a fraction": (LOGITS, LABELS + 0.5, "", ["labels are integers of shape (700,)", "float64"]),
    "booleans": (LOGITS, LABELS > 3, "", ["booleans are labels of 2 classes; got bool, but 11"]),
    "negative targets": (LOGITS, SOFT - 0.1, "", [">= 0", "in row 1, class 0"]),
    "negative probabilities": (
        LOGITS,
        LABELS,
        "--probabilities",
        [">= 0", "leave out --prob"],
    ),
    "no rows": (LOGITS[:0], LABELS[:0], "", ["no row to score"]),
    "all ignored": (LOGITS, np.full(ROWS, -100), "", ["no row to score", "700 ignored"]),
    "top-k": (LOGITS, LABELS, "--top-k 0", ["--top-k", "0"]),
    "classes": (LOGITS, LABELS, "--classes -1", ["--classes", "-1"]),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_one_line(case, tmp_path, capsys):
    outputs, targets, options, expected = BAD_VALUES[case]
    np.save(tmp_path / "z.npy", outputs)
    np.save(tmp_path / "y.npy", targets)
    assert main(["eval", str(tmp_path / "z.npy"), str(tmp_path / "y.npy"), *options.split()]) == 2
    require_one_line(capsys, expected)


STRANGE = ["longdouble", "clongdouble", "complex64", "complex128", "bool", "M8[s]", "m8[s]", "S3", "U3", "V4"]


@pytest.mark.parametrize("dtype", [*STRANGE, [("x", "f4")]], ids=str)
@pytest.mark.parametrize("place", ["logits", "targets"])
def test_numbers_of_another_kind_are_one_line(dtype, place, tmp_path, capsys):
    np.save(tmp_path / "z.npy", np.zeros((4, 3), dtype if place == "logits" else "f4"))
    np.save(
        tmp_path / "y.npy",
        np.zeros((4, 3) if place == "targets" else 4, dtype if place == "targets" else "i8"),
    )
    code = main(["eval", str(tmp_path / "z.npy"), str(tmp_path / "y.npy")])
    message = capsys.readouterr().err
    assert (code, message.count("\n")) == (2, 1)
    assert "expected" in message or "booleans are labels" in message
