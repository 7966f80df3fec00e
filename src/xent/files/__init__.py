"""From bytes to rows and back: files of arrays, tables, data sets and models.

`dataset` opens whatever data the command is given, and `foreign` says what a file is that is none of those.
`csv_table`, `parquet`, `npz` and `svmlight` read one kind each; `arrays` reads npy, npz, safetensors and
Parquet a few rows at a time. `tables` makes columns of numbers and categories, cell by cell as `cells`
understands them; `indexes` leaves out what is no data; `row_numbers` says what a row is called. `preprocess`
makes features of columns; `storage` writes tensors and JSON; `faults` turns errors of readers into one line;
`words` are for people.
"""
