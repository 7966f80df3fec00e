"""Installs a wheel as a stranger would, without a compiler, and uses it.

``python -m tests.packaging.trial PYTHON WHEEL`` makes an environment for that interpreter in a temporary
folder, installs the wheel and its extra `fit` from wheels, trains on digits, and prints the OpenMP runtimes.
Not all that `fit` names has wheels for a Python without a global lock: the tests of threads run there.
At the end it removes the package, of which no file may stay.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.packaging.contents import ROOT

USE = """
import sys, time, numpy as np, xent
from threadpoolctl import threadpool_info
from xent.kernels import cpu
from sklearn.ensemble import HistGradientBoostingClassifier  # scikit-learn's OpenMP beside ours
HistGradientBoostingClassifier(max_iter=2).fit(np.eye(40), np.arange(40) % 2)
loss, grad = xent.cross_entropy_with_grad(np.zeros((200_000, 10), "f4"), np.zeros(200_000, int))
assert abs(loss - np.log(10)) < 1e-6, loss
busy = time.process_time()
time.sleep(1)
busy = time.process_time() - busy
runtimes = [pool["filepath"].split("/")[-2] for pool in threadpool_info() if pool["user_api"] == "openmp"]
assert "xent.libs" in runtimes, runtimes
print(f"Python {sys.version.split()[0]}, kernels {cpu.isas()}, OpenMP of {sorted(runtimes)}")
print(f"CPU time of the second after a call: {busy:.3f} s")
"""
THREAD_TESTS = "tests/kernels/test_threads.py"
TOOLS = ("pytest", "hypothesis", "ml-dtypes", "scipy", "scikit-learn")  # of any version that has a wheel


def main(python: str, wheel: str) -> None:
    """Raise CalledProcessError where a step fails."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        # No compiler and no CMake; nor lscpu, by which scikit-learn would count the cores.
        environment = {"PATH": f"{folder}/bin", "HOME": folder, "LOKY_MAX_CPU_COUNT": "1"}

        def run(*command: str, where: str | Path = folder) -> None:
            start = time.perf_counter()
            program = Path(folder, "bin", command[0])
            subprocess.run([program, *command[1:]], check=True, cwd=where, env=environment)
            seconds = time.perf_counter() - start
            print(f"{seconds:.1f} s: {' '.join(command).splitlines()[0][:100]}", flush=True)

        quiet = ("--quiet", "--disable-pip-version-check", "--only-binary=:all:")
        run("pip", "install", *quiet, str(Path(wheel).resolve()))
        if Path(wheel).name.split("-")[3].endswith("t"):
            run("pip", "install", *quiet, *TOOLS)
            run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", THREAD_TESTS, where=ROOT)
        else:
            run("pip", "install", *quiet, f"{Path(wheel).resolve()}[fit]")
            run("xent", "--version")
            run("xent", "fit", "digits", "--report", "report.html")
        run("pip", "check", "--disable-pip-version-check")
        run("python", "-c", USE)
        run("pip", "uninstall", "--quiet", "--yes", "xent")
        left = sorted(str(path) for path in Path(folder).rglob("*xent*"))
        assert not left, left


if __name__ == "__main__":
    main(*sys.argv[1:])
