"""Binary cross-entropy of tensors: `loss`, and its `operators` in compiled graphs."""
