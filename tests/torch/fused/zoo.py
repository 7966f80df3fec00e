"""Every causal language model of transformers, fused and not: the table `zoo.md`.

`python -m tests.torch.fused.zoo` writes it; test_zoo.py compares it with what it finds.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import xent.torch as xt
from tests.torch.fused import small_configs
from tests.torch.fused.small_configs import VOCABULARY
from xent.torch import fused

PAGE = Path(__file__).with_name("zoo.md")
TOLERANCE = 1e-4  # of the largest gradient of a parameter; the most that was seen is 6e-5

# What is between the output layer and the loss, where it is neutral by default or hardly matters.
SCALINGS: dict[str, Any] = {
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"), 2.0),
    **dict.fromkeys(("logits_scaling", "logits_mup_width_multiplier"), 8.0),
    **dict.fromkeys(("logit_scale", "lm_head_multiplier"), 0.3),
    "unpadded_vocab_size": VOCABULARY - 10,
}


class Finding(NamedTuple):
    """The verdict on a class, and the largest relative difference of a gradient."""

    verdict: str
    difference: float = 0.0


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, labels): the labels are not the tokens, which a model with tied weights would predict."""
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(5, 300, (2, 2, 12), generator=generator)
    labels[0, :3] = labels[1, 7] = -100
    return tokens, labels


def outcome(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, gradients of all parameters) of a training step."""
    tokens, labels = batch()
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(input_ids=tokens, labels=labels).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def find(name: str, scalings: dict[str, Any] | None = None) -> Finding:
    """The verdict on a class."""
    try:
        model = small_configs.small_model(name, scalings)
    except Exception as error:
        return Finding(f"not built: {type(error).__name__}")
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        with torch.no_grad():
            head.weight.mul_(10)  # so that the logits differ
    try:
        xt.fuse(model)
    except (TypeError, ValueError):
        return Finding(f"refused: the head is `{type(head).__name__}`")
    xt.unfuse(model)
    try:
        loss, gradients = outcome(model)
    except Exception as error:
        return Finding(f"not run on tokens alone: {type(error).__name__}")
    fused.counts.clear()
    fused_loss, fused_gradients = outcome(xt.fuse(model))
    counted = {event for event, number in fused.counts.items() if number}
    difference = compare(fused_gradients, gradients)
    if not (difference <= TOLERANCE and abs(fused_loss - loss) <= 1e-5 * loss.abs()):
        return Finding("WRONG", difference)
    if counted == {"fused"}:
        return Finding("fused", difference)
    return Finding(f"as before: {', '.join(sorted(counted))}", difference)


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest gradient of its parameter; tiny ones are noise."""
    if found.keys() != expected.keys():
        return float("inf")
    floor = 1e-3 * max(e.abs().max().item() for e in expected.values())
    return max(
        ((found[n] - e).abs().max() / e.abs().max().clamp_min(floor)).item() for n, e in expected.items()
    )


def has_scalings(name: str) -> dict[str, Any]:
    """Those of `SCALINGS` that the configuration of a class has, at any depth."""

    def walk(config: Any) -> set[str]:
        own = vars(config).items()
        return set(vars(config)).union(
            *(walk(v) for _, v in own if isinstance(v, transformers.PretrainedConfig))
        )

    try:
        return {k: SCALINGS[k] for k in walk(getattr(transformers, name).config_class()) if k in SCALINGS}
    except Exception:
        return {}


def page() -> str:
    """The table."""
    rows = []
    for name in small_configs.classes("ForCausalLM"):
        scalings = has_scalings(name)
        rows.append((name, find(name).verdict, find(name, scalings).verdict if scalings else ""))
    total = Counter(verdict.partition(":")[0] for _, verdict, _ in rows)
    scaled = Counter(verdict.partition(":")[0] for _, _, verdict in rows if verdict)
    lines = [
        f"# Causal language models of transformers {transformers.__version__}, fused",
        "",
        "A training step of a small model of each class, with `xent.torch.fuse` and without it; written by",
        "`python -m tests.torch.fused.zoo`. Fused: the loss and the gradients of all parameters are equal up",
        "to rounding, and no logits were computed. As before: equal, but the logits were computed for the",
        "operation named. Scaled: again, where a class has scales, caps or padding of its logits, with such",
        "values that are not neutral.",
        "",
        f"{len(rows)} classes: {listed(total)}. Scaled, {sum(scaled.values())}: {listed(scaled)}.",
        "",
        "| class | result | scaled |",
        "|---|---|---|",
        *(f"| {name} | {verdict} | {again} |" for name, verdict, again in rows),
    ]
    return "\n".join(lines) + "\n"


def listed(counted: Counter[str]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counted.most_common())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page(), "utf-8")
