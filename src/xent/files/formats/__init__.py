"""One module for each kind of file, and what they share.

`csv_table`, `parquet`, `npz` and `svmlight` each read one kind. `row_reader` reads an array in an npy, npz,
safetensors or Parquet file a few rows at a time. `foreign` says what a file of another kind is and how to
convert it. `row_numbers` gives each row the number that error messages call it by.
"""
