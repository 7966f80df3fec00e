"""What `xent eval` opens: several files as one, standard input, tables that name classes, groups, counts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from xent.files.arrays import stored_rows, table_rows
from xent.files.arrays.row_stream import natural
from xent.files.data_files import DataFiles

Z = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 4, 23)
NAMES = ["no", "yes", "perhaps", "never"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def take(reader, step):
    """All rows, ``step`` at a time, the memory of one reused for the next."""
    parts, left, before = [], int(np.prod(reader.shape)) // max(1, int(np.prod(reader.row))), None
    while left:
        before = reader.take(min(step, left), before)
        parts.append(before.copy())
        left -= len(parts[-1])
    return np.concatenate(parts)


def npy_shards():
    for k, part in enumerate(np.split(Z, [0, 3, 9, 10])):
        np.save(f"part-{3 * k}.npy", part)  # part-9 before part-12
    return "part-*.npy"


def directory():
    Path("d").mkdir()
    for k, part in enumerate(np.split(Z, [11])):
        np.save(f"d/{k}.npy", part)
    return "d"


def tensors():
    for k, part in enumerate(np.split(Z, [5, 20])):
        safetensors.numpy.save_file({"z": part, "y": Y}, f"s-{k}.safetensors")
    return "s-?.safetensors:z"


def index(key):
    names = {}
    for k, part in enumerate(np.split(Z, [5, 20])):
        names[f"z.{9 + k}"] = f"s-{k}.safetensors"
        safetensors.numpy.save_file({f"z.{9 + k}": part, "whole": Z}, f"s-{k}.safetensors")
    names["whole"] = "s-1.safetensors"
    Path("m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return f"m.safetensors.index.json:{key}"


FILES = {
    "shards": npy_shards,
    "directory": directory,
    "tensors": tensors,
    "index": lambda: index("whole"),
    "tensors of an index": lambda: index("z.*"),
}


@pytest.mark.parametrize("step", [1, 4, 100])
@pytest.mark.parametrize("files", FILES)
def test_several_files_are_one_array(files, step):
    with stored_rows.open_outputs(FILES[files](), DataFiles()) as reader:
        assert (reader.shape, reader.dtype) == (Z.shape, "float32")
        np.testing.assert_array_equal(take(reader, step), Z)


def test_labels_of_several_axes_in_several_files():
    np.save("y0.npy", Y[:12].reshape(4, 3))
    np.save("y1.npy", Y[12:18].reshape(2, 3))
    with stored_rows.open_outputs("y?.npy", DataFiles()) as reader:
        assert reader.shape == (6, 3)
        reader.row = ()
        np.testing.assert_array_equal(take(reader, 5), Y[:18])


def test_numbers_in_names_are_in_their_order():
    names = [f"part-{k}-of-12" for k in range(1, 13)]
    assert sorted(sorted(names), key=natural) == names


def pipe(monkeypatch, content):
    buffer = io.BytesIO(content)
    buffer.isatty = lambda: content == b"terminal"
    is_file = content != b"terminal"
    file = io.TextIOWrapper(io.BufferedReader(buffer)) if is_file else Terminal(buffer)
    monkeypatch.setattr("sys.stdin", file)


class Terminal:
    """Standard input of a person."""

    def __init__(self, buffer):
        self.buffer = buffer


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("step", [7, 100])
def test_standard_input(monkeypatch, step):
    pipe(monkeypatch, npy(Z))
    with stored_rows.open_outputs("-", DataFiles()) as reader:
        assert reader.shape == Z.shape
        np.testing.assert_array_equal(take(reader, step), Z)


BAD_INPUT = {
    "cut": (npy(Z)[:-1], "standard input: ends before its array does"),
    "too long": (npy(Z) + b"x", "standard input: holds more than its header says"),
    "a terminal": (b"terminal", "standard input is closed or a terminal"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_standard_input(case, monkeypatch):
    content, message = BAD_INPUT[case]
    pipe(monkeypatch, content)
    with pytest.raises(ValueError, match=message), stored_rows.open_outputs("-", DataFiles()) as reader:
        take(reader, 10)


def predicted(path, names=NAMES):
    """A file as `xent predict` writes it; its probabilities."""
    p = np.exp(Z.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    columns = {"label": [names[k] for k in p.argmax(1)]} | {f"p_{n}": p[:, k] for k, n in enumerate(names)}
    table = pl.DataFrame(columns)
    table.write_csv(path) if path.endswith("csv") else table.write_parquet(path)
    return p


@pytest.mark.parametrize("step", [6, 100])
@pytest.mark.parametrize("path", ["p.csv", "p.parquet"])
def test_predictions_name_their_classes(path, step):
    p = predicted(path)
    with stored_rows.open_outputs(path, DataFiles()) as reader:
        assert (reader.classes, reader.shape) == (NAMES, p.shape)
        np.testing.assert_allclose(take(reader, step), p, rtol=1e-15)


def text_labels(labels, path):
    table = pl.DataFrame({"id": range(len(labels)), "truth": labels})
    table.write_csv(path) if path.endswith("csv") else table.write_parquet(path)
    return f"{path}:truth"


WORDS = np.array(NAMES)[Y]
INTEGERS = ["7", "3", "20", "0"]
# name → (names of the classes, labels, what they are in a file)
LABELS = {
    "text in csv": (NAMES, lambda: text_labels(WORDS, "y.csv")),
    "text in parquet": (NAMES, lambda: text_labels(WORDS, "y.parquet")),
    "only column": (NAMES, lambda: pl.DataFrame({"y": WORDS}).write_csv("y.csv") or "y.csv"),
    "indices": (NAMES, lambda: np.save("y.npy", Y) or "y.npy"),
    "indices in csv": (NAMES, lambda: text_labels(Y, "y.csv")),
    "integers by name": (INTEGERS, lambda: np.save("y.npy", np.array([7, 3, 20, 0])[Y]) or "y.npy"),
    "integers by name in csv": (INTEGERS, lambda: text_labels(np.array([7, 3, 20, 0])[Y], "y.csv")),
    "floats by name in csv": (INTEGERS, lambda: text_labels(np.array([7.0, 3, 20, 0])[Y], "y.csv")),
    "integers in order": (["0", "1", "2", "3"], lambda: np.save("y.npy", Y) or "y.npy"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_matched_by_name(case):
    names, write = LABELS[case]
    predicted("p.csv", names)
    with (
        stored_rows.open_outputs("p.csv", DataFiles()) as outputs,
        stored_rows.open_labels(write(), outputs, -100, DataFiles()) as labels,
    ):
        np.testing.assert_array_equal(take(labels, 5), Y)


def test_booleans_are_matched_by_name():
    predicted("p.csv", ["true", "b", "c", "false"])
    path = text_labels(Y < 2, "y.parquet")
    with (
        stored_rows.open_outputs("p.csv", DataFiles()) as outputs,
        stored_rows.open_labels(path, outputs, -100, DataFiles()) as labels,
    ):
        np.testing.assert_array_equal(take(labels, 50), np.where(Y < 2, 0, 3))


@pytest.mark.parametrize(
    "write", [lambda y: np.save("y.npy", y) or "y.npy", lambda y: text_labels(y, "y.csv")]
)
def test_the_ignored_label_is_no_class(write):
    predicted("p.csv", INTEGERS)
    y = np.array([7, 3, 20, 0])[Y]
    y[4] = -1
    with (
        stored_rows.open_outputs("p.csv", DataFiles()) as z,
        stored_rows.open_labels(write(y), z, -1, DataFiles()) as labels,
    ):
        found = take(labels, 3)
    assert found[4] == -1
    np.testing.assert_array_equal(np.delete(found, 4), np.delete(Y, 4))


def bad(label, place=3):
    words = WORDS.astype("U9")
    words[place] = label
    return words


# name → (names of the classes, labels, words of the error)
BAD_LABELS = {
    "unknown": (
        NAMES,
        lambda: text_labels(bad("maybe"), "y.csv"),
        "'maybe' in line 5 is none of the classes",
    ),
    "missing": (NAMES, lambda: text_labels(bad(""), "y.csv"), "missing label in column 'truth', line 5"),
    "no names": (None, lambda: text_labels(WORDS, "y.csv"), "does not name its classes"),
    "no column": (NAMES, lambda: text_labels(WORDS, "y.csv").replace("truth", "x"), "has no column 'x'"),
    "unknown integer": (
        INTEGERS,
        lambda: np.save("y.npy", np.array([7, 3, 5, 0])[Y]) or "y.npy",
        f"'5' in row {1 + int((Y == 2).argmax())} is none of the classes",
    ),
    "other classes": (
        NAMES,
        lambda: predicted("q.csv", ["no", "yes", "never", "perhaps"]) is None or "q.csv",
        "its classes are no, yes, never, perhaps, those of p.csv no, yes, perhaps, never",
    ),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(case):
    names, write, message = BAD_LABELS[case]
    if names is None:
        np.save("p.npy", Z)
    else:
        predicted("p.csv", names)
    with (
        pytest.raises(ValueError, match=message),
        stored_rows.open_outputs("p.npy" if names is None else "p.csv", DataFiles()) as outputs,
        stored_rows.open_labels(write(), outputs, -100, DataFiles()) as labels,
    ):
        take(labels, 50)


def test_values_of_sequences_are_those_of_their_rows():
    np.save("g.npy", np.array([5, 3]))
    np.testing.assert_array_equal(stored_rows.row_values("g.npy", (2, 3), DataFiles()), [5, 5, 5, 3, 3, 3])
    np.save("g.npy", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(stored_rows.row_values("g.npy", (2, 3), DataFiles()), np.arange(6))
    path = text_labels(["b", "a"], "g.csv")
    assert stored_rows.row_values(path, (2, 2), DataFiles()).tolist() == ["b", "b", "a", "a"]
    np.save("g.npy", np.arange(3))
    with pytest.raises(
        ValueError, match=r"g.npy: expected one value for each row, shape \(2, 3\); got \(3,\)"
    ):
        stored_rows.row_values("g.npy", (2, 3), DataFiles())


@pytest.mark.parametrize("probabilities", [False, True])
def test_one_score_is_two_classes(probabilities):
    scores = Z[:, :1] if probabilities else Z[:, 0]
    np.save("z.npy", scores)
    with stored_rows.open_outputs("z.npy", DataFiles()) as reader:
        both = stored_rows.two_classes(reader, probabilities)
        assert both.shape == (23, 2)
        expected = 1 - Z[:, 0].astype(np.float64) if probabilities else np.zeros(23)
        np.testing.assert_allclose(take(both, 10), np.stack([expected, Z[:, 0]], 1))


def two_shapes():
    np.save("part-1.npy", Z)
    np.save("part-2.npy", Z[:, :3])
    return "part-?.npy"


BAD_FILES = {
    "shapes": (
        two_shapes,
        r"part-2.npy: is float32 of shape \(23, 3\); the first file, part-1.npy, is float32",
    ),
    "no file": (lambda: "no-*.npy", "no file has such a name"),
    "no tensor": (lambda: index("x"), "has no tensor 'x'"),
    "no number": (
        lambda: Path("z.csv").write_text("a,b\n1,2\n1,x\n") and "z.csv",
        "z.csv: expected a number in column 'b', line 3; got 'x'",
    ),
    "nothing": (
        lambda: Path("z.csv").write_text("a,b\n1,2\n1,\n") and "z.csv",
        "z.csv: expected a number in column 'b', line 3; got ''",
    ),
}


def test_a_line_is_counted_from_the_beginning_of_the_file(monkeypatch):
    monkeypatch.setattr(table_rows, "BATCH", 8)
    Path("z.csv").write_text("a,b\n" + "1,2\n" * 30 + "1,x\n")
    with stored_rows.open_outputs("z.csv", DataFiles()) as reader:
        np.testing.assert_array_equal(reader.take(25), [[1, 2]] * 25)
        with pytest.raises(ValueError, match="column 'b', line 32; got 'x'"):
            reader.take(6)


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case):
    write, message = BAD_FILES[case]
    with pytest.raises(ValueError, match=message), stored_rows.open_outputs(write(), DataFiles()) as reader:
        take(reader, 50)
