"""What the command says: on a terminal and in a pipe, of names that hold anything, of files that are one."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from xent.command import screen
from xent.command.cli import main
from xent.files.phrases import counted, listed, printable
from xent.regression.saved import model_file
from xent.report import coefficients

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONFAULTHANDLER": "0"}


def write(path, columns):
    pl.DataFrame(columns).write_csv(path)


def test_counts_have_their_nouns():
    assert counted(1, "row") == "1 row"
    assert counted(0, "row") == "0 rows"
    assert counted(2000, "class", "classes") == "2,000 classes"


UNPRINTABLE = ["\x1b[31mred", "a\nb", "\x07", "\x9b31m", "a\u202eb", "\u2066a", "a\u2028b", "x\udcff"]


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_what_a_terminal_would_act_on_is_written_as_an_escape(name):
    assert not set(printable(name)) & set("\x1b\n\x07\x9b\u202e\u2066\u2028\udcff")
    assert "\\" in printable(name)
    assert printable(printable(name)) == printable(name)
    assert listed([name]) == printable(name)


@pytest.mark.parametrize("name", ["Ünïcode", "動物", "حيوانات", "👩\u200d👧", "a\u00a0b", "−1"])
def test_what_is_only_unusual_stays(name):
    assert printable(name) == name


def test_names_cannot_colour_or_break_the_screen_or_a_message(tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns = {
        "a\x1b[31m": rng.normal(size=60),
        "c\nd": [f"\x1b[2J{k % 2}\n" for k in range(60)],
        "one\x07": [1] * 60,
        "y": [f"yes\x1b[31m\u202e{k % 2}" for k in range(60)],
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "a\x1b[31m.parquet")
    words = ["fit", "a\x1b[31m.parquet", "--target", "y", "--report", "r\x1b.html"]
    assert main(words) == 0
    assert main([*words[:2], "--target", "no\x1b[31m"]) == 2
    assert main(["fit", "none\x1b[31m.csv", "--target", "y"]) == 2
    assert main(["fit", "iris", "--solver", "x\x1b[31m"]) == 2
    out, err = capsys.readouterr()
    for said in (out, err):
        assert not set(said) & set("\x1b\x07\u202e\r")
        assert "\\x1b[31m" in said
    assert out.count("\n") < 40
    assert err.count("\n") == 3
    page = (tmp_path / "r\x1b.html").read_text()
    visible = page.partition('<script type="application/json"')[0]
    assert not set(visible) & set("\x1b\x07\u202e")
    assert "<bdi>yes\\x1b[31m\\u202e0</bdi>" in visible


SAME = {
    "spelling": (None, "sub/../one"),
    "absolute": (None, "{here}/one"),
    "symbolic link": ("symlink", "two"),
    "link to what is not there yet": ("dangling", "two"),
    "hard link": ("link", "two"),
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize(
    "pair", [("--report", "--model"), ("--model", "--coefficients"), ("--report", "DATA")]
)
def test_two_files_that_are_one_are_refused_before_anything_is_written(case, pair, tmp_path, capsys):
    how, other = SAME[case]
    first, second = "one.csv", other.format(here=tmp_path) + ".csv"
    (tmp_path / "sub").mkdir()
    write(tmp_path / "data.csv", {"a": list(range(40)), "y": ["u", "v"] * 20})
    if how != "dangling":
        (tmp_path / "one.csv").write_bytes((tmp_path / "data.csv").read_bytes())
    if how is not None:
        (os.link if how == "link" else os.symlink)("one.csv", "two.csv")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    if pair[1] == "DATA":
        if how == "dangling":
            pytest.skip("there is nothing to read")
        words = ["fit", first, "--target", "y", pair[0], second]
        expected = "is read from; it would be overwritten"
    else:
        words = ["fit", "data.csv", "--target", "y", pair[0], first, pair[1], second]
        expected = f"`{pair[0]}` and `{pair[1]}` must be two files"
    assert main(words) == 2
    assert expected in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        ("explain 2,3,4 --label 1", "latin-1"),
        ("fit greek.csv --target y", "ascii"),
        ("fit greek.csv --target y --json", "latin-1"),
    ],
)
def test_an_output_without_the_characters_gets_escapes(words, encoding, tmp_path):
    write(tmp_path / "greek.csv", {"α": list(range(40)), "y": ["λ", "μ"] * 20})
    done = subprocess.run(
        [sys.executable, "-m", "xent", *words.split()],
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode(encoding)
    assert ("label -> 1" if "explain" in words else "\\u03bb") in said  # names are not spelled
    if "--json" in words:
        assert json.loads(said)["classes"] == ["λ", "μ"]


def on_a_terminal(*words, columns=80):
    """What the command prints on one of so many columns."""
    ours, theirs = os.openpty()
    code = (
        "import fcntl, struct, sys, termios; "
        f"fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 40, {columns}, 0, 0)); "
        "from xent.command.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = ENVIRONMENT | {"TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 1 << 16):
            said += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(120) == 0
    return re.sub(r"\x1b\[[\d;]*m", "", said.decode()).replace("\r\n", "\n")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize("columns", [80, 50])
def test_lines_of_a_terminal_break_between_words_and_hang(columns, capsys):
    said = on_a_terminal("fit", "iris", columns=columns)
    lines = said.splitlines()
    assert max(map(len, lines)) <= columns
    assert main(["fit", "iris"]) == 0
    whole = re.sub(r"in [\d.]+ s", "in 0 s", capsys.readouterr().out)
    words = set(whole.split())
    told = re.sub(r"in\s+[\d.]+\s+s", "in 0 s", said[said.index("columns  ") :])
    assert set(told.split()) <= words
    start = next(k for k, line in enumerate(lines) if line.startswith("training"))
    assert lines[start + 1].startswith(" " * 10)
    assert not lines[start + 1].startswith(" " * 11)


def test_wide_characters_take_two_cells():
    lines = screen.wrapped("動物 " * 30, 40, 4)
    assert max(screen.cell_len(line) for line in lines) <= 40
    assert screen.wrapped("x" * 100 + " y", 40, 4) == ["x" * 100, "y"]


def test_the_screen_says_one_and_many_rightly(tmp_path, capsys):
    rng = np.random.default_rng(0)
    town = np.array(["A", "B"], object)[rng.integers(0, 2, 100)]
    town[rng.random(100) < 0.3] = None
    columns = {"town": town.tolist(), "x": rng.normal(size=100), "y": ["u", "v"] * 50}
    write(tmp_path / "d.csv", columns)
    assert main(["fit", "d.csv", "--target", "y", "--max-iter", "1", "--tol", "0"]) == 0
    out = capsys.readouterr().out
    assert "1 column of numbers" in out
    assert "training  1 step of" in out
    assert "after 1 step," in out
    assert not re.search(r"\b1 \w*(rows|levels|steps|columns|features)\b", out)
    assert ": , " not in out


def test_a_majority_is_said_where_accuracy_says_little(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(600) % 50 == 0, "fraud", "fine")
    write(tmp_path / "d.csv", {"x": rng.normal(size=600), "y": labels.tolist()})
    assert main(["fit", "d.csv", "--target", "y"]) == 0
    out = capsys.readouterr().out
    assert "98.0% of the rows are 'fine': accuracy says little here" in out
    always = next(line for line in out.splitlines() if "always saying fine" in line)
    assert "97.5" in always or "98.3" in always


def test_balanced_is_judged_by_what_it_minimises(tmp_path, capsys):
    rng = np.random.default_rng(0)
    positive = np.arange(2000) % 50 == 0
    columns = {"x": rng.normal(size=2000) + 2 * positive, "y": np.where(positive, "fraud", "fine").tolist()}
    write(tmp_path / "d.csv", columns)
    arguments = ["fit", "d.csv", "--target", "y", "--balanced", "--report", "r.html"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"with all classes weighed alike, is \d\d% below guessing uniformly", out)
    assert "--balanced moves the probabilities away from the class frequencies on purpose" in out
    assert "no better than guessing" not in out
    assert "with all classes weighed alike, is" in (tmp_path / "r.html").read_text()
    assert main([*arguments, "--json"]) == 0
    held_out = json.loads(capsys.readouterr().out)["held_out"]
    assert held_out["balanced_loss"] < np.log(2) < held_out["loss"] + 0.5
    assert held_out["balanced_accuracy"] > 0.7


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_coefficients_give_the_scores_of_the_data(suffix, classes, tmp_path, capsys):
    rng = np.random.default_rng(0)
    town, x = rng.integers(0, 3, 200), rng.normal(40, 12, (200, 2))
    labels = (town + (x[:, 0] > 40) + rng.integers(0, 2, 200)) % classes
    columns = {"x": x[:, 0], "z": x[:, 1], "town": [f"t{k}" for k in town], "y": [f"c{k}" for k in labels]}
    write(tmp_path / "d.csv", columns)
    file = f"w{suffix}"
    assert main(["fit", "d.csv", "--target", "y", "--model", "m", "--coefficients", file, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["coefficients_file"] == file
    found = (pl.read_csv if suffix == ".csv" else pl.read_parquet)(file)
    assert found.columns == ["class", "feature", "scaled", "per_unit"]
    names = ["c1"] if classes == 2 else ["c0", "c1", "c2"]
    assert found["class"].unique(maintain_order=True).to_list() == names
    scores = np.zeros((200, len(names)))
    for k, name in enumerate(names):
        value = dict(found.filter(pl.col("class") == name).select("feature", "per_unit").iter_rows())
        scores[:, k] = value[coefficients.INTERCEPT] + x @ [value["x"], value["z"]]
        scores[:, k] += np.array([value[f"town=t{j}"] for j in range(3)])[town]
    logits = scores if classes > 2 else np.column_stack([np.zeros(200), scores])
    expected = model_file.load("m").predict_log_proba(pl.DataFrame(columns).drop("y"))
    np.testing.assert_allclose(logits - np.logaddexp.reduce(logits, axis=1)[:, None], expected, atol=1e-9)
    plain = facts["coefficients"]
    assert (plain["classes"], plain["against"]) == (names, "c0" if classes == 2 else None)
    assert plain["features"] == ["x", "z", "town=t0", "town=t1", "town=t2"]
    table = np.column_stack([plain["intercept"]["scaled"], plain["scaled"]]).ravel()
    np.testing.assert_allclose(table, found["scaled"].to_numpy())


def test_the_coefficients_file_must_be_csv_or_parquet(capsys):
    assert main(["fit", "iris", "--coefficients", "w.txt"]) == 2
    assert "`--coefficients` must end in .csv or .parquet" in capsys.readouterr().err


def test_fit_and_eval_have_one_calibration_error(tmp_path, capsys):
    from sklearn.model_selection import train_test_split

    from xent.files import dataset

    assert main(["fit", "digits", "--model", "m", "--json"]) == 0
    fitted = json.loads(capsys.readouterr().out)
    digits = dataset.load("digits")
    _, test = train_test_split(np.arange(1797), test_size=360, stratify=digits.labels, random_state=0)
    np.save("p.npy", model_file.load("m").predict_log_proba(digits.features[test]))
    np.save("y.npy", digits.labels[test])
    assert main(["eval", "p.npy", "y.npy", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert fitted["calibration_error"] == pytest.approx(scored["calibration_error"], rel=1e-9)
    assert [b["rows"] for b in fitted["reliability"]] == [b["rows"] for b in scored["bins"]]


def test_a_console_on_a_stream_that_cannot_be_set_works(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    screen.say(screen.console(), "a\x1b")
    assert stream.getvalue() == "a\\x1b\n"


def test_a_wrong_choice_is_named_in_plain_words(capsys):
    assert main(["fit", "iris", "--solver", "nope"]) == 2
    expected = (
        "xent: error: Invalid value for '--solver': 'nope' is not one of 'auto', 'lbfgs', 'newton-cg', 'sgd'."
    )
    assert capsys.readouterr().err.strip() == expected
