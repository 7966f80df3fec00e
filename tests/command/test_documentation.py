"""docs/command.md is the command's: its options, keys and exit codes are there, and no others."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer.main

from tests.command.test_predict import people
from xent.command import app, cli
from xent.command.cli import main
from xent.files import cells, data_files

PAGE = (Path(__file__).parents[2] / "docs/command.md").read_text("utf-8")
COMMAND = typer.main.get_command(app.app)


def table(heading: str) -> dict[str, str]:
    """Rows of the table below ``heading``: first cell → the rest."""
    rows = PAGE.split(heading, 1)[1].lstrip("|-: \n").split("\n\n")[0].splitlines()
    cells = [row.strip("|").split(" | ", 1) for row in rows if not row.startswith("|---")]
    return {first.strip().strip("`"): rest for first, rest in cells}


def test_every_command_is_listed_and_every_option_named_there_exists():
    listed = table("| command | what it does |")
    assert [first.split()[1] for first in listed] == list(COMMAND.commands)
    known = {option for each in COMMAND.commands.values() for p in each.params for option in p.opts}
    known |= {option for p in COMMAND.params for option in p.opts} | {"--help", "--install-completion"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
    assert all("--json" in [o for p in each.params for o in p.opts] for each in COMMAND.commands.values())


def test_exit_codes_are_the_programs():
    codes = [int(code) for code in table("| exit code | meaning |")]
    assert codes == [0, cli.FAILED, cli.USAGE, cli.INTERRUPTED]
    assert all(re.search(rf"\b{code}\b", COMMAND.help) for code in codes)


def test_bundled_sets_and_spellings_of_missing_are_the_programs():
    assert all(f"`{name}`" in PAGE for name in data_files.BUNDLED)
    sentence = PAGE.split("**A missing number**")[1].partition(")")[0]
    spelt = {word.lower() for word in re.findall(r"`([^`]+)`", sentence)}
    assert spelt | {""} == set(cells.MISSING)


def test_the_excerpt_is_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    people().write_csv("people.csv")
    (excerpt,) = re.findall(r"```text\n(\$ xent fit people.*?)```", PAGE, re.DOTALL)
    for call in excerpt.split("$ xent ")[1:]:
        command, *shown = call.splitlines()
        assert main(command.split()) == 0
        printed = capsys.readouterr().out.splitlines()
        for line in shown:
            label, *numbers = re.split(r",(?=0\.)", line)
            found = [re.split(r",(?=0\.)", each) for each in printed if each.startswith(label)]
            # What --tol leaves open are the third digits.
            near = [
                np.allclose(np.array(rest, float), np.array(numbers, float), atol=5e-3) for _, *rest in found
            ]
            assert line == "..." or any(near), line


def test_the_excerpt_about_files_is_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    for part in range(4):
        people()[50 * part : 50 * part + 50].write_parquet(f"parts/{part}.parquet")
    (call, line) = re.search(r"\$ xent (fit 'parts/.*)\n\.\.\.\n(files .*)", PAGE).groups()
    assert main(shlex.split(call)) == 0
    (printed,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("files ")]
    assert re.sub(r"[\d.]+", "0", printed) == re.sub(r"[\d.]+", "0", line)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("z.npy", np.eye(3))
    np.save("y.npy", np.arange(3))
    assert main(["fit", "iris", "--model", "m.st"]) == 0


ALL = ["--temperature", "2", "--label-smoothing", "0.1", "--z-loss", "0.1"]


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        ("fit", [["iris"]]),
        ("predict", [["m.st", "iris"], ["m.st", "iris", "--output", "p.csv"]]),
        ("eval", [["z.npy", "y.npy"], ["z.npy", "z.npy", "y.npy"]]),
        ("explain", [["1 2", "--label", "0"], ["1 2", "--label", "0", *ALL]]),
        ("check", [[]]),
    ],
)
def test_json_keys_are_those_listed(arrays, command, calls, monkeypatch, capsys):
    from xent import check

    monkeypatch.setattr(check, "VARIANTS", {"plain": {}})
    found: set[str] = set()
    for call in calls:
        capsys.readouterr()
        assert main([command, *call, "--json"]) == 0
        found |= json.loads(capsys.readouterr().out).keys()
    keys = table("| command | keys |")[command].partition("without")[0]
    assert found == set(re.findall(r"`([^`]+)`", keys + table("| command | keys |")[command])) - {"--output"}
