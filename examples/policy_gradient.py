"""Policy gradients with a frozen reference, from log-probabilities and entropy of tokens, without logits.

Run it: `python examples/policy_gradient.py`. A recurrent policy of random weights learns to write even
tokens. Each step samples continuations, scores them, and differentiates

    mean over tokens of  -A log p(token) + BETA (exp(d) - d - 1) - BONUS H,    d = log p_reference - log p,

with A the reward less the mean of its group (Shao et al., 2024), and H the entropy. `linear_row_statistics`
gives log p and H of each token from the hidden states in one pass; the matrix of logits, tokens x vocabulary,
is never in memory.
"""

from __future__ import annotations

import copy

import torch

import xent
import xent.torch

Tensor = torch.Tensor

VOCABULARY, WIDTH = 512, 32
PROMPT, LENGTH, GROUP = 2, 10, 16  # tokens of a prompt, of a sequence, and sequences of one prompt
BETA, BONUS = 0.05, 0.01


class Policy(torch.nn.Module):
    """The next token from a recurrent state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.body = torch.nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def hidden(self, tokens: Tensor) -> Tensor:
        """The state (N, T, WIDTH) after each token."""
        states: Tensor = self.body(self.embedding(tokens))[0]
        return states

    @torch.no_grad()
    def sample(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Sequences (N, LENGTH) that begin with ``prompts (N, PROMPT)``."""
        tokens = prompts
        while tokens.shape[1] < LENGTH:
            last = self.head(self.hidden(tokens)[:, -1])
            token = torch.multinomial(last.softmax(-1), 1, generator=generator)
            tokens = torch.cat([tokens, token], 1)
        return tokens


def token_statistics(policy: Policy, tokens: Tensor) -> xent.RowStatistics:
    """Log-probability and entropy (N, LENGTH - 1) of the next tokens; 0 for those of a prompt."""
    labels = tokens.clone()
    labels[:, :PROMPT] = -100
    return xent.torch.linear_row_statistics(
        policy.hidden(tokens),
        policy.head.weight,
        labels,
        bias=policy.head.bias,
        shift=1,
        want=("log_prob", "entropy"),
    )


def policy_loss(policy: Policy, reference: Policy, tokens: Tensor, rewards: Tensor) -> Tensor:
    """The loss of sequences in groups of GROUP, one group after the other."""
    groups = rewards.reshape(-1, GROUP)
    advantages = (groups - groups.mean(1, keepdim=True)).reshape(-1, 1)
    found = token_statistics(policy, tokens)
    with torch.no_grad():
        reference_log_prob = token_statistics(reference, tokens).log_prob
    gap = reference_log_prob - found.log_prob
    terms = -advantages * found.log_prob + BETA * (gap.exp() - gap - 1) - BONUS * found.entropy
    return terms.sum() / (len(tokens) * (LENGTH - PROMPT))


def train(steps: int = 40, seed: int = 0) -> list[float]:
    """The mean reward, the share of even tokens that were written, before each step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = Policy()
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    means = []
    for _ in range(steps):
        prompts = torch.randint(VOCABULARY, (4, PROMPT), generator=generator).repeat_interleave(GROUP, 0)
        tokens = policy.sample(prompts, generator)
        rewards = (tokens[:, PROMPT:] % 2 == 0).float().mean(1)
        optimizer.zero_grad()
        policy_loss(policy, reference, tokens, rewards).backward()
        optimizer.step()
        means.append(rewards.mean().item())
    return means


def main() -> None:
    print("step   even tokens")
    for step, reward in enumerate(train()):
        if step % 5 == 0:
            print(f"{step:4d} {reward:13.2f}")


if __name__ == "__main__":
    main()
