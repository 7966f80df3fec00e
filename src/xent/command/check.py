"""`xent check`: compare the loss and its derivatives with independent computations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from xent.command import screen, tables
from xent.command.tables import Column

if TYPE_CHECKING:
    from xent.check import Row


def check(
    seed: Annotated[int, typer.Option(help="Chooses the random logits.")] = 0,
    json: screen.Json = False,
) -> int:
    """Compare every variant's loss, gradient and Hessian product with independent computations.

    Finite differences, mpmath at 50 digits, PyTorch autograd. Exit code 1 if one is too far off.
    """
    from xent import check as checking

    if seed < 0:
        raise ValueError(f"`--seed` must be >= 0; got {seed}")
    with screen.progress("checking", len(checking.VARIANTS), in_bytes=False) as advance:
        rows = checking.run(seed, lambda row: advance(1))
    failures = [(row.variant, column) for row in rows for column in row.failures]
    if json:
        variants = [row._asdict() | {"failures": list(row.failures)} for row in rows]
        missing = list(checking.missing_libraries())
        summary = {"passed": not failures, "tolerance": checking.TOLERANCE, "not_installed": missing}
        screen.print_json(summary | {"variants": variants})
    else:
        _print(screen.console(), rows, failures)
    return 1 if failures else 0


def _print(console: Console, rows: list[Row], failures: list[tuple[str, str]]) -> None:
    from xent import check as checking

    columns = [Column("\nvariant", is_text=True, footer="tolerance")]
    for name in checking.Row._fields[1:]:
        quantity, _, method = name.partition("_")
        tolerance = f"{checking.TOLERANCE[method]:.0e}"
        columns.append(Column(f"{QUANTITIES[quantity]}\n{METHODS[method]}", footer=tolerance))
    lines = []
    for row in rows:
        cells = [
            Text(_error(error), "bold red" if name in row.failures else "")
            for name, error in zip(row._fields[1:], row[1:], strict=True)
        ]
        lines.append(tables.Row((row.variant, *cells)))
    tables.show(console, columns, lines, padding=0)
    screen.say(console, "Largest difference, relative to the largest entry. diff: central differences;")
    screen.say(console, "mp: the definition in mpmath, 50 digits; torch: the definition under autograd.")
    for library in checking.missing_libraries():
        console.print(f"-: {library} is not installed (pip install {library})")
    for variant, column in failures:
        console.print(f"FAILED: {variant}: {column.replace('_', ' against ')}", style="bold red")
    if not failures:
        console.print(f"{len(rows)} variants agree.")


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}" if error else "0"


QUANTITIES = {"loss": "loss", "grad": "grad", "hvp": "Hess."}
METHODS = {"differences": "diff", "mpmath": "mp", "torch": "torch"}
