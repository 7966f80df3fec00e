"""Files of fits.

`serialization` converts an estimator to tensors and JSON; `model_file` saves it with its preprocessing;
`checkpoints` are files from which a fit goes on.
"""
