"""What a command writes: each file by itself, and none over what the command reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from xent.files import storage


def require_apart(outputs: Mapping[str, Path | None], inputs: Sequence[str | Path] = ()) -> None:
    """Check the files that options name, {option: path}, before any work is done.

    Raises OSError for one that cannot be written, ValueError for two options that name one file, be it by
    another spelling or a link, and for one that names a file which is read.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    for path in given.values():
        storage.require_writable(path)
        if any(os.path.exists(each) and _are_one(path, each) for each in inputs):
            raise ValueError(f"{path}: is read from; it would be overwritten")
    for (one, path), (other, its) in combinations(given.items(), 2):
        if _are_one(path, its):
            raise ValueError(f"{path}: `{one}` and `{other}` must be two files")


def _are_one(path: Path, other: str | Path) -> bool:
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    return path.exists() and os.path.exists(other) and path.samefile(other)
