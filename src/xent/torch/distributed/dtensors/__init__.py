"""Losses and row statistics of DTensors over a mesh of one dimension.

`loss`, `statistics` and `distillation` compute those of checked calls, with `linear_rows` the linear loss of
sharded rows. `layouts` has the placements that they take, and changes of placement; `rows` the layout of rows
that stay on their ranks.
"""
