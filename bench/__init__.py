"""The benchmark: `python -m bench.run` times every provider on every case, side by side."""
