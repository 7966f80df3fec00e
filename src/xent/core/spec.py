"""Every option of the loss: its default, its range and the words of its errors."""

from __future__ import annotations

import inspect
import math
import operator
import reprlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np

from xent.core.label_function import LabelFunction
from xent.core.link import Link

REDUCTIONS = ("mean", "sum", "none")
SMOOTHING_OVER = ("all", "others")
NUMPY = (np.ndarray, np.generic)  # a tuple: PyTorch's compiler rejects a union of types


class ExtraOptions(TypedDict, total=False):
    """The keyword options that PyTorch's own losses do not have."""

    smoothing_over: Literal["all", "others"]
    focal_gamma: float
    poly1_epsilon: float
    z_loss: float
    softcap: float | None
    temperature: float


class Options(ExtraOptions, total=False):
    """The keyword options that every form of the loss takes."""

    class_weight: Any
    sample_weight: Any
    ignore_index: int
    label_smoothing: float


OPTIONS_DOC = {
    "class_weight": """(K,) array, default None
    Factor ``c`` of each class, finite and not negative. The mean divides by ``Σ ω c_y``.""",
    "sample_weight": """array shaped like the rows, default None
    Factor ``ω`` of each row; a row of weight 0 counts nowhere. Boolean: a mask.""",
    "ignore_index": """int, default -100
    Rows with this label have loss 0, gradient 0 and no part in the mean.""",
    "label_smoothing": """float in [0, 1], default 0.0
    Probability ``ε`` moved from the target to the classes.""",
    "smoothing_over": """{"all", "others"}, default "all"
    ``ε/K`` on every class (PyTorch's), or ``ε/(K−1)`` on the other classes.""",
    "focal_gamma": """float >= 0, default 0.0
    ``γ`` of the focal loss ``−(1−p)^γ log p`` (Lin et al., 2017); labels only.""",
    "poly1_epsilon": """float >= -1, default 0.0
    ``ε`` of the poly-1 loss ``−log p + ε (1 − p)`` (Leng et al., 2022); labels only.""",
    "z_loss": """float >= 0, default 0.0
    ``λ`` of ``λ·logsumexp²`` (PaLM: Chowdhery et al., 2022).""",
    "softcap": """float from 1e-30 to 1e30, default None
    ``C`` of ``C·tanh(z/(T·C))``. Infinite logits pass through it unchanged.""",
    "temperature": """float from 1e-30 to 1e30, default 1.0
    ``T`` of ``z/T``. With tensors also one of a single number, which gets its gradient.""",
}


@dataclass(frozen=True, slots=True)
class LossSpec:
    """The checked scalar options of one loss. Weights are arrays and are passed separately."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    smoothing_over: Literal["all", "others"] = field(default="all", metadata={"choices": SMOOTHING_OVER})
    focal_gamma: float = 0.0
    poly1_epsilon: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ignore_index", _as_label("ignore_index", self.ignore_index))
        self._require_float("label_smoothing", "in [0, 1]", lambda x: 0 <= x <= 1)
        _require_choice("smoothing_over", self.smoothing_over, SMOOTHING_OVER)
        self._require_float("focal_gamma", "finite and >= 0", lambda x: x >= 0)
        self._require_float("poly1_epsilon", "finite and >= -1", lambda x: x >= -1)
        self._require_float("z_loss", "finite and >= 0", lambda x: x >= 0)
        # 1/T, C/T and 1/(T·C) must be finite in float32.
        expected, holds = "finite and > 0 (1e-30 to 1e30)", lambda x: 1e-30 <= x <= 1e30
        if self.softcap is not None:
            self._require_float("softcap", f"None or {expected}", holds)
        self._require_float("temperature", expected, holds)
        if self.focal_gamma and self.poly1_epsilon:
            raise ValueError(
                "`focal_gamma` and `poly1_epsilon` cannot be combined: each is a loss of the label; got "
                f"focal_gamma={self.focal_gamma} and poly1_epsilon={self.poly1_epsilon}"
            )
        if self.label_smoothing and (name := self.labels_option()):
            raise ValueError(
                f"`{name}` and `label_smoothing` cannot be combined: `{name}` is defined for labels, not for "
                f"smoothed ones; got {name}={getattr(self, name)} and label_smoothing={self.label_smoothing}"
            )

    def _require_float(self, name: str, expected: str, holds: Callable[[float], bool]) -> None:
        """Convert the option to a float; raise unless it is a number that satisfies ``holds``."""
        value = getattr(self, name)
        require_no_gradient(name, value)
        number = as_float(value)
        if number is None:
            raise TypeError(f"`{name}` must be a number, {expected}; got {value!r}")
        if not (-math.inf < number < math.inf and holds(number)):
            raise ValueError(f"`{name}` must be {expected}; got {reprlib.repr(value)}")
        object.__setattr__(self, name, number)

    @classmethod
    def from_options(cls, options: Options) -> tuple[LossSpec, Any, Any]:
        """Split keyword options into (spec, class_weight, sample_weight)."""
        if not options:
            return _cached((), ()), None, None
        scalars: dict[str, Any] = dict(options)
        class_weight = scalars.pop("class_weight", None)
        sample_weight = scalars.pop("sample_weight", None)
        types = tuple(map(type, scalars.values()))
        try:
            # Only plain values: a tensor is hashed by its address, and its value may change.
            spec = _cached(tuple(scalars.items()), types) if _PLAIN.issuperset(types) else cls(**scalars)
            return spec, class_weight, sample_weight
        except TypeError:  # name the unknown option, if there is one
            unknown = sorted(scalars.keys() - {f.name for f in fields(cls)})
            if unknown:
                names = [*(f.name for f in fields(cls)), "class_weight", "sample_weight"]
                raise TypeError(
                    f"unknown option `{unknown[0]}`; the options are {', '.join(sorted(names))}"
                ) from None
            raise

    @property
    def link(self) -> Link:
        """φ of equation (2)."""
        return Link(self.temperature, self.softcap)

    @property
    def label_function(self) -> LabelFunction:
        """f of equation (1)."""
        return LabelFunction(self.focal_gamma, self.poly1_epsilon)

    @property
    def is_linear(self) -> bool:
        """Whether (1) is linear in the row statistics, so that its cotangents need no first pass."""
        # Compared, for a compiler makes a new graph for each number whose truth is asked.
        return self.z_loss == 0 and self.focal_gamma == 0 and self.poly1_epsilon == 0

    def require_labels(self, name: str) -> None:
        """Raise ValueError if an option is set that needs labels; ``name`` has probabilities."""
        if option := self.labels_option():
            raise ValueError(
                f"`{option}` and probability `{name}` cannot be combined: `{option}` is defined for labels; "
                f"got {option}={getattr(self, option)} and floating `{name}`"
            )

    def labels_option(self) -> str | None:
        """The name of an option that is set and needs labels; None if there is none."""
        function = self.label_function
        if not function.needs_labels:
            return None
        return next(name for name, value in zip(function._fields, function, strict=True) if value)

    def to_numbers(self) -> list[float]:
        """All options but ``ignore_index`` as floats, in the order of the fields.

        Text becomes its index among the choices, and None becomes 0. (A float cannot hold every int64.)
        """
        numbers: list[float] = []
        for name, _, choices in _NUMBERS:
            value = getattr(self, name)
            numbers.append(float(choices.index(value)) if choices else 0.0 if value is None else value)
        return numbers

    @classmethod
    def from_numbers(cls, numbers: Sequence[float], ignore_index: int = -100) -> LossSpec:
        """The options that `to_numbers` was called on."""
        options: dict[str, Any] = {"ignore_index": ignore_index}
        for (name, default, choices), number in zip(_NUMBERS, numbers, strict=True):
            value = choices[int(number)] if choices else number
            options[name] = None if default is None and not number else value
        return cls(**options)


# (name, default, choices if it is text) of each field of `LossSpec` that becomes a number.
_NUMBERS = tuple(
    (f.name, f.default, f.metadata.get("choices")) for f in fields(LossSpec) if f.name != "ignore_index"
)

_PLAIN = frozenset((int, float, bool, str, type(None)))


@lru_cache(maxsize=256)
def _cached(items: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> LossSpec:
    del types  # part of the key: True equals 1, but is not an integer here
    return LossSpec(**dict(items))


def require_reduction(reduction: object) -> None:
    """Raise ValueError unless ``reduction`` is one of "mean", "sum", "none"."""
    _require_choice("reduction", reduction, REDUCTIONS)


F = TypeVar("F", bound=Callable[..., Any])


def with_options(omit: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Write the options of this file into the signature and docstring of a function of ``**options``."""
    names = [name for name in OPTIONS_DOC if name not in omit]
    defaults = {f.name: f.default for f in fields(LossSpec)}
    section = "Options\n-------\n" + "\n".join(f"{name} : {OPTIONS_DOC[name]}" for name in names)

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name))
            for name in names
        ]
        function.__signature__ = signature.replace(parameters=named + options)  # type: ignore[attr-defined]
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("OPTIONS", section)
        return function

    return decorate


def as_float(value: Any) -> float | None:
    """``value`` as a float; None if it is not a real scalar. `float` itself also takes text and complex."""
    if isinstance(value, str | bytes):
        return None
    if isinstance(value, NUMPY) and (value.ndim or value.dtype.kind not in "biufO"):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer above the range of float
        return math.inf
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return None


def require_no_gradient(name: str, value: Any) -> None:
    """Raise TypeError for a PyTorch or JAX value that asks for a gradient, which a number would lose."""
    if not _is_derived(value):
        return
    advice = f"pass its value, such as `{name}.item()`, if that is meant"
    if is_traced := _is_traced(value):
        advice = f"close over a number, or name it in `static_argnames={name!r}` of `jax.jit`"
    if name == "temperature":
        advice = "divide by it what the logits are computed from"
    if is_traced:
        raise TypeError(
            f"`{name}` must be a number here; got a `{type(value).__name__}`, a traced value: {advice}"
        )
    raise TypeError(
        f"`{name}` must be a number here; got a `{type(value).__name__}` that asks for a gradient, which it "
        f"would not get: {advice}"
    )


def _is_derived(value: Any) -> bool:
    """Whether ``value`` may be differentiated; imports neither PyTorch nor JAX."""
    if value is None or isinstance(value, (float, int, str)):
        return False
    if "torch" not in sys.modules or not isinstance(value, (torch := sys.modules["torch"]).Tensor):
        return _is_traced(value)
    if value.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return True
    forward_ad = torch.autograd.forward_ad
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def _is_traced(value: Any) -> bool:
    """Whether JAX traces ``value``; imports no JAX."""
    return any(base.__name__ == "Tracer" for base in type(value).__mro__)


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        expected = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"`{name}` must be one of {expected}; got {value!r}")


def as_index(name: str, value: Any) -> int:
    """``value`` as an int; TypeError for anything but an integer, also for booleans."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if not isinstance(value, bool) and not str(getattr(value, "dtype", "")).endswith("bool"):
            return operator.index(value)
    except TypeError:
        pass
    if _is_traced(value):
        advice = f"close over an integer, or name it in `static_argnames={name!r}` of `jax.jit`"
        raise TypeError(
            f"`{name}` must be an integer; got a `{type(value).__name__}`, a traced value: {advice}"
        )
    raise TypeError(f"`{name}` must be an integer; got {value!r}")


def _as_label(name: str, value: Any) -> int:
    index = as_index(name, value)
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"`{name}` must be an integer of 64 bits; got {reprlib.repr(value)}")
    return index
