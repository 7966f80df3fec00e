"""Whether probabilities are what they say.

`bins` has the calibration errors of the likeliest class, `classwise` those of all classes, and `refinement`
the temperature that calibrates best; those two are of a sample of the rows.
"""
