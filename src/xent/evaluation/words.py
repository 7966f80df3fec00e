"""The results of `xent eval` in words and formatted numbers, for the screen and for the page."""

from __future__ import annotations

import math

from xent.evaluation.tally import Evaluation
from xent.files.phrases import counted, printable


def numbers(result: Evaluation) -> list[tuple[str, str, str]]:
    """[(name, value, half of its 95% interval, or the interval)]; names begin with blanks beneath others."""
    r = result
    low, high = r.perplexity_interval
    t = (r.loss_interval[1] - r.loss) / r.loss_se if r.loss_se > 0 else 1.96
    gap = r.calibration_gap
    leaning = "" if abs(gap) < 5e-4 else ", overconfident" if gap > 0 else ", underconfident"
    c = r.calibration
    rows = [
        ("loss, nats", f"{r.loss:.6f}", half_interval(t * r.loss_se, "{:.4f}")),
        ("loss, bits", f"{r.bits:.6f}", half_interval(t * r.bits_se, "{:.4f}")),
        ("perplexity", _perplexity(r.perplexity), _between(low, high)),
    ]
    for unit in r.units:
        rows.append((f"bits per {unit.name}", f"{unit.bits:.6f}", half_interval(t * unit.bits_se, "{:.4f}")))
        rows.append((f"  {unit.name} perplexity", _perplexity(unit.perplexity), ""))
    rows += [
        ("  entropy of the targets, H(q)", f"{r.entropy:.6f}", ""),
        ("  divergence from them, KL(q‖p)", f"{r.divergence:.6f}", ""),
        ("  guessing by class frequencies: their entropy", f"{r.frequencies:.6f}", ""),
        (f"  guessing uniformly: ln {r.num_classes:,}", f"{math.log(r.num_classes):.6f}", ""),
    ]
    if r.refinement is not None:
        f = r.refinement
        rows += [
            (
                f"  refinement: at the best temperature, {f.temperature:.3g}",
                f"{f.refinement:.6f}",
                "",
            ),
            (
                "  calibration: what that would save"
                if f.rows == r.rows
                else f"  calibration: saved by it on {f.rows:,} rows",
                f"{f.calibration:.6f}",
                half_interval(1.96 * f.calibration_se, "{:.4f}"),
            ),
        ]
    rows += [
        ("accuracy", f"{r.accuracy:.2%}", interval(*r.accuracy_interval, "{:.2%}")),
        (
            f"label among the {r.top_k} most probable",
            f"{r.top_k_accuracy:.2%}",
            half_interval(t * r.top_k_accuracy_se, "{:.2%}"),
        ),
        ("Brier score", f"{r.brier:.6f}", half_interval(t * r.brier_se, "{:.4f}")),
        ("calibration error, 15 bins", f"{c.error:.4f}", interval(*c.interval, "{:.4f}")),
        ("  that of a calibrated model, by chance", f"{c.expected:.4f}", ""),
        ("  15 bins of equally many rows", f"{c.adaptive:.4f}", interval(*c.adaptive_interval, "{:.4f}")),
        ("    that of a calibrated model, by chance", f"{c.adaptive_expected:.4f}", ""),
        ("    root mean square without bias", f"{c.rms:.4f}", interval(*c.rms_interval, "{:.4f}")),
        (
            f"  mean confidence − accuracy{leaning}",
            f"{gap:+.4f}",
            half_interval(c.gap_interval[1] - gap, "{:.4f}"),
        ),
    ]
    if r.classwise is not None:
        w = r.classwise
        limits = interval(*w.interval, "{:.4f}")
        rows.append(("  of the probabilities of all classes", f"{w.error:.4f}", limits))
        rows.append(("    that of a calibrated model, by chance", f"{w.expected:.4f}", ""))
        limits = interval(*w.rms_interval, "{:.4f}")
        rows.append(("    root mean square without bias", f"{w.rms:.4f}", limits))
    return rows


def _perplexity(value: float) -> str:
    return f"{value:,.4f}" if value < 1e4 else f"{value:.4g}"


def _between(low: float, high: float) -> str:
    return f"{_perplexity(low)} to {_perplexity(high)}" if math.isfinite(high) else ""


def half_interval(half: float, form: str) -> str:
    """Half of a 95% interval, "" if it is not known."""
    return f"± {form.format(half)}" if math.isfinite(half) else ""


def interval(low: float, high: float, form: str) -> str:
    """A 95% interval, "" if it is not known."""
    return f"{form.format(low)} to {form.format(high)}" if math.isfinite(high) else ""


def points(low: float, high: float) -> str:
    """A 95% interval of a share, in points: "0.0 to 3.1"; "not known" if it is not."""
    return interval(100 * low, 100 * high, "{:.1f}") or "not known"


def class_name(label: int, names: list[str] | None) -> str:
    """The name of a class, its index if it has none."""
    return str(label) if names is None else printable(names[label])


def notes(result: Evaluation) -> list[str]:
    """Sentences that the user should know before trusting the numbers."""
    sentences = []
    if result.like_probabilities:
        sentences.append(
            "every row looked at lies in [0, 1] and sums to 1, like probabilities; they were read as "
            "logits. If they are probabilities, say --probabilities"
        )
    if result.undefined:
        first = f"row {result.first_undefined}"
        held = counted(result.undefined, "row holds", "rows hold")
        rows = f"{held} NaN or infinity{': ' if result.undefined == 1 else ', the first is '}{first}"
        sentences.append(f"{rows}; no loss, and no part in the numbers above")
    if result.infinite:
        rows = counted(result.infinite, "row gives its", "rows give their")
        sentences.append(f"{rows} target probability 0: an infinite loss")
    if result.unnormalised:
        rows = counted(result.unnormalised, "row of probabilities does", "rows of probabilities do")
        sentences.append(f"{rows} not sum to 1: divided by the sum")
    if result.unnormalised_targets:
        rows = counted(result.unnormalised_targets, "row of targets does", "rows of targets do")
        sentences.append(f"{rows} not sum to 1: taken without change")
    if not result.like_probabilities and result.loss > math.log(result.num_classes):
        sentences.append(
            "the loss is above that of guessing uniformly: perhaps logits and labels do not belong together"
        )
    return sentences
