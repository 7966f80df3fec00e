"""The command `xent`: `cli` turns exceptions into one line and an exit code; `app` has the subcommands.

Each subcommand is a module: `fit`, `predict`, `evaluate`, `explain`, `check`. They print with `screen`;
`outputs` checks that the files they write are different and can be written.
"""
