"""The mathematics of a row, on arrays of any library: no kernel, and nothing else of xent.

`spec` has every option; `link` maps raw logits to those of the softmax; `label_function` is the function f of
the label's log-probability; `target` makes one measure of labels or probabilities; `softmax` is the row
statistics and their derivatives, equations (2), (3) and (5); `head` turns them into the loss and its partial
derivatives; `contract` says what passes between the head and the kernels.
"""
