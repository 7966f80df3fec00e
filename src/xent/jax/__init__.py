"""xent for JAX: the loss and its statistics, traceable, with derivatives of every order in every mode.

`functional` is what users call, and `optax` has optax's names for it; `arguments` and `targets` check and
convert what they pass; `dense` is the loss of logits, `binary` that of single logits, `linear` that of a
linear layer's output. `softmax` and `sigmoid` keep the tails in their derivatives; `derivatives` makes first
ones come with the value. `kernels` has the two ways to the row statistics: formulas, and by `ffi` the C++
kernels, which `primitives` makes operations of JAX.
"""

from __future__ import annotations

MINIMUM = "0.5.3"


def _require_jax() -> None:
    """Raise ImportError, in one line, unless a JAX that was tried is there."""
    try:
        import jax
    except ImportError as error:
        raise ImportError(f'xent.jax needs jax >= {MINIMUM}: pip install "xent[jax]" ({error})') from None
    installed = tuple(int(part) for part in jax.__version__.split(".")[:3] if part.isdigit())
    if installed < tuple(map(int, MINIMUM.split("."))):
        raise ImportError(f"xent.jax needs jax >= {MINIMUM}; found {jax.__version__}")


_require_jax()

from xent.jax import optax  # noqa: E402
from xent.jax.binary import binary_cross_entropy  # noqa: E402
from xent.jax.functional import cross_entropy, row_statistics  # noqa: E402
from xent.jax.linear.divergence import linear_kl_divergence  # noqa: E402
from xent.jax.linear.loss import linear_cross_entropy  # noqa: E402
from xent.jax.linear.statistics import linear_row_statistics  # noqa: E402
from xent.jax.softmax import log_softmax, logsumexp, softmax  # noqa: E402

__all__ = [
    "binary_cross_entropy",
    "cross_entropy",
    "linear_cross_entropy",
    "linear_kl_divergence",
    "linear_row_statistics",
    "log_softmax",
    "logsumexp",
    "optax",
    "row_statistics",
    "softmax",
]
