"""One module for each kind of file, and what they share.

`csv_table`, `parquet`, `npz` and `svmlight` each read one kind. `compressed`, `wide_text`, `json_lines`,
`arrow` and `workbook` each make a file of one of these kinds of another. `foreign` says what a file of
another kind is and how to convert it. `row_numbers` gives each row the number that error messages call it by.
"""
