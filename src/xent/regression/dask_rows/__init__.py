"""Rows in dask collections: `SoftmaxRegression.fit` and predictions, imported when they are given some.

`blocks` splits collections into delayed partitions; `first_pass` reads and checks each, and finds the
classes; `sums` evaluates functions of partitions as tasks, added up by a tree of tasks; `predictions` are
lazy; `files` are Parquet files that the workers read, for `xent fit --dask`; `scheduler` runs tasks and names
the partition that fails.

Nothing but `to_delayed`, `delayed`, `compute` and `persist` of dask is used, and `from_delayed` for results.
Tasks are pure, tied to no worker, and keep nothing on one: what a lost worker held is computed again.
"""
