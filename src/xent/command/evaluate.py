"""`xent eval`: evaluate files of logits or probabilities, of one model or two, against a file of targets."""

from __future__ import annotations

import math
import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from xent.command import outputs, screen
from xent.files.phrases import counted

if TYPE_CHECKING:
    from xent.evaluation.scoring import Settings
    from xent.evaluation.stream import Results, RowColumns
    from xent.files.arrays.row_stream import RowReader
    from xent.files.data_files import DataFiles

COSTLIEST = 20  # rows on the page
UNIT = re.compile(r"([^\W\d]\w*)=(.+)", re.DOTALL)  # NAME=COUNT of --units


def evaluate(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="LOGITS [OTHER] LABELS",
            help="npy, npz, safetensors, or a table in any file of `xent fit`; FILE:NAME for one array of "
            "several; a pattern in quotes for several files; - for standard input.",
        ),
    ],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="LOGITS, and OTHER, hold probabilities.")
    ] = False,
    groups: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A number or a name of each row; rows of one belong together."),
    ] = None,
    units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]COUNT", help="Bytes, or NAME, of the text: a number, or a file with one a row."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Also count labels among the k most probable classes.")] = 5,
    ignore_index: Annotated[int, typer.Option(help="Leave out rows with this label.")] = -100,
    classes: Annotated[int, typer.Option(help="Show so many classes, the costliest first.")] = 10,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with pictures here.")
    ] = None,
    json: screen.Json = False,
) -> int:
    """Score LOGITS against LABELS: loss, perplexity, accuracy, calibration, classes, with standard errors.

    LABELS are integers (...), text with the names of the classes, or probabilities in the logits' shape
    (..., classes). With OTHER two models are compared row by row. All files are read once, a few rows at a
    time, and may be larger than memory. Exit code 1 if a row has no loss because it holds NaN or infinity;
    such rows are counted and left out.
    """
    from xent.command import evaluation_text
    from xent.evaluation import plain
    from xent.evaluation.scoring import Settings
    from xent.files.data_files import DataFiles

    if not 2 <= len(files) <= 3:
        raise ValueError(
            f"`xent eval` takes LOGITS, perhaps OTHER logits, and LABELS; got {counted(len(files), 'file')}: "
            + ("put a pattern for several files in quotes" if len(files) > 3 else "LABELS are missing")
        )
    if [*files, groups, *(units or [])].count("-") > 1:
        raise ValueError("-: standard input can be read once only; save one of the arrays as a file")
    if classes < 0:
        raise ValueError(f"`--classes` must be >= 0; got {classes}")
    if report is not None:
        read = [each for each in (*files, groups) if each is not None]
        outputs.require_distinct({"--report": report}, read)
    settings = Settings(probabilities, ignore_index, top_k)
    opened = DataFiles()
    try:
        with opened.named():
            costliest = COSTLIEST if report is not None else 0
            names, results = _results(files, settings, groups, units or [], costliest, opened)
    finally:
        opened.close()
    for name, result in zip(files, results.evaluations, strict=False):
        if not result.rows:
            raise ValueError(
                f"{name}: no row to score: {result.ignored:,} ignored, {result.undefined:,} without a loss"
            )
    if report is not None:
        from xent.files import storage
        from xent.report import evaluation_page

        command = shlex.join(["xent", *context.obj])
        storage.write(report, evaluation_page.html(files, names, results, command).encode())
    if json:
        values = plain.evaluation(results.evaluations[0], names)
        if results.comparison is not None:
            values["second"] = plain.evaluation(results.evaluations[1], names)
            values |= plain.comparison(results.comparison)
        screen.print_json(values | {"notes": opened.notes, "report": None if report is None else str(report)})
    else:
        for note in opened.notes:
            screen.say(screen.console(), f"note: {note}", "yellow", indent=6)
        evaluation_text.show(screen.console(), files, names, results, classes)
        if report is not None:
            screen.say(screen.console(), f"report: {report}")
    return 1 if any(result.undefined for result in results.evaluations) else 0


def _results(
    files: list[str],
    settings: Settings,
    groups: str | None,
    units: list[str],
    costliest: int,
    unpacked: DataFiles,
) -> tuple[list[str] | None, Results]:
    """(the names of the classes if they are known, the results)."""
    from xent.evaluation import stream
    from xent.files.arrays import stored_rows

    with ExitStack() as opened:
        models = [opened.enter_context(stored_rows.open_outputs(name, unpacked)) for name in files[:-1]]
        targets = opened.enter_context(
            stored_rows.open_labels(files[-1], models[0], settings.ignore_index, unpacked)
        )
        own = [
            settings._replace(probabilities=settings.probabilities or m.classes is not None) for m in models
        ]
        models = [_of_two_classes(m, targets, s) for m, s in zip(models, own, strict=True)]
        _require_same_classes(models)
        shape = models[0].shape[:-1]
        columns = _columns(shape, groups, units, unpacked)
        size = sum(math.prod(each.shape) * each.itemsize for each in models)
        with screen.progress("reading", size) as advance:
            results = stream.evaluate_models(
                models,
                targets,
                own,
                on_bytes=advance,
                columns=columns,
                costliest=costliest,
            )
        return models[0].classes, results


def _of_two_classes(outputs: RowReader, targets: RowReader, settings: Settings) -> RowReader:
    """``outputs``, with two classes if they are one float for each label, of shape (N,) or (..., 1)."""
    from xent.evaluation.shapes import FLOATS
    from xent.files.arrays import stored_rows

    rows = outputs.shape if len(outputs.shape) == 1 else outputs.shape[:-1]
    single = rows == targets.shape and (len(outputs.shape) == 1 or outputs.shape[-1] == 1)
    if single and outputs.dtype in FLOATS and targets.dtype not in FLOATS:
        return stored_rows.two_classes(outputs, settings.probabilities)
    return outputs


def _require_same_classes(models: list[RowReader]) -> None:
    from xent.files.phrases import listed

    first = models[0]
    for other in models[1:]:
        if None not in (first.classes, other.classes) and first.classes != other.classes:
            raise ValueError(
                f"{other.name}: its classes are {listed(other.classes or [], 6)}, those of {first.name} "
                f"{listed(first.classes or [], 6)}"
            )


def _columns(shape: tuple[int, ...], groups: str | None, units: list[str], unpacked: DataFiles) -> RowColumns:
    """The groups of the rows, and the numbers of units, of the options."""
    from xent.evaluation.stream import RowColumns
    from xent.files.arrays import stored_rows

    index, num_groups = None, 0
    if groups is not None:
        values = stored_rows.row_values(groups, shape, unpacked)
        if values.dtype.kind not in "biuUO":
            raise ValueError(f"{groups}: expected integers or text, a group for each row; got {values.dtype}")
        distinct, index = np.unique(values, return_inverse=True)
        num_groups = len(distinct)
    counts: dict[str, Any] = {}
    for option in units:
        match = UNIT.fullmatch(option)
        name, value = (match[1], match[2]) if match else ("byte", option)
        if name in counts:
            raise ValueError(f"`--units` must name each unit once; got {name!r} twice")
        counts[name] = _count(value, shape, unpacked)
    return RowColumns(index, num_groups, counts)


def _count(value: str, shape: tuple[int, ...], unpacked: DataFiles) -> Any:
    """A number > 0, or the numbers >= 0 of the rows in a file."""
    from xent.files.arrays import stored_rows

    try:
        number = float(value)
    except ValueError:
        counts = stored_rows.row_values(value, shape, unpacked)
        if counts.dtype.kind not in "biuf":
            raise ValueError(f"{value}: expected a number for each row; got {counts.dtype}") from None
        counts = counts.astype(np.float64)
        bad = ~((counts >= 0) & (counts < np.inf))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{value}: `--units` must be finite and >= 0; got {counts[row]:g} in row {row + 1}"
            ) from None
        return counts
    if not 0 < number < math.inf:
        raise ValueError(f"`--units` must be > 0 and finite; got {value}")
    return number
