"""Sums over the rows of a fit.

`partitions` are the rows, in one memory or several; `partition_sums` is what each computes, where features
are dense and classes few by `fused_loss` in one native pass. `threads` limits thread pools.
"""
