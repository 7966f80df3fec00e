"""`xent explain`: `steps` computes the numbers of one row, `explorer` makes the interactive page."""
