"""A language model whose vocabulary is split over processes, beside the same model on one.

Run it: `torchrun --nproc-per-node 2 examples/tensor_parallel.py`. Every process has the whole trunk and its
own part of the head's classes, uneven where they do not divide. The losses of both agree to float32's
rounding.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from next_token import CONTEXT, read

import xent.torch
from xent.torch.distributed import vocab_parallel_linear_cross_entropy

Tensor = torch.Tensor


def trunk(num_tokens: int, width: int) -> torch.nn.Module:
    """Hidden states of the last CONTEXT characters."""
    return torch.nn.Sequential(
        torch.nn.Embedding(num_tokens, 16),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * CONTEXT, width),
        torch.nn.Tanh(),
    )


def train(steps: int, is_split: bool, batch: int = 256, width: int = 64) -> list[float]:
    """Losses, in nats a character, of ``steps`` steps of Adam, the head whole or split over the processes."""
    tokens, num_tokens = read()
    torch.manual_seed(0)  # the same start, and the same batches, on every process
    model = trunk(num_tokens, width)
    weight = 0.1 * torch.randn(num_tokens, width)
    if is_split:
        weight = weight.tensor_split(dist.get_world_size())[dist.get_rank()]
    weight = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.Adam([*model.parameters(), weight], lr=0.02)
    losses = []
    for _ in range(steps):
        start = torch.randint(len(tokens) - CONTEXT, (batch,))
        window = tokens[start[:, None] + torch.arange(CONTEXT + 1)]
        hidden, labels = model(window[:, :-1]), window[:, -1]
        if is_split:
            loss = vocab_parallel_linear_cross_entropy(hidden, weight, labels, group=None)
        else:
            loss = xent.torch.linear_cross_entropy(hidden, weight, labels)
        optimizer.zero_grad()
        loss.backward()  # the gradient of `hidden` is whole on every process: the trunks stay equal
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    dist.init_process_group("gloo")
    split = train(steps, is_split=True)
    if dist.get_rank() == 0:
        whole = train(steps, is_split=False)
        print(f"{'step':>6} {dist.get_world_size():>6} processes {'one':>12} {'difference':>12}")
        for step in range(0, steps, max(1, steps // 10)):
            a, b = split[step], whole[step]
            print(f"{step:>6} {a:>16.6f} {b:>12.6f} {abs(a - b):>12.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
