"""From bytes to rows and back: data sets, models, and the files that hold them.

`dataset` reads the data that the command is given, of any kind; `formats` has a module for each kind of file.
`data_files` opens a file, whatever it is packed in. `cells` decides what one cell of a table means, `tables`
makes columns of numbers and categories of them, `labels` checks labels, and `skipped` finds blank rows, empty
columns and pandas' index. `preprocess` scales and one-hot encodes columns. `parts` reads many files, or a
large one, a piece at a time. `arrays` opens the arrays of `xent eval`. `storage` writes files atomically and
reads model files. `errors` has DataError and turns the errors of polars into it; `phrases` formats counts,
lists and names for people, `json_values` values for JSON.
"""
