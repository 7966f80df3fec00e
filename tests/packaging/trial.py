"""Installs a wheel as a stranger would, without a compiler, and uses it.

``python -m tests.packaging.trial PYTHON WHEEL`` makes an environment for that interpreter in a temporary
folder, installs the wheel and its extra `fit` from wheels, trains on digits, and prints the OpenMP runtimes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

USE = """
import sys, numpy as np, xent
from threadpoolctl import threadpool_info
from xent.kernels import cpu
loss, grad = xent.cross_entropy_with_grad(np.zeros((200_000, 10), "f4"), np.zeros(200_000, int))
assert abs(loss - np.log(10)) < 1e-6, loss
from sklearn.ensemble import HistGradientBoostingClassifier  # scikit-learn's OpenMP beside ours
HistGradientBoostingClassifier(max_iter=2).fit(np.eye(40), np.arange(40) % 2)
runtimes = [pool["filepath"].split("/")[-2] for pool in threadpool_info() if pool["user_api"] == "openmp"]
assert "xent.libs" in runtimes, runtimes
print(f"Python {sys.version.split()[0]}, kernels {cpu.isas()}, OpenMP of {sorted(runtimes)}")
"""


def main(python: str, wheel: str) -> None:
    """Raise CalledProcessError where a step fails."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        # No compiler and no CMake; nor lscpu, by which scikit-learn would count the cores.
        environment = {"PATH": f"{folder}/bin", "HOME": folder, "LOKY_MAX_CPU_COUNT": "1"}

        def run(*command: str) -> None:
            start = time.perf_counter()
            program = Path(folder, "bin", command[0])
            subprocess.run([program, *command[1:]], check=True, cwd=folder, env=environment)
            seconds = time.perf_counter() - start
            print(f"{seconds:.1f} s: {' '.join(command).splitlines()[0][:100]}", flush=True)

        quiet = ("--quiet", "--disable-pip-version-check", "--only-binary=:all:")
        run("pip", "install", *quiet, str(Path(wheel).resolve()))
        run("pip", "install", *quiet, f"{Path(wheel).resolve()}[fit]")
        run("pip", "check", "--disable-pip-version-check")
        run("xent", "fit", "digits", "--report", "report.html")
        run("python", "-c", USE)


if __name__ == "__main__":
    main(*sys.argv[1:])
