"""Losses of a linear layer's output that is never whole in memory.

`loss` computes `functional.linear_cross_entropy`; `rows` says which rows count and what is computed of their
logits. `chunked` goes through the logits chunk by chunk, and derives what is computed of them, with the
matrix products of `products`. `statistics` has the public row statistics and divergences; `row_stats` and
`divergence` say what those compute. `operators` makes operators of all of them for compiled graphs.
"""
