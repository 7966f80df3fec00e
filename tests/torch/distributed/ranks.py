"""Processes for tests: every rank of a group runs the checks of a test module and reports what went wrong."""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

WORLDS = {2: (4, 7), 3: (5, 0, 6), 4: (1, 0, 7, 3)}  # ranks: the classes of each
K = 11
ROWS = (3, 4)


class Checks(dict[str, Callable[[], None]]):
    """The checks of a module, by their names; as a decorator, adds one."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self[function.__name__] = function
        return function


@functools.cache
def reports(module: str, world: int) -> list[dict[str, str]]:
    """For each rank of a group: check → traceback, of every check of ``module.CHECKS`` that failed."""
    with TemporaryDirectory() as name, mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        folder = Path(name)
        # PyTorch is imported once for all groups.
        multiprocessing.set_forkserver_preload(
            ["pytest", "torch.distributed.tensor", "xent.torch.distributed"]
        )
        with suppress(ProcessExitedException):  # the reports say in which check
            torch.multiprocessing.start_processes(
                _rank, (module, world, folder), world, start_method="forkserver", daemon=True
            )
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def assert_passed(module: str, world: int, name: str) -> None:
    """Fails with the tracebacks of all ranks on which the check ``name`` failed."""
    failed = {rank: r[name] for rank, r in enumerate(reports(module, world)) if name in r}
    assert not failed, "\n".join(f"rank {rank}:\n{error}" for rank, error in failed.items())


def _rank(rank: int, module: str, world: int, folder: Path) -> None:
    checks = importlib.import_module(module).CHECKS
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", None, timedelta(minutes=2), world, rank, store)
    report, file = (
        dict.fromkeys(checks, "the process ended before this check, or in it"),
        folder / f"{rank}.json",
    )
    for name, check in checks.items():
        file.write_text(json.dumps(report))
        del report[name]
        try:
            check()
        except AssertionError:
            report[name] = traceback.format_exc()
        except Exception:  # the ranks may no longer be in step
            report[name] = traceback.format_exc()
            break
    file.write_text(json.dumps(report))
    dist.destroy_process_group()


def sizes() -> tuple[int, ...]:
    """How many classes each rank has."""
    return WORLDS[dist.get_world_size()]


def mine() -> slice:
    """The classes of this rank."""
    start = sum(sizes()[: dist.get_rank()])
    return slice(start, start + sizes()[dist.get_rank()])


def assert_same_everywhere(x: torch.Tensor) -> None:
    """The same bits on all ranks."""
    every = [torch.empty_like(x) for _ in sizes()]
    dist.all_gather(every, x.detach().clone())
    for other in every:
        assert torch.equal(other.nan_to_num(7.0), every[0].nan_to_num(7.0))


def shard_of(targets, options, kind):
    """(this rank's targets, keywords) as tensors, from those of `xent.cross_entropy`."""
    tensors = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    weight = tensors.pop("class_weight", None)
    y = torch.tensor(targets)
    tensors["weight"] = None if weight is None else weight[mine()]
    return y if kind == "labels" else y[..., mine()], {"group": None, "sizes": sizes(), **tensors}


def made(variant, kind, scale=2.0):
    """(logits (*ROWS, K), targets, options) of a variant, the same on every rank."""
    rng = np.random.default_rng(7)
    z = rng.normal(0, scale, (*ROWS, K))
    targets, options = variant.make(kind, ROWS, K, rng)
    return z, targets, {**options, "denominator": variant.denominator}


def arrays(*shapes):
    """Normal numbers, the same on every rank."""
    rng = np.random.default_rng(8)
    return [rng.normal(size=shape) for shape in shapes]


def leaf(array, dtype=torch.float64):
    """A tensor whose gradient is asked for."""
    return torch.tensor(array, dtype=dtype).requires_grad_()


def plain_case():
    """(hidden, this rank's weight, its bias, labels)."""
    x, w, b = arrays((*ROWS, 5), (K, 5), (K,))
    return leaf(x), leaf(w[mine()]), leaf(b[mine()]), torch.arange(12).reshape(ROWS) % K


class Spoken:
    """Counts the all-reduces under it, and their bytes."""

    def __enter__(self):
        from torch.distributed.tensor.debug import CommDebugMode

        self.calls, self.bytes, self._reduce, self._all = 0, 0, dist.all_reduce, CommDebugMode()
        dist.all_reduce = self._count
        self._all.__enter__()
        return self

    def _count(self, x, *rest, **more):
        self.calls += 1
        self.bytes += x.numel() * x.itemsize
        return self._reduce(x, *rest, **more)

    def __exit__(self, *error):
        self._all.__exit__(*error)
        dist.all_reduce = self._reduce
        assert self._all.get_total_counts() == self.calls  # and no other collective
