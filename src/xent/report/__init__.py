"""The report of `xent fit`: a training run, what its held-out rows show, and the page about it.

`training` is the run itself. `diagnosis` looks at held-out logits, `data_checks` and `text_columns` for what
is odd about the data; `verdict` says what it comes to, `coefficients` what the model is. `plots` draws,
`page` puts all together.
"""
