"""`xent predict`: predict labels and probabilities for the rows of a file, with a model of `xent fit`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from xent.command import outputs, screen
from xent.files.phrases import counted, listed, printable

if TYPE_CHECKING:
    import polars

    from xent.files.formats.csv_table import Dialect
    from xent.files.preprocess import Surprise
    from xent.regression.saved.model_file import Model


def predict(
    model: Annotated[Path, typer.Argument(help="A file that `xent fit --model` wrote.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Rows as those of the training, in any file of `xent fit` or npy, or in many of them."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write here, .csv or .parquet, not to standard output."),
    ] = None,
    separator: screen.Separator = None,
    decimal: screen.Decimal = None,
    missing: screen.Missing = None,
    no_missing: screen.NoMissing = False,
    json: screen.Json = False,
) -> None:
    """Predict the label and the probability of each class for each row of DATA.

    The columns are `label`, then one a class: `p_` and its name. Columns of CSV and Parquet files are
    found by their names, and others passed over. Rows are read, and written, some at a time; those of a
    directory, or of a pattern in quotes, file by file in the order of their names. How CSV is read is
    remembered from `xent fit`; options given here come first.
    """
    from xent.files import storage
    from xent.files.formats import csv_table
    from xent.files.parts import sources
    from xent.regression.saved import model_file

    files = list(map(str, sources.expand(data))) if sources.is_several(data) else [data]
    if output is not None:
        if output.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{output}: `--output` must end in .csv or .parquet")
        outputs.require_distinct({"--output": output}, [*files, model])
    given = csv_table.Dialect(separator, decimal, tuple(missing or ()), not no_missing).checked()
    loaded = model_file.load(model)
    with storage.reading(model):
        remembered = csv_table.Dialect.from_json(loaded.notes.get("dialect"))
    job = _Prediction(loaded, files, given, remembered)
    with screen.status("predicting") as update, closing(job.frames(update)) as frames:
        if output is not None:
            with storage.replacing(output) as beside:
                _write(beside, output.suffix, frames, job.schema)
        elif json:
            tables = list(frames)
        else:
            for index, frame in enumerate(frames):
                sys.stdout.write(frame.write_csv(include_header=index == 0))
    for note in job.notes:
        print(f"xent: note: {printable(note)}", file=sys.stderr)
    if json:
        path = None if output is None else str(output)
        result: dict[str, Any] = {"rows": job.rows, "classes": job.classes, "output": path}
        result["notes"] = job.notes
        screen.print_json(result | (_rows(tables) if output is None else {}))
    elif output is not None:
        screen.say(screen.console(), f"{counted(job.rows, 'row')} predicted, in {output}")


class _Prediction:
    """The predictions of one model for the rows of files."""

    def __init__(self, model: Model, files: list[str], given: Dialect, remembered: Dialect) -> None:
        import polars

        self.model = model
        self.files = files
        self.given, self.remembered = given, remembered  # options for reading the files
        self.file_notes: dict[str, None] = {}  # in the order in which they came
        self.classes = model.estimator.classes_.tolist()
        kinds: dict[type, Any] = {str: polars.String, bool: polars.Boolean}
        large = type(self.classes[0]) is int and self.classes[-1] >= 2**63
        self.label_type = kinds.get(type(self.classes[0]), polars.UInt64 if large else polars.Int64)
        # Booleans are spelled as polars writes them in the column of labels.
        self.columns = [f"p_{str(c).lower() if isinstance(c, bool) else c}" for c in self.classes]
        self.schema = {"label": self.label_type} | dict.fromkeys(self.columns, polars.Float64)
        self.rows = self.blank = 0
        self.surprises: Counter[Surprise] = Counter()
        self.unknown: Counter[str] = Counter()  # rows by column of categories
        self.new: set[str] = set()  # columns with a level that was not learnt

    def frames(self, update: Callable[[str], None]) -> Generator[polars.DataFrame]:
        """Predictions in batches; at least one frame, which may be empty."""
        import polars

        from xent.files import dataset as datasets

        labels = np.array(self.classes, object)
        learnt = self.model.preprocessor
        waiting: list[polars.DataFrame] = []  # held back until each column of categories had a known level
        yielded = False
        read = (datasets.batches(file, learnt, self.given, self.remembered) for file in self.files)
        for batch in chain.from_iterable(read):
            self.blank += batch.blank
            self.file_notes |= dict.fromkeys(batch.notes)
            self.rows += batch.features.shape[0]
            self._count(learnt.surprises(batch.features))
            if batch.features.shape[0]:
                p = np.exp(self.model.predict_log_proba(batch.features))
                columns = dict(zip(self.columns, p.T, strict=True))
                frame = {"label": labels[p.argmax(1)].tolist()} | columns
                waiting.append(polars.DataFrame(frame, schema=self.schema))
            if waiting and not self._unknown_columns():
                yielded = True
                yield from waiting
                waiting.clear()
            update(f"{self.rows:,} rows")
        for name in self._unknown_columns():
            new = next(
                each.level for each in self.surprises if each.column == name and each.level is not None
            )
            known = listed([str(level) for level in learnt.levels[name]], 6)
            raise ValueError(
                f"{listed(self.files, 1)}: column {name!r}: {new!r} and all its other values were never in "
                f"the training rows; these had {known}"
            )
        if not yielded:
            yield polars.DataFrame(schema=self.schema)

    def _count(self, surprises: Counter[Surprise]) -> None:
        self.surprises += surprises
        for each, count in surprises.items():
            if each.is_category:
                self.unknown[each.column] += count
                if each.level is not None:
                    self.new.add(each.column)

    def _unknown_columns(self) -> list[str]:
        """Columns of categories with new levels in which no row so far had a known level."""
        return [name for name in sorted(self.new) if self.unknown[name] == self.rows]

    @property
    def notes(self) -> list[str]:
        """Sentences on unusual rows."""
        from xent.files.preprocess import describe_surprises

        lines = counted(self.blank, "blank line was", "blank lines were")
        blank = [f"{lines} passed over"] if self.blank else []
        return [*self.file_notes, *describe_surprises(self.surprises), *blank]


def _write(path: Path, suffix: str, frames: Iterator[polars.DataFrame], schema: Any) -> None:
    if suffix == ".csv":
        with path.open("w", encoding="utf-8") as file:
            for index, frame in enumerate(frames):
                file.write(frame.write_csv(include_header=index == 0))
        return
    import polars
    from polars.io.plugins import register_io_source

    def source(*_: Any) -> Iterator[polars.DataFrame]:
        yield from frames

    try:
        register_io_source(source, schema=schema).sink_parquet(path)
    except polars.exceptions.PolarsError as error:
        raise ValueError(f"the predictions cannot be written: {error}") from None


def _rows(tables: list[polars.DataFrame]) -> dict[str, Any]:
    import polars

    table = polars.concat(tables)
    return {"labels": table["label"].to_list(), "probabilities": table.drop("label").to_numpy().tolist()}
