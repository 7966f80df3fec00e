"""What the command prints in terminals of any width: no number is cut, no line is wider, names are whole."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from xent.command import tables
from xent.command.cli import main
from xent.command.tables import Column, Row

NAMES = ["loss, nats", "  guessing by class frequencies", "動物の分類 第二", "W" * 50, ""]
COLUMNS = (Column("", is_text=True), Column("first\nof all"), Column("the second"), Column("third"))
ROWS = [
    Row((name, f"{k}.123456", Text(f"±{k}.25"), "" if k else "9.75"), "bold") for k, name in enumerate(NAMES)
]


def printed(width, columns=COLUMNS, rows=ROWS):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    tables.show(console, columns, rows)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [24, 33, 40, 60, 80, 200])
def test_numbers_and_names_are_whole_at_any_width(width):
    out = printed(width)
    assert max(map(cell_len, out.splitlines())) <= width
    assert "…" not in out
    for k in range(len(ROWS)):
        assert f" {k}.123456" in out
        assert f" ±{k}.25" in out
    if width == 24:  # too narrow for the longest words
        return
    for word in " ".join([*NAMES[:3], *(column.head for column in COLUMNS)]).split():
        assert word in out
    assert out.count("W") in (50, 100, 150)


def test_columns_without_room_follow_with_the_rows_that_have_something_in_them():
    columns = (*COLUMNS[:2], COLUMNS[3])
    rows = [Row((row.cells[0], row.cells[1], row.cells[3]), row.style) for row in ROWS]
    wide, narrow = (printed(width, columns, rows) for width in (80, 30))
    assert (wide.count("loss"), wide.count("third")) == (1, 1)
    assert narrow.count("loss") > 1
    last = narrow[narrow.index("third") :]
    assert "9.75" in last
    assert "guessing" not in last


def test_a_name_is_indented_where_it_goes_on():
    lines = [line.rstrip() for line in printed(40, COLUMNS[:2], ROWS[:2]).splitlines()]
    beneath = next(k for k, line in enumerate(lines) if "guessing" in line)
    assert re.match(r"   guessing by class +1.123456", lines[beneath])
    assert lines[beneath + 1] == "     frequencies"


def written(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((90, 12))
    for name, array in (("a", logits), ("b", 2 * logits), ("y", np.arange(90) % 12)):
        np.save(tmp_path / f"{name}.npy", array)


CALLS = {
    "fit": ["fit", "iris", "--balanced"],
    "eval": ["eval", "a.npy", "y.npy"],
    "eval of two models": ["eval", "a.npy", "b.npy", "y.npy"],
    "explain": ["explain", "2 3 -4 1e-5", "--label", "1", "--label-smoothing", "0.1", "--softcap", "30"],
    "check": ["check"],
}


@pytest.mark.parametrize("name", CALLS)
def test_every_number_that_a_command_prints_is_in_a_narrow_terminal_too(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    numbers = {}
    for width in (40, 60, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(CALLS[name]) == 0
        out = capsys.readouterr().out
        drawn = [line for line in out.splitlines() if line.startswith(" ")]
        assert max(map(cell_len, drawn)) <= width
        assert "…" not in out
        numbers[width] = {*re.findall(r"[\d.,]+e?[-+\d]*%?", re.sub(r"\d+\.\d+ s\b", "", out))}
    assert numbers[200] <= numbers[60]
    assert numbers[200] <= numbers[40]


@pytest.mark.parametrize("name", ["eval", "explain", "fit"])
def test_an_output_of_ascii_gets_words_for_signs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "90"}
    command = [sys.executable, "-m", "xent", *CALLS[name]]
    out = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout
    text = out.decode("ascii")
    assert "\\" not in text
    drawn = [line for line in text.splitlines() if line.startswith(" ")]
    assert max(map(len, drawn)) <= 90
    for words in {"eval": ["+- 0."], "explain": ["alpha e_y", "log sum exp u"], "fit": []}[name]:
        assert words in text


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_terminal_without_cursor_movements_has_its_own_width():
    ours, theirs = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "dumb"}
    code = "from xent.command import screen; print(screen.console().width)"
    fcntl = pytest.importorskip("fcntl")
    termios = pytest.importorskip("termios")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 57, 0, 0))
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    assert os.read(ours, 100).split() == [b"57"]
    os.close(ours)
