"""Fits to the rows of files that need not fit in memory.

`rows` names the files and fits; `cached_rows` are the passes over them and over a cache on disk, whose blocks
are the partitions.
"""
