"""L-BFGS (SciPy's): one read of X a step, first in the dtype of X, at the end in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np
import scipy.optimize
import threadpoolctl

from xent.objective import Objective
from xent.solvers.certificate import Certificate

Array = np.ndarray[Any, Any]
OnStep = Callable[[Array, float, float | None], None]


def lbfgs(
    objective: Objective, start: Array, max_iter: int, tol: float, on_step: OnStep
) -> tuple[Array, int]:
    """(parameters, steps taken)."""
    certificate = Certificate(objective) if objective.is_convex else None
    parameters, steps = start, 0
    last: dict[str, Any] = {}

    def step(intermediate_result: Any) -> None:
        gap = None
        if certificate is not None:
            gap = certificate.gap(intermediate_result.x, last["value"], last["gradient"])
        on_step(intermediate_result.x, float(intermediate_result.fun), gap)
        if gap is not None and gap <= tol:
            raise StopIteration

    exact = objective.features.dtype == np.float64
    for function in (objective,) if exact else (objective.rounded, objective):

        def evaluate(x: Array, function: Objective = function) -> Any:
            last["value"], last["gradient"] = function(x)
            return last["value"], last["gradient"]

        if steps == max_iter:
            continue
        with _scipy_on_one_thread():
            result = scipy.optimize.minimize(
                evaluate,
                parameters,
                jac=True,
                method="L-BFGS-B",
                callback=step,
                # Only the certificate says that it is done; ftol stops at the last bits of float64.
                options={
                    "maxiter": max_iter - steps,
                    "maxfun": np.iinfo(np.int32).max,
                    "gtol": 0.0,
                    "ftol": 4 * np.finfo(np.float64).eps,
                    "maxls": 50,
                    "maxcor": 20,
                },
            )
        parameters, steps = result.x, steps + result.nit
    return parameters, steps


@contextmanager
def _scipy_on_one_thread() -> Iterator[None]:
    """SciPy's wheel brings a second BLAS pool, which would spin against the one of our products."""
    libraries = _scipy_blas()
    before = [library.get_num_threads() for library in libraries]
    try:
        for library in libraries:
            library.set_num_threads(1)
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set_num_threads(threads)


@cache  # finding the libraries costs milliseconds, setting their threads nothing
def _scipy_blas() -> list[Any]:
    controllers = threadpoolctl.ThreadpoolController().lib_controllers
    return [
        library
        for library in controllers
        if library.user_api == "blas"
        and any(part.startswith("scipy") for part in PurePath(library.filepath).parent.parts[-2:])
    ]
