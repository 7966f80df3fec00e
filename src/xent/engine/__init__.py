"""One loss on one batch, for arrays and tensors: the order in which kernels and head are called.

`checks` is the front door for arrays; `batch_loss` evaluates equations (1) to (4); `binary` does it for one
logit an element; `chunked_projection` computes the logits of a linear layer chunk by chunk, for the rows
that `valid_rows` selects; `memory` allocates large results.
"""
