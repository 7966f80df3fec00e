"""Make features of the columns of a table: scaling, imputation and one-hot coding, as learnt in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from xent.files.phrases import counted, listed

if TYPE_CHECKING:
    import polars

Array = np.ndarray[Any, Any]

BLOCK = 1 << 17  # elements to scale at a time: 1 MiB of float64
MOST_LEVELS = 1 << 20  # in all columns of categories together: each level is a feature with a name
SPARSE_FROM = 8  # features are CSR from so many for each entry of a row: a fifth of the memory
MOST_NAMED = 6  # columns or levels to name in a sentence
HEAD = 100  # rows to look at first for values other than booleans; a column of a matrix is slow to read
BOOLEANS = [["true", "false"], ["1", "0"]]  # spellings of the booleans as text and as numbers


class Surprise(NamedTuple):
    """A level, or a missing value, that no training row had."""

    column: str
    level: str | None  # None: the value is missing
    is_category: bool  # whether the column holds categories


@dataclass(frozen=True, eq=False)
class Preprocessor:
    """Scaling, filling and one-hot coding of the columns of a table.

    The features are, in this order: each column of numbers, scaled to mean 0 and standard deviation 1
    after missing values (NaN) were filled with the median; for each column of numbers that had missing
    values an indicator that is 1 where the value is missing; for each level of each column of categories
    an indicator that is 1 where the row has that level. A missing category is a level of its own if
    training rows had it.
    Columns of a sparse matrix are divided by their largest absolute value and not centred, which keeps
    zeros. Constant columns become 0. A category that the training rows did not have is 0 in all columns
    of levels.

    Attributes
    ----------
    columns : names of the table's columns, in the order of training
    levels : {name: levels, sorted; None, the missing one, last} of the columns of categories
    indicators : {name: missing values in the training rows} of the columns of numbers that had some
    constants : names of the columns of numbers that had one value only
    booleans : names of the columns of numbers that held 1 and 0 only, in which True is 1
    sparse : whether the training rows were sparse, so that their numbers were not centred
    fill, mean, scale : (D,) float64 arrays over the columns of numbers, in their order

    Examples
    --------
    >>> import numpy as np
    >>> learnt = Preprocessor.fit(np.array([[1.0, 5.0], [3.0, np.nan], [3.0, 7.0]]), ["a", "b"])
    >>> learnt.feature_names
    ['a', 'b', 'b is missing']
    >>> learnt.transform(np.array([[3.0, np.nan]])).round(3)
    array([[0.707, 0.   , 1.   ]])
    """

    columns: tuple[str, ...]
    levels: Mapping[str, tuple[str | None, ...]]
    indicators: Mapping[str, int]
    constants: tuple[str, ...]
    fill: Array
    mean: Array
    scale: Array
    sparse: bool = False
    booleans: tuple[str, ...] = ()

    @classmethod
    def fit(cls, table: Any, columns: list[str]) -> Self:
        """Learn from training rows: (N, D) floats with NaN where missing, CSR, or a polars DataFrame.

        In a DataFrame a column of floats is numbers, one of strings is categories; null is missing.
        Raises ValueError naming a column whose values cannot be squared or whose levels are too many.
        """
        from sklearn.preprocessing import StandardScaler

        if is_sparse(table):
            size = abs(table).max(axis=0).toarray().ravel().astype(np.float64)
            zero = np.zeros(len(columns))
            constants = tuple(np.array(columns)[size == 0].tolist())
            return cls(tuple(columns), {}, {}, constants, zero, zero, np.where(size > 0, size, 1.0), True)
        levels = _levels(table, columns)
        numbers = [name for name in columns if name not in levels]
        x = as_numbers(table, numbers)
        missing = np.isnan(x)
        count = missing.sum(axis=0)
        fill = medians(x, count)
        # scikit-learn's scaler does not take a constant column for one that varies, despite rounding.
        with np.errstate(over="ignore", invalid="ignore"):
            scaler = StandardScaler().fit(np.where(missing, fill, x)) if numbers else None
        mean, scale = (scaler.mean_, scaler.scale_) if scaler else (np.zeros(0), np.ones(0))
        if scaler is not None and not np.isfinite(scaler.var_).all():
            k = int((~np.isfinite(scaler.var_)).argmax())
            largest = np.nanmax(np.abs(x[:, k]))
            raise ValueError(
                f"the values of column {numbers[k]!r} are too large to be squared: up to {largest:.3g}"
            )
        constant = np.nanmax(x, axis=0, initial=-np.inf) <= np.nanmin(x, axis=0, initial=np.inf)
        return cls(
            columns=tuple(columns),
            levels=levels,
            indicators={n: int(c) for n, c in zip(numbers, count, strict=True) if 0 < c < len(x)},
            constants=tuple(n for n, one in zip(numbers, constant | (count == len(x)), strict=True) if one),
            fill=fill,
            mean=np.asarray(mean, np.float64),
            scale=np.asarray(scale, np.float64),
            booleans=tuple(name for k, name in enumerate(numbers) if is_boolean(x[:, k])),
        )

    @property
    def numbers(self) -> list[str]:
        """Names of the columns of numbers."""
        return [name for name in self.columns if name not in self.levels]

    @property
    def feature_names(self) -> list[str]:
        """Names of the features: the column, "column is missing", "column=level"."""
        coded = [
            f"{name} is missing" if level is None else f"{name}={level}"
            for name, levels in self.levels.items()
            for level in levels
        ]
        return [*self.numbers, *(f"{name} is missing" for name in self.indicators), *coded]

    def transform(self, table: Any) -> Any:
        """Features of a table like the one of `fit`: (N, F) of its floating dtype, dense or CSR.

        The result is CSR if the table is, or if most features are levels (`has_mostly_levels`). Columns of
        a DataFrame are found by their names. Raises ValueError for missing columns, and for values so far
        from the training rows that their feature overflows.
        """
        if is_sparse(table):
            self._require_width(table.shape[1])
            if self.sparse:
                scaled = table.copy()
                scaled.data = (table.data / self.scale[table.indices]).astype(table.dtype, copy=False)
                return scaled
            table = table.toarray()
        x = as_numbers(table, self._require_columns(table))
        levels = sum(map(len, self.levels.values()))
        first = len(self.numbers) + len(self.indicators)
        out = np.zeros((len(x), first if self.has_mostly_levels else first + levels), x.dtype)
        self._scale(x, out)
        codes = (_codes(table[name], each) for name, each in self.levels.items())
        starts = np.cumsum([first, *map(len, self.levels.values())])
        if self.has_mostly_levels:
            return _with_levels(out, list(codes), starts)
        for start, each in zip(starts, codes, strict=False):
            rows = np.flatnonzero(each >= 0)
            out[rows, start + each[rows]] = 1
        return out

    @property
    def has_mostly_levels(self) -> bool:
        """Whether a row has so few entries for its number of features that the features are CSR."""
        entries = len(self.columns) + len(self.indicators)
        levels = sum(map(len, self.levels.values()))
        return entries - len(self.levels) + levels > SPARSE_FROM * entries

    def _scale(self, x: Array, out: Array) -> None:
        """Write the features of the columns of numbers, and of their missing values, into ``out``."""
        index = {name: k for k, name in enumerate(self.numbers)}
        flags = [index[name] for name in self.indicators]
        constants = [index[name] for name in self.constants if name in index]
        step = max(1, BLOCK // max(1, x.shape[1]))
        for start in range(0, len(x), step):
            block = x[start : start + step]
            missing = np.isnan(block)
            with np.errstate(over="ignore"):
                scaled = (np.where(missing, self.fill, block) - self.mean) / self.scale
                scaled[:, constants] = 0.0
                out[start : start + step, : len(index)] = scaled
            infinite = np.isinf(out[start : start + step, : len(index)])
            if infinite.any():
                n, k = np.unravel_index(int(infinite.argmax()), infinite.shape)
                far = f"too far from those of the training rows: {block[n, k]:.3g}"
                raise ValueError(f"the values of column {self.numbers[k]!r} are {far}")
            out[start : start + step, len(index) : len(index) + len(flags)] = missing[:, flags]

    def surprises(self, table: Any) -> Counter[Surprise]:
        """{what no training row had: number of rows of ``table`` with it}; empty if there is nothing new."""
        counter: Counter[Surprise] = Counter()
        if is_sparse(table):
            return counter
        numbers = self._require_columns(table)
        missing = np.isnan(as_numbers(table, numbers)).sum(axis=0)
        for name, count in zip(numbers, missing.tolist(), strict=True):
            if count and name not in self.indicators and name not in self.constants:
                counter[Surprise(name, None, is_category=False)] = count
        for name, levels in self.levels.items():
            column = table[name]
            new = column.filter(_codes(column, levels) < 0)
            counts = sorted(new.value_counts().iter_rows(), key=lambda each: (-each[1], each[0] or ""))
            for level, count in counts:
                counter[Surprise(name, level, is_category=True)] = count
        return counter

    def to_json(self) -> dict[str, Any]:
        """All but the arrays as lists, dicts, strings and integers, for `from_json`."""
        return {
            "columns": list(self.columns),
            "levels": {name: list(levels) for name, levels in self.levels.items()},
            "indicators": dict(self.indicators),
            "constants": list(self.constants),
            "sparse": self.sparse,
            "booleans": list(self.booleans),
        }

    def arrays(self) -> dict[str, Array]:
        """The arrays ``fill``, ``mean`` and ``scale``, for `from_json`."""
        return {"fill": self.fill, "mean": self.mean, "scale": self.scale}

    @classmethod
    def from_json(cls, text: Any, arrays: Mapping[str, Array]) -> Self:
        """The inverse of `to_json` and `arrays`; ValueError for anything else."""
        try:
            learnt = cls(
                columns=_strings(text["columns"]),
                levels={name: _strings(each, last=(None,)) for name, each in text["levels"].items()},
                indicators={name: int(count) for name, count in text["indicators"].items()},
                constants=_strings(text["constants"]),
                sparse=text["sparse"] is True,
                booleans=_strings(text["booleans"]),
                **{name: np.asarray(arrays[name], np.float64) for name in ("fill", "mean", "scale")},
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the preprocessing is not complete or not of this form: {error}") from None
        numbers, columns = learnt.numbers, set(learnt.columns)
        of_numbers = {*learnt.indicators, *learnt.constants, *learnt.booleans}
        consistent = {*learnt.levels} <= columns and of_numbers <= {*numbers}
        if not consistent or len(columns) != len(learnt.columns):
            raise ValueError("the preprocessing names columns twice, or ones that it does not have")
        for name, array in learnt.arrays().items():
            if array.shape != (len(numbers),) or not np.isfinite(array).all():
                raise ValueError(f"the preprocessing's `{name}` must be {len(numbers)} finite numbers")
        if not (learnt.scale > 0).all():
            raise ValueError("the preprocessing's `scale` must be > 0")
        return learnt

    def _require_columns(self, table: Any) -> list[str]:
        """The names of the columns of numbers; ValueError if ``table`` lacks a column."""
        if isinstance(table, np.ndarray):
            self._require_width(table.shape[1])
            if self.levels:
                raise ValueError(f"column {next(iter(self.levels))!r} must be categories, in a named column")
            return self.numbers
        absent = [name for name in self.columns if name not in table.columns]
        if absent:
            raise ValueError(f"no column {absent[0]!r}; expected {listed(list(self.columns))}")
        return self.numbers

    def _require_width(self, width: int) -> None:
        if width != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} columns, as in training; got {width}")


def describe(learnt: Preprocessor) -> list[tuple[str, str]]:
    """[(heading, sentence)] that say, for people, what was done with the columns."""
    numbers, levels = len(learnt.numbers), learnt.levels
    scaled = "scaled to mean 0, deviation 1 by" if not learnt.sparse else "divided by their largest value in"
    lines = []
    if numbers:
        of_numbers = counted(numbers, "column of numbers", "columns of numbers")
        lines.append(("columns", f"{of_numbers}, {scaled} the training rows"))
    for name, each in list(levels.items())[:MOST_NAMED]:
        known = [repr(level) if "," in level else level for level in each if level is not None]
        missing = ", one for missing" if known and None in each else ""
        names = listed(known, MOST_NAMED) if known else "missing in each row"
        lines.append(("category", f"{name}: {counted(len(each), 'level')}{missing}: {names}"))
    if len(levels) > MOST_NAMED:
        more = counted(len(levels) - MOST_NAMED, "more column of categories", "more columns of categories")
        lines.append(("category", f"and {more}"))
    if learnt.indicators:
        counts = [f"{name} ({count:,})" for name, count in learnt.indicators.items()]
        filled = "their median stands in, and a feature says so"
        lines.append(("missing", f"{listed(counts, MOST_NAMED)}: {filled}"))
    if learnt.constants:
        lines.append(("constant", f"{listed(learnt.constants, MOST_NAMED)}: no effect"))
    return lines


def describe_surprises(surprises: Mapping[Surprise, int], rows: str = "row") -> list[str]:
    """A sentence for each column and kind of surprise; ``rows`` is the singular noun for a row."""
    sentences = []
    for column in dict.fromkeys(each.column for each in surprises):
        of_column = {each: count for each, count in surprises.items() if each.column == column}
        missing = sum(count for each, count in of_column.items() if each.level is None)
        if missing:
            result = "the training rows all had one; their median stands in"
            if next(iter(of_column)).is_category:
                result = "the training rows all had one, so its features are all 0"
            sentences.append(f"column {column!r}: no value in {counted(missing, rows)}: {result}")
        levels = {each.level: count for each, count in of_column.items() if each.level is not None}
        if levels:
            more = f" and {counted(len(levels) - 1, 'more level')}" if len(levels) > 1 else ""
            where = counted(sum(levels.values()), rows)
            result = "never in the training rows, so its features are all 0"
            sentences.append(f"column {column!r}: {next(iter(levels))!r}{more} in {where}: {result}")
    return sentences


def _with_levels(numbers: Array, codes: list[Array], starts: Array) -> Any:
    """CSR features: ``numbers (N, first)``, then 1 in column ``starts[k] + codes[k]`` where codes[k] >= 0."""
    import scipy.sparse

    rows, first = numbers.shape
    columns = np.empty((rows, first + len(codes)), np.int32)
    values = np.empty(columns.shape, numbers.dtype)
    columns[:, :first], values[:, :first] = np.arange(first), numbers
    for k, (start, each) in enumerate(zip(starts, codes, strict=False), first):
        columns[:, k], values[:, k] = start + each, each >= 0
    stored = values != 0
    ends = np.concatenate([[0], np.cumsum(stored.sum(axis=1))])
    return scipy.sparse.csr_array((values[stored], columns[stored], ends), shape=(rows, int(starts[-1])))


def is_sparse(table: Any) -> bool:
    return hasattr(table, "indptr")


def as_numbers(table: Any, names: list[str]) -> Array:
    """(N, len(names)) floats, NaN where missing."""
    if isinstance(table, np.ndarray):
        return table
    import polars

    chosen: polars.DataFrame = table.select(names)
    if not names:
        return np.zeros((table.height, 0))
    narrow = all(kind == polars.Float32 for kind in chosen.dtypes)
    return chosen.cast(polars.Float32 if narrow else polars.Float64).fill_null(np.nan).to_numpy()


def medians(x: Array, missing: Array) -> Array:
    """Median of the present values of each column; 0 for a column without any."""
    fill = np.zeros(x.shape[1])
    has_values = missing < len(x)
    if has_values.any():
        fill[has_values] = np.nanmedian(x[:, has_values], axis=0)
    return fill


def _levels(table: Any, columns: list[str]) -> dict[str, tuple[str | None, ...]]:
    if isinstance(table, np.ndarray):
        return {}
    import polars

    levels: dict[str, tuple[str | None, ...]] = {}
    for name in columns:
        if table[name].dtype == polars.String:
            values = table[name].unique().to_list()
            missing = (None,) if None in values else ()
            levels[name] = (*sorted(value for value in values if value is not None), *missing)
    if sum(map(len, levels.values())) > MOST_LEVELS:
        name = max(levels, key=lambda each: len(levels[each]))
        raise ValueError(
            f"column {name!r} has {len(levels[name]):,} levels in {table.height:,} rows, too many for a "
            "column each: leave it out or group them"
        )
    return levels


def _codes(column: polars.Series, levels: tuple[str | None, ...]) -> Array:
    """(N,) index of each value in ``levels``, -1 if it is not one of them."""
    import polars

    names = [level for level in levels if level is not None]
    text = column.cast(polars.String)
    # The levels are true and false and the column holds 1 and 0, or the reverse.
    for spelling, other in (BOOLEANS, BOOLEANS[::-1]):
        if names and {*names} <= {*spelling}:
            text = text.replace(other, spelling)
    codes = text.cast(polars.Enum(names), strict=False).to_physical()
    result = codes.cast(polars.Int64).fill_null(-1).to_numpy()
    if None in levels:
        result = np.where(column.is_null().to_numpy(), len(names), result)
    return result


def is_boolean(column: Array) -> bool:
    """Whether a column holds 1, 0 and missing values only."""
    return all(bool(((part == 0) | (part == 1) | np.isnan(part)).all()) for part in (column[:HEAD], column))


def _strings(values: Any, last: tuple[None, ...] = ()) -> tuple[Any, ...]:
    strings = tuple(values)
    if isinstance(values, str) or not all(isinstance(v, str) for v in strings if v is not None or not last):
        raise ValueError(f"expected a list of strings; got {values!r:.50}")
    return strings
