"""A linear layer whose cross-entropy is computed without its logits, whoever asks for it.

`layer` replaces the layer's forward, which then returns `logits.Logits`: an object that stands for the matrix
of logits. `formula` says what they are in terms of hidden states, weights and a link; `operations` has the
operations that change only the formula, and the loss. For any other operation `Logits` computes the matrix as
PyTorch does. `guards` has the calls that are left to PyTorch and the errors for what would go wrong,
`wrappers` the modules around the layer that look for tensors in their output. `report` counts what happened.
"""

from xent.torch.fused.report import counts

__all__ = ["counts"]
