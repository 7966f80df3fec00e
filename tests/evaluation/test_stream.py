"""`xent eval`: the numbers are scikit-learn's, whatever the file, the chunk and the number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score

import xent
from tests.evaluation.evaluations import tensors
from xent.command.cli import main
from xent.evaluation import stream
from xent.evaluation.calibration import bins
from xent.evaluation.scoring import Settings
from xent.evaluation.stream import evaluate
from xent.files.arrays.row_reader import open_rows

ROWS, CLASSES = 700, 11
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(xent.__file__).parents[1]), "OMP_NUM_THREADS": "2"}
RNG = np.random.default_rng(0)
LOGITS = (RNG.standard_normal((ROWS, CLASSES)) * 3).round(2)  # with ties
EVERY = np.arange(ROWS)
LABELS = np.where(RNG.random(ROWS) < 0.6, LOGITS[:, :-1].argmax(1), RNG.integers(0, CLASSES - 1, ROWS))
PROBS = xent.softmax(LOGITS)
SOFT = xent.softmax(RNG.standard_normal((ROWS, CLASSES)) * 4)
SOFT[:, 0] = 0
SOFT /= SOFT.sum(1, keepdims=True)

SUMMING = np.tile([0.9, 0.9, -0.8, *[0] * (CLASSES - 3)], (ROWS, 1))  # to 1, but no probabilities


def score(outputs, targets, folder: Path, *, threads=None, chunk=None, **settings):
    """Of two arrays, by way of two npy files in ``folder``."""
    np.save(folder / "z.npy", outputs)
    np.save(folder / "y.npy", targets)
    more = {} if chunk is None else {"chunk": chunk}
    with open_rows(str(folder / "z.npy")) as z, open_rows(str(folder / "y.npy")) as y:
        return evaluate(z, y, Settings(**settings), threads, **more)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [CLASSES, 100])
def test_numbers_are_scikit_learns(tmp_path, probabilities, classes):
    logits = np.pad(LOGITS, ((0, 0), (0, classes - CLASSES)), constant_values=-4.0)
    p, every = xent.softmax(logits), range(classes)
    e = score(p if probabilities else logits, LABELS, tmp_path, probabilities=probabilities, top_k=3)
    assert (e.rows, e.num_classes, e.ignored, e.undefined, e.infinite) == (ROWS, classes, 0, 0, 0)
    assert e.loss == pytest.approx(log_loss(LABELS, p, labels=every), rel=1e-12)
    assert (e.entropy, e.divergence) == (0, e.loss)
    assert e.perplexity == pytest.approx(np.exp(e.loss))
    assert e.bits == pytest.approx(e.loss / np.log(2))
    assert e.accuracy == accuracy_score(LABELS, p.argmax(1))
    share = np.tile(np.bincount(LABELS, minlength=classes) / ROWS, (ROWS, 1))
    assert e.frequencies == pytest.approx(log_loss(LABELS, share, labels=every))
    precision, recall, _, support = precision_recall_fscore_support(
        LABELS, p.argmax(1), labels=every, zero_division=np.nan
    )
    assert [c.support for c in e.classes] == support.tolist()
    for ours, theirs in (("recall", recall), ("precision", precision)):
        found = [np.nan if getattr(c, ours) is None else getattr(c, ours) for c in e.classes]
        np.testing.assert_allclose(found, np.where(support, theirs, np.nan) if ours == "recall" else theirs)
    assert sum(c.share for c in e.classes) == pytest.approx(1)
    assert sum((c.loss or 0) * c.support for c in e.classes) == pytest.approx(e.loss * ROWS)


@pytest.mark.parametrize("classes", [CLASSES, 700, 5000])
@pytest.mark.parametrize("k", [1, 2, 5, 10])
@pytest.mark.parametrize("probabilities", [False, True])
def test_top_k_is_scikit_learns_without_ties(tmp_path, k, probabilities, classes):
    logits = RNG.standard_normal((ROWS, classes))
    logits[EVERY, LABELS] += 3 * RNG.random(ROWS)
    outputs = xent.softmax(logits) if probabilities else logits
    e = score(outputs, LABELS, tmp_path, top_k=k, probabilities=probabilities)
    assert e.top_k_accuracy == top_k_accuracy_score(LABELS, logits, k=k, labels=range(classes))


def test_ties_are_in_favour_of_the_label(tmp_path):
    e = score(np.zeros((3, 4)), np.array([0, 1, 3]), tmp_path, top_k=1)
    assert (e.accuracy, e.top_k_accuracy) == (1 / 3, 1)
    assert score(np.zeros((3, 4)), np.array([0, 1, 3]), tmp_path, top_k=9).top_k == 4


def test_calibration_is_scikit_learns(tmp_path):
    e = score(LOGITS, LABELS, tmp_path)
    confidence, right = PROBS.max(1), PROBS.argmax(1) == LABELS
    share, mean = calibration_curve(right, confidence, n_bins=bins.BINS)
    np.testing.assert_allclose([(b.accuracy, b.confidence) for b in e.bins], np.stack([share, mean], 1))
    counts = np.array([b.rows for b in e.bins])
    assert e.calibration_error == pytest.approx(np.abs(share - mean) @ counts / ROWS)
    assert e.calibration_gap == pytest.approx(confidence.mean() - right.mean())


@pytest.mark.parametrize("probabilities", [False, True])
def test_soft_targets_split_into_entropy_and_divergence(tmp_path, probabilities):
    e = score(PROBS if probabilities else LOGITS, SOFT, tmp_path, probabilities=probabilities)
    parts = [part.mean() for part in xent.information.decompose(SOFT, PROBS)]
    assert (e.loss, e.entropy, e.divergence) == pytest.approx(tuple(parts), rel=1e-12)
    assert e.frequencies == pytest.approx(xent.information.entropy(SOFT.mean(0)))
    assert e.accuracy == accuracy_score(SOFT.argmax(1), PROBS.argmax(1))
    assert e.top_k_accuracy == top_k_accuracy_score(SOFT.argmax(1), PROBS, k=5, labels=range(CLASSES))
    one_hot = score(LOGITS, np.eye(CLASSES)[LABELS], tmp_path)
    labels = score(LOGITS, LABELS, tmp_path)
    for ours, theirs in zip(one_hot, labels, strict=True):
        if isinstance(ours, float):
            assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


def flat(e) -> np.ndarray:
    numbers = [v for v in e if isinstance(v, int | float)]
    return np.array([*numbers, *(x or 0 for c in e.classes for x in c), *(x for b in e.bins for x in b)])


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("chunk", [1, 88, 1000, 10_000])
def test_chunks_of_any_size_give_the_same(tmp_path, targets, chunk):
    whole = score(LOGITS, targets, tmp_path, chunk=1 << 30)
    np.testing.assert_allclose(flat(score(LOGITS, targets, tmp_path, chunk=chunk)), flat(whole), rtol=1e-12)


def test_threads_give_the_same_bits(tmp_path):
    one, *others = (score(LOGITS, LABELS, tmp_path, chunk=500, threads=n) for n in (1, 2, 5))
    assert all(other == one for other in others)


def test_of_several_mistakes_the_first_is_told_whoever_finds_one(tmp_path):
    labels = LABELS.copy()
    labels[[20, 300, 310, 690]] = 99
    for _ in range(10):
        with pytest.raises(ValueError, match="got 99 in row 21"):
            score(LOGITS, labels, tmp_path, chunk=30, threads=5)


def test_the_reading_is_told_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "REPORT", 2000)
    np.save(tmp_path / "z.npy", LOGITS)
    np.save(tmp_path / "y.npy", LABELS)
    told = []
    with open_rows(str(tmp_path / "z.npy")) as z, open_rows(str(tmp_path / "y.npy")) as y:
        evaluate(z, y, threads=3, on_bytes=told.append, chunk=88)
    assert sum(told) == LOGITS.nbytes
    assert len(told) > 10
    assert min(told[:-1]) >= 2000


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f2", ">f8", np.int32])
@pytest.mark.parametrize("classes", [CLASSES, 80])
def test_dtypes(tmp_path, dtype, classes):
    outputs = np.pad(LOGITS, ((0, 0), (0, classes - CLASSES)), constant_values=-5).astype(dtype)
    e = score(outputs, LABELS.astype(np.uint8), tmp_path)
    p = xent.softmax(outputs.astype(np.float64))
    assert e.loss == pytest.approx(log_loss(LABELS, p, labels=range(classes)), rel=1e-6)
    wide = score(outputs.astype(np.float64), LABELS, tmp_path)
    assert (e.accuracy, e.top_k_accuracy) == (wide.accuracy, wide.top_k_accuracy)


def test_leading_axes_are_rows(tmp_path):
    flat_, shaped = (
        score(LOGITS.reshape(*shape, CLASSES), LABELS.reshape(shape), tmp_path, chunk=300)
        for shape in ((ROWS,), (7, 100))
    )
    assert shaped == flat_
    assert score(LOGITS, LABELS[:, None], tmp_path, chunk=300) == flat_


def test_ignored_rows_have_no_part(tmp_path):
    some = RNG.random(ROWS) < 0.3
    for mark in (-100, 10):  # no class, and the one that no row has
        e = score(LOGITS, np.where(some, mark, LABELS), tmp_path, ignore_index=mark)
        rest = score(LOGITS[~some], LABELS[~some], tmp_path)
        assert e.ignored == some.sum()
        np.testing.assert_allclose(flat(e._replace(ignored=0)), flat(rest), rtol=1e-12)


def test_rows_without_a_loss_are_counted_and_left_out(tmp_path):
    broken = LOGITS.copy()
    broken[[50, 300], 3] = np.nan
    broken[301, 0] = np.inf
    kept = np.delete(np.arange(ROWS), [50, 300, 301])
    e = score(broken, LABELS, tmp_path, chunk=1000)
    assert (e.undefined, e.first_undefined, e.rows) == (3, 51, ROWS - 3)
    rest = score(LOGITS[kept], LABELS[kept], tmp_path)
    assert e.loss == pytest.approx(rest.loss, rel=1e-12)
    broken = np.where(np.isnan(broken), np.nan, PROBS)
    assert score(broken, LABELS, tmp_path, probabilities=True).undefined == 2
    excluded = LOGITS.copy()
    excluded[7, LABELS[7]] = -np.inf
    e = score(excluded, LABELS, tmp_path)
    assert (e.infinite, e.loss, e.undefined) == (1, np.inf, 0)


def test_probabilities_that_do_not_sum_to_1_are_divided_and_counted(tmp_path):
    e = score(PROBS * np.where(np.arange(ROWS) < 9, 3.0, 1.0)[:, None], LABELS, tmp_path, probabilities=True)
    assert e.unnormalised == 9
    assert e.loss == pytest.approx(score(PROBS, LABELS, tmp_path, probabilities=True).loss, rel=1e-12)


@pytest.mark.parametrize(
    ("outputs", "suspect"), [(PROBS, True), (LOGITS, False), (PROBS * 2, False), (SUMMING, False)]
)
def test_probabilities_read_as_logits_are_suspected(tmp_path, outputs, suspect, capsys):
    assert score(outputs, LABELS, tmp_path).like_probabilities is suspect
    assert main(["eval", str(tmp_path / "z.npy"), str(tmp_path / "y.npy")]) == 0
    assert ("say --probabilities" in capsys.readouterr().out) is suspect


def test_a_loss_beyond_all_bounds_has_an_infinite_perplexity(tmp_path, capsys):
    score(np.array([[0.0, 800.0]]), np.array([0]), tmp_path)
    assert main(["eval", str(tmp_path / "z.npy"), str(tmp_path / "y.npy")]) == 0
    out, err = capsys.readouterr()
    assert "800.0" in out
    assert " inf" in out
    assert err == ""


def write(path: Path, outputs, labels) -> tuple[str, str]:
    """The two arrays in a file of the kind of ``path``; the arguments that name them."""
    kind = "".join(path.suffixes)
    if kind == ".npz":
        np.savez(path, logits=outputs, y=labels)
    elif kind == ".z.npz":
        np.savez_compressed(path, logits=outputs, y=labels)
    elif kind == ".safetensors":
        safetensors.numpy.save_file({"logits": outputs, "y": labels}, path)
    elif kind == ".parquet":
        pl.DataFrame({"logits": outputs, "y": labels}).write_parquet(path, row_group_size=150)
    elif kind == ".lists.parquet":
        frame = pl.DataFrame({"logits": outputs.tolist(), "y": labels})
        frame.write_parquet(path, row_group_size=150)
    return f"{path}:logits", f"{path}:y"


@pytest.mark.parametrize("kind", ["npz", "z.npz", "safetensors", "parquet", "lists.parquet"])
def test_every_kind_of_file_gives_the_same(tmp_path, kind):
    z, y = write(tmp_path / f"data.{kind}", LOGITS, LABELS)
    expected = score(LOGITS, LABELS, tmp_path, chunk=2000)
    with open_rows(z) as outputs, open_rows(y) as targets:
        assert outputs.shape == LOGITS.shape
        assert evaluate(outputs, targets, chunk=2000) == expected


def test_columns_of_a_parquet_file_are_classes(tmp_path):
    pl.DataFrame(LOGITS).write_parquet(tmp_path / "z.parquet")
    pl.DataFrame({"k": LABELS}).write_parquet(tmp_path / "y.parquet")
    with open_rows(str(tmp_path / "z.parquet")) as z, open_rows(str(tmp_path / "y.parquet")) as y:
        assert evaluate(z, y) == score(LOGITS, LABELS, tmp_path)


@pytest.mark.parametrize("installed", [True, False])
def test_bfloat16_tensors(tmp_path, installed, monkeypatch):
    words = (LOGITS.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    widened = (words.astype(np.uint32) << 16).view(np.float32)
    entry = {"dtype": "BF16", "shape": list(LOGITS.shape), "data_offsets": [0, words.nbytes]}
    tensors(tmp_path / "m.safetensors", words.tobytes(), **entry)
    if installed:
        pytest.importorskip("ml_dtypes")
    else:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    expected = score(widened, LABELS, tmp_path)
    with open_rows(str(tmp_path / "m.safetensors")) as z, open_rows(str(tmp_path / "y.npy")) as y:
        assert z.dtype == "bfloat16"
        assert evaluate(z, y).loss == pytest.approx(expected.loss, rel=1e-6)


def test_the_command_prints_the_numbers(tmp_path, capsys):
    e = score(LOGITS, LABELS, tmp_path)
    files = [str(tmp_path / "z.npy"), str(tmp_path / "y.npy")]
    assert main(["eval", *files, "--classes", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in (
        "700 rows, 11 classes",
        *(f"{x:.6f}" for x in (e.loss, e.bits, e.divergence, e.frequencies, np.log(11))),
        *(f"{x:.2%}" for x in (e.accuracy, e.top_k_accuracy)),
        f"{e.calibration_error:.4f}",
        f"{e.calibration_gap:+.4f}",
        "3 of 10 classes, the costliest first",
    ):
        assert part in out
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert main(["eval", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == e.loss
    assert len(found["classes"]) == CLASSES
    assert found["bins"][0].keys() == {"rows", "confidence", "accuracy"}


def test_rows_without_a_loss_end_with_1_and_infinity_is_null(tmp_path, capsys):
    score(np.where(np.arange(ROWS)[:, None] == 5, np.nan, LOGITS), LABELS, tmp_path)
    files = [str(tmp_path / "z.npy"), str(tmp_path / "y.npy")]
    assert main(["eval", *files]) == 1
    assert "1 row holds NaN or infinity: row 6" in capsys.readouterr().out
    excluded = LOGITS.copy()
    excluded[3, LABELS[3]] = -np.inf
    score(excluded, LABELS, tmp_path)
    assert main(["eval", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["loss"], found["infinite"]) == (None, 1)


def test_memory_is_bounded(tmp_path):
    """A file four times as large as what the process may still allocate."""
    resource = pytest.importorskip("resource")
    assert resource
    limit, rows, classes = 128 << 20, 32 * 4096, 1024
    logits = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float32, (rows, classes))
    logits[::4096] = 1
    del logits  # 512 MiB, nearly all of it a hole
    np.save(tmp_path / "y.npy", np.zeros(rows, np.int64))
    code = f"""
import resource, sys
from xent.files.arrays import row_reader
from xent.command import cli
from xent.evaluation import stream as evaluation
from xent import command as commands
import numpy, rich.progress, threadpoolctl
np = numpy
np.save("w.npy", np.zeros((3, 5))); np.save("v.npy", np.zeros(3, int))
assert cli.main(["eval", "w.npy", "v.npy", "--json"]) == 0
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {limit},) * 2)
sys.exit(cli.main(["eval", "z.npy", "y.npy", "--json"]))
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    command = [sys.executable, "-c", code]
    options = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == rows
