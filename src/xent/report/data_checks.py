"""Look for problems of the data that make the results of a run worthless or doubtful."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xent.files.dataset import Dataset
from xent.files.phrases import counted
from xent.report.text_columns import names_of_rows, quantities

Array = np.ndarray[Any, Any]

FEW_ROWS = 5  # a class with fewer rows is rare
MANY_LEVELS = 20  # distinct numbers above which labels may be a quantity
MOST_NAMES = 4  # names shown of a list
DUPLICATES = 0.01  # accepted share of held-out rows that are training rows too
FEW_VALUES = 10  # distinct numbers up to which a column may be categories
CONTINUOUS = 0.4  # share of distinct numbers above which no two rows are expected to be equal
DENSE = 0.05  # least share of the numbers between a column's ends that occur, if it counts the rows
MAJORITY = 0.95  # largest accepted share of one class
LEAK = 0.98  # accuracy of one column alone that is a leak
SAMPLE = 4096  # training rows that the search for a leak reads
LEAVES = 4  # leaves of a tree for each class
TREES = 100  # columns of numbers for which the search for a leak fits a tree
LARGEST = float(np.finfo(np.float32).max) / 2**32  # scikit-learn sums a tree's numbers in float32
HEAD = 100  # rows to test first, as a column of a matrix is slow to read


class Finding(NamedTuple):
    """The result of one check; ``text`` is empty if there is no problem, ``grave`` if it is serious."""

    check: str
    text: str
    grave: bool = False

    @property
    def sentence(self) -> str:
        """``text`` with a capital and a full stop."""
        return f"{self.text[:1].upper()}{self.text[1:]}{'' if self.text.endswith('?') else '.'}"


def findings(
    data: Dataset, train: Array, test: Array, class_rows: tuple[Array, Array] | None = None
) -> list[Finding]:
    """All checks of ``data`` with training rows ``train`` and held-out rows ``test``, in a fixed order.

    For a sparse matrix the checks of columns are left out, and without held-out rows those that need them.
    ``class_rows`` are the classes, sorted, and the number of rows of each, held out or not, if ``data`` has
    some of the training rows only.

    >>> import numpy as np
    >>> from xent.files.dataset import Dataset
    >>> from xent.report.data_checks import findings
    >>> x = np.random.default_rng(0).standard_normal((40, 2))
    >>> data = Dataset("x", x, np.array(["yes", "no", "yes", "Yes "] * 10), ["a", "b"])
    >>> [f.text for f in findings(data, np.arange(20), np.arange(20, 40)) if f.text]
    ["'Yes ' and 'yes' differ only by case or spaces, and count as different classes"]
    """
    classes, counts = class_rows or np.unique(data.labels, return_counts=True)
    general = [
        _alike(classes),
        _absent(classes),
        _rare(classes, counts, data.labels[test] if len(test) else None),
        _majority(classes, counts),
        _quantity(classes, int(counts.sum())),
        _more_columns_than_rows(data.features.shape[1], int(counts.sum()) - len(test)),
    ]
    columns = dict(_columns(data))
    if not columns:
        return general
    keys = _row_keys(columns)
    return [
        *general,
        _softmax_outputs(columns),
        *([_leak(columns, data.labels, train, test)] if len(test) else []),
        _row_numbers(columns),
        _grave("No column of text has another value in nearly each row", names_of_rows(columns)),
        _grave("No column of text holds dates or quantities", quantities(columns)),
        *([_shared_rows(keys, columns, train, test)] if len(test) else []),
        _contradictions(keys, data.labels),
        _constant(columns),
    ]


def _grave(check: str, text: str) -> Finding:
    return Finding(check, text, grave=bool(text))


def _alike(classes: Array) -> Finding:
    check = "No two classes differ only by case or spaces"
    groups: dict[str, list[str]] = {}
    for name in map(str, classes):
        groups.setdefault(" ".join(name.split()).casefold(), []).append(name)
    doubles = [group for group in groups.values() if len(group) > 1]
    if not doubles:
        return Finding(check, "")
    text = "; ".join(" and ".join(map(repr, group)) for group in doubles[:MOST_NAMES])
    return Finding(check, f"{text} differ only by case or spaces, and count as different classes", True)


def _absent(present: Array) -> Finding:
    check = "Classes that are numbers leave no gap"
    if present.dtype.kind not in "iu" or len(present) < 3:
        return Finding(check, "")
    low, high = int(present[0]), int(present[-1])
    if not 0 < high - low + 1 - len(present) <= len(present) // 2:
        return Finding(check, "")
    gaps = sorted(set(range(low, high + 1)) - set(present.tolist()))
    return Finding(check, f"the classes run from {low} to {high}, but {_listed(gaps)} never occurs")


def _rare(names: Array, counts: Array, held_out: Array | None) -> Finding:
    check = f"Each class has at least {FEW_ROWS} rows{'' if held_out is None else ', one of them held out'}"
    absent = names[:0] if held_out is None else np.setdiff1d(names, held_out)
    if len(absent):
        text = f"no row of {_listed(absent.tolist())} is held out: nothing here says how well it is predicted"
        return Finding(check, text, True)
    rare = counts < FEW_ROWS
    if not rare.any():
        return Finding(check, "")
    return Finding(check, f"{_listed(names[rare].tolist())}: fewer than {FEW_ROWS} rows each", True)


def _majority(names: Array, counts: Array) -> Finding:
    check = f"No class has more than {MAJORITY:.0%} of the rows"
    share = counts.max() / counts.sum()
    if share <= MAJORITY:
        return Finding(check, "")
    name = names[counts.argmax()].item()
    text = f"{share:.1%} of the rows are {name!r}: accuracy says little here, look at the loss"
    return Finding(check, text, True)


def _quantity(names: Array, rows: int) -> Finding:
    check = "The classes are not the values of a quantity"
    if len(names) < MANY_LEVELS or len(names) < 0.1 * rows:
        return Finding(check, "")
    try:
        names.astype(np.float64)
    except ValueError:
        return Finding(check, "")
    values = f"{len(names):,} distinct numbers in {counted(rows, 'row')}"
    text = f"{values}: a quantity to estimate rather than classes?"
    return Finding(check, text, True)


def _softmax_outputs(columns: dict[str, Array]) -> Finding:
    check = "The features are not probabilities that sum to 1"
    numbers = [column for column in columns.values() if column.dtype.kind == "f"]
    if len(numbers) < max(2, len(columns)):
        return Finding(check, "")
    for rows in (slice(HEAD), slice(None)):
        if not np.allclose(sum(x[rows] for x in numbers), 1, rtol=0, atol=1e-3):
            return Finding(check, "")
        if not all(((x[rows] >= 0) & (x[rows] <= 1)).all() for x in numbers):
            return Finding(check, "")
    text = (
        "the features of each row are in [0, 1] and sum to 1, as a softmax gives: if a model made them, "
        "train on its logits, or on the logarithms"
    )
    return Finding(check, text, True)


def _leak(columns: dict[str, Array], labels: Array, train: Array, test: Array) -> Finding:
    check = f"No column alone predicts {LEAK:.0%} of the held-out rows"
    _, codes = np.unique(labels, return_inverse=True)
    others = 1 - np.bincount(codes[test]).max() / len(test)
    if others == 0:
        return Finding(check, "")
    least = max(LEAK, 1 - others / 5)  # well above always predicting the most frequent class
    rows = train[:: -(-len(train) // SAMPLE)]
    # The changes in a column on which a tree errs in at most twice the accepted number of rows.
    most = LEAVES * (codes.max() + 1) + 4 * (1 - least) * len(rows)
    numbers = {name: column for name, column in columns.items() if column.dtype.kind == "f"}
    changes = {name: _changes(column[rows], codes[rows]) for name, column in numbers.items()}
    # With few rows most columns pass by chance, and trees for all of them would take minutes.
    suspects = {name for name in sorted(changes, key=changes.__getitem__)[:TREES] if changes[name] <= most}
    leaks = [
        name
        for name, column in columns.items()
        if (name in suspects if name in numbers else _predicts_coarsely(column[rows], codes[rows]))
        and _accuracy_alone(column, codes, rows, test) >= least
    ]
    if not leaks:
        return Finding(check, "")
    text = f"{_listed(leaks)} predicts the class alone: could it have been known before the class was?"
    return Finding(check, text, True)


def _changes(column: Array, codes: Array) -> int:
    """How often the class changes along the sorted column.

    Each leaf of a tree is an interval of the column. It begins with at most one change, and each row in it of
    another class makes at most two more.
    """
    ordered = codes[np.argsort(column, kind="stable")]
    return int(np.count_nonzero(np.diff(ordered)))


def _predicts_coarsely(column: Array, codes: Array) -> bool:
    """Whether predicting the commonest class of each level is right in 9 of 10 rows."""
    _, level = np.unique(column, return_inverse=True)
    table = np.zeros((level.max() + 1, codes.max() + 1), np.int64)
    np.add.at(table, (level, codes), 1)
    return bool(table.max(axis=1).sum() >= 0.9 * len(column))


def _accuracy_alone(column: Array, codes: Array, rows: Array, test: Array) -> float:
    """Held-out accuracy of the thresholds, or of the levels, of one column."""
    if column.dtype.kind != "f":
        levels, column = np.unique(column, return_inverse=True)
        common = np.zeros((len(levels), codes.max() + 1), np.int64)
        np.add.at(common, (column[rows], codes[rows]), 1)
        return float(np.mean(common.argmax(axis=1)[column[test]] == codes[test]))
    from sklearn.tree import DecisionTreeClassifier

    largest = np.abs(column).max(initial=0.0, where=~np.isnan(column))
    if largest > LARGEST:
        column = column * (LARGEST / largest)
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES * (int(codes.max()) + 1), random_state=0)
    tree.fit(column[rows, None], codes[rows])
    return float(tree.score(column[test, None], codes[test]))


def _row_numbers(columns: dict[str, Array]) -> Finding:
    check = "No column counts the rows"
    counting = [
        name
        for name, column in columns.items()
        if column.dtype.kind == "f"
        and len(column) > MANY_LEVELS
        and all(_may_count(part) for part in (column[:HEAD], column))
        and _counts(column)
    ]
    if not counting:
        return Finding(check, "")
    return Finding(check, f"{_listed(counting)} counts the rows: leave it out", True)


def _may_count(column: Array) -> bool:
    """Whether the values are distinct whole numbers."""
    return bool((column == np.round(column)).all()) and len(np.unique(column)) == len(column)


def _counts(column: Array) -> bool:
    """Whether distinct whole numbers count the rows: without gaps in any order, or rising with gaps."""
    width = float(column.max() - column.min()) + 1
    return width == len(column) or bool((np.diff(column) > 0).all() and width <= len(column) / DENSE)


def _shared_rows(keys: Array, columns: dict[str, Array], train: Array, test: Array) -> Finding:
    check = "Held-out rows are training rows too no more often than by chance"
    count = int(np.isin(keys[test], keys[train]).sum())
    if count < 2 or count < DUPLICATES * len(test) or count < 2 * _shared_by_chance(columns, train, test):
        return Finding(check, "")
    text = (
        f"{count:,} of {counted(len(test), 'held-out row')} ({count / len(test):.0%}) have the features of a "
        "training row: the held-out numbers are partly of rows that were learnt"
    )
    return Finding(check, text, True)


def _shared_by_chance(columns: dict[str, Array], train: Array, test: Array) -> float:
    """Expected number of held-out rows with the quantities of a training row, if columns were independent.

    Columns of few values are left out: they depend on each other, and equal rows are no surprise in them.
    """
    twins: Array = np.full(len(test), float(len(train)))  # expected equal training rows of each held-out row
    for column in columns.values():
        if column.dtype.kind == "f" and not _is_constant(column):
            values, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
            if len(values) > MANY_LEVELS and len(values) > CONTINUOUS * len(column):
                return 0.0  # equal values in this column need an explanation
            if len(values) > FEW_VALUES:
                twins *= (counts[inverse[test]] - 1) / (len(column) - 1)
                if twins.sum() < 0.5:  # further columns can only decrease it
                    break
    return float(-np.expm1(-twins).sum())


def _contradictions(keys: Array, labels: Array) -> Finding:
    check = "Rows with the same features have the same class"
    _, codes = np.unique(labels, return_inverse=True)
    classes_of_key = np.bincount(np.unique(np.stack([keys, codes]), axis=1)[0])
    rows = int((classes_of_key[keys] > 1).sum())
    if not rows:
        return Finding(check, "")
    text = f"{rows:,} of {len(labels):,} rows are like another row of another class: no model gets both right"
    return Finding(check, text)


def _constant(columns: dict[str, Array]) -> Finding:
    check = "No column is constant"
    constant = [name for name, column in columns.items() if _is_constant(column)]
    if not constant:
        return Finding(check, "")
    return Finding(check, f"{_listed(constant)}: the same in every row, of no use")


def _more_columns_than_rows(width: int, rows: int) -> Finding:
    check = "There are more training rows than features"
    text = f"{counted(width, 'feature')} for {counted(rows, 'training row')}: the penalty decides much"
    return Finding(check, text if width >= rows else "")


def _columns(data: Dataset) -> Iterator[tuple[str, Array]]:
    """(name, values) of each column: floats with NaN where missing, or text. Nothing for a sparse matrix."""
    features: Any = data.features
    if isinstance(features, np.ndarray):
        yield from zip(data.feature_names, features.T, strict=True)
    elif hasattr(features, "get_column"):
        for name in data.feature_names:
            column = features.get_column(name)
            values = column.to_numpy()
            yield name, values if values.dtype.kind == "f" else column.fill_null("").to_numpy().astype(str)


def _row_keys(columns: dict[str, Array]) -> Array:
    """(N,) integers, equal for rows with equal features, from a 64-bit hash of the columns.

    Rows that are already unique after the first 8, 16, 32... columns are not read further.
    """
    rng = np.random.default_rng(0)
    key: Array = np.zeros(len(next(iter(columns.values()))), np.uint64)
    twins: Array = np.arange(len(key))
    for count, column in enumerate(columns.values(), 1):
        number = column if column.dtype.kind == "f" else np.unique(column, return_inverse=True)[1]
        bits = (number[twins].astype(np.float64) + 0.0).view(np.uint64)  # −0 becomes 0
        bits = (bits ^ (bits >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        key[twins] += (bits ^ (bits >> np.uint64(29))) * rng.integers(2**64, dtype=np.uint64)
        if count >= 8 and count.bit_count() == 1:
            _, inverse, rows = np.unique(key[twins], return_inverse=True, return_counts=True)
            twins = twins[rows[inverse] > 1]
    return np.unique(key, return_inverse=True)[1]


def _is_constant(column: Array) -> bool:
    return all(bool((part == part[0]).all() or (part != part).all()) for part in (column[:HEAD], column))


def _listed(names: list[Any]) -> str:
    """'a', 'b' and 3 more."""
    shown = [repr(name) for name in names[:MOST_NAMES]]
    if len(names) > MOST_NAMES:
        return f"{', '.join(shown)} and {len(names) - MOST_NAMES} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
