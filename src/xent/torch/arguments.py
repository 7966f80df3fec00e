"""Checks of arguments with PyTorch's error messages, and conversion of its layout to classes last."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from xent.core import target as targeting
from xent.core.spec import LossSpec, Options, require_reduction
from xent.engine import checks
from xent.torch import devices, modes

Tensor = torch.Tensor

INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
NO_OPTIONS = LossSpec()


class Names(NamedTuple):
    """The caller's names of arguments, for error messages."""

    logits: str
    targets: str
    weight: str


TORCH = Names("input", "target", "weight")
OURS = Names("logits", "targets", "class_weight")


class ArgumentError(ValueError, RuntimeError):
    """Both a ValueError, as in this library, and a RuntimeError, as in PyTorch."""


class Call(NamedTuple):
    """The arguments of one loss except its logits."""

    targets: Tensor  # labels (...) or probabilities (..., K)
    class_weight: Tensor | None
    sample_weight: Tensor | None
    spec: LossSpec
    reduction: str
    denominator: Any
    validate: bool | None
    names: Names = TORCH
    temperature: Tensor | None = None  # (...), one for each row; that of all rows is in ``spec``

    @property
    def is_soft(self) -> bool:
        """Whether the targets are probabilities."""
        return self.targets.is_floating_point()

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """(targets, class weight, sample weight, denominator); None for a denominator that is no tensor."""
        divisor = self.denominator if isinstance(self.denominator, Tensor) else None
        return self.targets, self.class_weight, self.sample_weight, divisor

    @property
    def by_name(self) -> dict[str, Any]:
        """The arguments that may be tensors, by the names that the caller gave them."""
        return {
            self.names.targets: self.targets,
            self.names.weight: self.class_weight,
            "sample_weight": self.sample_weight,
            "denominator": self.denominator,
            "temperature": self.temperature,
        }

    def checked(self, shape: tuple[int, ...]) -> Call:
        """The call with its arguments, except targets, checked against logits of ``shape (..., K)``."""
        require_reduction(self.reduction)
        if self.targets.is_floating_point():
            require_no_labels(self.spec, self.names.targets)
        if self.class_weight is not None:
            require_weight(self.class_weight, shape[-1], self.names.weight, self.validate)
        if self.sample_weight is not None:
            require_rows(self.sample_weight, shape[:-1], self.validate)
        require_row_temperature(self.temperature, shape[:-1])
        if self.denominator is None:
            return self
        return self._replace(denominator=as_denominator(self.denominator))

    def scale(self, total: Any, rows: Any) -> Any:
        """1/D of equation (4); ``total`` is the weight of the rows that count, ``rows`` their number."""
        return inverse(targeting.divisor(total, rows, self.reduction, self.denominator))


def inverse(divisor: Any) -> Any:
    """1/D, or 0 if D = 0: then loss and gradient are 0."""
    if isinstance(divisor, Tensor):
        divisor = divisor.double()
        return torch.where(divisor == 0, 0.0, 1.0 / torch.where(divisor == 0, 1.0, divisor))
    return 1.0 / divisor if divisor else 0.0


def require_tensor(x: Any, name: str) -> None:
    """Raise TypeError unless ``x`` is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got `{type(x).__name__}`")


def require_local(**tensors: Any) -> None:
    """Raise for a DTensor: per-row arguments must be local tensors."""
    for name, x in tensors.items():
        if isinstance(x, Tensor) and type(x) not in modes.PLAIN and hasattr(x, "to_local"):
            raise NotImplementedError(
                f"`{name}` must be a tensor of this rank; got a DTensor: give its rows by `.to_local()`, or "
                "all of it by `.full_tensor()`"
            )


def require_together(**tensors: Tensor | None) -> None:
    """Raise unless all tensors are dense and on the device of the first."""
    first = device = None
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            continue
        if x.layout != torch.strided:
            raise ArgumentError(f"`{name}` must be a dense tensor, torch.strided; got {x.layout}")
        if first is None:
            first, device = name, x.device
        elif x.device != device:
            raise ArgumentError(
                f"Expected all tensors to be on the same device: `{name}` must be on that of `{first}`, "
                f"{device}; got {x.device}"
            )


def spec_of(**options: Any) -> LossSpec:
    """The checked scalar options; an error of range is also a RuntimeError, as in PyTorch."""
    if not options:
        return NO_OPTIONS
    try:
        if torch.compiler.is_compiling():  # the compiler cannot trace the cache
            return LossSpec(**options)
        return LossSpec.from_options(cast(Options, options))[0]
    except ValueError as error:
        smoothing = "`label_smoothing` must be in [0, 1]"
        words = "label_smoothing must be between 0.0 and 1.0"
        raise ArgumentError(str(error).replace(smoothing, words)) from None


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """``reduction``, or the one that PyTorch's two deprecated arguments mean."""
    if size_average is None and reduce is None:
        return reduction
    return torch.nn.MSELoss(size_average, reduce).reduction


def classes_last(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``input`` (C), (N, C) or (N, C, d1, ...) and its target as views with the classes on the last axis."""
    require_tensor(input, "input")
    require_tensor(target, "target")
    are_rows = input.ndim == 2 and target.ndim == 1 and input.size(0) == target.size(0)
    if are_rows and input.dtype in devices.FLOATING and target.dtype == torch.int64:
        return input, target  # a shortcut for most calls, with the result of the lines below
    if input.dtype not in devices.FLOATING:
        raise ArgumentError(f"`input` must be float64, float32, float16 or bfloat16; got {input.dtype}")
    if input.ndim == 0:
        raise ArgumentError("`input` must have at least one axis, the classes; got a scalar")
    axis = 0 if input.ndim == 1 else 1
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    # Lengths first: comparing entries would put a guard (height ≠ K) into a graph.
    if (
        target.ndim == input.ndim
        and target.shape == input.shape
        and (input.ndim > 1 or target.is_floating_point())
    ):
        if not target.is_floating_point():
            raise ArgumentError(
                "Expected floating point type for target with class probabilities, got "
                f"{target.dtype}: `target` of the shape of `input`, {tuple(input.shape)}, are probabilities"
            )
        if input.ndim > 2:
            input, target = input.movedim(1, -1), target.movedim(1, -1)
        return input, target
    if target.is_floating_point() or target.dtype not in INTEGERS:
        raise ArgumentError(
            f"expected target dtype to be Long or Byte (any integer), got {target.dtype}: `target` of shape "
            f"{tuple(target.shape)} are labels, for `input` of shape {tuple(input.shape)}"
        )
    if target.shape != rows:
        if input.ndim > 1 and target.ndim and input.shape[0] != target.shape[0]:
            raise ArgumentError(
                f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({target.shape[0]})"
            )
        raise ArgumentError(
            f"Expected target size {list(rows)}, got {list(target.shape)}: one label for each row of `input`"
        )
    return (input.movedim(1, -1) if input.ndim > 2 else input), target


def require_no_labels(spec: LossSpec, name: str = "target") -> None:
    """Raise if ``spec`` sets an option of labels, for targets that are probabilities."""
    require_labels_for(spec, name)
    if spec.ignore_index >= 0:
        raise ArgumentError(
            f"ignore_index is not supported for floating point target: `{name}` are probabilities; "
            "mark rows to leave out by `sample_weight`"
        )


def require_labels_for(spec: LossSpec, name: str) -> None:
    """As `LossSpec.require_labels`; also a RuntimeError."""
    try:
        spec.require_labels(name)
    except ValueError as error:
        raise ArgumentError(str(error)) from None


def require_weight(
    weight: Tensor | None, num_classes: int, name: str = "weight", validate: bool | None = False
) -> None:
    """Raise unless ``weight`` is None or has shape (K,). PyTorch's ``weight`` may be negative."""
    if weight is None:
        return
    _require_real(weight, name)
    if weight.shape != (num_classes,):
        raise ArgumentError(
            f"`{name}`: weight tensor should be defined either for all {num_classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )
    if modes.looks_at(weight, validate):
        require_finite(weight, name, is_signed=name == TORCH.weight, axis="class")


def require_rows(sample_weight: Tensor | None, rows: tuple[int, ...], validate: bool | None = False) -> None:
    """Raise unless ``sample_weight`` is None or has the shape of the rows."""
    if sample_weight is None:
        return
    _require_row_shape(sample_weight, "sample_weight", rows)
    if modes.looks_at(sample_weight, validate):
        require_finite(sample_weight, "sample_weight")


def require_row_temperature(temperature: Tensor | None, rows: tuple[int, ...]) -> None:
    """Raise unless ``temperature`` is None or has the shape of the rows; its values are not checked."""
    if temperature is not None:
        expected = "be a number, or a tensor of one number or of"
        _require_row_shape(temperature, "temperature", rows, expected)


def _require_row_shape(x: Tensor, name: str, rows: tuple[int, ...], expected: str = "have") -> None:
    _require_real(x, name)
    if x.shape != rows:
        raise ArgumentError(
            f"`{name}` must {expected} the shape of the rows, {tuple(rows)}; got {tuple(x.shape)}"
        )


def require_factor(
    x: Tensor | None,
    name: str,
    shape: tuple[int, ...],
    like: str,
    validate: bool | None,
    is_signed: bool = True,
) -> None:
    """Raise unless ``x`` is None or a tensor that broadcasts to ``shape``, the shape of ``like``."""
    if x is None:
        return
    _require_real(x, name)
    front = len(shape) - x.ndim
    if front < 0 or any(n not in (1, whole) for n, whole in zip(x.shape, shape[front:], strict=True)):
        raise ArgumentError(
            f"`{name}` must broadcast to the shape of `{like}`, {tuple(shape)}; got {tuple(x.shape)}"
        )
    if modes.looks_at(x, validate):
        require_finite(x, name, is_signed)


def _require_real(x: Any, name: str) -> None:
    require_tensor(x, name)
    if x.is_complex():
        raise ArgumentError(f"`{name}` must be real numbers; got {x.dtype}")


def require_finite(weight: Tensor, name: str, is_signed: bool = True, axis: str = "row") -> None:
    """Raise for a weight that is not finite, or negative unless ``is_signed``; synchronises with a GPU."""
    host = weight.detach().cpu()
    host = host if host.dtype in devices.FLOATING else host.double()
    if not checks.all_within(devices.view(host), torch.finfo(host.dtype).max):
        try:
            checks.check_weights(devices.view(host.double()), name, is_signed, axis)
        except ValueError as error:
            raise ArgumentError(str(error)) from None


def as_denominator(value: Any) -> Any:
    """As `checks.as_denominator`; a tensor stays a tensor if it is derived or not readable."""
    if not isinstance(value, Tensor):
        return checks.as_denominator(value)
    if value.is_complex() or value.dtype == torch.bool or value.layout != torch.strided:
        raise ArgumentError(f"`denominator` must be a real number; got {value.dtype}, {value.layout}")
    if value.ndim:
        raise ArgumentError(f"`denominator` must be a number, of shape (); got {tuple(value.shape)}")
    if value.is_meta or not modes.is_readable(value):
        return value
    try:
        number = checks.as_denominator(value.item())
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    return value if value.requires_grad or modes.is_forward() else number
