"""Damaged files: a line and exit code 2, or all of the rows; never a traceback, a hang, or a part."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.files.mutations import ARRAYS, ROWS, TABLES, Y, mutated, rows_said
from xent.command.cli import main

EACH = 150  # mutations of a kind of file by a command
SECONDS = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs an alarm against hangs"),
    pytest.mark.filterwarnings("ignore"),
]


def call(words: list[str], capsys) -> tuple[int, dict, str]:
    """(exit code, JSON, standard error)."""

    def hang(*_):
        raise AssertionError(f"{words} took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        code = main(words)
    finally:
        signal.alarm(0)
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def damage(path: Path, seed: list[int], original: bytes) -> None:
    path.write_bytes(mutated(original, np.random.default_rng(seed)))


def check(code: int, err: str, output: Path | None = None) -> None:
    assert code in (0, 1, 2)
    if code == 2:
        assert err.startswith("xent: error: ")
        assert err.count("\n") == 1
    if output is not None:
        assert output.exists() == (code != 2)
        output.unlink(missing_ok=True)


def each(kinds: dict[str, tuple]) -> list[tuple[str, int]]:
    return [(kind, seed) for kind in kinds for seed in range(EACH // 50)]


def write(kinds: dict[str, tuple], kind: str) -> Path:
    suffix, writer = kinds[kind]
    path = Path(f"data.{suffix}")
    writer(str(path))
    return path


def target(path: Path) -> list[str]:
    return ["--target", "y"] if path.suffix in (".csv", ".parquet") else []


@pytest.mark.parametrize(("kind", "seed"), each(TABLES))
def test_fit(kind, seed, capsys):
    path = write(TABLES, kind)
    original = path.read_bytes()
    for k in range(50):
        damage(path, [seed, k], original)
        code, found, err = call(["fit", str(path), *target(path), "--json", "--model", "m.st"], capsys)
        check(code, err, Path("m.st"))
        if code != 2:
            assert sum(found["rows"].values()) >= (rows_said(path) or 0), (seed, k)


@pytest.mark.parametrize(("kind", "seed"), each(TABLES))
def test_predict(kind, seed, capsys):
    path = write(TABLES, kind)
    assert call(["fit", str(path), *target(path), "--json", "--model", "m.st"], capsys)[0] == 0
    original = path.read_bytes()
    for k in range(50):
        damage(path, [seed, k], original)
        code, found, err = call(["predict", "m.st", str(path), "--output", "p.parquet", "--json"], capsys)
        check(code, err, Path("p.parquet"))
        if code == 0:
            assert found["rows"] >= (rows_said(path) or 0), (seed, k)


@pytest.mark.parametrize("seed", range(EACH // 50))
def test_predict_by_a_damaged_model(seed, capsys):
    path = write(TABLES, "csv")
    assert call(["fit", str(path), *target(path), "--json", "--model", "m.st"], capsys)[0] == 0
    original = Path("m.st").read_bytes()
    for k in range(50):
        damage(Path("m.st"), [seed, k], original)
        code, found, err = call(["predict", "m.st", str(path), "--output", "p.csv", "--json"], capsys)
        check(code, err, Path("p.csv"))
        if code == 0:
            assert found["rows"] == ROWS


@pytest.mark.parametrize(("kind", "seed"), each(ARRAYS))
def test_eval(kind, seed, capsys):
    np.save("y.npy", Y)
    path = write(ARRAYS, kind)
    original = path.read_bytes()
    for k in range(50):
        damage(path, [seed, k], original)
        code, found, err = call(["eval", str(path), "y.npy", "--json"], capsys)
        check(code, err)
        if code != 2:
            counted = found["rows"] + found["ignored"] + found["undefined"]
            assert counted >= (rows_said(path) or 0), (seed, k)


@pytest.mark.parametrize("seed", range(EACH // 50))
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_eval_by_damaged_labels(seed, suffix, capsys):
    import polars as pl

    ARRAYS["npy"][1]("z.npy")
    path = Path(f"labels.{suffix}")
    np.save(path, Y) if suffix == "npy" else pl.DataFrame({"y": Y}).write_parquet(path)
    original = path.read_bytes()
    for k in range(50):
        damage(path, [seed, k], original)
        code, found, err = call(["eval", "z.npy", str(path), "--json"], capsys)
        check(code, err)
        if code != 2:
            assert found["rows"] + found["ignored"] + found["undefined"] == ROWS
