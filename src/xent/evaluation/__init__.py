"""The computations of `xent eval`: `scoring` scores a few rows, `stream` reads the files and adds up."""
