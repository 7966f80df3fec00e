"""Check the output files of a command: writable, distinct, and none of them an input."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from xent.files import storage


def require_distinct(outputs: Mapping[str, Path | None], inputs: Sequence[str | Path] = ()) -> None:
    """Check the output files {option: path} before any work is done.

    Raises OSError for a file that cannot be written, ValueError for two options with the same file, also by
    another spelling or a link, and for a file that is also read.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    for path in given.values():
        storage.require_writable(path)
        if any(os.path.exists(each) and _are_same(path, each) for each in inputs):
            raise ValueError(f"{path}: is read from; it would be overwritten")
    for (one, path), (other, other_path) in combinations(given.items(), 2):
        if _are_same(path, other_path):
            raise ValueError(f"{path}: `{one}` and `{other}` must be two files")


def _are_same(path: Path, other: str | Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    return path.exists() and os.path.exists(other) and path.samefile(other)
