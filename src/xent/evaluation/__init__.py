"""The parts of `xent eval`: `scoring` looks at a few rows, `stream` adds up all of them."""
