"""The losses of `xent.jax` beside optax, JAX's own operations and PyTorch: loss and gradients, compiled."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import torch

import xent.jax
import xent.torch
from bench import machine

Call = Callable[[], Any]
Loss = Callable[..., jax.Array]

ROUNDS, PAUSE = 7, 0.05
METHOD = f"""\
* Loss and gradients of a mean over rows, by `jax.jit(jax.value_and_grad(…))`; compiling is not timed.
* Times: the median over {ROUNDS} rounds; in a round every provider runs once, in turn, after a pause in which
  the threads of the one before go to sleep. A ratio: the median of the ratios within a round.
* All make fresh gradients. Copy: `jnp.copy` of the logits, compiled. textbook: log_softmax and
  take_along_axis of JAX. xent, XLA alone: xent.jax without its C++ kernels, as on other devices.
* Each provider's first result was compared with float64 at 64 rows.
* Linear: gradients in inputs and weight. naive: optax's loss of `inputs @ weight.T`. torch: the loss of
  `xent.torch` of the same arrays. Temporary memory is XLA's own figure for the compiled program.
"""


class Dense(NamedTuple):
    """Logits; ``calls`` are one sample."""

    shape: tuple[int, int]
    dtype: str = "float32"
    calls: int = 1


class Linear(NamedTuple):
    """Rows, width, classes."""

    shape: tuple[int, int, int]
    dtype: str = "float32"


DENSE = {
    "4096x32768": Dense((4096, 32768)),
    "1024x128256": Dense((1024, 128256)),
    "65536x1000": Dense((65536, 1000)),
    "2000000x10": Dense((2_000_000, 10)),
    "4096x32768 bfloat16": Dense((4096, 32768), "bfloat16"),
    "32x10": Dense((32, 10), calls=1000),
}
LINEAR = {
    "2048x512->128000": Linear((2048, 512, 128_000)),
    "4096x1024->32000": Linear((4096, 1024, 32_000)),
    "2048x2048->50304": Linear((2048, 2048, 50_304)),
}


def textbook(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """JAX's operations."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None], -1).mean()


def peer(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """optax's."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def alias(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """xent's by optax's name: one loss a row."""
    return xent.jax.optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def without_kernels(loss: Loss) -> Loss:
    """The same loss compiled without the C++ kernels."""

    def compiled(*arrays: jax.Array) -> jax.Array:
        kernels = xent.jax.kernels
        kernels.choose, kept = lambda logits: kernels.Formulas, kernels.choose
        jax.clear_caches()  # of functions within that are compiled by themselves
        try:
            return loss(*arrays)
        finally:
            kernels.choose = kept
            jax.clear_caches()

    return compiled


def dense(case: Dense, rounds: int) -> dict[str, Any]:
    """Every provider on logits, checked, then timed in turn."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal(case.shape, np.float32) * 2).astype(case.dtype)
    y = jnp.asarray(rng.integers(0, case.shape[1], case.shape[0]).astype(np.int32))
    losses: dict[str, Loss] = {
        "xent, XLA alone": without_kernels(xent.jax.cross_entropy),
        "xent": xent.jax.cross_entropy,
        "xent.jax.optax": alias,
        "optax": peer,
        "textbook": textbook,
    }
    programs = {
        name: jax.jit(jax.value_and_grad(loss)).lower(z, y).compile() for name, loss in losses.items()
    }
    for name, program in programs.items():
        require_right(name, program(z, y), z, y)
    calls: dict[str, Call] = {name: (lambda p=program: p(z, y)) for name, program in programs.items()}
    if case.calls == 1:
        copy = jax.jit(jnp.copy)
        calls["copy"] = lambda: copy(z)
    return timed(calls, rounds, case.calls)


def require_right(name: str, found: Any, logits: jax.Array, labels: jax.Array) -> None:
    """Raise unless the gradient's first rows are those of float64."""
    rows = np.asarray(logits[:64], np.float64)
    p = np.exp(rows - rows.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p[np.arange(len(p)), np.asarray(labels[:64])] -= 1
    error = np.abs(np.asarray(found[1][:64], np.float64) * len(logits) - p).max()
    tolerance = 1e-5 if logits.dtype == np.float32 else 1e-2
    if not error <= tolerance:
        raise ValueError(f"{name}: error of the gradient must be <= {tolerance}; got {error:.3g}")


def linear(case: Linear, rounds: int) -> dict[str, Any]:
    """Every provider on a linear layer, checked, then timed in turn, with XLA's temporary memory."""
    num_rows, width, num_classes = case.shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, width), np.float32)
    w = rng.standard_normal((num_classes, width), np.float32) / np.float32(width**0.5)
    y = rng.integers(0, num_classes, num_rows)
    tensors = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w).requires_grad_()
    arrays = jnp.asarray(x), jnp.asarray(w), jnp.asarray(y.astype(np.int32))
    losses: dict[str, Loss] = {
        "xent": xent.jax.linear_cross_entropy,
        "naive": lambda x, w, y: peer(x @ w.T, y),
    }
    programs = {
        name: jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
        for name, loss in losses.items()
    }
    labels = torch.from_numpy(y)

    def by_torch() -> Any:
        loss = xent.torch.linear_cross_entropy(*tensors, labels)
        return loss.detach(), torch.autograd.grad(loss, tensors)

    calls: dict[str, Call] = {name: (lambda p=program: p(*arrays)) for name, program in programs.items()}
    calls["torch"] = by_torch
    expected = calls["naive"]()
    for name, call in calls.items():
        for a, b in zip(call()[1], expected[1], strict=True):
            error = np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()
            if not error <= 1e-4:
                raise ValueError(f"{name}: relative error of a gradient must be <= 1e-4; got {error:.3g}")
    del expected
    found = timed(calls, rounds, 1)
    found["temporary MiB"] = {
        name: round(program.memory_analysis().temp_size_in_bytes / 2**20)
        for name, program in programs.items()
    }
    return found


def timed(calls: dict[str, Call], rounds: int, times: int) -> dict[str, Any]:
    """Seconds of each, by rounds."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):  # the first is not kept
        for name, call in calls.items():
            gc.collect()
            sleep(PAUSE)
            start = perf_counter()
            for _ in range(times):
                jax.block_until_ready(call())
            if turn:
                samples[name].append((perf_counter() - start) / times)
    return {"samples_s": samples, "median_s": {name: median(x) for name, x in samples.items()}}


def table(report: dict[str, Any]) -> str:
    """Two tables: of logits, and of linear layers."""
    names = ["copy", "xent", "xent.jax.optax", "xent, XLA alone", "optax", "textbook"]
    dense_cells = [["logits", *names, "optax / xent", "optax / xent.jax.optax"]]
    linear_names = ["xent", "naive", "torch"]
    linear_cells = [["linear layer", *linear_names, "xent / naive", "xent / torch", "memory of naive"]]
    for case, found in report["cases"].items():
        if case in DENSE:
            times = [seconds(found["median_s"].get(name)) for name in names]
            gains = [f"{machine.ratio(found, 'optax', name):.2f} ×" for name in ("xent", "xent.jax.optax")]
            dense_cells.append([case, *times, *gains])
            continue
        memory = found["temporary MiB"]
        times = [seconds(found["median_s"][name]) for name in linear_names]
        times = [
            f"{t}, {memory[n]} MiB" if n in memory else t for t, n in zip(times, linear_names, strict=True)
        ]
        gains = [f"{machine.ratio(found, 'xent', name):.2f} ×" for name in ("naive", "torch")]
        linear_cells.append([case, *times, *gains, f"1 / {memory['naive'] / max(1, memory['xent']):.1f}"])
    tables = [machine.rows(cells) for cells in (dense_cells, linear_cells) if len(cells) > 1]
    title = "# Losses and gradients in JAX, on the CPU"
    return "\n\n".join([title, *("\n".join(t) for t in tables), machine.facts(report), report["method"]])


def seconds(time: float | None) -> str:
    """A time in ms, or µs if it is short; nothing for none."""
    if time is None:
        return ""
    return f"{time * 1e3:.1f} ms" if time > 1e-3 else f"{time * 1e6:.1f} µs"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.jax_losses", description=__doc__)
    names = [*DENSE, *LINEAR]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    modules = np, jax, jaxlib, optax, torch, xent
    report = machine.describe(modules, torch.get_num_threads(), METHOD)
    for name in options.cases:
        print(name, file=sys.stderr)
        measure = dense if name in DENSE else linear
        report["cases"][name] = measure({**DENSE, **LINEAR}[name], options.rounds)
        gc.collect()
    text = json.dumps(report, indent=1) + "\n"
    machine.write(options.out, {"jax.json": text, "jax.md": table(report)})


if __name__ == "__main__":
    main()
