"""A file of another kind is named, with what to do; so is what is no file."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.files.test_tables import body
from xent.command.cli import main
from xent.files import dataset


def archive(*members: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name in members:
            zipped.writestr(name, "x")
    return file.getvalue()


CSV = "a,b,y\n" + body(",")
RECORDS = [{"a": 1.5, "y": "no"}] * 40
# name → (content, what the line must say)
FOREIGN = {
    "zip": (archive("a.csv", "b.csv"), ["is a zip archive of a.csv, b.csv", "unzip"]),
    "PyTorch": (archive("z/data.pkl", "z/data/0"), ["is a file of PyTorch", "safetensors.torch.save_file"]),
    "pickle": (pickle.dumps({"a": 1}), ["is a pickle", "never loaded"]),
    "JSON": (json.dumps(RECORDS).encode(), ["is JSON", "read_json"]),
    "JSON of columns": (json.dumps({"a": [1.5] * 2000}).encode(), ["is JSON", "read_json"]),
    "indented JSON": (json.dumps(RECORDS, indent=2).encode(), ["is JSON", "read_json"]),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), ["is an HDF5 file", "h5py"]),
    "SQLite": (b"SQLite format 3\0" + bytes(40), ["is an SQLite database"]),
    "a page": (b"<!DOCTYPE html><html>", ["is an HTML or XML page"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_named_and_how_to_convert_it(case, capsys):
    content, expected = FOREIGN[case]
    Path("f.x").write_bytes(content)
    np.save("y.npy", np.arange(3))
    assert main(["fit", "iris", "--model", "m.st"]) == 0
    ends = ["fit", "f.x", "--target", "y"], ["predict", "m.st", "f.x"]
    for words in (["eval", "f.x", "y.npy"], ["eval", "y.npy", "f.x"], *ends):
        capsys.readouterr()
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        for part in ("f.x: ", "; expected ", *expected):
            assert part in err


@pytest.mark.parametrize(
    "words", [["fit"], ["predict", "m.st"], ["eval", "y.npy"]], ids=lambda words: words[0]
)
def test_an_address_is_no_file(words, capsys):
    np.save("y.npy", np.arange(3))
    assert main(["fit", "iris", "--model", "m.st"]) == 0
    capsys.readouterr()
    assert main([*words, "http://x.org/f.csv"]) == 2
    assert "is an address" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ORC", "RDX", "Rar!", "BZh", "Obj", "FEA1", "[a]", "{b}", "ARROW1"])
def test_a_header_that_begins_like_another_kind_is_csv(name):
    Path("f.csv").write_text(f"{name},b,y\n" + body(","))
    assert dataset.load("f.csv", "y").feature_names == [name, "b"]


def test_safetensors_are_known_by_their_content(capsys):
    save_file({"z": np.eye(3)}, "f.bin")
    np.save("y.npy", np.arange(3))
    assert main(["eval", "f.bin", "y.npy"]) == 0
    assert main(["fit", "f.bin"]) == 2
    assert "f.bin: is a safetensors file; expected CSV" in capsys.readouterr().err


def test_a_file_name_that_is_no_utf8_is_one_line(capsys):
    for words in (["fit", "x\udcff.csv", "--target", "y"], ["eval", "x\udcff.npy", "y.npy"]):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert r"'x\udcff" in err
        assert "is not UTF-8 text: rename the file" in err


def test_a_bundled_set_beside_a_file_of_its_name_is_said(capsys):
    Path("iris").write_text("a,y\n1,x\n")
    assert main(["fit", "iris"]) == 0
    assert "the file iris in this directory is not read; name it ./iris" in capsys.readouterr().out
