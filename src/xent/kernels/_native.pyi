"""
The C++ kernels. Made by nanobind's stubgen from native/bind/: run `make format`.
"""

from typing import Annotated

import numpy
from numpy.typing import NDArray

def row_stats(
    logits: Annotated[NDArray, dict(device="cpu", writable=False)],
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)] | None,
    dense: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    inv_temperature: float,
    softcap: float,
    lse: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    dense_log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    mass: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    entropy: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    argmax: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu")] | None,
) -> None: ...
def row_grad(
    logits: Annotated[NDArray, dict(device="cpu", writable=False)],
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)] | None,
    dense: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    inv_temperature: float,
    softcap: float,
    lse: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu", writable=False)],
    log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu", writable=False)] | None,
    mass: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu", writable=False)] | None,
    dl: object,
    dx: object,
    ds: object,
    out: Annotated[NDArray, dict(device="cpu")],
) -> None: ...
def row_stats_and_grad(
    logits: Annotated[NDArray, dict(device="cpu", writable=False)],
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)] | None,
    dense: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    inv_temperature: float,
    softcap: float,
    dl: object,
    dx: object,
    ds: object,
    out: Annotated[NDArray, dict(device="cpu")],
    lse: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    dense_log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    mass: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
) -> None: ...
def row_hvp(
    logits: Annotated[NDArray, dict(device="cpu", writable=False)],
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)] | None,
    dense: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    inv_temperature: float,
    softcap: float,
    dl: object,
    dx: object,
    ds: object,
    ddl: object,
    ddx: object,
    vector: Annotated[NDArray, dict(device="cpu", writable=False)],
    out: Annotated[NDArray, dict(device="cpu")],
) -> None: ...
def all_in_range(
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)], classes: int
) -> bool: ...
def total(
    column: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu", writable=False)],
) -> float: ...
def linear_stats(
    features: Annotated[NDArray, dict(device="cpu", writable=False)],
    weight: Annotated[NDArray, dict(device="cpu", writable=False)],
    bias: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    zero_class: bool,
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)] | None,
    dense: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    inv_temperature: float,
    softcap: float,
    lse: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    dense_log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    mass: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    entropy: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    argmax: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu")] | None,
) -> None: ...
def linear_stats_and_grad(
    features: Annotated[NDArray, dict(device="cpu", writable=False)],
    weight: Annotated[NDArray, dict(device="cpu", writable=False)],
    bias: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    zero_class: bool,
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)] | None,
    dense: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    inv_temperature: float,
    softcap: float,
    dl: object,
    dx: object,
    ds: object,
    lse: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    dense_log_prob: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    mass: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    dweight: Annotated[NDArray[numpy.float64], dict(shape=(None, None), order="C", device="cpu")],
    dbias: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
) -> None: ...
def linear_hvp(
    features: Annotated[NDArray, dict(device="cpu", writable=False)],
    weight: Annotated[NDArray, dict(device="cpu", writable=False)],
    bias: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    zero_class: bool,
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)] | None,
    dense: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    inv_temperature: float,
    softcap: float,
    dl: object,
    dx: object,
    ds: object,
    ddl: object,
    ddx: object,
    vector: Annotated[NDArray, dict(device="cpu", writable=False)],
    vector_bias: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    dweight: Annotated[NDArray[numpy.float64], dict(shape=(None, None), order="C", device="cpu")],
    dbias: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
) -> None: ...
def evaluate_rows(
    outputs: Annotated[NDArray, dict(shape=(None, None), order="C", device="cpu", writable=False)],
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)],
    probabilities: bool,
    loss: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
    confidence: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
    brier: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
    predicted: Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu")],
    above: Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu")],
    mass: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
    lowest: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")] | None,
) -> None: ...
def evaluate_fold(
    labels: Annotated[NDArray[numpy.int64], dict(order="C", device="cpu", writable=False)],
    loss: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
    confidence: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
    brier: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
    predicted: Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu")],
    above: Annotated[NDArray[numpy.int32], dict(shape=(None,), order="C", device="cpu")],
    top_k: int,
    shift: float,
    by_class: Annotated[NDArray[numpy.float64], dict(shape=(None, None), order="C", device="cpu")],
    guessed: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
    by_bin: Annotated[NDArray[numpy.float64], dict(shape=(None, None), order="C", device="cpu")],
    moments: Annotated[NDArray[numpy.float64], dict(order="C", device="cpu")],
) -> list[int]: ...
def csr_product(
    entries: Annotated[NDArray, dict(device="cpu", writable=False)],
    columns: Annotated[NDArray, dict(device="cpu", writable=False)],
    starts: Annotated[NDArray, dict(device="cpu", writable=False)],
    dense: Annotated[NDArray, dict(device="cpu", writable=False)],
    out: Annotated[NDArray, dict(device="cpu")],
) -> None: ...
def csr_is_sound(
    columns: Annotated[NDArray, dict(device="cpu", writable=False)],
    starts: Annotated[NDArray, dict(device="cpu", writable=False)],
    width: int,
) -> bool: ...
def binary_loss(
    logits: Annotated[NDArray, dict(device="cpu", writable=False)],
    targets: Annotated[NDArray, dict(device="cpu", writable=False)],
    positive: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    weight: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    upstream: Annotated[NDArray, dict(device="cpu", writable=False)] | None,
    keep: float,
    add: float,
    inv_temperature: float,
    softcap: float,
    scale: float,
    losses: Annotated[NDArray, dict(device="cpu")] | None,
    out: Annotated[NDArray, dict(device="cpu")] | None,
) -> float: ...
def all_within(x: Annotated[NDArray, dict(device="cpu", writable=False)], upper: float) -> bool: ...
def ffi_handlers() -> dict: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> str: ...
def set_threads(most: int) -> int: ...
