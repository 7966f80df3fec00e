"""`xent fit` on many files, or on one with --memory: options, progress, mistakes, full disks and signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import dump_svmlight_file

import xent
from tests.command.mistakes import require_one_line
from xent.command.cli import main
from xent.regression.file_rows import cached_rows
from xent.regression.saved import model_file

ROWS = 600
RNG = np.random.default_rng(1)
LABELS = RNG.integers(0, 2, ROWS)
X = RNG.standard_normal((ROWS, 3)).round(2) + 2 * LABELS[:, None]
TABLE = pl.DataFrame(X, schema=["a", "b", "c"]).with_columns(
    code=pl.Series(np.arange(ROWS) % 3), kind=pl.Series(np.array(["no", "yes"])[LABELS])
)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(xent.__file__).parents[1])}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder, with one for data and one for temporary files."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("temporary").mkdir()
    return tmp_path


def write(suffix: str = "parquet", table: pl.DataFrame = TABLE, **options) -> None:
    for number, (start, stop) in enumerate(pairwise((0, 250, 251, ROWS))):
        path = f"data/{number}.{suffix}"
        if suffix == "svm":
            dump_svmlight_file(X[start:stop], LABELS[start:stop], path, zero_based=False)
        elif suffix == "csv":
            table[start:stop].write_csv(path, **options)
        else:
            table[start:stop].write_parquet(path)


def fit(words: str, capsys) -> dict:
    capsys.readouterr()
    assert main(["fit", *words.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("parquet", "data --target kind"),
        ("csv", "data/*.csv --target kind"),
        ("svm", "data"),
        ("svm", "data/2.svm --memory 16MiB"),
        ("csv", "data/2.csv --target kind --memory 20000000"),
    ],
)
def test_files_are_read_in_parts_and_the_model_predicts(suffix, words, capsys):
    write(suffix)
    found = fit(f"{words} --model m.st --coefficients c.csv --report r.html", capsys)
    rows = 349 if "2." in words else ROWS
    assert sum(found["rows"][name] for name in ("training", "held_out")) == rows
    assert found["reads"]["file_passes"] == 2
    assert found["rows"]["sample"] is None
    assert found["held_out"]["accuracy"] > 0.9
    assert found["costliest"][0]["file"].startswith("data/")
    assert pl.read_csv("c.csv").height == found["features"] + 1
    assert re.search(r"read 2 times; .* of \d+ rows held out", Path("r.html").read_text())
    assert main(["predict", "m.st", words.split()[0], "--output", "p.parquet"]) == 0
    labels = LABELS[-rows:] if suffix == "svm" else TABLE["kind"][-rows:].to_numpy()
    assert (pl.read_parquet("p.parquet")["label"].to_numpy() == labels).mean() > 0.9


def test_one_file_is_read_as_a_whole_unless_memory_is_given(capsys):
    write()
    assert fit("data/2.parquet --target kind", capsys)["reads"] is None
    assert fit("data/2.parquet --target kind --memory 16MiB", capsys)["reads"] is not None


def test_options_hold_for_many_files(capsys):
    kinds = [None if k % 100 == 7 else kind for k, kind in enumerate(TABLE["kind"])]
    commas = pl.col("a", "b", "c").cast(pl.String).str.replace(".", ",", literal=True)
    text = TABLE.with_columns(pl.Series("kind", kinds), commas)
    write("csv", text, separator="|")
    found = fit(
        "data --target kind --separator | --decimal , --categorical code --drop b --drop-unlabelled "
        "--balanced --label-smoothing 0.1 --alpha 0.01 --test-size 0.5 --model m.st",
        capsys,
    )
    assert found["rows"]["unlabelled"] == 6
    assert "6 rows without a label left out" in found["surprises"]
    assert 200 < found["rows"]["held_out"] < 394
    model = model_file.load("m.st")
    assert model.preprocessor.feature_names == ["a", "c", "code=0", "code=1", "code=2"]
    assert model.notes["settings"]["balanced"]
    assert model.notes["dialect"]["decimal"] == ","
    assert main(["predict", "m.st", "data/*", "--output", "p.csv"]) == 0
    assert pl.read_csv("p.csv").height == ROWS


def cut(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def replace_by(name: str, table: pl.DataFrame) -> Callable[[], None]:
    return lambda: table.write_parquet(f"data/{name}.parquet")


def only(table: pl.DataFrame) -> None:
    for path in Path("data").iterdir():
        path.unlink()
    if table.width:
        table.write_parquet("data/2.parquet")


UNLABELLED = TABLE[:9].with_columns(kind=pl.Series([None, *["no"] * 8]))

# name → (what is done to the files of data, arguments, what the one line must say)
BAD = {
    "no files": (lambda: only(pl.DataFrame()), "data", ["data: a directory without files"]),
    "no match": (None, "data/*.csv", ["data/*.csv: no file has such a name"]),
    "other columns": (
        replace_by("1", TABLE.drop("b")),
        "data",
        ["1.parquet", "has no column 'b'", "0.parquet"],
    ),
    "other types": (
        replace_by("1", TABLE.cast({"a": pl.Int32})),
        "data",
        ["1.parquet", "has Int32 in column 'a' where it has Float64"],
    ),
    "cut": (lambda: cut("data/1.parquet"), "data", ["data/1.parquet", "damaged or no Parquet"]),
    "empty": (lambda: Path("data/1.parquet").write_bytes(b""), "data", ["data/1.parquet: is empty"]),
    "another kind": (
        lambda: Path("data/1.csv").write_text("a,kind\n1,no\n"),
        "data",
        ["data/1.csv: is csv", "parquet"],
    ),
    "a link to nothing": (
        lambda: os.symlink("nothing", "data/7.parquet"),
        "data",
        ["data/7.parquet: no such file"],
    ),
    "a pipe": (lambda: os.mkfifo("data/7.parquet"), "data", ["data/7.parquet"]),
    "a missing label": (
        replace_by("7", UNLABELLED),
        "data",
        ["error: data/7.parquet: missing label in column 'kind', row 1"],
    ),
    "no labels": (
        lambda: only(TABLE.with_columns(kind=pl.lit(None, pl.String))),
        "data --drop-unlabelled",
        ["data: kind: no rows; at least 2 classes are needed"],
    ),
    "one class": (
        lambda: only(TABLE.filter(kind="no")),
        "data",
        [f"data: kind: one class only: 'no' in all {(LABELS == 0).sum()} rows"],
    ),
    "too large": (
        replace_by("1", TABLE.with_columns(pl.col("b") * 1e300)),
        "data",
        ["data: the values of column 'b' are too large"],
    ),
    "target": (None, "data --target other", ["data/0.parquet: no column 'other' for `--target`"]),
    "categorical": (None, "data --categorical d", ["no column 'd' for `--categorical`"]),
    "separator": (None, "data --separator ;", ["`--separator` is for CSV files; data/0.parquet"]),
    "sgd": (None, "data --solver sgd", ['`--solver` must be "auto", "lbfgs" or "newton-cg"']),
    "alpha": (None, "data --alpha -1", ["`--alpha`", "-1"]),
    "test size": (None, "data --test-size 0.0001", ["held out, too few"]),
    "memory in words": (None, "data --memory much", ["`--memory` must be a size such as 500MB", "'much'"]),
    "memory in inches": (None, "data --memory 5in", ["`--memory`", "'5in'"]),
    "binary bytes": (None, "data --memory 20000000iB", ["`--memory`", "'20000000iB'"]),
    "negative memory": (None, "data --memory=-1GiB", ["`--memory`", "'-1GiB'"]),
    "little memory": (None, "data --memory 1MB", ["`--memory` must be at least 16MiB", "'1MB'"]),
    "memory for a set": (None, "iris --memory 1GiB", ["`--memory` is for files", "iris is a bundled set"]),
    "report over a file": (None, "data --report data/1.parquet", ["data/1.parquet: is read from"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(case, folder, monkeypatch, capsys):
    change, words, expected = BAD[case]
    monkeypatch.setattr("tempfile.tempdir", str(folder / "temporary"))
    write()
    if change is not None:
        change()
    before = sorted(folder.rglob("*"))
    words = ["--target", "kind", "--report", "r.html", "--model", "m.st", *words.split()]
    assert main(["fit", *words]) == 2
    require_one_line(capsys, expected)
    assert sorted(folder.rglob("*")) == before


def test_an_unreadable_file_is_named(monkeypatch, capsys):
    write()
    opened = Path.open

    def refused(path, *arguments, **options):
        if path.name == "1.parquet":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    assert main(["fit", "data", "--target", "kind"]) == 2
    assert capsys.readouterr().err == "xent: error: data/1.parquet: Permission denied\n"


def test_too_little_memory_in_a_partition_is_one_line(monkeypatch, capsys):
    write()
    monkeypatch.setattr(cached_rows, "block_entries", lambda memory: 100)

    def full(*_):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr(cached_rows, "as_target", full)
    assert main(["fit", "data", "--target", "kind"]) == 2
    assert capsys.readouterr().err == (
        "xent: error: there is not enough memory for this. Unable to allocate 1 TiB\n"
    )


RUN = "\nimport sys; from xent.command.cli import main; sys.exit(main(sys.argv[1:]))"
WORDS = ["fit", "data", "--target", "kind", "--report", "r.html", "--model", "m.st"]


def child(code: str = "", **options) -> subprocess.Popen:
    """`xent fit data`, with its cache in the folder temporary, after ``code``."""
    return subprocess.Popen(
        [sys.executable, "-c", code + RUN, *WORDS],
        env=ENVIRONMENT | {"TMPDIR": "temporary"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_full_disk_is_one_line_and_the_cache_is_gone(folder):
    write()
    before = sorted(folder.rglob("*"))
    little_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    with child(little_room) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(r"xent: error: no room in \S*temporary for the rows, of which .* TMPDIR .*\n", err)
    assert sorted(folder.rglob("*")) == before


STOP = """
import signal, time
from xent.command import screen
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
def read(passes, what, done, total):
    if what == "pass 3":
        print("pass", flush=True)
        time.sleep(60)
screen.Passes.read = read
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_leaves_neither_cache_nor_results(folder, sent, code):
    write()
    before = sorted(folder.rglob("*"))
    with child(STOP) as process:
        assert process.stdout.readline() == "pass\n"
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == ("xent: interrupted\n" if sent == signal.SIGINT else "")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize("width", [60, 120])
def test_a_terminal_shows_the_passes_the_objective_and_the_gap(width):
    write()
    ours, theirs = os.openpty()
    environment = ENVIRONMENT | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(width)}
    command = [sys.executable, "-c", RUN, *WORDS]
    streams = {"stdout": subprocess.DEVNULL, "stderr": theirs}
    subprocess.run(command, env=environment, check=True, timeout=60, **streams)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end, on Linux
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    for words in (
        b"learning from the files",
        b"writing the rows",
        rb"pass \d+, step \d+: objective 0\.\d+, gap ",
    ):
        assert re.search(words, shown)
    assert b"\x1b[1A\x1b[2Kpass" not in shown  # which clears a bar of two lines
