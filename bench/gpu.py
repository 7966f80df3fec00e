"""On a GPU: checks every kernel against float64, times it beside PyTorch, writes gpu.json and gpu.md."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

import xent
import xent.torch
from bench import gpu_linear, machine
from bench.gpu_case import Call, Case, Provider
from xent.core.contract import Cotangents, Curvatures
from xent.core.link import Link
from xent.kernels import registry

Tensor = torch.Tensor

HERE = Path(__file__).parent
REPEATS = 20
METHOD = """\
* Times are medians of 20, between two events of the device, after two calls that are not counted. Before
  each, 512 MB of zeros overwrite the cache.
* Of logits, work is GB, the least that a provider must move: a read of the logits and a write of the
  gradient; another read where a row is longer than what a program holds (32768 classes). Statistics alone are
  a read, a Hessian product two reads and a write. A copy is a read and a write.
* Of a projection, work is a billion operations: those of three products of all rows, whoever does them.
* Share: work a second over that of the case's first provider in the same run: PyTorch's `copy_` of the same
  logits; the three bare products, in chunks of at most 2 GiB of logits.
* Peak: the most that was allocated during a call, beyond the operands; gradients count.
* Random logits of a new seed in each run. Before a provider is timed its loss, and its statistics, gradients
  and products of 64 rows, are compared with float64.
"""
# Largest error accepted, relative to what `require_right` says. PyTorch's and Liger's 16-bit losses and
# gradients are off by percents.
TOLERANCE = {torch.bfloat16: 1 / 128, torch.float32: 2e-5}
LOOSE = {torch.bfloat16: 0.25, torch.float32: 1e-3}


class Clock(Protocol):
    """What times a call."""

    device: str
    description: Mapping[str, Any]

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call, with a cold cache."""
        ...

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes allocated at most during a call, beyond those allocated before."""
        ...


class DeviceClock:
    """Events of the current GPU."""

    device = "cuda"

    def __init__(self) -> None:
        self.cache = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
        properties = torch.cuda.get_device_properties("cuda")
        self.description = {
            "device": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "device memory GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "CUDA": torch.version.cuda,
        }

    def seconds(self, call: Callable[[], object]) -> float:
        """See `Clock`."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def peak(self, call: Callable[[], object]) -> int:
        """See `Clock`."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


class Logits:
    """Loss and derivatives of logits that are there: a `Case`."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
        self.name = f"{shape[0]}×{shape[1]} {str(dtype).partition('.')[2]}"
        self.dtype = dtype
        self.z = torch.randn(shape, device=device, dtype=dtype).mul_(3).requires_grad_()
        self.vector = torch.randn(shape, device=device, dtype=dtype)
        self.y = torch.randint(shape[1], shape[:1], device=device)
        self.out = torch.empty_like(self.z)
        self.rows = torch.randint(shape[0], (64,), device=device)
        self.held = shape[1] <= 32768

    def providers(self) -> Iterator[tuple[str, Provider]]:
        """See `Case`."""
        size = self.z.numel() * self.z.element_size()
        once, fused = 2 * size, (2 if self.held else 3) * size
        exact, loose = TOLERANCE[self.dtype], LOOSE[self.dtype]
        yield "copy", Provider(lambda: {"copy": self.out.copy_(self.z.detach())}, once, 0.0)
        yield "xent", Provider(self._training(xent.torch.cross_entropy), fused, exact)
        compiled = torch.compile(xent.torch.cross_entropy, fullgraph=True)
        yield "xent, compiled", Provider(self._training(compiled), fused, exact)
        for name, (call, size_of_call) in self._kernels(size, fused).items():
            yield name, Provider(call, size_of_call, exact)
        yield "torch, eager", Provider(self._training(F.cross_entropy), once, loose)
        yield "torch, compiled", Provider(self._training(torch.compile(F.cross_entropy)), once, loose)
        if find_spec("liger_kernel"):
            from liger_kernel.transformers.functional import liger_cross_entropy

            # It writes the gradient over the logits: a copy of them is part of a fair step.
            def liger(z: Tensor, y: Tensor) -> Tensor:
                loss: Tensor = liger_cross_entropy(z.clone(), y)
                return loss

            yield "Liger-Kernel", Provider(self._training(liger), once, loose)

    def _training(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Call:
        """Forward and backward of a mean."""

        def call() -> dict[str, Tensor]:
            value = loss(self.z, self.y)
            return {"loss": value.detach(), "gradient": torch.autograd.grad(value, self.z)[0]}

        return call

    def _kernels(self, size: int, fused: int) -> dict[str, tuple[Call, int]]:
        """The four calls of the backend, into a buffer; the gradient's statistics are computed before."""
        kernels = registry.get("triton")
        arrays = (self.z.detach(), self.y, None, Link())
        cotangents = Cotangents(log_prob=-1.0 / len(self.y))
        known = kernels.row_stats(*arrays, ("lse", "log_prob"))

        def both() -> dict[str, Tensor]:
            stats, grad = kernels.row_stats_and_grad(*arrays, cotangents, ("lse", "log_prob"), self.out)
            return {"lse": stats.lse, "log_prob": stats.log_prob, "gradient": grad}

        return {
            "row_stats": (lambda: kernels.row_stats(*arrays, ("lse", "log_prob", "entropy"))._asdict(), size),
            "row_stats_and_grad": (both, fused),
            "row_grad": (
                lambda: {"gradient": kernels.row_grad(*arrays, known, cotangents, self.out)},
                2 * size,
            ),
            "row_hvp": (
                lambda: {
                    "product": kernels.row_hvp(*arrays, cotangents, Curvatures(), self.vector, self.out)
                },
                3 * size if self.held else 5 * size,
            ),
        }

    def require_right(self, name: str, results: Mapping[str, Tensor], tolerance: float) -> None:
        """See `Case`."""
        rows, count = self.rows, len(self.y)
        z, r, y = self.z.detach()[rows].double(), self.vector[rows].double(), self.y[rows]
        log_p = torch.log_softmax(z, -1)
        p, label = log_p.exp(), y[:, None]
        one_hot = F.one_hot(y, z.shape[1])
        rho, size = ((p * x).sum(-1, keepdim=True) for x in (r, r.abs()))
        numbers = {
            "loss": self._mean_loss(),
            "lse": torch.logsumexp(z, -1),
            "log_prob": log_p.gather(1, label)[:, 0],
            "entropy": -(p * log_p).sum(-1),
        }
        # Each with what its error is measured by: an entry by the sum of its terms' absolute values, as in
        # tests/tables/tolerance.py, for a gradient or a product may cancel to any smallness.
        expected = {name: (e, e.abs().clamp_min(1)) for name, e in numbers.items()} | {
            "copy": (z, z.abs()),
            "gradient": ((p - one_hot) / count, (p + one_hot) / count),
            "product": (p * (r - rho) / count, p * (r.abs() + size) / count),
        }
        for what, result in results.items():
            if result is None:
                continue
            e, magnitude = expected[what]
            a = result.double() if what == "loss" else result[rows].double()
            difference = (a - e).abs()
            error = torch.where(difference == 0, 0.0, difference / magnitude).max().item()
            if not error <= tolerance:
                raise ValueError(
                    f"{name}: relative error of the {what} must be <= {tolerance}; got {error:.3g}"
                )

    def _mean_loss(self) -> Tensor:
        """In float64, a few rows at a time."""
        pairs = zip(self.z.detach().split(256), self.y.split(256), strict=True)
        return torch.stack([F.cross_entropy(z.double(), y, reduction="sum") for z, y in pairs]).sum() / len(
            self.y
        )


Maker = Callable[[str], Case]  # (device) → its case
SHAPES = ((8192, 128256), (4096, 32000), (65536, 1000))
# Each section of the report; what makes a case allocates it.
SECTIONS: dict[str, list[Maker]] = {
    "logits": [
        lambda device, shape=shape, dtype=dtype: Logits(shape, dtype, device)  # type: ignore[misc]
        for shape in SHAPES
        for dtype in (torch.bfloat16, torch.float32)
    ],
    "projection": [
        lambda device, shape=shape: gpu_linear.Projected(*shape, torch.bfloat16, device)  # type: ignore[misc]
        for shape in gpu_linear.SHAPES
    ],
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(f"bench.gpu: needs a GPU; PyTorch {torch.__version__} sees none here")
    write(report(options.sections, DeviceClock()), options.out)


def report(sections: Sequence[str], clock: Clock) -> dict[str, Any]:
    """Everything checked and timed."""
    found = machine.describe((torch, xent), torch.get_num_threads(), METHOD)
    found["device"] = dict(clock.description)
    found["versions"] |= {"triton": __import__("triton").__version__}
    found["seed"] = torch.seed()
    found["cases"] = {}
    for section in sections:
        for make in SECTIONS[section]:
            case = make(clock.device)
            print(f"{section}: {case.name}", file=sys.stderr)
            found["cases"].setdefault(section, {})[case.name] = measure(case, clock)
            del case
            gc.collect()
            torch._dynamo.reset()
    return found


def measure(case: Case, clock: Clock) -> dict[str, Any]:
    """Each provider: checked, warmed up, timed; or what went wrong with it."""
    results: dict[str, Any] = {}
    per_second = 0.0
    for name, provider in case.providers():
        try:
            case.require_right(name, provider.call(), provider.tolerance)
            clock.seconds(provider.call)
        except torch.OutOfMemoryError:
            results[name] = {"failed": "out of memory"}
            continue
        samples = [clock.seconds(provider.call) for _ in range(REPEATS)]
        speed = provider.work / median(samples)
        per_second = per_second or speed
        results[name] = {
            "median_s": median(samples),
            "work": provider.work,
            "giga_per_s": speed / 1e9,
            "share": speed / per_second,
            "peak_bytes": clock.peak(provider.call),
            "samples_s": samples,
        }
    return results


def table(found: Mapping[str, Any]) -> str:
    """A row for each case and provider; then what the report's head says."""
    rows = [["case", "provider", "time", "work/s", "share of the first", "peak MiB"]]
    for section in found["cases"].values():
        for case, providers in section.items():
            rows += [[case, name, *_cells(timed)] for name, timed in providers.items()]
    facts = {**found, "machine": found["device"] | found["machine"]}
    lines = ["# Loss and derivatives on a GPU", "", *machine.rows(rows)]
    return "\n".join([*lines, "", machine.facts(facts), "", found["method"]])


def _cells(timed: Mapping[str, Any]) -> list[str]:
    if "failed" in timed:
        return [timed["failed"], "", "", ""]
    return [
        f"{timed['median_s'] * 1e3:.3f} ms",
        f"{timed['giga_per_s']:.0f}",
        f"{timed['share']:.0%}",
        f"{timed['peak_bytes'] / 2**20:.0f}",
    ]


def write(found: Mapping[str, Any], folder: Path) -> None:
    """gpu.json and gpu.md; the table to the terminal too."""
    text = table(found)
    print(text)
    machine.write(folder, {"gpu.json": json.dumps(found, indent=1) + "\n", "gpu.md": text})


if __name__ == "__main__":
    main()
