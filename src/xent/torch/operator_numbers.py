"""Numbers as arguments of custom operators, so that graphs hold for other values of them too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xent.core.link import Link
from xent.core.spec import LossSpec
from xent.torch import modes

Tensor = torch.Tensor
Numbers = tuple[list[float], Tensor | None]

_NO_OPTIONS = LossSpec().to_numbers()


def numbers(values: Sequence[float], defaults: Sequence[float], device: torch.device) -> Numbers:
    """``values`` as arguments of operators: (floats, None), or ([0.0], a tensor of them).

    A graph is compiled again for new floats, but not for new values of a tensor. So graphs for the CPU get a
    tensor unless the values are the ``defaults``. (With a CPU tensor a GPU could not use CUDA graphs.)
    """
    if not modes.knows_its_gradients() or device.type != "cpu" or list(values) == list(defaults):
        return list(values), None
    zero = torch.zeros((), dtype=torch.float64)
    # PyTorch would read an empty list as a list of tensors.
    return [0.0], torch.stack([zero + value for value in values])


def as_floats(values: Sequence[float], dynamic: Tensor | None) -> Sequence[float]:
    """The inverse of `numbers`, inside an operator."""
    return values if dynamic is None else dynamic.tolist()


def link_numbers(link: Link, device: torch.device) -> Numbers:
    """The link as arguments of operators: its temperature, and its softcap if there is one."""
    return numbers([x for x in link if x is not None], [1.0], device)


def spec_numbers(spec: LossSpec, device: torch.device) -> Numbers:
    """The options of a loss as arguments of operators; `LossSpec.from_numbers` is the inverse."""
    return numbers(spec.to_numbers(), _NO_OPTIONS, device)
