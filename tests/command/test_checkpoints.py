"""`xent fit --checkpoint` and `--resume`: the same model and numbers as of a run without a stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xent
from xent.command.cli import main
from xent.regression.saved import model_file

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(xent.__file__).parents[1])}


def facts(capsys, *arguments):
    assert main(["fit", "iris", "--tol", "1e-9", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_that_goes_on_has_the_numbers_of_one_that_did_not_stop(capsys, tmp_path):
    path, models = tmp_path / "c", [tmp_path / "one", tmp_path / "two"]
    whole = facts(capsys, "--model", models[0])
    facts(capsys, "--checkpoint", path, "--max-iter", "4")
    report = tmp_path / "r.html"
    again = facts(capsys, "--resume", path, "--checkpoint", path, "--model", models[1], "--report", report)
    assert models[0].read_bytes() == models[1].read_bytes()
    first, curve, before = 4, again.pop("curve"), whole.pop("curve")
    assert curve["first_step"] == first
    for name in ("training", "held_out"):
        assert curve[name][1:] == before[name][first + 1 :]
        assert curve[name][0] == pytest.approx(before[name][first])
    for each in (whole, again):
        for name in ("command", "model", "report"):
            each.pop(name)
    assert again == whole
    steps = whole["steps"] - first
    assert f"Loss at each of {steps} steps after the first 4" in report.read_text()
    assert facts(capsys, "--resume", path)["steps"] == whole["steps"]  # at its end already


def test_an_interrupted_command_keeps_its_checkpoint(tmp_path):
    """SIGINT after the first step, by when the first checkpoint is there."""
    code = (
        "import os, signal, sys\n"
        "from xent.command import cli, screen\n"
        "from contextlib import contextmanager\n"
        "@contextmanager\n"
        "def status(what):\n"
        "    yield lambda text: os.kill(os.getpid(), signal.SIGINT)\n"
        "screen.status = status\n"
        "sys.exit(cli.main(['fit', 'iris', '--checkpoint', sys.argv[1]]))\n"
    )
    path = tmp_path / "c"
    ended = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, "xent: interrupted\n")
    stopped = model_file.load(path)
    assert stopped.estimator.n_iter_ == 1
    assert len(stopped.preprocessor.columns) == 4


@pytest.mark.parametrize("memory", [[], ["--memory", "100MB"]], ids=["in memory", "in parts"])
def test_the_checkpoint_of_a_stopped_training_predicts(memory, capsys, tmp_path):
    data, path, model = tmp_path / "f.csv", tmp_path / "c", tmp_path / "m"
    lines = (f"{k * 7 % 13 or ''};{'rgb'[k % 3]};{'uv'[k % 2]}" for k in range(60))
    data.write_text("\n".join(["a;color;y", *lines]))
    call = ["fit", str(data), "--target", "y", "--checkpoint", str(path), "--model", str(model), *memory]
    assert main(call) == 0
    printed = []
    for each in (path, model):
        capsys.readouterr()
        assert main(["predict", str(each), str(data)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].count("\n") == 61


# arguments, what the one line must say; c is a checkpoint of iris, m a model
BAD = {
    "other parameters": ("--resume c --alpha 1", "c: is a checkpoint of another fit: its `--alpha` is 0.001"),
    "other rows": ("--resume c --test-size 0.5", "c: is a checkpoint of another fit: its rows of each part"),
    "a model": ("--resume m", "m: is no checkpoint: it holds a model alone"),
    "text": ("--resume t", "t: is not a model file"),
    "nothing": ("--resume nothing", "nothing: no such file"),
    "no directory": ("--checkpoint no/c", "no/c: cannot be written: no directory no"),
    "the model": ("--checkpoint n --model n", "n: `--checkpoint` and `--model` must be two files"),
    "written over": ("--resume c --model c", "c: is read from; it would be overwritten"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_checkpoints_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "iris", "--checkpoint", "c", "--model", "m", "--json"]) == 0
    Path("t").write_text("a,b\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert main(["fit", "iris", *arguments.split()]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.lower().startswith(f"xent: error: {words}".lower())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
