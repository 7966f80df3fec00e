"""Next-token models in JAX trained on Python's own help texts, by `xent.jax` and by `optax`, side by side.

Run it: `python examples/jax_next_token.py`. One model is plain JAX, the other one flax; its loss is that of
`xent.jax.linear_cross_entropy`, which never makes the logits of a whole batch. The losses agree step by
step, to float32's rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import xent.jax

Array = jax.Array
Parameters = Any
Loss = Callable[[Parameters, Array, Array], Array]

CONTEXT = 8  # characters that a model sees
WIDTH = 64


def read() -> tuple[np.ndarray, int]:
    """(the help texts as tokens, number of distinct characters)."""
    text = "\n".join(topics[name] for name in sorted(topics))
    characters = sorted(set(text))
    index = {character: i for i, character in enumerate(characters)}
    return np.array([index[character] for character in text]), len(characters)


class Hidden(linen.Module):
    """The hidden state of the flax model; its head is a parameter of its own, (WIDTH, number of tokens)."""

    num_tokens: int

    @linen.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        """(hidden states (N, WIDTH), head)."""
        x = linen.Embed(self.num_tokens, 16)(tokens).reshape(len(tokens), -1)
        head = self.param("head", linen.initializers.lecun_normal(), (WIDTH, self.num_tokens))
        return jnp.tanh(linen.Dense(WIDTH)(x)), head


def plain(num_tokens: int, key: Array) -> tuple[Parameters, dict[str, Loss]]:
    """One hidden layer in plain JAX, and its loss by either library."""
    keys = jax.random.split(key, 3)
    shapes = {"embedding": (num_tokens, 16), "hidden": (16 * CONTEXT, WIDTH), "head": (WIDTH, num_tokens)}
    parameters = {
        name: jax.random.normal(k, shape) / shape[0] ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def logits(parameters: Parameters, tokens: Array) -> Array:
        x = parameters["embedding"][tokens].reshape(len(tokens), -1)
        return jnp.tanh(x @ parameters["hidden"]) @ parameters["head"]

    return parameters, {
        "xent": lambda p, x, y: xent.jax.cross_entropy(logits(p, x), y),
        "optax": lambda p, x, y: optax.softmax_cross_entropy_with_integer_labels(logits(p, x), y).mean(),
    }


def flax(num_tokens: int, key: Array) -> tuple[Parameters, dict[str, Loss]]:
    """One hidden layer in flax, and its loss by either library."""
    model = Hidden(num_tokens)

    def ours(parameters: Parameters, tokens: Array, labels: Array) -> Array:
        hidden, head = model.apply(parameters, tokens)
        return xent.jax.linear_cross_entropy(hidden, head.T, labels)

    def theirs(parameters: Parameters, tokens: Array, labels: Array) -> Array:
        hidden, head = model.apply(parameters, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ head, labels).mean()

    return model.init(key, jnp.zeros((1, CONTEXT), int)), {"xent": ours, "optax": theirs}


MODELS = {"plain": plain, "flax": flax}


def train(name: str, library: str, steps: int, batch: int = 512, seed: int = 0) -> list[float]:
    """Losses, in nats a character, of ``steps`` steps of Adam from the same start on the same batches."""
    tokens, num_tokens = read()
    parameters, losses = MODELS[name](num_tokens, jax.random.key(seed))
    optimizer = optax.adam(0.02)
    state, gradient = optimizer.init(parameters), jax.value_and_grad(losses[library])

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: Parameters, state: Any, x: Array, y: Array) -> tuple[Parameters, Any, Array]:
        value, grads = gradient(parameters, x, y)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(parameters, updates), state, value

    rng, values = np.random.default_rng(seed), []
    for _ in range(steps):
        start = rng.integers(len(tokens) - CONTEXT, size=batch)
        window = tokens[start[:, None] + np.arange(CONTEXT + 1)]
        parameters, state, value = step(parameters, state, window[:, :-1], window[:, -1])
        values.append(float(value))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    for name in MODELS:
        ours, theirs = (train(name, library, steps) for library in ("xent", "optax"))
        print(f"{name}\n{'step':>6} {'xent.jax':>12} {'optax':>12} {'difference':>12}")
        for step in sorted({0, 1, 2, steps // 2, steps - 1} & set(range(steps))):
            a, b = ours[step], theirs[step]
            print(f"{step:>6} {a:>12.6f} {b:>12.6f} {abs(a - b):>12.1e}")


if __name__ == "__main__":
    main()
