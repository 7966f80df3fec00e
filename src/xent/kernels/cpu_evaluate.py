"""The native functions of `xent eval`: per-row results of a block of rows, and sums over rows."""

from xent.kernels import _native

evaluate_rows = _native.evaluate_rows
evaluate_fold = _native.evaluate_fold
