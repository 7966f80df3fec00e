"""A student trained on the stored top entries of its teacher, not on the teacher.

Run it: `python examples/distillation.py`. The teacher, a small network trained on Python's help texts, is
asked once: the log-probabilities of its ENTRIES likeliest bytes at each position go to a file, 32 bytes for
256 logits. A smaller student learns from the file by `linear_topk_kl_divergence`, in which the other bytes
are one bin; the mean divergence from the whole teacher is printed before and after.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch

import xent.torch

Tensor = torch.Tensor

BYTES, CONTEXT, ENTRIES = 256, 8, 8


class Reader(torch.nn.Module):
    """A byte from the CONTEXT before it, by one hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Embedding(BYTES, 16),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * CONTEXT, width),
            torch.nn.Tanh(),
        )
        self.head = torch.nn.Linear(width, BYTES)


def store(teacher: Reader, contexts: Tensor, path: Path) -> None:
    """Write the ``indices`` and ``log_probs`` (N, ENTRIES) of the teacher's likeliest bytes."""
    with torch.no_grad():
        log_probs = teacher.head(teacher.body(contexts)).log_softmax(-1)
    values, indices = log_probs.topk(ENTRIES)
    np.savez(path, indices=indices.to(torch.int16).numpy(), log_probs=values.half().numpy())


def divergence(student: Reader, teacher: Reader, contexts: Tensor) -> float:
    """KL(teacher‖student), mean over positions, from both models' hidden states."""
    with torch.no_grad():
        return xent.torch.linear_kl_divergence(
            student.body(contexts),
            student.head.weight,
            teacher.body(contexts),
            teacher.head.weight,
            bias=student.head.bias,
            teacher_bias=teacher.head.bias,
        ).item()


def train_teacher(model: Reader, contexts: Tensor, labels: Tensor, steps: int) -> None:
    """By the labels."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for k in batches(len(labels), steps):
        optimizer.zero_grad()
        hidden, head = model.body(contexts[k]), model.head
        loss = xent.torch.linear_cross_entropy(hidden, head.weight, labels[k], linear_bias=head.bias)
        loss.backward()
        optimizer.step()


def train_student(student: Reader, contexts: Tensor, path: Path, steps: int) -> None:
    """By the file alone."""
    file = np.load(path)
    indices, log_probs = (torch.from_numpy(file[name]) for name in ("indices", "log_probs"))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for k in batches(len(indices), steps):
        optimizer.zero_grad()
        hidden, head = student.body(contexts[k]), student.head
        loss = xent.torch.linear_topk_kl_divergence(
            hidden, head.weight, indices[k], log_probs[k].float(), bias=head.bias
        )
        loss.backward()
        optimizer.step()


def batches(num_rows: int, steps: int, size: int = 256) -> list[Tensor]:
    """Random rows of each step."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(num_rows, (size,), generator=generator) for _ in range(steps)]


def run(steps: int = 300, num_rows: int = 20_000) -> tuple[float, float]:
    """The student's mean divergence from the teacher, before and after its training."""
    torch.manual_seed(0)
    text = torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))
    windows = text[: num_rows + CONTEXT].unfold(0, CONTEXT + 1, 1)
    contexts, labels = windows[:, :-1].contiguous(), windows[:, -1].contiguous()
    teacher, student = Reader(64), Reader(24)
    train_teacher(teacher, contexts, labels, steps)
    before = divergence(student, teacher, contexts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.npz"
        store(teacher, contexts, path)
        train_student(student, contexts, path, steps)
    return before, divergence(student, teacher, contexts)


def main() -> None:
    before, after = run()
    print(f"divergence from the teacher: {before:.3f} nats before, {after:.3f} after")


if __name__ == "__main__":
    main()
