"""Data read in parts.

`sources` reads many files, or a large one, a piece at a time; `learning` learns the preprocessing from them,
`held_out` chooses rows to hold out, and `row_cache` keeps prepared rows on disk.
"""
