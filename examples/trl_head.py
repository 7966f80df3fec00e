"""TRL's trainers on xent: what their fused head computes of each token, by one function instead of theirs.

Run it: `python examples/trl_head.py` (needs `trl`). The trainers for SFT, DPO, KTO, GRPO and RLOO score
tokens by a function of hidden states, the head's weight and labels: log-probabilities, entropy, log Σ p², the
mean logit, and whether the label is the likeliest token. `TokenStatistics` has the same interface, and
`use_xent()` puts it in its place. What differs: rows that are masked cost nothing on any device, and in half
precision the logits may be float32 (`logits_dtype`), without a copy of the head's weight.

It takes a private name of TRL, here of version 1.16.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer import utils

import xent.torch

Tensor = torch.Tensor

OURS = {"log_probs": "log_prob"}  # the only name that differs
FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
CONSTANT = ("log_sum_sq_probs", "mean_logits")


class TokenStatistics:
    """The interface of `trl.kernels.ChunkedLogProbFunction`."""

    logits_dtype: torch.dtype | None = None  # torch.float32 for half precision on a CPU; the default on a GPU

    @classmethod
    def apply(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: Sequence[str] = FIELDS,
    ) -> tuple[Any, ...]:
        """One tensor (N,) for each of FIELDS, None for those not in ``outputs``.

        TRL's logits are ``softcap·tanh(scale·z/softcap) / temperature``.
        """
        del chunk_size
        names = [name for name in FIELDS if name == "log_probs" or name in outputs]
        stats = xent.torch.linear_row_statistics(
            hidden,
            weight.to(hidden.dtype),
            targets,
            bias=None if bias is None else bias.to(hidden.dtype),
            temperature=temperature / scale,
            softcap=None if softcap is None else softcap / temperature,
            logits_dtype=cls.logits_dtype if hidden.dtype.itemsize == 2 else None,
            want=[OURS.get(name, name) for name in names],
        )
        found = {name: getattr(stats, OURS.get(name, name)) for name in names}
        found |= {name: found[name].detach() for name in CONSTANT if name in found}
        return tuple(found.get(name) for name in FIELDS)


def use_xent() -> None:
    """From now on every fused head of TRL computes by xent."""
    utils._ChunkedLogProbFunction = TokenStatistics


def main() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    utils.add_fused_lm_head(model, temperature=0.7, outputs=FIELDS)
    tokens = torch.randint(256, (2, 12))
    before = model(tokens, labels=tokens, fused_lm_head=True)
    use_xent()
    after = model(tokens, labels=tokens, fused_lm_head=True)
    for name in FIELDS:
        print(f"{name:17} {before[name][0, :4].tolist()}\n{'':17} {after[name][0, :4].tolist()}")


if __name__ == "__main__":
    main()
