"""What the subcommands share: where they print, and how they say how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says how far it is, on a terminal; nothing in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(what) as status:
        yield lambda text: status.update(Text(f"{what}: {text}"))


def console() -> Console:
    return Console(highlight=False)
