"""Fits to the rows of files: the optimum of a fit in memory, the same bits for any threads, named errors."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import scipy.sparse
from sklearn.datasets import dump_svmlight_file

import xent
from xent.files import dataset
from xent.files.errors import DataError
from xent.files.preprocess import Preprocessor
from xent.regression.file_rows import cached_rows
from xent.regression.sums.partitions import PartitionError

ROWS, FEATURES, CLASSES = 600, 6, 3
RNG = np.random.default_rng(2)
LABELS = np.sort(RNG.integers(0, CLASSES, ROWS))  # so that most files and blocks lack a class
X = (RNG.standard_normal((ROWS, FEATURES)) + 1.5 * np.eye(FEATURES)[LABELS]).astype(np.float32)
X[RNG.random(X.shape) < 0.3] = 0
NAMES = [f"x{k}" for k in range(FEATURES)]
CUTS = (0, 150, 150, 151, 400, ROWS)  # the second file is empty


def write(table, folder, suffix="parquet"):
    """The rows of a table in files, of small row groups."""
    for number, (start, stop) in enumerate(pairwise(CUTS)):
        path = folder / f"part-{number}.{suffix}"
        if suffix == "csv":
            table[start:stop].write_csv(path)
        else:
            table[start:stop].write_parquet(path, row_group_size=40)
    return folder


def table(labels=LABELS):
    return pl.DataFrame(X, schema=NAMES).with_columns(y=pl.Series(labels))


def fitted(rows, y=None, **options):
    return xent.SoftmaxRegression(tol=1e-11, **options).fit(rows, y)


def assert_same_optimum(ours, theirs, x, y):
    """Equal objectives, in float64 on the same rows, and classes."""
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    assert ours.classes_.dtype == theirs.classes_.dtype
    objective = theirs.objective(x.astype(np.float64), y)
    ours, theirs = (
        objective(objective.pack(each.coef_.astype(float), each.intercept_))[0] for each in (ours, theirs)
    )
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """20 blocks, and pieces that are cut elsewhere than the files."""
    monkeypatch.setattr(cached_rows, "block_entries", lambda memory: 30 * FEATURES)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
@pytest.mark.parametrize(
    "options", [{}, {"class_weight": "balanced", "label_smoothing": 0.1}], ids=["plain", "weights"]
)
def test_files_have_the_optimum_of_their_rows_in_memory(tmp_path, suffix, solver, options):
    rows = xent.rows_from(write(table(), tmp_path, suffix), "y")
    ours = fitted(rows, solver=solver, **options)
    theirs = fitted(X, LABELS, solver=solver, **options)
    assert_same_optimum(ours, theirs, X, LABELS)
    assert ours.optimality_gap_ <= 1e-11
    assert ours.feature_names_in_.tolist() == NAMES
    assert ours.coef_.dtype == np.float32
    np.testing.assert_array_equal(ours.predict(table().select(NAMES)), theirs.predict(X))


@pytest.mark.parametrize(
    "labels", [np.array(["no", "1", "yes"]), np.array([-3, 5, 40]), np.array([False, True, True])]
)
def test_labels_of_any_kind(tmp_path, labels):
    rows = xent.rows_from(str(write(table(labels[LABELS]), tmp_path) / "*.parquet"), "y")
    assert_same_optimum(
        fitted(rows), xent.SoftmaxRegression(tol=1e-11).fit(X, labels[LABELS]), X, labels[LABELS]
    )


@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize("width", [FEATURES, 40])
def test_svmlight_files_stay_sparse(tmp_path, prepare, width):
    x = np.hstack([X, np.zeros((ROWS, width - FEATURES), np.float32)])
    x[-1, -1] = 2.0
    x = scipy.sparse.csr_array(x)
    for number, (start, stop) in enumerate(pairwise((0, 150, 151, 400, ROWS))):
        path = str(tmp_path / f"{number}.svm")
        dump_svmlight_file(x[start:stop].astype(float), LABELS[start:stop], path, zero_based=False)
    rows = xent.rows_from(tmp_path, prepare=prepare)
    ours = fitted(rows)
    names = [f"x{k + 1}" for k in range(width)]
    x = Preprocessor.fit(x, names).transform(x) if prepare else x
    assert_same_optimum(ours, fitted(x, LABELS), x, LABELS)
    assert (rows.preprocessor is not None) == prepare
    assert rows.reads.file_passes == 2


@pytest.mark.parametrize("levels", [3, 200], ids=["dense", "csr"])
def test_prepared_rows_are_those_of_the_command(tmp_path, levels, monkeypatch):
    monkeypatch.setattr(cached_rows, "block_entries", lambda memory: 2000)
    holes = np.where(np.arange(ROWS) % 9 == 4, np.nan, X[:, 0])
    names = [None if k % 50 == 0 else f"level {k % levels}" for k in range(ROWS)]
    mixed = table().with_columns(x0=pl.Series(holes).fill_nan(None), name=pl.Series(names))
    rows = xent.rows_from(write(mixed, tmp_path), "y", prepare=True)
    ours = fitted(rows)
    mixed.write_parquet(tmp_path / "whole.parquet")
    whole = dataset.load(str(tmp_path / "whole.parquet"), "y")
    learnt = Preprocessor.fit(whole.features, whole.feature_names)
    assert rows.preprocessor.to_json() == learnt.to_json()
    assert learnt.has_mostly_levels == (levels > 100)
    x = learnt.transform(whole.features).astype(np.float32)
    assert_same_optimum(ours, fitted(x, LABELS), x, LABELS)
    assert ours.n_features_in_ == len(learnt.feature_names)
    again = rows.preprocessor.transform(whole.features)
    assert ours.score(again, LABELS) > 0.5


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
@pytest.mark.parametrize("kind", ["parquet", "svmlight"])
def test_any_number_of_threads_has_the_same_bits(tmp_path, solver, kind):
    if kind == "parquet":
        write(table(), tmp_path)
    else:
        dump_svmlight_file(X.astype(float), LABELS, str(tmp_path / "a"), zero_based=False)
    found = []
    for workers in (1, 2, 4):
        rows = xent.rows_from(tmp_path, None if kind == "svmlight" else "y", workers=workers)
        model = fitted(rows, solver=solver)
        found.append((model.coef_.tobytes(), model.intercept_.tobytes(), model.loss_curve_, rows.reads))
    assert found[0] == found[1] == found[2]


def test_other_files_with_the_same_rows_have_the_same_bits(tmp_path):
    first = fitted(xent.rows_from(write(table(), tmp_path), "y"))
    table().write_parquet(tmp_path / "whole")
    second = fitted(xent.rows_from(tmp_path / "whole", "y"))
    assert first.coef_.tobytes() == second.coef_.tobytes()


def test_what_was_read_is_counted_and_said(tmp_path):
    said = []
    rows = xent.rows_from(write(table(), tmp_path), "y", progress=lambda *each: said.append(each))
    assert rows.reads is None
    fitted(rows)
    reads = rows.reads
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (reads.file_bytes, reads.file_passes) == (size, 1)
    assert reads.cache_bytes == ROWS * (4 * FEATURES + 4)
    assert reads.cache_passes == int(reads.cache_passes) > 5
    assert all(0 < done <= total for _, done, total in said)
    assert {total for what, _, total in said if what == "reading the files"} == {size}
    last = [(what, done) for what, done, total in said if done == total and what.startswith("pass")]
    assert last == [(f"pass {k + 1}", reads.cache_bytes) for k in range(int(reads.cache_passes))]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("x3", None, r"part-3\.parquet: no value in column 'x3', row 61: `prepare=True`"),
        ("x3", np.nan, r"part-3\.parquet: no value in column 'x3', row 61: `prepare=True`"),
        ("x3", -np.inf, r"part-3\.parquet: expected a finite number in column 'x3', row 61; got '-inf'"),
        ("y", None, r"part-3\.parquet: missing label in column 'y', row 61"),
    ],
)
def test_a_missing_or_infinite_value_has_its_file_row_and_column(tmp_path, column, value, message):
    bad = CUTS[3] + 60
    values = table()[column].to_list()
    values[bad] = value
    write(table().with_columns(pl.Series(column, values)), tmp_path)
    with pytest.raises(DataError, match=message):
        fitted(xent.rows_from(tmp_path, "y"))


def test_a_number_beyond_float32_has_its_file_row_and_column(tmp_path):
    wide = table().cast({"x1": pl.Float64})
    wide[CUTS[4] + 99, "x1"] = 1e39
    with pytest.raises(
        DataError, match=r"part-4\.parquet: the number in column 'x1', row 100, overflows float32"
    ):
        fitted(xent.rows_from(write(wide, tmp_path), "y"))


def test_arguments_out_of_place(tmp_path):
    write(table(), tmp_path)
    rows = xent.rows_from(tmp_path, "y")
    for arguments, name in (((rows, LABELS), "y"), ((rows, None, LABELS), "sample_weight")):
        with pytest.raises(ValueError, match=rf"`{name}` must be None for rows of files; got ndarray"):
            xent.SoftmaxRegression().fit(*arguments)
    for workers in (0, 1.5, True):
        with pytest.raises(ValueError, match="`workers` must be an integer >= 1; got"):
            xent.rows_from(tmp_path, "y", workers=workers)
    for memory in (0, 1e9, True):
        with pytest.raises(ValueError, match=r"`memory` must be an integer >= 16,777,216 \(bytes\); got"):
            xent.rows_from(tmp_path, "y", memory=memory)
    with pytest.raises(ValueError, match="several partitions"):
        fitted(rows, solver="sgd")
    text = table().with_columns(x1=pl.lit("text"))
    (tmp_path / "text").mkdir()
    with pytest.raises(DataError, match=r"column 'x1' holds categories: `prepare=True`"):
        fitted(xent.rows_from(write(text, tmp_path / "text"), "y"))
    one = table(np.zeros(ROWS, int))
    with pytest.raises(DataError, match="one class only: 0 in all 600 rows"):
        fitted(xent.rows_from(write(one, tmp_path), "y"))


# name → (the method with rows of files, the argument that must be in memory)
CALLS = {
    "predict": (lambda model, rows: model.predict(rows), "X"),
    "predict_proba": (lambda model, rows: model.predict_proba(rows), "X"),
    "predict_log_proba": (lambda model, rows: model.predict_log_proba(rows), "X"),
    "decision_function": (lambda model, rows: model.decision_function(rows), "X"),
    "score": (lambda model, rows: model.score(rows, LABELS), "X"),
    "score without y": (lambda model, rows: model.score(rows, None), "X"),
    "score of y": (lambda model, rows: model.score(X, rows), "y"),
    "calibrate_temperature": (lambda model, rows: model.calibrate_temperature(rows, LABELS), "X"),
    "calibrate_temperature of y": (lambda model, rows: model.calibrate_temperature(X, rows), "y"),
    "objective": (lambda model, rows: model.objective(rows, None), "X"),
    "partial_fit": (lambda model, rows: model.partial_fit(rows, None), "X"),
    "partial_fit of weights": (lambda model, rows: model.partial_fit(X, LABELS, None, rows), "sample_weight"),
    "fit of y": (lambda model, rows: model.fit(X, rows), "y"),
}


@pytest.mark.parametrize("case", CALLS)
def test_only_fit_takes_rows_of_files(case):
    call, name = CALLS[case]
    model = xent.SoftmaxRegression().fit(X, LABELS)
    before = model.coef_.copy()
    with pytest.raises(TypeError, match=rf"`{name}` must be in memory here; got xent.rows_from, which only"):
        call(model, xent.rows_from("nowhere", "y"))
    np.testing.assert_array_equal(model.coef_, before)


@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize("mixed", [False, True], ids=["a file each", "in each file"])
def test_booleans_and_the_numbers_1_and_0_are_one_pair_of_classes(tmp_path, mixed, prepare):
    flags = LABELS > 0
    as_words = np.arange(ROWS) % 2 == 0 if mixed else np.arange(ROWS) < CUTS[3]
    spelt = np.where(as_words, flags.astype(str), flags.astype(int).astype(str))
    one = fitted(xent.rows_from(write(table(spelt), tmp_path, "csv"), "y", prepare=prepare))
    write(table(flags.astype(str)), tmp_path, "csv")
    two = fitted(xent.rows_from(tmp_path, "y", prepare=prepare))
    assert one.classes_.tolist() == [False, True]
    np.testing.assert_array_equal(one.coef_, two.coef_)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("files", 3),
        ("files", [3]),
        ("files", b"a"),
        ("target", 3),
        ("drop", "x0"),
        ("drop", [0]),
        ("categorical", "x0"),
        ("dialect", ","),
        ("drop_unlabelled", 1),
        ("prepare", "yes"),
        ("progress", 3),
    ],
)
def test_an_argument_of_another_type_is_named(name, value):
    with pytest.raises(TypeError, match=rf"`{name}` must be .*; got"):
        xent.rows_from(**{"files": "a"} | {name: value})


def test_an_error_leaves_the_estimator_and_closes_the_cache(tmp_path, monkeypatch):
    model = xent.SoftmaxRegression().fit(X, LABELS)
    before = dict(vars(model))
    opened = []
    files = tempfile.TemporaryFile

    def temporary(**options):
        opened.append(files(**options))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    monkeypatch.setattr(cached_rows, "as_target", lambda *_: 1 / 0)
    with pytest.raises(PartitionError, match="partition 0: ZeroDivisionError"):
        model.fit(xent.rows_from(write(table(), tmp_path), "y"))
    assert len(opened) == 2
    assert all(file.closed for file in opened)
    assert vars(model) == before


FIT = """
import sys, time, xent
def say(what, done, total):
    if what == "pass 3":
        print("pass", flush=True)
        time.sleep(60)
while True:  # until the signal comes
    xent.SoftmaxRegression().fit(xent.rows_from(sys.argv[1], "y", progress=say))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux says which files are open")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_no_signal_leaves_a_cache(tmp_path, sent):
    data, folder = tmp_path / "data", tmp_path / "temporary"
    data.mkdir(), folder.mkdir()
    write(table(), data)
    environment = os.environ | {"TMPDIR": str(folder)}
    command = [sys.executable, "-c", FIT, str(data)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        assert child.stdout.readline() == b"pass\n"
        opened = [os.readlink(link) for link in os.scandir(f"/proc/{child.pid}/fd")]
        child.send_signal(sent)
        child.stdout.read()
    assert child.returncode != 0
    # The open files have no name, so that the system deletes them in any case.
    assert any(each.startswith(str(folder)) for each in opened)
    assert list(folder.iterdir()) == []


PEAK = """
import sys, xent
def peak():  # the one of getrusage may be that of the process that began this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
for folder in sys.argv[1:]:
    xent.SoftmaxRegression(max_iter=3, tol=1e-3).fit(xent.rows_from(folder, "y", memory=1 << 25))
    print(peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what the peak was")
def test_memory_is_that_of_a_few_blocks(tmp_path):
    """80 MB of rows take less than 48 MiB more than 1 MB of them."""
    rng = np.random.default_rng(0)
    for name, rows in (("small", 5000), ("large", 400_000)):
        y = rng.integers(0, 5, rows)
        x = rng.standard_normal((rows, 50), dtype=np.float32)
        x[:, :5] += np.eye(5, dtype=np.float32)[y]
        frame = pl.DataFrame(x).with_columns(y=pl.Series(y))
        frame.write_parquet(tmp_path / name, compression="lz4", row_group_size=5000)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert (large - small) / 1024 < 48


def test_rows_can_be_pickled(tmp_path):
    rows = xent.rows_from(write(table(), tmp_path), target="y")
    ours = fitted(pickle.loads(pickle.dumps(rows)))
    np.testing.assert_array_equal(ours.coef_, fitted(rows).coef_)
    fitted(pickle.loads(pickle.dumps(rows)))  # after a fit


def test_labels_of_parts_are_merged_by_their_text():
    """The counts of one part go to the codes of all, in whatever order its labels came."""
    parts = []
    for labels in (["yes", "no", "yes"], ["perhaps", "yes"], ["no"]):
        part = cached_rows.Labels()
        piece = SimpleNamespace(labels=np.array(labels), path="part")
        cached_rows.count_codes(part.rows, part.codes(piece))
        parts.append(part)
    merged = cached_rows.Labels()
    for part in reversed(parts):
        merged.merge(part)
    assert merged.classes()[0].tolist() == ["no", "perhaps", "yes"]
    assert merged.of_classes(merged.rows).tolist() == [2, 1, 3]
