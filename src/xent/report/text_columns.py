"""Find columns of text that should not be categories: names of rows, dates, numbers with units or signs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MANY_LEVELS = 20  # with fewer levels dates and amounts may be categories
NEARLY_EACH = 0.6  # distinct values as a share of the rows with a value, from which on they name rows
MOST_VALUES = 0.8  # share of the values that must be of one kind
FEW_UNITS = 4  # more different endings than this are no units: seats 12A to 31F
MOST_NAMED = 4  # columns to name

# 1234.5 and 1,234.5 and 1.234,5 and 1'234 and 1 234
GROUPED = r"\d{1,3}(?:[.,'’_ \u00a0\u202f]\d{3})+(?:[.,]\d+)?"
NUMBER = rf"[-+−]?(?:{GROUPED}|\d+(?:[.,]\d+)?|[.,]\d+)(?:[eE][-+]?\d+)?"
CURRENCY = (
    r"(?:(?:US|C|A|HK|NZ)?[$€£¥₹₩₽₺₫฿]|(?:USD|EUR|GBP|JPY|CHF|CAD|AUD|INR|CNY|SEK|NOK|DKK|PLN|BRL|Rs\.?)\b)"
)
TIME = (
    r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?\s*(?:[AaPp]\.?[Mm]\.?)?(?:\s*Z|\s*[-+]\d{2}:?\d{2}|\s[A-Z]{3,4})?"
)
MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
DATE = (
    r"(?i:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?"
    r"(?:\d{4}[-/]\d{1,2}(?:[-/]\d{1,2})?|\d{4}\.\d{1,2}\.\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
    rf"|(?i:\d{{1,2}}[-. ]+{MONTH}[-, ]+\d{{2,4}}|{MONTH}\s+\d{{1,2}},?\s+\d{{4}}|{MONTH}[- ]\d{{4}}))"
)

AS_NUMBERS = "write plain numbers"
AS_PARTS = "write what matters of it as numbers, such as the year, the weekday or the days since"
# Kind of value → (pattern, advice), in the order in which they are tried.
KINDS = {
    "dates": (re.compile(rf"{DATE}(?:[T ,]+{TIME})?"), AS_PARTS),
    "times of day": (re.compile(TIME), "write plain numbers, such as the minutes since midnight"),
    "percentages": (re.compile(rf"{NUMBER}\s*[%‰]"), AS_NUMBERS),
    "amounts with a currency": (
        re.compile(rf"[-+−]?\s*{CURRENCY}\s*{NUMBER}|{NUMBER}\s*{CURRENCY}|\({CURRENCY}?\s*{NUMBER}\)"),
        AS_NUMBERS,
    ),
    "numbers with marks between the thousands": (re.compile(rf"[-+−]?{GROUPED}"), AS_NUMBERS),
    "numbers with a unit": (
        re.compile(rf"[<>≤≥~≈±]?\s*{NUMBER}\s*(?P<unit>[^\W\d_][\w/²³·^.]{{0,11}}|[°\"'′″µ]\s?\w{{0,3}})"),
        AS_NUMBERS,
    ),
    "numbers with a mark before them": (re.compile(rf"[<>≤≥~≈±#№]\s*{NUMBER}"), AS_NUMBERS),
}
PLAIN = re.compile(NUMBER)


def names_of_rows(columns: Mapping[str, Array]) -> str:
    """A sentence about the columns of text with another value in nearly each row; "" if there are none.

    >>> import numpy as np
    >>> from xent.report.text_columns import names_of_rows
    >>> names_of_rows({"id": np.array([f"U{k:04}" for k in range(40)])})
    "'id' has another value in nearly each row (40 in 40): leave it out by --drop id"
    """
    sentences = []
    for name, (levels, counts) in _levels(columns).items():
        rows = int(counts.sum())
        if len(levels) >= NEARLY_EACH * rows and _kind(levels, counts) is None:
            sentences.append(
                f"{name!r} has another value in nearly each row ({len(levels):,} in {rows:,}): leave it out "
                f"by --drop {shlex.quote(name)}"
            )
    return _joined(sentences)


def quantities(columns: Mapping[str, Array]) -> str:
    """A sentence about the columns of text that hold dates, or numbers with units or signs; "" if none do."""
    sentences = []
    for name, (levels, counts) in _levels(columns).items():
        kind = _kind(levels, counts)
        if kind is not None:
            example = next(level for level in levels.tolist() if KINDS[kind][0].fullmatch(level))
            sentences.append(
                f"{name!r} looks like {kind} ({example!r}) and is {len(levels):,} categories: "
                f"{KINDS[kind][1]}, or leave it out by --drop {shlex.quote(name)}"
            )
    return _joined(sentences)


def _levels(columns: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """{name: (distinct values, number of rows of each)} of the columns of text with many values."""
    result = {}
    for name, column in columns.items():
        if column.dtype.kind == "U":
            levels, counts = np.unique(column[column != ""], return_counts=True)
            if len(levels) > MANY_LEVELS:
                result[name] = levels, counts
    return result


def _kind(levels: Array, counts: Array) -> str | None:
    """The kind in `KINDS` of most values, or None."""
    rows = dict.fromkeys(KINDS, 0)
    plain, units = 0, set()
    for level, count in zip(levels.tolist(), counts.tolist(), strict=True):
        if PLAIN.fullmatch(level) and not re.fullmatch(GROUPED, level):
            plain += count
            continue
        for kind, (pattern, _) in KINDS.items():
            if match := pattern.fullmatch(level):
                rows[kind] += count
                units.add(match.groupdict().get("unit"))
                break
    kind = max(rows, key=rows.__getitem__)
    if not rows[kind] or sum(rows.values()) + plain < MOST_VALUES * counts.sum():
        return None
    return None if len(units) > FEW_UNITS else kind


def _joined(sentences: list[str]) -> str:
    more = len(sentences) - MOST_NAMED
    return "; ".join([*sentences[:MOST_NAMED], *([f"and so do {more} more"] if more > 0 else [])])
