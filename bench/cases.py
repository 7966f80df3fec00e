"""The table of what is measured: shape × dtype × provider."""

from __future__ import annotations

from typing import NamedTuple

GRADIENT = (
    "xent_into_buffer",
    "xent_fresh",
    "xent_loss",
    "xent_torch",
    "xent_torch_compile",
    "torch_eager",
    "torch_compile",
    "numpy_textbook",
)
LARGE = ("copy", *GRADIENT)
HESSIAN = (*LARGE, "xent_hvp")


class Case(NamedTuple):
    """Logits of ``shape`` with the classes on ``class_axis``; ``calls`` of a provider are one sample."""

    shape: tuple[int, ...]
    providers: tuple[str, ...]
    dtype: str = "float32"
    class_axis: int = -1
    calls: int = 1


CASES = {
    "4096x32768": Case((4096, 32768), HESSIAN),
    "1024x128256": Case((1024, 128256), LARGE),
    "65536x1000": Case((65536, 1000), HESSIAN),
    "2000000x10": Case((2_000_000, 10), HESSIAN),
    "8x21x512x512": Case((8, 21, 512, 512), LARGE, class_axis=1),
    "32x10": Case((32, 10), GRADIENT, calls=1000),  # the cost of a call: a copy says nothing here
    "4096x32768-float64": Case((4096, 32768), LARGE, "float64"),
    "4096x32768-bfloat16": Case((4096, 32768), LARGE, "bfloat16"),
    "4096x32768-float16": Case((4096, 32768), LARGE, "float16"),
}
