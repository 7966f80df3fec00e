"""`xent fit`: train, verify, measure, write the report and the model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xent.commands import screen

if TYPE_CHECKING:
    from xent.training import Run


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
    with screen.status("training") as update:
        run = training.run(
            dataset, settings, lambda step, objective: update(f"step {step}, objective {objective:.6f}")
        )

    console = screen.console()
    _print_run(console, run)
    if report is not None:
        storage.write(report, reports.html(run, shlex.join(["xent", *context.obj])).encode())
        console.print(Text(f"report    {report}"), soft_wrap=True)
    if model is not None:
        persistence.save(run.model, model)
        console.print(Text(f"model     {model}"), soft_wrap=True)
    return 0 if run.gradient.passed else 1


def _print_run(console: Console, run: Run) -> None:
    from xent import report as reports

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    s, g = run.settings, run.gradient
    rows = run.train.rows + run.test.rows
    say(f"{run.data.name}: {rows:,} rows, {len(run.data.feature_names)} features, {len(run.classes)} classes")
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
