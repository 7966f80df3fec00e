"""From bytes to rows and back: files of arrays, tables, data sets and models.

`dataset` opens whatever data the command is given; `tables` reads CSV and Parquet, `arrays` npy, npz,
safetensors and Parquet a few rows at a time; `preprocess` makes features of columns; `storage` writes tensors
and JSON.
"""
