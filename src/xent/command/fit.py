"""`xent fit`: train, check the gradient, evaluate on held-out rows, write the report and the model."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from xent.command import outputs, screen, tables
from xent.command.tables import Column, Row
from xent.files.phrases import counted, printable

if TYPE_CHECKING:
    from xent.report.training import Restart, Run, Settings


HEADING = 10  # width of a heading, in cells


class Solver(StrEnum):
    """Choices of --solver."""

    AUTO = "auto"
    LBFGS = "lbfgs"
    NEWTON_CG = "newton-cg"
    SGD = "sgd"


def fit(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="digits, iris, wine, breast_cancer, a file (CSV, Parquet, JSON Lines, Arrow, Excel, npz, "
            "svmlight; also compressed), or - for standard input. Or many files: a directory, or a pattern "
            "in quotes, such as 'DIR/*.parquet'."
        ),
    ] = "digits",
    target: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The labels, in CSV and Parquet.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Leave it out; may be repeated.")
    ] = None,
    categorical: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Its numbers are categories; may be repeated."),
    ] = None,
    separator: screen.Separator = None,
    decimal: screen.Decimal = None,
    missing: screen.Missing = None,
    no_missing: screen.NoMissing = False,
    drop_unlabelled: Annotated[
        bool, typer.Option("--drop-unlabelled", help="Leave out rows without a label.")
    ] = False,
    drop_rare: Annotated[
        bool, typer.Option("--drop-rare", help="Leave out rows that are the only ones of their class.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with pictures here.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the model (safetensors) here.")
    ] = None,
    coefficients: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the coefficients here, .csv or .parquet.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Read DATA in parts that take so much, such as 500MB or 2GiB. Many files are always read in "
            "parts; they take 1GiB by default.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the state of the training here, every ten minutes."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on from this checkpoint of the same training.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Let the workers of this scheduler, such as tcp://host:8786, read DATA, Parquet, and train.",
        ),
    ] = None,
    test_size: Annotated[
        float, typer.Option(help="Share of the rows to hold out; 0 trains on all of them.")
    ] = 0.2,
    seed: Annotated[
        int, typer.Option(help="Chooses the rows held out and where the gradient is checked.")
    ] = 0,
    alpha: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|auto",
            help="Strength of the L2 penalty, alpha/2 |W|^2; auto chooses it by cross-validation.",
        ),
    ] = "0.001",
    solver: Annotated[Solver, typer.Option(help="How to minimise.")] = Solver.AUTO,
    max_iter: Annotated[int, typer.Option(help="Most steps of the solver.")] = 1000,
    tol: Annotated[float, typer.Option(help="End this close to the optimum, relative to it.")] = 1e-4,
    label_smoothing: Annotated[
        float, typer.Option(help="Probability moved from the label to all classes.")
    ] = 0.0,
    focal_gamma: Annotated[float, typer.Option(help="Focus on hard rows: -(1-p)^gamma log p.")] = 0.0,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh all classes alike.")] = False,
    json: screen.Json = False,
) -> int:
    """Train softmax regression on DATA, verify the gradient and measure on held-out rows.

    Columns of numbers are brought to mean 0 and standard deviation 1; where values are missing, their
    median stands in and a further column says so. Columns of text are categories, with a column for
    each level. All of it is learnt from the training rows and kept in the model file. Rows of every
    class are held out in proportion. Exit code 1 if the gradient is wrong.

    One file is read into memory as a whole. With --memory, and where DATA is a directory or a pattern, it
    may be larger than that: CSV, Parquet or svmlight is read twice, and prepared rows go to a cache in the
    folder of temporary files (TMPDIR), which is read again at each step. At most as many rows are held out
    as fit in an eighth of the memory.

    With --dask the workers read DATA: paths are theirs, and a file is a part. This process gets the rows
    held out and a sample of the others, at most an eighth of --memory each. Needs the extra xent[dask].
    """
    from xent.files import storage
    from xent.files.formats import csv_table
    from xent.regression.saved import model_file
    from xent.report import coefficients as effects
    from xent.report import page as reports
    from xent.report import plain
    from xent.report.training import Restart, Settings

    if not 0 <= test_size < 1:
        raise ValueError(f"`--test-size` must be in [0, 1); got {test_size:g}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`--seed` must be in [0, 2**32); got {seed}")
    if coefficients is not None and coefficients.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{coefficients}: `--coefficients` must end in .csv or .parquet")
    written = {"report": report, "model": model, "coefficients": coefficients}
    inputs = _inputs(data, memory) if dask is None else []
    restart = Restart(checkpoint, resume)
    named = {f"--{name}": path for name, path in written.items()}
    outputs.require_distinct({"--checkpoint": checkpoint} | named, inputs or [data])
    outputs.require_distinct(named, [] if resume is None else [resume])
    dialect = csv_table.Dialect(separator, decimal, tuple(missing or ()), not no_missing).checked()
    strength = screen.number("--alpha", alpha, or_word="auto")
    settings = Settings(
        test_size,
        seed,
        strength or 0.0,
        max_iter,
        tol,
        label_smoothing,
        focal_gamma,
        balanced,
        solver.value,
        auto_alpha=strength is None,
    )
    options: dict[str, Any] = {
        "target": target,
        "drop": drop or (),
        "categorical": categorical or (),
        "dialect": dialect,
        "drop_unlabelled": drop_unlabelled,
    }
    if drop_rare and (inputs or dask is not None):
        raise ValueError("`--drop-rare` is for rows in memory; these are read in parts")
    if dask is not None:
        run = _run_on_dask(data, options, settings, restart, memory, dask)
    elif inputs:
        run = _run_in_parts(data, options, settings, restart, memory)
    else:
        run = _run(data, options | {"drop_rare": drop_rare}, settings, restart)

    command = shlex.join(["xent", *context.obj])
    if report is not None:
        storage.write(report, reports.html(run, command).encode())
    if model is not None:
        model_file.save(run.model, model)
    if coefficients is not None:
        effects.write(effects.coefficients(run.model), coefficients)
    if json:
        paths = {name: None if path is None else str(path) for name, path in written.items()}
        # The key "coefficients" holds the coefficients themselves.
        paths["coefficients_file"] = paths.pop("coefficients")
        screen.print_json(plain.run(run, command) | paths)
    else:
        console = screen.console()
        _print_run(console, run)
        for name, path in written.items():
            if path is not None:
                _say_under(console, name, str(path))
    return 0 if run.gradient.passed else 1


def _inputs(data: str, memory: str | None) -> list[Path]:
    """The files to read in parts; none if ``data`` is to be read as a whole."""
    from xent.files import data_files
    from xent.files.parts import sources

    several = sources.is_several(data)
    if memory is None and not several:
        return []
    if data in data_files.BUNDLED and not several:
        raise ValueError(f"`--memory` is for files that are read in parts; {data} is a bundled set")
    return sources.expand(data)


def _run(data: str, options: dict[str, Any], settings: Settings, restart: Restart) -> Run:
    """A run on rows in memory."""
    from xent.files import dataset as datasets
    from xent.report import training

    with screen.status(f"reading {data}"):
        dataset = datasets.load(data, **options)
    with screen.status("training") as update:
        return training.run(
            dataset,
            settings,
            lambda step: update(f"step {step.iteration}, objective {step.objective:.6f}"),
            restart,
        )


def _run_in_parts(
    data: str, options: dict[str, Any], settings: Settings, restart: Restart, memory: str | None
) -> Run:
    """A run on rows that are read in parts."""
    from xent.command.sizes import memory_bytes
    from xent.regression.file_rows.rows import MEMORY, rows_from
    from xent.report import streamed

    size = MEMORY if memory is None else memory_bytes(memory)
    with screen.passes() as passes:
        rows = rows_from(data, **options, prepare=True, memory=size, progress=passes.read)
        return streamed.run(rows, settings, passes.stepped, restart)


def _run_on_dask(
    data: str, options: dict[str, Any], settings: Settings, restart: Restart, memory: str | None, address: str
) -> Run:
    """A run on rows that dask's workers read."""
    import os

    from xent.command.sizes import memory_bytes
    from xent.regression.file_rows.rows import MEMORY, rows_from
    from xent.report import on_dask

    size = MEMORY if memory is None else memory_bytes(memory)
    rows = rows_from(os.path.abspath(data), **options, prepare=True, memory=size)
    with screen.status(f"training on {address}") as update:
        return on_dask.run(
            rows,
            address,
            settings,
            lambda step: update(f"step {step.iteration}, objective {step.objective:.6f}"),
            restart,
        )


def _say_under(console: Console, heading: str, text: str) -> None:
    """Print a heading and its text, the text in a column of its own."""
    screen.say(console, f"{heading:<{HEADING - 1}} {text}", indent=HEADING)


def _print_run(console: Console, run: Run) -> None:
    from xent.files.preprocess import describe
    from xent.report import effects, verdict

    s, g = run.settings, run.gradient
    rows, features = run.train.rows + len(run.held_out), len(run.data.feature_names)
    counts = (
        counted(rows, "row"),
        counted(features, "feature"),
        counted(len(run.classes), "class", "classes"),
    )
    screen.say(console, f"{run.data.name}: {', '.join(counts)}")
    parts = [run.train] if run.test is None else [run.test, run.train]

    def of_each(name: str, form: str, field: str) -> tuple[str, ...]:
        return (name, *(f"{getattr(part, field):{form}}" for part in parts))

    def once(name: str, value: str) -> tuple[str, ...]:
        return (name, value, *([""] * (len(parts) - 1)))

    values = [
        of_each("rows", ",", "rows"),
        of_each("loss, nats", ".4f", "loss"),
        once("  guessing by class frequencies: their entropy", f"{run.frequencies:.4f}"),
        once(f"  guessing uniformly: ln {len(run.classes)}", f"{run.uniform:.4f}"),
    ]
    if s.balanced:
        values.append(of_each("  with all classes weighed alike", ".4f", "balanced_loss"))
    values.append(of_each("accuracy", ".2%", "accuracy"))
    name, share = verdict.commonest(run)
    values.append(once(printable(f"  always saying {name}"), f"{share:.2%}"))
    if s.balanced:
        values.append(of_each("  averaged over the classes", ".2%", "balanced_accuracy"))
    columns = [Column("", is_text=True), *map(Column, ("held out", "train")[-len(parts) :])]
    bold = ("loss, nats", "accuracy")
    tables.show(console, columns, [Row(row, "bold" if row[0] in bold else "") for row in values])
    for heading, sentence in describe(run.model.preprocessor):
        _say_under(console, heading, sentence)
    if run.reads is not None:
        _say_under(console, "files", "; ".join(verdict.reading(run)))
    if run.tried is not None:
        _say_under(console, "alpha", verdict.about_alpha(run.tried, s.alpha))
    steps = f"{counted(run.steps, 'step')} of {run.solver} in {run.seconds:.2f} s"
    gap = run.optimality_gap
    # A gap of 1 is no information: it holds as no loss is negative.
    distance = "" if gap is None or gap >= 1 else f"; at most {gap:.1e} of the objective above its minimum"
    _say_under(console, "training", f"{steps}; alpha {s.alpha:g}, seed {s.seed}{distance}")
    error = f"{g.error:.1e} largest relative error against finite differences"
    _say_under(console, "gradient", f"{error}, in {verdict.checked(run)}, at random parameters")
    for sentence in effects.largest_effects(run):
        _say_under(console, "effects", sentence)
    finding, cautions = verdict.verdict(run)
    console.print()
    screen.say(console, finding, "bold")
    for caution in [*cautions, *run.surprises]:
        screen.say(console, f"note: {caution}", "yellow", indent=6)
