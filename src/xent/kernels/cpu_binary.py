"""The native kernel of the binary loss: one logit for each element, each read once."""

from collections.abc import Callable

from xent.kernels import _native

binary_loss: Callable[..., float] = (
    _native.binary_loss
)  # `...`: the caller passes tuples of arrays and scalars
