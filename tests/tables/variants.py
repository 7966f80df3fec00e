"""The one table of loss variants: every option and the combinations that mean something.

A new option gets a row here, and with it the tests of backends, properties, derivatives and graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

Array = np.ndarray[Any, Any]
Maker = Callable[[tuple[int, ...], int, np.random.Generator], Array]  # (rows, K, rng) -> array
Kind = Literal["labels", "probabilities"]

LABELS: tuple[Kind, ...] = ("labels",)
PROBABILITIES: tuple[Kind, ...] = ("probabilities",)
BOTH: tuple[Kind, ...] = ("labels", "probabilities")


def class_weight(rows: tuple[int, ...], num_classes: int, rng: np.random.Generator) -> Array:
    """(K,) positive weights."""
    return rng.uniform(0.2, 2.0, num_classes)


def class_weight_with_zeros(rows: tuple[int, ...], num_classes: int, rng: np.random.Generator) -> Array:
    """(K,) weights, about a third of them 0."""
    return rng.uniform(0.2, 2.0, num_classes) * (rng.random(num_classes) > 0.3)


def sample_weight(rows: tuple[int, ...], num_classes: int, rng: np.random.Generator) -> Array:
    """(...) weights, about a fifth of them 0."""
    return np.asarray(rng.uniform(0.2, 2.0, rows) * (rng.random(rows) > 0.2))


def mask(rows: tuple[int, ...], num_classes: int, rng: np.random.Generator) -> Array:
    """(...) booleans, about three quarters True."""
    return np.asarray(rng.random(rows) > 0.25)


@dataclass(frozen=True)
class Variant:
    """One row: the options (arrays by their maker), the kinds of target, how rows are reduced."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[Kind, ...] = LABELS
    ignored: float = 0.0  # share of labels set to ignore_index
    denominator: float | Literal["rows"] | None = None

    def make(
        self, kind: Kind, rows: tuple[int, ...], num_classes: int, rng: np.random.Generator
    ) -> tuple[Array, dict[str, Any]]:
        """Read-only targets, and the options with their arrays made for this shape."""
        options = {
            name: value(rows, num_classes, rng) if callable(value) else value
            for name, value in self.options.items()
        }
        if kind == "labels":
            targets = np.asarray(rng.integers(0, num_classes, rows))
            ignore_index = options.get("ignore_index", -100)
            targets = np.where(rng.random(rows) < self.ignored, ignore_index, targets)
        else:
            targets = rng.exponential(size=(*rows, num_classes)) * (rng.random((*rows, num_classes)) > 0.2)
            targets[..., 0] += 0.1
            targets /= targets.sum(-1, keepdims=True)
        for array in (targets, *options.values()):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        return targets, options


VARIANTS = (
    Variant("plain", kinds=BOTH),
    Variant("class_weight", {"class_weight": class_weight}, BOTH),
    Variant("class_weight_zeros", {"class_weight": class_weight_with_zeros}, BOTH),
    Variant("sample_weight", {"sample_weight": sample_weight}, BOTH),
    Variant("mask", {"sample_weight": mask}, BOTH),
    Variant("ignore", ignored=0.3),
    Variant("ignore_255", {"ignore_index": 255}, ignored=0.3),
    Variant("ignore_class_0", {"ignore_index": 0}, ignored=0.1),
    Variant("ignore_all", ignored=1.0),
    Variant("smoothing", {"label_smoothing": 0.1}, BOTH),
    Variant("smoothing_one", {"label_smoothing": 1.0}, BOTH),
    Variant("smoothing_others", {"label_smoothing": 0.1, "smoothing_over": "others"}, BOTH),
    Variant("smoothing_weights", {"label_smoothing": 0.2, "class_weight": class_weight}, BOTH),
    Variant(
        "smoothing_others_weights",
        {"label_smoothing": 0.3, "smoothing_over": "others", "class_weight": class_weight},
        BOTH,
    ),
    Variant(
        "smoothing_others_all",  # nothing is left on the label
        {"label_smoothing": 1.0, "smoothing_over": "others", "class_weight": class_weight},
        BOTH,
        ignored=0.2,
    ),
    Variant("focal_half", {"focal_gamma": 0.5}),
    Variant("focal_1", {"focal_gamma": 1.0}),
    Variant("focal_2", {"focal_gamma": 2.0}),
    Variant("focal_5", {"focal_gamma": 5.0}),
    Variant("focal_weights", {"focal_gamma": 2.0, "class_weight": class_weight}, ignored=0.2),
    Variant("poly1", {"poly1_epsilon": 2.0, "class_weight": class_weight, "softcap": 10.0}, ignored=0.2),
    Variant("z_loss", {"z_loss": 1e-4}, BOTH),
    Variant("z_loss_large", {"z_loss": 0.3}, BOTH),
    Variant("softcap", {"softcap": 30.0}, BOTH),
    Variant("softcap_small", {"softcap": 1.5}, BOTH),
    Variant("temperature", {"temperature": 0.7}, BOTH),
    Variant("temperature_high", {"temperature": 4.0}, BOTH),
    Variant("temperature_softcap", {"temperature": 1.3, "softcap": 5.0}, BOTH),
    Variant("rows", {"class_weight": class_weight}, BOTH, ignored=0.2, denominator="rows"),
    Variant("tokens", {"sample_weight": sample_weight}, BOTH, ignored=0.2, denominator=1000.0),
    Variant("focal_z_loss", {"focal_gamma": 2.0, "z_loss": 0.01}, ignored=0.2),
    Variant("focal_softcap", {"focal_gamma": 0.5, "softcap": 10.0, "temperature": 2.0}),
    Variant(
        "all_linear",
        {
            "class_weight": class_weight,
            "sample_weight": sample_weight,
            "label_smoothing": 0.1,
            "softcap": 20.0,
            "temperature": 0.8,
        },
        BOTH,
        ignored=0.2,
    ),
    Variant(
        "all_smoothed",
        {
            "class_weight": class_weight_with_zeros,
            "sample_weight": mask,
            "ignore_index": -1,
            "label_smoothing": 0.2,
            "smoothing_over": "others",
            "z_loss": 0.02,
            "softcap": 15.0,
            "temperature": 1.5,
        },
        BOTH,
        ignored=0.2,
        denominator="rows",
    ),
    Variant(
        "all_focal",
        {
            "class_weight": class_weight,
            "sample_weight": sample_weight,
            "focal_gamma": 1.5,
            "z_loss": 0.02,
            "softcap": 15.0,
            "temperature": 0.5,
        },
        ignored=0.2,
    ),
)

# (variant, kind) pairs with their test ids: what tests parametrise over.
CASES = [(variant, kind) for variant in VARIANTS for kind in variant.kinds]
CASE_IDS = [f"{variant.name}-{kind}" for variant, kind in CASES]


def chosen(keep: Callable[[Variant, Kind], bool]) -> pytest.MarkDecorator:
    """Parametrises a test over those pairs of the table that it is about."""
    cases = [pytest.param(*case, id=name) for case, name in zip(CASES, CASE_IDS, strict=True) if keep(*case)]
    return pytest.mark.parametrize(("variant", "kind"), cases)


def _structure(variant: Variant, kind: Kind) -> tuple[Any, ...]:
    """Which options are there, whatever their values: what code that runs once for each set of them sees."""
    ignored = variant.ignored > 0 and kind == "labels"
    return (
        frozenset(variant.options),
        variant.options.get("smoothing_over"),
        kind,
        ignored,
        type(variant.denominator),
    )


_FIRST = {_structure(*case): case for case in reversed(CASES)}

every_case = chosen(lambda variant, kind: True)
# The first pair with each set of options: for tests that are slow and that no value of an option can change.
each_structure = chosen(lambda variant, kind: _FIRST[_structure(variant, kind)] == (variant, kind))

# A few that between them use every part of the kernels, for sweeps over shapes and layouts.
FEW = ("plain-labels", "smoothing_weights-labels", "all_linear-probabilities", "all_focal-labels")
FEW_CASES = [case for case, name in zip(CASES, CASE_IDS, strict=True) if name in FEW]
assert len(FEW_CASES) == len(FEW)
each_of_few = chosen(lambda variant, kind: (variant, kind) in FEW_CASES)

# The options of a few for labels, with weights of five classes: for tests of what surrounds the loss.
_SOME = ("plain", "smoothing_weights", "focal_2", "poly1", "z_loss_large", "temperature_softcap")
SOME_OPTIONS = {
    variant.name: variant.make("labels", (6,), 5, np.random.default_rng(0))[1]
    for variant in VARIANTS
    if variant.name in _SOME
}
each_of_some_options = pytest.mark.parametrize("options", SOME_OPTIONS.values(), ids=SOME_OPTIONS)
