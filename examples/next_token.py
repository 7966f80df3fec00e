"""Two next-token models trained on Python's own help texts, by `xent.torch` and by `torch.nn`, side by side.

Run it: `python examples/next_token.py`. The losses of both agree step by step, to float32's rounding; the
bigram model ends near the entropy of a character given the one before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pydoc_data.topics import topics

import torch

import xent.torch

Tensor = torch.Tensor
Loss = Callable[[Tensor, Tensor], Tensor]

CONTEXT = 8  # characters that the second model sees


def read() -> tuple[Tensor, int]:
    """(the help texts as tokens, number of distinct characters)."""
    text = "\n".join(topics[name] for name in sorted(topics))
    characters = sorted(set(text))
    index = {character: i for i, character in enumerate(characters)}
    return torch.tensor([index[character] for character in text]), len(characters)


def bigram(num_tokens: int) -> torch.nn.Module:
    """One row of logits for each token: a softmax regression on the last character."""
    return torch.nn.Sequential(torch.nn.Embedding(num_tokens, num_tokens), torch.nn.Flatten(1, 2))


def mlp(num_tokens: int, width: int = 64) -> torch.nn.Module:
    """One hidden layer over the last CONTEXT characters."""
    return torch.nn.Sequential(
        torch.nn.Embedding(num_tokens, 16),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * CONTEXT, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, num_tokens),
    )


MODELS = {"bigram": (bigram, 1), "mlp": (mlp, CONTEXT)}


def train(name: str, loss: Loss, steps: int, batch: int = 512, seed: int = 0) -> list[float]:
    """Losses, in nats a character, of ``steps`` steps of Adam from the same start on the same batches."""
    tokens, num_tokens = read()
    make, context = MODELS[name]
    torch.manual_seed(seed)
    model = make(num_tokens)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        start = torch.randint(len(tokens) - context, (batch,))
        window = tokens[start[:, None] + torch.arange(context + 1)]
        value = loss(model(window[:, :-1]), window[:, -1])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    for name in MODELS:
        ours = train(name, xent.torch.CrossEntropyLoss(), steps)
        theirs = train(name, torch.nn.CrossEntropyLoss(), steps)
        print(f"{name}\n{'step':>6} {'xent.torch':>12} {'torch.nn':>12} {'difference':>12}")
        for step in sorted({0, 1, 2, steps // 2, steps - 1} & set(range(steps))):
            a, b = ours[step], theirs[step]
            print(f"{step:>6} {a:>12.6f} {b:>12.6f} {abs(a - b):>12.1e}")


if __name__ == "__main__":
    main()
