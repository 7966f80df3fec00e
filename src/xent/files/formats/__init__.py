"""One module for each kind of file, and what they share.

`csv_table`, `parquet`, `npz` and `svmlight` each read one kind. `compressed`, `wide_text`, `json_lines`,
`arrow` and `workbook` each make a file of one of these kinds of another. `row_reader` opens an array that is
read a few rows at a time (`row_stream` has the interface): npy and npz by itself, others by
`safetensors_rows` and `table_rows`; `derived_rows` makes one of several. `foreign` says what a file of
another kind is and how to convert it. `row_numbers` gives each row the number that error messages call it by.
"""
