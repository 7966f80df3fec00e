"""The report of `xent fit`: a training run, what its held-out rows show, and the page about it.

`training` is the run itself; `diagnosis` looks at held-out logits, `data_checks` for what is odd about the
data; `plots` draws, `page` puts all together.
"""
