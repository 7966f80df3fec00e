"""The choice of the penalty.

`estimator_cv` is the classifier that makes it, by the held-out losses of `alpha_choice` along a
`penalty_path`.
"""
