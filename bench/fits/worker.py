"""Fits in a process of their own: timed, weighed and judged in float64; the clock kills what takes too long.

Orders and outcomes pass as lines of JSON: `Worker` is the near end of the pipe, `main` the far one.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse
import threadpoolctl
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from bench import machine
from bench.fits.cases import Data

POOLS = ("as installed", "SciPy's single", "all single")
LONG_ENOUGH, SAMPLES = 1.0, 5  # seconds, or fits, after which one outcome has enough of them
EVER = 1_000_000  # steps


class Worker:
    """The process that fits; a new one after the clock has killed it, or on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.renew()

    def renew(self) -> int:
        """Memory, threads and modules are as new for the next fit. Gives the exit status of the old one."""
        process, self.process = self.process, None
        if process is not None:
            process.communicate()
        return process.returncode if process is not None else 0

    def fit(
        self, who: str, tol: float | None, limit: float, pools: str = POOLS[0], widen: bool = False
    ) -> dict[str, Any]:
        """`outcome`, or how many seconds were not enough, and the order."""
        if self.process is None:
            command, pipe = [sys.executable, "-m", "bench.fits.worker", str(self.folder)], subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=machine.ROOT)
        order = {"who": who, "tol": tol, "limit": limit, "pools": pools, "widen": widen}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline() if self.process.stdout is not None else ""
        if not line and (status := self.renew()) != -signal.SIGALRM:
            raise RuntimeError(f"{who} at tol={tol} must end or be killed by the clock; exit status {status}")
        return {"tol": tol, "pools": pools} | (json.loads(line) if line else {"over_s": limit})


def main() -> None:
    data = load(Path(sys.argv[1]))
    warnings.simplefilter("ignore")  # a fit that has not converged: its objective shows it
    for order in sys.stdin:
        print(json.dumps(outcome(data, **json.loads(order))), flush=True)


def outcome(data: Data, who: str, tol: float | None, limit: float, pools: str, widen: bool) -> dict[str, Any]:
    """Seconds of each fit, the mean loss plus penalty that it reached, and the memory that it took."""
    _thin(pools)
    x, y = data.features.astype(np.float64) if widen else data.features, data.labels
    model = estimator(who, tol, data)
    few = np.union1d(np.unique(y, return_index=True)[1], np.arange(min(200, len(y))))
    clone(model).set_params(max_iter=2).fit(x[few][:, :50], y[few])  # threads are started, modules loaded
    before = _forget_peak_memory()
    seconds: list[float] = []
    signal.setitimer(signal.ITIMER_REAL, limit)  # nobody handles this signal: it kills
    while not seconds or (sum(seconds) < LONG_ENOUGH and len(seconds) < SAMPLES):
        start = time.perf_counter()
        model.fit(x, y)
        seconds.append(time.perf_counter() - start)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if len(seconds) == 1:
            growth = _memory("VmHWM") - before
    certificate = getattr(model, "optimality_gap_", None)
    return {
        "samples_s": seconds,
        "objective": objective(data, model),
        "steps": int(np.max(model.n_iter_)),
        "growth MiB": growth,
        "certificate": None if certificate is None else float(certificate),
        "solver": getattr(model, "solver_", None),
    }


def estimator(who: str, tol: float | None, data: Data) -> Any:
    """ "library solver" with the penalty of the data; without a tolerance, whatever the library does."""
    library, solver = who.split()
    options = {} if tol is None else {"solver": solver, "tol": tol, "max_iter": EVER}
    if library == "sklearn":
        return LogisticRegression(C=1.0 / (data.alpha * len(data.labels)), random_state=0, **options)
    import xent

    return xent.SoftmaxRegression(alpha=data.alpha, random_state=0, **options)


def objective(data: Data, model: Any) -> float:
    """Mean cross-entropy + alpha/2·‖W‖² in float64, by the textbook, in blocks of rows."""
    weight, bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    label = np.searchsorted(model.classes_, data.labels)
    loss = 0.0
    for start in range(0, len(label), 10_000):
        block = slice(start, start + 10_000)
        z = data.features[block].astype(np.float64) @ weight.T + bias
        if z.shape[1] == 1:
            z = np.pad(z, ((0, 0), (1, 0)))
        z -= z.max(1, keepdims=True)
        loss += float(np.log(np.exp(z).sum(1)).sum() - z[np.arange(len(z)), label[block]].sum())
    return loss / len(label) + 0.5 * data.alpha * float(np.vdot(weight, weight))


def save(data: Data, folder: Path) -> None:
    """One file per array."""
    x = data.features
    parts = {"x": x}
    if scipy.sparse.issparse(x):
        parts = {"data": x.data, "indices": x.indices, "indptr": x.indptr}
    for name, part in (parts | {"labels": data.labels, "shape": np.array(x.shape)}).items():
        np.save(folder / f"{name}.npy", part)


def load(folder: Path) -> Data:
    """Straight into new arrays: what the memory of a fit is counted from."""
    part = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    if "x" in part:
        return Data(part["x"], part["labels"])
    compressed = part["data"], part["indices"], part["indptr"]
    return Data(scipy.sparse.csr_matrix(compressed, tuple(part["shape"])), part["labels"])


@cache
def _blas() -> list[tuple[Any, int]]:
    """The BLAS libraries of this process, with the threads they came with."""
    libraries = threadpoolctl.ThreadpoolController().lib_controllers
    return [(library, library.get_num_threads()) for library in libraries if library.user_api == "blas"]


def _thin(pools: str) -> None:
    """NumPy's wheel and SciPy's bring a BLAS pool each, and the two can spin against each other."""
    for library, threads in _blas():
        single = pools == "all single" or (pools == "SciPy's single" and "scipy.libs" in library.filepath)
        library.set_num_threads(1 if single else threads)


def _forget_peak_memory() -> float:
    """MiB in use; the peak starts again from there."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory("VmRSS")


def _memory(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", status)
    return int(kilobytes) / 1024


if __name__ == "__main__":
    main()
