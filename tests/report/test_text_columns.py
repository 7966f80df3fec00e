"""Columns of text that are no categories are told from those that are."""

from __future__ import annotations

import numpy as np
import pytest

from xent.report.text_columns import names_of_rows, quantities

ROWS = 160
RNG = np.random.default_rng(0)
VALUES = RNG.random(ROWS)

KINDS = {
    "dates": [
        lambda i: f"2024-{1 + i % 12:02}-{1 + i % 28:02}",
        lambda i: f"{1 + i % 28}.{1 + i % 12}.2024",
        lambda i: f"{1 + i % 12}/{1 + i % 28}/24",
        lambda i: f"{1 + i % 28} January {1990 + i % 30}",
        lambda i: f"Mon, Jan {1 + i % 28}, {1990 + i % 30}",
        lambda i: f"2024-01-{1 + i % 28:02}T{i % 24:02}:30:00Z",
        lambda i: f"2024-01-{1 + i % 28:02} {i % 24:02}:30:00.5+02:00",
    ],
    "times of day": [lambda i: f"{i % 24}:{i % 60:02}", lambda i: f"{1 + i % 12}:{i % 60:02} pm"],
    "percentages": [lambda i: f"{100 * VALUES[i]:.1f}%", lambda i: f"{i} %"],
    "amounts with a currency": [
        lambda i: f"${2000 * VALUES[i]:,.2f}",
        lambda i: f"{i},50 €",
        lambda i: f"-USD {i}",
        lambda i: f"({i + 1},234)",
    ],
    "numbers with marks between the thousands": [
        lambda i: f"{i + 1}'{100 + i}",
        lambda i: f"1.{100 + i}.567",
        lambda i: f"{i + 1} {100 + i}",
        lambda i: f"{i + 1}\u202f{100 + i},5",
    ],
    "numbers with a unit": [
        lambda i: f"{VALUES[i]:.3f} kg",
        lambda i: f"{i}km/h",
        lambda i: f"{i}°C",
        lambda i: f"{i if i % 5 else f'<{i}'} mg/dL",
    ],
    "numbers with a mark before them": [lambda i: f"<{i}"],
}
CASES = [(kind, form) for kind, forms in KINDS.items() for form in forms]


@pytest.mark.parametrize(("kind", "form"), CASES, ids=[f"{form(7)}" for _, form in CASES])
def test_dates_and_numbers_with_something_around_them_are_told(kind, form):
    columns = {"the column": np.array([form(i) for i in range(ROWS)])}
    said = quantities(columns)
    assert said.startswith(f"'the column' looks like {kind} (")
    assert said.endswith("or leave it out by --drop 'the column'")
    assert names_of_rows(columns) == ""


NAMES = {
    "codes": lambda i: f"U{i:06}",
    "whole names": lambda i: f"Smith, Mr. {i}",
    "addresses": lambda i: f"192.168.{i % 7}.{i}",
    "seats": lambda i: f"{i // 6 + 1}{'ABCDEF'[i % 6]}",
    "numbers that were asked for": lambda i: f"{i}",
    "hexadecimal": lambda i: f"{i * 7919:08x}f",
    "ranges": lambda i: f"{i}-{i + 5}",
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_of_each_row_is_told_and_is_no_quantity(case):
    columns = {"id": np.array([NAMES[case](i) for i in range(ROWS)])}
    assert names_of_rows(columns) == (
        f"'id' has another value in nearly each row ({ROWS} in {ROWS}): leave it out by --drop id"
    )
    assert quantities(columns) == ""


def test_rows_without_a_value_do_not_count():
    names = np.array([f"A{i}" if i % 4 else "" for i in range(ROWS)])
    assert "(120 in 120)" in names_of_rows({"cabin": names})


CATEGORIES = {
    "few levels with a unit": lambda i: f"{2 ** (i % 6)} GB",
    "months": lambda i: f"2024-{1 + i % 12:02}",
    "places": lambda i: f"Z{i % 40}",
    "numbers": lambda i: f"{i % 40}",
    "house numbers": lambda i: f"{i % 30} Main Street",
    "seats": lambda i: f"{i % 5}{'ABCDEFGH'[i % 8]}",
    "half of them amounts": lambda i: f"${i % 50}" if i % 2 else "none given",
}


@pytest.mark.parametrize("case", CATEGORIES)
def test_categories_are_left_alone(case):
    columns = {"c": np.array([CATEGORIES[case](i) for i in range(ROWS)])}
    assert names_of_rows(columns) == quantities(columns) == ""


def test_several_columns_are_named_and_many_are_counted():
    columns = {f"id{k}": np.array([f"{k}x{i}" for i in range(ROWS)]) for k in range(6)}
    said = names_of_rows(columns)
    assert said.count("--drop") == 4
    assert said.endswith("and so do 2 more")
