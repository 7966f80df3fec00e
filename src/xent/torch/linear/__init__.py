"""Losses of a linear layer's logits, which are never whole in memory.

`loss` computes `functional.linear_cross_entropy`; `rows` selects the rows that count and computes their
losses, `shifts` those of several shifts, `values` what else a call wants; `program` puts these together, and
`tempered` divides the logits by a temperature of each row. `chunked` evaluates and differentiates a function
of the logits chunk by chunk, with the matrix products of `products`. `statistics` has the public row
statistics, whose function of logits is in `row_stats`; `distillation` has the divergences from a teacher.
`operators` makes custom operators of them for compiled graphs.
"""
