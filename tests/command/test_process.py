"""The command as a process: its streams, signals, colours, and what is not installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import xent

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(xent.__file__).parents[1])}


def run(code: str | None, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Of ``code``, or of the module."""
    return subprocess.run(
        [sys.executable, *(["-m", "xent"] if code is None else ["-c", code]), *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize("module", ["typer", "rich", "sklearn", "threadpoolctl"])
def test_a_missing_extra_is_one_line_that_says_what_to_install(module):
    without = f"import sys; sys.modules[{module!r}] = None"
    code = f"{without}; from xent.command.cli import main; sys.exit(main(['fit']))"
    done = run(code)
    assert done.returncode == 2
    assert done.stderr == f"xent: error: this command needs {module}: pip install 'xent[fit]'\n"


def test_the_module_is_the_command_and_a_pipe_gets_plain_text():
    done = run(None, "fit", "iris")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


def interrupt(code: str) -> None:
    """Send SIGINT when ``code`` has said that it is started: one line, and 130."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | {"PYTHONFAULTHANDLER": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "xent: interrupted\n")


def test_ctrl_c_is_one_line_and_130(tmp_path):
    # A data set that takes long enough: interrupted as soon as the training says that it runs.
    code = """
import sys
from xent.command import cli
from xent.report import training
def slow(*_):
    print("started", flush=True)
    import time; time.sleep(30)
training.run = slow
sys.exit(cli.main(["fit", "iris", "--report", "r.html"]))
"""
    interrupt(code)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_imports_run_is_one_line_and_130(tmp_path):
    (tmp_path / "numpy.py").write_text("import time; print('started', flush=True); time.sleep(30)")
    start = "from xent.command.cli import main; sys.exit(main(['check']))"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {start}"
    interrupt(code)


@pytest.mark.skipif(shutil.which("head") is None, reason="needs head")
def test_a_reader_that_leaves_gets_no_traceback():
    command = f"{sys.executable} -m xent --help | head -c 1"
    done = subprocess.run(
        command, shell=True, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""


CLOSED = {
    "explain": ("explain 2,3,4 --label 1 >&-", 0, ""),
    "explain --json": ("explain 2,3,4 --label 1 --json >&-", 0, ""),
    "check": ("check >&-", 0, ""),
    "help": ("--help >&-", 0, ""),
    "version": ("--version >&-", 0, ""),
    "an error": ("explain 2,x,4 --label 1 >&-", 2, "xent: error: `logits` must be numbers"),
    "an error nobody hears": ("explain 2,x,4 --label 1 2>&-", 2, ""),
    "an error, all closed": ("explain 2,x,4 --label 1 >&- 2>&-", 2, ""),
    "a check, all closed": ("check >&- 2>&-", 0, ""),
}


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes streams")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case == "check" else ()) for case in CLOSED]
)
def test_closed_streams_get_no_traceback(case):
    words, code, said = CLOSED[case]
    done = subprocess.run(
        f"{sys.executable} -m xent {words}",
        shell=True,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize("no_color", [False, True])
def test_colour_on_a_terminal_unless_no_color_is_set(no_color):
    ours, theirs = os.openpty()
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {
        "TERM": "xterm"
    }
    if no_color:
        environment["NO_COLOR"] = "1"
    code = "from xent.command import screen; screen.console().print('x', style='red')"
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    assert (b"\x1b[31m" in os.read(ours, 1000)) is not no_color
    os.close(ours)
