"""Losses of linear layers whose logits are computed by chunks of rows and are never whole.

`loss` is the cross-entropy, `statistics` the row statistics, `divergence` that from a teacher; `batches`
checks, flattens and pads the rows of a call; `layers` has the products; `chunked` is the loop over the
chunks; `shards` are classes split over a mesh axis.
"""
