"""One loss on one batch, for arrays and tensors: the order in which kernels and head are called.

`checks` checks the arguments that are arrays; `batch_loss` evaluates equations (1) to (4); `binary` does so
for one logit an element; `chunked_projection` computes the logits of a linear layer chunk by chunk, for the
rows that `valid_rows` selects; `row_columns` makes the statistics that users ask for from those of the
kernels; `memory` allocates large results.
"""
