"""The recipe for a policy gradient: it learns, and its loss is that of its logits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from examples import policy_gradient  # noqa: E402


def test_a_policy_writes_what_is_rewarded():
    rewards = policy_gradient.train(steps=25)
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5


def test_the_policy_loss_is_that_of_its_logits():
    torch.manual_seed(0)
    policy, reference = policy_gradient.Policy().double(), policy_gradient.Policy().double()
    tokens = torch.randint(policy_gradient.VOCABULARY, (32, policy_gradient.LENGTH))
    rewards = torch.rand(32, dtype=torch.float64)
    found = policy_gradient.policy_loss(policy, reference, tokens, rewards)

    def log_probs(model):
        return model.head(model.hidden(tokens))[:, policy_gradient.PROMPT - 1 : -1].log_softmax(-1)

    labels = tokens[:, policy_gradient.PROMPT :, None]
    log_p = log_probs(policy)
    chosen = log_p.gather(-1, labels)[..., 0]
    gap = log_probs(reference).detach().gather(-1, labels)[..., 0] - chosen
    entropy = -(log_p.exp() * log_p).sum(-1)
    groups = rewards.reshape(2, 16)
    advantages = (groups - groups.mean(1, keepdim=True)).reshape(32, 1)
    penalty = policy_gradient.BETA * (gap.exp() - gap - 1)
    expected = (-advantages * chosen + penalty - policy_gradient.BONUS * entropy).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    parameters = list(policy.parameters())
    for a, b in zip(
        torch.autograd.grad(3 * found, parameters), torch.autograd.grad(3 * expected, parameters), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)
