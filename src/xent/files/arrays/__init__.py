"""Arrays that are read a few rows at a time.

`stored_rows` opens those of `xent eval`, in one file, in several or on standard input. `row_reader` opens one
file: npy and npz by itself, others by `safetensors_rows` and `table_rows`; `derived_rows` makes one array of
several. `row_stream` is the interface of all.
"""
