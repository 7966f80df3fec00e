"""The typer application with all subcommands, and its invocation."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer

from xent.command import check, evaluate, explain, fit, predict

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The list of commands has room for short descriptions only.
app.command(short_help="Train a classifier on a data file.")(fit.fit)
app.command(short_help="Predict labels and probabilities of rows.")(predict.predict)
app.command("eval", short_help="Score a file of logits against labels.")(evaluate.evaluate)
app.command(cls=explain.LogitsCommand, short_help="Show a loss and its gradient, in numbers.")(
    explain.explain
)
app.command(short_help="Compare all derivatives with other sources.")(check.check)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Cross-entropy: train by its closed-form gradient, predict, evaluate, explain, check.

    Exit codes: 0 done, 1 a check failed, 2 bad input or a wrong call, 130 interrupted.
    """
    if version:
        from importlib import metadata

        print(f"xent {metadata.version('xent')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def invoke(arguments: list[str] | None) -> int:
    """Run; return the exit code. Raises ValueError for a wrong call, KeyboardInterrupt for Ctrl-C."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        for word in words:
            _require_text(word)
        code = app(words, prog_name="xent", standalone_mode=False, obj=words)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except UsageError as error:
        raise ValueError(
            error.format_message().replace("Value error, ", "")
        ) from None  # pydantic adds this prefix
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return int(code or 0)


def with_options(message: str, arguments: list[str] | None) -> str:
    """The message, in which an argument, `max_iter`, is the option that sets it, `--max-iter`."""
    words = sys.argv[1:] if arguments is None else arguments
    subcommands: Any = typer.main.get_command(app)
    command = subcommands.commands.get(words[0]) if words else None
    options = {option for each in command.params for option in each.opts} if command is not None else set()

    def spelled(match: re.Match[str]) -> str:
        option = f"--{match[1].replace('_', '-')}"
        return f"`{option}`" if option in options else match[0]

    return re.sub(r"`(\w+)`", spelled, message)


def _require_text(word: str) -> None:
    """ValueError for a word that is not UTF-8: such a file name cannot be printed or stored in a report."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{word!r}: is not UTF-8 text: rename the file, or make a link to it") from None


UsageError: Any = typer.BadParameter.__base__  # typer does not export the base class
INTERRUPTED = 130  # typer's exit code for Ctrl-C
