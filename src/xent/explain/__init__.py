"""The parts of `xent explain`: `steps` computes a row in numbers, `explorer` makes a page to play with."""
