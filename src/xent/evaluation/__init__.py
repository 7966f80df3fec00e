"""The computations of `xent eval`.

`stream` reads the files and has threads score their rows; `shapes` checks that they go together. `scoring`
scores a few rows, `tally` adds up such scores, and `standard_errors`, `class_scores` and `calibration` have
the statistics of the sums and of a sample of the rows. `comparison` compares two models, `largest_rows` keeps
the costliest rows, `ordered_results` brings the results of threads into order. `words` and `plain` format
the results for people and for JSON.
"""
