"""The public functions of `xent`. Arrays are handled here, tensors are passed on to `xent.torch`."""
