"""The report of `xent fit`: a training run, its diagnosis, and the HTML page about it.

`training` makes the run, of rows in memory or, by `streamed`, of files larger than it, or, by `on_dask`, of
files that dask's workers read. `diagnosis` computes numbers from the held-out logits, `data_checks` and
`text_columns` look for problems of the data, `coefficients` describes the model, `effects` the largest of
its coefficients, and `verdict` sums up in sentences. `plots` draws the pictures, `page` makes the page, and
`plain` its numbers for JSON.
"""
