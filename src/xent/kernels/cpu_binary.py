"""The binary loss of one logit an element, each read once."""

from xent.kernels import _native

binary_loss = _native.binary_loss
