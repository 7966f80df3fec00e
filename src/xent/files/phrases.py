"""Format counts, lists and names for people: "1 row", "a, b and 3 more", no control characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Characters that reorder the text around them.
BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Unicode categories: control characters, lone surrogates (bytes of a file name that are not UTF-8), line and
# paragraph separators.
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def counted(count: int, noun: str, nouns: str = "") -> str:
    """A count with its noun; ``nouns`` is the plural where it is not ``noun`` and an s.

    >>> from xent.files.phrases import counted
    >>> counted(1, "row"), counted(1234, "row"), counted(0, "category", "categories")
    ('1 row', '1,234 rows', '0 categories')
    """
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first ``most`` names, `printable`, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return printable(", ".join(names[:most]) + more)


def printable(text: str) -> str:
    r"""``text`` with escapes for the characters that a terminal or a browser would act on.

    >>> from xent.files.phrases import printable
    >>> print(printable("\x1b[31mred\n"))
    \x1b[31mred\n
    """
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if c in BIDI_CONTROLS or unicodedata.category(c) in UNPRINTABLE
        else c
        for c in text
    )
