"""Times whole fits by xent and scikit-learn at equal objective, and writes fits.json and fits.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import scipy
import sklearn

import xent
from bench import machine
from bench.fits.cases import CASES, Case
from bench.fits.worker import POOLS, Worker, save

TARGETS = {"1e-4": 1e-4, "1e-6": 1e-6}  # (F − F*)/F*
LADDER = tuple(float(f"{10 ** (-1 - rung / 2):.1e}") for rung in range(19))  # 0.1, 0.032, ..., 1e-10
XENT = ("xent auto", "xent lbfgs", "xent newton-cg")
SKLEARN = ("sklearn lbfgs", "sklearn newton-cg", "sklearn newton-cholesky", "sklearn sag", "sklearn saga")
BLAS = SKLEARN[:3]  # the others bring their own loops
DEFAULT = {"xent": "xent auto", "scikit-learn": "sklearn lbfgs"}
EXACT, EXACT_TOL = "xent auto", 1e-8  # gives F*, in float64
Fits = dict[str, dict[str, dict[str, Any]]]  # solver → target → outcome
HESSIAN = 10_000  # parameters; newton-cholesky's matrix then takes 0.8 GB
ROUNDS, SLOW = 3, 15.0  # what took more than SLOW seconds is not fitted again
TIMES, LEAST, MOST = 10.0, 20.0, 60.0  # how often xent's time a fit may take, within LEAST and MOST seconds
METHOD = """\
* Equal objective: mean cross-entropy + alpha/2·‖W‖² with scikit-learn's default C = 1, that is alpha = 1/N,
  is at most the gap asked above its minimum F*, relative to F*. F* is from xent in float64 with a
  certified gap of at most 1e-8, and the run fails if anything goes below. Everyone's F is computed by the
  textbook in float64, not by who is timed.
* Each solver has the loosest tolerance of 0.1, 0.032, 0.01, ..., 1e-10 that reaches the gap. Its time
  is the median of whole fits at that tolerance, in turn with the others, each time in a new process that
  holds X and has fitted 50 of its columns.
* `>`: killed by the clock after ten times the time of xent (but at least 20 s, at most 60). `stays at`: the
  gap at the tightest tolerance. More than 15 s: fitted once. Empty: its Hessian would exceed 0.8 GB.
* Threads as the libraries set them up. scikit-learn has the fastest of three: that, SciPy's BLAS on one
  thread, every BLAS on one thread. liblinear is not there: it penalises the intercept.
* Memory is the growth of the process's peak in one fit to 1e-4: X is not counted.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fits", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--skip", nargs="+", choices=XENT[1:] + SKLEARN, default=[], metavar="SOLVER")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=ROUNDS, metavar="N")
    parser.add_argument("--small", action="store_true", help="tiny data, to try the benchmark; wants --out")
    parser.add_argument("--out", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.small and options.out is None:
        parser.error("--small wants --out: its times say nothing")
    out = options.out or machine.RESULTS
    report = machine.describe((np, scipy, sklearn, xent), len(os.sched_getaffinity(0)), METHOD)
    known = read_known(out / "fits.json")
    cases = dict(known)
    for name in options.cases:
        print(f"{name}: data", file=sys.stderr)
        run = {"run": {key: report[key] for key in ("date", "commit")}}
        case = measure(CASES[name], options.small, options.skip, options.rounds, known.get(name, {}))
        cases[name] = run | case
        report["cases"] = {each: cases[each] for each in CASES if each in cases}
        files = {"fits.json": json.dumps(report, indent=1) + "\n", "fits.md": table(report)}
        machine.write(out, files)


def read_known(path: Path) -> dict[str, Any]:
    """Cases of an earlier report by the same scikit-learn, each with the run that it is of.

    They stay until they are run again, which begins at their tolerances; a time is never taken over.
    """
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if report.get("versions", {}).get("sklearn") != sklearn.__version__:
        return {}
    run = {"run": {key: report[key] for key in ("date", "commit")}}
    return {name: run | case for name, case in report["cases"].items()}


def measure(
    case: Case, small: bool, skip: Sequence[str], rounds: int, known: Mapping[str, Any]
) -> dict[str, Any]:
    """F*, then everyone's tolerances, then everyone's times."""
    data = case.data(small)
    x, num_scores = data.features, case.num_classes if case.num_classes > 2 else 1
    about = {
        "shape": x.shape,
        "nonzeros a row": (x.size if isinstance(x, np.ndarray) else x.nnz) / len(data.labels),
        "dtype": str(x.dtype),
        "classes": case.num_classes,
        "alpha": data.alpha,
        "digest": data.digest(),
    }
    if known.get("digest") != about["digest"]:
        known = {}
    large = (x.shape[1] + 1) * num_scores > HESSIAN
    names = [w for w in XENT + SKLEARN if w not in skip and not (large and w == "sklearn newton-cholesky")]
    with tempfile.TemporaryDirectory() as folder, Worker(Path(folder)) as worker:
        save(data, Path(folder))
        del data, x
        optimum = known.get("optimum") or find_optimum(worker)
        fits = find_tolerances(worker, names, optimum["objective"], known.get("fits", {}))
        time_fits(worker, fits, rounds)
        defaults = {library: worker.fit(who, None, MOST) for library, who in DEFAULT.items()}
    for outcome in [*defaults.values(), *(outcome for each in fits.values() for outcome in each.values())]:
        judge(outcome, optimum["objective"])
    return about | {"optimum": optimum, "fits": fits, "defaults": defaults, "ratios": ratios(fits)}


def find_optimum(worker: Worker) -> dict[str, Any]:
    """F* of the case, certified."""
    outcome = worker.fit(EXACT, EXACT_TOL, 10 * MOST, widen=True)
    _say(EXACT, outcome)
    if not outcome.get("certificate", np.inf) <= EXACT_TOL:
        raise RuntimeError(f"{EXACT} must be certified to {EXACT_TOL:g} to give F*; got {outcome}")
    return {"objective": outcome["objective"], "certificate": outcome["certificate"], "solver": EXACT}


def find_tolerances(worker: Worker, names: Sequence[str], optimum: float, known: Mapping[str, Any]) -> Fits:
    """For each solver and target the outcome at the loosest tolerance that reaches it, or the last one."""
    fits: Fits = {}
    for who in names:
        fits[who] = {}
        tol, pools, outcome = LADDER[0], POOLS[who in BLAS], {}
        for key, target in TARGETS.items():
            if not reached(outcome, target):
                earlier = known.get(who, {}).get(key, {}) if who in SKLEARN else {}
                tol, pools = earlier.get("tol", tol), earlier.get("pools", pools)
                limit = _limit(fits, key) if who in SKLEARN else MOST
                outcome = _descend(worker, who, tol, pools, target, limit, optimum)
                if "pools" not in earlier and not fits[who] and who in BLAS and reached(outcome, target):
                    outcome = _with_best_pools(worker, who, outcome, optimum)
                tol, pools = _next(outcome["tol"]), outcome["pools"]
            fits[who][key] = dict(outcome)
            if not reached(outcome, target):
                break  # nor the next
    return fits


def _descend(
    worker: Worker, who: str, tol: float, pools: str, target: float, limit: float, optimum: float
) -> dict[str, Any]:
    """The first outcome down the ladder that reaches the target, or is killed, or is at the end."""
    for lower in LADDER[LADDER.index(tol) :]:
        outcome = judge(worker.fit(who, lower, limit, pools), optimum)
        _say(who, outcome)
        if "over_s" in outcome or reached(outcome, target):
            break
    return outcome


def _next(tol: float) -> float:
    """One rung down, as far as there is one."""
    return LADDER[min(LADDER.index(tol) + 1, len(LADDER) - 1)]


def _with_best_pools(worker: Worker, who: str, outcome: dict[str, Any], optimum: float) -> dict[str, Any]:
    """The fastest of the outcome and the same fit with the other set-ups of the BLAS pools."""
    for pools in POOLS:
        if pools != outcome["pools"]:
            other = judge(worker.fit(who, outcome["tol"], 1.0 + seconds(outcome), pools), optimum)
            _say(who, other)
            outcome = min(outcome, other, key=seconds)
    return outcome


def _limit(fits: Fits, key: str) -> float:
    """TIMES what xent's fastest takes."""
    ours = [seconds(fits[who][key]) for who in XENT if reached(fits.get(who, {}).get(key), TARGETS[key])]
    return float(np.clip(TIMES * min(ours), LEAST, MOST)) if ours else MOST


def time_fits(worker: Worker, fits: Fits, rounds: int) -> None:
    """Rounds in which every solver that reaches a target runs in turn, in a process of its own."""
    names = list(fits)
    again = {
        (who, key): fit
        for who in names
        for key, fit in fits[who].items()
        if reached(fit, TARGETS[key]) and seconds(fit) <= SLOW
    }
    for fit in again.values():
        fit["samples_s"] = []
    for turn in range(rounds):
        first = turn % len(names)  # nobody always follows the same one
        for who in names[first:] + names[:first]:
            worker.renew()
            for key in TARGETS:
                if fit := again.get((who, key)):
                    outcome = worker.fit(who, fit["tol"], 10 * SLOW, fit["pools"])
                    outcome["samples_s"] = fit["samples_s"] + outcome["samples_s"]
                    # Only the first fit of a process finds its memory as a person's would.
                    outcome["growth MiB"] = fit["growth MiB"] if turn else outcome["growth MiB"]
                    fit.update(outcome)
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr)


def judge(outcome: dict[str, Any], optimum: float) -> dict[str, Any]:
    """The same with its relative gap, if it ended; ValueError if it is below the optimum."""
    if "objective" in outcome:
        outcome["gap"] = outcome["objective"] / optimum - 1.0
        if outcome["gap"] < -2 * EXACT_TOL:
            raise ValueError(f"F* must be the least; got {optimum} where a fit has {outcome['objective']}")
    return outcome


def reached(outcome: Mapping[str, Any] | None, target: float) -> bool:
    """Whether a fit was made, ended, and came as close."""
    return outcome is not None and outcome.get("gap", np.inf) <= target


def seconds(outcome: Mapping[str, Any]) -> float:
    """Median of its samples."""
    return median(outcome["samples_s"]) if "samples_s" in outcome else np.inf


def ratios(fits: Fits) -> dict[str, dict[str, Any]]:
    """For each target scikit-learn's fastest solver that reaches it, in times of xent's "auto"."""
    result = {}
    for key, target in TARGETS.items():
        ours = fits["xent auto"].get(key)
        theirs = [fits[who][key] | {"who": who} for who in SKLEARN if key in fits.get(who, {})]
        arrived = [fit for fit in theirs if reached(fit, target)]
        if reached(ours, target) and arrived:
            fastest = min(arrived, key=seconds)
            result[key] = {"fastest": fastest["who"], "times": seconds(fastest) / seconds(ours)}
        elif reached(ours, target) and (killed := [fit["over_s"] for fit in theirs if "over_s" in fit]):
            result[key] = {"fastest": None, "times": min(killed) / seconds(ours)}
    return result


def table(report: Mapping[str, Any]) -> str:
    """A row per case and target, a row per case at default settings, and what the report's head says."""
    fits = [
        ["case", "gap", *XENT, *SKLEARN, "fastest scikit-learn / xent auto", "xent auto certified", "MiB"]
    ]
    defaults = [["case", *(f"{library}: {what}" for library in DEFAULT for what in ("gap", "time"))]]
    for name, case in report["cases"].items():
        rows, columns = case["shape"]
        title = f"{name} {rows}×{columns} {case['dtype']}, {case['classes']} classes"
        for key, target in TARGETS.items():
            cells = [_cell(case["fits"].get(who, {}).get(key), target) for who in XENT + SKLEARN]
            ours, ratio = case["fits"]["xent auto"].get(key, {}), case["ratios"].get(key)
            times = f"{'' if ratio['fastest'] else '> '}{ratio['times']:.1f} ×" if ratio else ""
            proof = "" if ours.get("certificate") is None else f"{ours['certificate']:.0e}"
            memory = f"{ours['growth MiB']:.0f}" if "growth MiB" in ours else ""
            cells[0] += f" ({ours['solver']})" if ours.get("solver") else ""
            fits.append([title, key, *cells, times, proof, memory])
        pairs = [case["defaults"][library] for library in DEFAULT]
        cells = [cell for fit in pairs for cell in (f"{fit['gap']:.0e}" if "gap" in fit else "", _time(fit))]
        defaults.append([title, *cells])
    lines = ["# Whole fits at equal objective (median time)", "", *machine.rows(fits), ""]
    lines += ["# The same data at each library's own settings", "", *machine.rows(defaults), ""]
    runs = [
        f"{name}: {case['run']['date']}, {case['run']['commit'][:7]}"
        for name, case in report["cases"].items()
    ]
    lines += [machine.facts(report), "", f"Each case in one run. {'; '.join(runs)}."]
    return "\n".join([*lines, "", report["method"]])


def _cell(outcome: Mapping[str, Any] | None, target: float) -> str:
    if outcome is None:
        return ""
    late = "gap" in outcome and not reached(outcome, target)
    return f"stays at {outcome['gap']:.0e}, {_time(outcome)}" if late else _time(outcome)


def _time(outcome: Mapping[str, Any]) -> str:
    if "over_s" in outcome:
        return f"> {outcome['over_s']:.0f} s"
    return f"{seconds(outcome) * 1e3:.0f} ms" if seconds(outcome) < 1.0 else f"{seconds(outcome):.2f} s"


def _say(who: str, outcome: Mapping[str, Any]) -> None:
    gap = f"gap {outcome['gap']:.1e}" if "gap" in outcome else ""
    print(f"  {who}, tol {outcome['tol']:.1e}, {outcome['pools']}: {_time(outcome)} {gap}", file=sys.stderr)


if __name__ == "__main__":
    main()
