"""What happened to the logits of fused layers: counts, and one warning."""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import torch

counts: Counter[str] = Counter()
"""How often in this process a loss was ``fused``, logits were ``computed for`` an operation, and a layer was
computed ``by PyTorch`` and why. What runs in a compiled graph is not counted."""


def count(event: str) -> None:
    """Count an event, outside of compiled graphs."""
    if not torch.compiler.is_compiling():
        counts[event] += 1


def count_computed(name: str) -> None:
    """Count logits that were computed for the operation ``name``; the first time of all, warn."""
    if torch.compiler.is_compiling():
        return
    is_first = not any(event.startswith("computed for") for event in counts)
    counts[f"computed for {name}"] += 1
    if is_first:
        level = 1  # the caller's line outside of this package
        while sys._getframe(level).f_globals.get("__name__", "").startswith(__package__):
            level += 1
        warnings.warn(
            f"the logits of a fused layer were computed for `{name}`: the result is as without "
            "`xent.torch.fuse`, and so is the memory of this step. `xent.torch.fused.counts` counts the next "
            "ones, of which there is no warning",
            stacklevel=level + 1,
        )
