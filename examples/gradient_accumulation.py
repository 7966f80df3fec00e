"""Gradient accumulation, and data parallelism, by the number of tokens of the whole batch.

Run it: `python examples/gradient_accumulation.py`, or by `torchrun --nproc-per-node 2`. The parts of a batch
have different numbers of tokens that count. Each part's loss is divided by the count of all of them
(`denominator`), so that losses and gradients of parts and processes add up to those of the whole batch. A
mean of the parts' means is something else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.distributed as dist

import xent.torch

Tensor = torch.Tensor
Part = tuple[Tensor, Tensor]  # hidden states (B, T, D), labels (B, T)

PADDING = -100


def accumulate(weight: Tensor, parts: Sequence[Part]) -> float:
    """The mean loss of a batch; its gradient is added to ``weight.grad``, the same on every process."""
    count = torch.stack([(labels[:, 1:] != PADDING).sum() for _, labels in parts]).sum()
    if dist.is_initialized():
        dist.all_reduce(count)
    total = torch.zeros(())
    for hidden, labels in parts:
        loss = xent.torch.linear_cross_entropy(hidden, weight, labels, shift=1, denominator=count)
        loss.backward()
        total += loss.detach()
    if dist.is_initialized():
        dist.all_reduce(total)
        dist.all_reduce(
            weight.grad
        )  # a sum: DistributedDataParallel takes the mean, so give it count / world
    return total.item()


def batch(num_parts: int, num_tokens: int = 50, width: int = 16) -> list[Part]:
    """Parts with sequences of all lengths, the same on every process."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for part in range(num_parts):
        hidden = torch.randn(4, 12, width, generator=generator)
        labels = torch.randint(0, num_tokens, (4, 12), generator=generator)
        lengths = torch.randint(2, 5 + 2 * part, (4, 1), generator=generator)
        parts.append((hidden, torch.where(torch.arange(12) < lengths, labels, PADDING)))
    return parts


def compare(num_parts: int = 4) -> dict[str, tuple[float, float]]:
    """Loss, and distance of the gradient from that of the whole batch, of each way to get it."""
    parts = batch(num_parts)
    start = 0.1 * torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    whole = start.clone().requires_grad_()
    hidden, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    loss = xent.torch.linear_cross_entropy(hidden, whole, labels, shift=1)
    loss.backward()
    assert whole.grad is not None

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    counted = start.clone().requires_grad_()
    value = accumulate(counted, parts[rank::world])

    mean = start.clone().requires_grad_()
    means = [xent.torch.linear_cross_entropy(h, mean, y, shift=1) / num_parts for h, y in parts]
    torch.stack(means).sum().backward()

    def distance(weight: Tensor) -> float:
        return float((weight.grad - whole.grad).norm() / whole.grad.norm())

    return {
        "the whole batch": (loss.item(), 0.0),
        "parts, by the count of all": (value, distance(counted)),
        "a mean of means": (sum(m.item() for m in means), distance(mean)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", type=int, default=4)
    num_parts = parser.parse_args().parts
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    rows = compare(num_parts)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"{'':<28} {'loss':>9} {'gradient off by':>16}")
        for name, (loss, distance) in rows.items():
            print(f"{name:<28} {loss:>9.6f} {distance:>16.1e}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
