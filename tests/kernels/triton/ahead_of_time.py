"""Compiles, without a GPU, what a call launches: ``ahead_of_time.py compile|key '[{...}, ...]'`` says how.

Triton decides at its import whether kernels are compiled or interpreted, and the tests interpret them: so
this runs in a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, compute_cache_key, create_function_from_signature

from xent.core.contract import Cotangents, Curvatures, RowStats
from xent.core.link import Link
from xent.kernels.triton import row_grad, row_hvp, row_stats, row_stats_and_grad


class Launch(NamedTuple):
    """One launch: the kernel, its grid and its arguments."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def specialised(self, target: GPUTarget) -> tuple[Any, Any, Any]:
        """(options, the key in Triton's cache of kernels, the source that it compiles if it is not there)."""
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, options = bind(*self.args, **self.kwargs)
        key = compute_cache_key({}, specialization, options)
        options, signature, constexprs, attrs = self.kernel._pack_args(
            backend, self.kwargs, bound, specialization, options
        )
        return options, key, ASTSource(self.kernel, signature, constexprs, attrs)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches within, none of which takes place."""
    launches: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kwargs["debug"] = False
        launches.append(Launch(self, grid, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def launch(
    name: str,
    dtype: str = "float32",
    shape: tuple[int, int] = (8, 1000),
    dense: bool = False,
    softcap: float | None = None,
    temperature: float = 1.0,
    across: bool = False,
    coefficient: float | None = None,
) -> Launch:
    """What a call of ``name`` would launch, for logits of that dtype and shape (and layout)."""
    rows, num_classes = shape
    z = (
        torch.empty(shape[::-1], dtype=getattr(torch, dtype)).T
        if across
        else torch.empty(shape, dtype=getattr(torch, dtype))
    )
    y = torch.empty(rows, dtype=torch.int64)
    v = torch.empty(num_classes) if dense else None
    column = torch.empty(rows, dtype=torch.float64)
    c = column if coefficient is None else coefficient
    link = Link(temperature, softcap)
    want: tuple[str, ...] = ("lse", "log_prob")
    want += ("dense_log_prob", "mass") if dense else ()
    with recorded() as launches:
        if name == "row_stats":
            row_stats(z, y, v, link, (*want, "entropy", "argmax"))
        elif name == "row_grad":
            row_grad(z, y, v, link, RowStats(column, column, mass=column), Cotangents(c, c, c))
        elif name == "row_stats_and_grad":
            row_stats_and_grad(z, y, v, link, Cotangents(c, c, c), want)
        else:
            row_hvp(z, y, v, link, Cotangents(c, c, c), Curvatures(c, c), z)
    (one,) = launches
    return one


def compile(one: Launch, capability: int) -> dict[str, Any]:
    """Registers and spilled bytes of its machine code, and the widths in bits of its global accesses."""
    target = GPUTarget("cuda", capability, 32)
    options, _, source = one.specialised(target)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    ptx = compiled.asm["ptx"]
    tool = knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        arch = re.search(r"\.target (sm_\w+)", ptx)
        assert arch
        said = subprocess.run(
            [tool.path, "-v", f"--gpu-name={arch[1]}", file.name, "-o", "/dev/null"],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    accesses: dict[str, list[int]] = {"ld": [], "st": []}
    for kind, lanes, bits in re.findall(r"(ld|st)\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.b(\d+)", ptx):
        accesses[kind].append(int(lanes or 1) * int(bits))
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),  # type: ignore[index]
        "spilled": sum(map(int, re.findall(r"(\d+) bytes (?:spill|stack)", said))),
        "loads": max(accesses["ld"], default=0),
        "stores": max(accesses["st"], default=0),
        "warps": compiled.metadata.num_warps,
        "shared": compiled.metadata.shared,
    }


def key(one: Launch, capability: int) -> str:
    """Under what it is looked up among the compiled kernels."""
    return str(one.specialised(GPUTarget("cuda", capability, 32))[1])


def main() -> None:
    say = {"compile": compile, "key": key}[sys.argv[1]]
    for call in json.loads(sys.argv[2]):
        capability = call.pop("capability")
        print(json.dumps(say(launch(**call), capability)), flush=True)


if __name__ == "__main__":
    main()
