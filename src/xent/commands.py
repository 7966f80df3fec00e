"""The subcommands of `xent`: their options, and what they print."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xent.training import Run

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class SmoothingOver(StrEnum):
    """Choices of --smoothing-over."""

    ALL = "all"
    OTHERS = "others"


@app.command()
def fit(
    context: typer.Context,
    data: Annotated[
        str, typer.Argument(help="digits, iris, wine, breast_cancer, or a CSV file with a header.")
    ] = "digits",
    target: Annotated[str | None, typer.Option(help="Column of the CSV file that holds the labels.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page with pictures here.")] = None,
    model: Annotated[Path | None, typer.Option(help="Write the model (safetensors) here.")] = None,
    test_size: Annotated[float, typer.Option(help="Share of the rows to hold out.")] = 0.2,
    seed: Annotated[
        int, typer.Option(help="Chooses the rows held out and where the gradient is checked.")
    ] = 0,
    alpha: Annotated[float, typer.Option(help="Strength of the L2 penalty, alpha/2 |W|^2.")] = 1e-3,
    max_iter: Annotated[int, typer.Option(help="Most steps of L-BFGS.")] = 1000,
    tol: Annotated[float, typer.Option(help="Largest partial derivative to end at.")] = 1e-5,
    label_smoothing: Annotated[
        float, typer.Option(help="Probability moved from the label to all classes.")
    ] = 0.0,
    focal_gamma: Annotated[float, typer.Option(help="Focus on hard rows: -(1-p)^gamma log p.")] = 0.0,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh all classes alike.")] = False,
) -> int:
    """Train softmax regression on DATA, verify the gradient and measure on held-out rows.

    Features are brought to mean 0 and standard deviation 1 by the training rows; the model file
    holds both. Rows of every class are held out in proportion.
    """
    from xent import data as datasets
    from xent import persistence, storage, training
    from xent import report as reports

    if not 0 < test_size < 1:
        raise ValueError(f"`--test-size` must be between 0 and 1; got {test_size:g}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`--seed` must be in [0, 2**32); got {seed}")
    for path in (report, model):
        if path is not None:
            storage.require_writable(path)
            if path.exists() and Path(data).exists() and path.samefile(data):
                raise ValueError(f"{path}: is the data; it would be overwritten")
    if report is not None and report == model:
        raise ValueError(f"{report}: `--report` and `--model` must be two files")
    settings = training.Settings(
        test_size, seed, alpha, max_iter, tol, label_smoothing, focal_gamma, balanced
    )
    dataset = datasets.load(data, target)
    with _status("training") as update:
        run = training.run(
            dataset, settings, lambda step, objective: update(f"step {step}, objective {objective:.6f}")
        )

    console = _console()
    _print_run(console, run)
    if report is not None:
        storage.write(report, reports.html(run, shlex.join(["xent", *context.obj])).encode())
        console.print(Text(f"report    {report}"), soft_wrap=True)
    if model is not None:
        persistence.save(run.model, model)
        console.print(Text(f"model     {model}"), soft_wrap=True)
    return 0 if run.gradient.passed else 1


class LogitsCommand(typer.core.TyperCommand):
    """Takes an argument like "-1 2 3", whose first number is negative, for what it is: no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put such an argument behind "--"."""
        for i, word in enumerate(args):
            if re.match(r"-[\d.i]", word) and not (i and args[i - 1].startswith("--")):
                args = [*args[:i], *args[i + 1 :], "--", word]
                break
        return super().parse_args(ctx, args)


@app.command(cls=LogitsCommand)
def explain(
    logits: Annotated[str, typer.Argument(help='Logits of one row, such as "2 3 4".')],
    label: Annotated[int, typer.Option(help="The true class, counted from 0.")],
    label_smoothing: Annotated[float, typer.Option(help="Probability moved from the label.")] = 0.0,
    smoothing_over: Annotated[
        SmoothingOver, typer.Option(help="Moved to all classes, or to the others.")
    ] = SmoothingOver.ALL,
    focal_gamma: Annotated[float, typer.Option(help="gamma of -(1-p)^gamma log p.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="T of z/T.")] = 1.0,
    softcap: Annotated[float | None, typer.Option(help="C of C tanh(z/C).")] = None,
    z_loss: Annotated[float, typer.Option(help="lambda of lambda logsumexp^2.")] = 0.0,
    class_weight: Annotated[str | None, typer.Option(help='One weight a class, such as "1 2 1".')] = None,
) -> None:
    """Show logits, probabilities, target, loss and gradient, each beside its formula."""
    from xent import explain as explaining

    numbers = explaining.parse_numbers(logits, "logits")
    if not 0 <= label < len(numbers):
        raise ValueError(f"`--label` must be in [0, {len(numbers)}), one of the logits; got {label}")
    explanation = explaining.explain(
        numbers,
        label,
        {
            "label_smoothing": label_smoothing,
            "smoothing_over": smoothing_over.value,
            "focal_gamma": focal_gamma,
            "temperature": temperature,
            "softcap": softcap,
            "z_loss": z_loss,
            "class_weight": None
            if class_weight is None
            else explaining.parse_numbers(class_weight, "--class-weight"),
        },
    )
    _console().print(*explaining.render(explanation), sep="")


@app.command()
def check(
    seed: Annotated[int, typer.Option(help="Chooses the random logits.")] = 0,
) -> int:
    """Compare every variant's loss, gradient and Hessian product with independent computations.

    Finite differences, mpmath at 50 digits, PyTorch autograd. Exit code 1 if one is too far off.
    """
    from xent import check as checking

    if seed < 0:
        raise ValueError(f"`--seed` must be >= 0; got {seed}")
    console = _console()
    with _status("checking") as update:
        rows = checking.run(seed, lambda row: update(row.variant))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True, padding=0)
    table.add_column("\nvariant", footer="tolerance", no_wrap=True)
    for column in checking.Row._fields[1:]:
        quantity, _, judge = column.partition("_")
        heading = f"{QUANTITIES[quantity]}\n{JUDGES[judge]}"
        table.add_column(heading, footer=f"{checking.TOLERANCE[judge]:.0e}", justify="right", no_wrap=True)
    for row in rows:
        cells = [
            Text(_error(error), "bold red" if name in row.failures else "")
            for name, error in zip(row._fields[1:], row[1:], strict=True)
        ]
        table.add_row(row.variant, *cells)
    console.print(table)
    console.print("Largest difference, relative to the largest entry. diff: central differences;")
    console.print("mp: the definition in mpmath, 50 digits; torch: the definition under autograd.")
    for library in checking.missing_libraries():
        console.print(f"-: {library} is not installed (pip install {library})")
    failures = [(row.variant, column) for row in rows for column in row.failures]
    for variant, column in failures:
        console.print(f"FAILED: {variant}: {column.replace('_', ' against ')}", style="bold red")
    if not failures:
        console.print(f"{len(rows)} variants agree.")
    return 1 if failures else 0


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}" if error else "0"


QUANTITIES = {"loss": "loss", "grad": "grad", "hvp": "Hess."}
JUDGES = {"differences": "diff", "mpmath": "mp", "torch": "torch"}


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Cross-entropy: train by its closed-form gradient, explain it, check it."""
    if version:
        import xent

        print(f"xent {xent.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def invoke(arguments: list[str] | None) -> int:
    """Run; return the exit code. A wrong call is a ValueError, Ctrl-C a KeyboardInterrupt."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        code = app(words, prog_name="xent", standalone_mode=False, obj=words)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except UsageError as error:
        raise ValueError(error.format_message()) from None
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return int(code or 0)


UsageError: Any = typer.BadParameter.__base__  # typer gives its base class no name of its own
INTERRUPTED = 130  # what typer makes of Ctrl-C


def _print_run(console: Console, run: Run) -> None:
    from xent import report as reports

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    s, g = run.settings, run.gradient
    rows = run.train.rows + run.test.rows
    say(f"{run.dataset}: {rows:,} rows, {run.num_features} features, {len(run.classes)} classes")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("held out", "train"):
        table.add_column(name, justify="right")
    table.add_row("rows", f"{run.test.rows:,}", f"{run.train.rows:,}")
    table.add_row("loss, nats", f"{run.test.loss:.4f}", f"{run.train.loss:.4f}", style="bold")
    table.add_row("  guessing by class frequencies: their entropy", f"{run.frequencies:.4f}")
    table.add_row(f"  guessing uniformly: ln {len(run.classes)}", f"{run.uniform:.4f}")
    table.add_row("accuracy", f"{run.test.accuracy:.2%}", f"{run.train.accuracy:.2%}", style="bold")
    console.print(table)
    say(f"training  {run.steps} steps of L-BFGS in {run.seconds:.2f} s; alpha {s.alpha:g}, seed {s.seed}")
    say("          features scaled to mean 0, deviation 1 by the training rows")
    say(f"gradient  {g.error:.1e} largest relative error against finite differences")
    say(f"          in {g.checked} of {g.total} parameters, at random parameters")
    finding, cautions = reports.verdict(run)
    say(f"\n{finding}", "bold")
    for caution in cautions:
        say(f"note: {caution}", "yellow")


@contextmanager
def _status(what: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says how far it is, on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(what) as status:
        yield lambda text: status.update(Text(f"{what}: {text}"))


def _console() -> Console:
    return Console(highlight=False)
