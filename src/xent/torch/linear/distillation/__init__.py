"""Divergences of a linear layer's softmax from a teacher's, by chunks, and as custom operators.

`call` has the arguments of a divergence except the teacher's, and the rows that count. The teacher has logits
of its own in `divergence`; in `topk` it is given by some entries of each row, for which `bins` has the
student's log-probabilities.
"""
