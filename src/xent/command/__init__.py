"""The command `xent`: `cli` turns what goes wrong into one line and an exit code; `app` has the subcommands.

Each subcommand is a module: `fit`, `predict`, `evaluate`, `explain`, `check`. They print with `screen`;
`outputs` keeps the files apart that they write.
"""
