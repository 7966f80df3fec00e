"""Sizes of memory on the command line."""

from __future__ import annotations

import re

from xent.regression.file_rows.rows import LEAST_MEMORY

PREFIXES = ("", "k", "m", "g", "t")


def memory_bytes(text: str) -> int:
    """The bytes of ``--memory``: "500MB" is 500 · 1000², "1.5GiB" 1.5 · 1024³, a number is itself.

    >>> from xent.command.sizes import memory_bytes
    >>> memory_bytes("500MB"), memory_bytes("1.5 GiB"), memory_bytes("20000000")
    (500000000, 1610612736, 20000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"`--memory` must be a size such as 500MB or 2GiB; got {text!r}")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** PREFIXES.index(match[2]))
    if size < LEAST_MEMORY:
        raise ValueError(f"`--memory` must be at least {LEAST_MEMORY >> 20}MiB; got {text!r}")
    return size
