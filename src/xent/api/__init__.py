"""What `import xent` gives: losses of arrays computed here, those of tensors by `xent.torch`."""
