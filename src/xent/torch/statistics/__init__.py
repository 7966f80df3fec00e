"""The row statistics of logits that this process has whole, derivable in them.

`autograd` computes them in every mode. Its first and second derivatives are kernels; higher ones are
ordinary operations, of `softmax_derivatives`. `operators` has the custom operators of compiled graphs, and
`ahead` those of a loss whose gradient is computed with its statistics.
"""
