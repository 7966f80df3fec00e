"""The row statistics that users ask for, from those of the kernels; for arrays and tensors alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xent.core import softmax
from xent.core.contract import RowStatistics, RowStats
from xent.core.link import Link

Array = Any

DEFAULT = ("lse", "log_prob", "entropy", "argmax")
OF_LABELS = ("log_prob", "is_top1")

# What is computed for a row, the columns that have derivatives first.
COLUMNS = ("lse", "log_prob", "dense_log_prob", "entropy", "log_sum_sq_probs", "mean_logits", "argmax")


def require_want(want: Sequence[str], labels: Any) -> tuple[str, ...]:
    """The names of `RowStatistics` in ``want``, in their order; raises for another name.

    Without labels those of labels are left out of the default, and an error in another ``want``.
    """
    names = RowStatistics._fields
    if isinstance(want, str) or not isinstance(want, Sequence):
        raise TypeError(f"`want` must be a sequence of names, out of {', '.join(names)}; got {want!r}")
    for name in want:
        if name not in names:
            raise ValueError(f"`want` must have names out of {', '.join(names)}; got {name!r}")
    if not want:
        raise ValueError(f"`want` must have at least one name, out of {', '.join(names)}; got {want!r}")
    wanted = tuple(name for name in names if name in want)
    if labels is not None:
        return wanted
    if tuple(want) != DEFAULT:
        for name in OF_LABELS:
            if name in wanted:
                raise ValueError(f"`labels` must be given where `want` has {name!r}; got labels=None")
    return tuple(name for name in wanted if name not in OF_LABELS)


def column_names(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The names of `COLUMNS` from which `collect` makes the statistics ``wanted``."""
    needs = {"argmax" if name == "is_top1" else name for name in wanted}
    return tuple(name for name in COLUMNS if name in needs)


def columns(
    row_stats: Callable[..., RowStats],
    logits: Array,
    labels: Array,
    dense: Array,
    link: Link,
    names: tuple[str, ...],
    widen: Callable[[Array], Array],
    xp: Any,
) -> tuple[Array, ...]:
    """The columns ``names`` of `COLUMNS`, by the kernel ``row_stats`` or a derivable one in its place.

    ``widen`` converts logits to the dtype of their loss.
    """
    fields = [name for name in names if name in RowStats._fields]
    if "log_sum_sq_probs" in names and "argmax" not in fields:
        fields.append("argmax")
    stats = row_stats(logits, labels, dense, link, tuple(fields)) if fields else RowStats()
    by_name = stats._asdict()
    if "log_sum_sq_probs" in names:
        likeliest = likeliest_class(stats.argmax, labels, logits.shape[-1], xp)
        by_name["log_sum_sq_probs"] = _log_sum_sq_probs(row_stats, widen(logits), likeliest, link)
    if "mean_logits" in names:
        by_name["mean_logits"] = softmax.mean_logits(widen(logits), labels, link, xp)
    return tuple(by_name[name] for name in names)


def likeliest_class(argmax: Array, labels: Array, num_classes: int, xp: Any) -> Array:
    """``argmax`` as labels for the kernels; rows with labels out of range keep them."""
    if labels is None:
        return argmax
    return xp.where((labels >= 0) & (labels < num_classes), argmax, labels)


def likeliest_terms(link: Link) -> tuple[tuple[float, Link], ...]:
    """The terms of equation (24): log Σ p² is the sum of factor · log-probability of a class by a link."""
    return (2.0, link), (-1.0, link.doubled())


def _log_sum_sq_probs(row_stats: Callable[..., RowStats], logits: Array, likeliest: Array, link: Link) -> Any:
    return sum(
        factor * row_stats(logits, likeliest, None, phi, ("log_prob",)).log_prob
        for factor, phi in likeliest_terms(link)
    )


def collect(
    by_name: Mapping[str, Array], wanted: tuple[str, ...], labels: Array, convert: Callable[[Array], Array]
) -> RowStatistics:
    """The statistics ``wanted`` of columns by name; ``convert`` brings floats to the dtype of the loss.

    ``labels`` are as the kernels read them: negative for a row that is ignored, which is not top 1.
    """
    fields = {name: by_name[name] for name in wanted if name != "is_top1"}
    fields = {name: x if name == "argmax" else convert(x) for name, x in fields.items()}
    if "is_top1" in wanted:
        fields["is_top1"] = by_name["argmax"] == labels
    return RowStatistics(**fields)
