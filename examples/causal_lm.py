"""A causal language model of Hugging Face's trained without its logits: `xent.torch.fuse(model)`.

Run it: `python examples/causal_lm.py` (needs `transformers`). A tiny random Llama learns Python's help texts
twice, as it is and fused: the losses are the same, and the (tokens x vocabulary) matrix of logits is only in
memory for the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import xent.torch

Tensor = torch.Tensor


def make_model(fused: bool, seed: int = 0) -> Any:
    """Two layers, random weights; bytes are the tokens."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    )
    return xent.torch.fuse(model) if fused else model


def batches(steps: int, size: int = 8, length: int = 64, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens, labels) of random places of the text; the first tokens, a prompt, are not learnt."""
    text = torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, len(text) - length, (size, 1), generator=generator)
        tokens = text[starts + torch.arange(length)]
        labels = tokens.clone()
        labels[:, :4] = -100
        yield tokens, labels


def train(fused: bool, steps: int = 30) -> list[float]:
    """The loss before each step."""
    model = make_model(fused)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for tokens, labels in batches(steps):
        loss = model(tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def main() -> None:
    pairs = list(zip(train(fused=False), train(fused=True), strict=True))
    print("step   as it is    fused")
    for step, (a, b) in enumerate(pairs):
        if step % 5 == 0 or step == len(pairs) - 1:
            print(f"{step:4d} {a:10.4f} {b:8.4f}")


if __name__ == "__main__":
    main()
