"""The backends: kernels and their launch, nothing else. No other package calls C++ or Triton.

`registry` finds a backend by name: `reference` is equations (1) to (3) in float64 NumPy, `cpu` the C++ of
`_native`, `triton` that of a GPU. `cpu_linear`, `cpu_binary`, `cpu_evaluate` and `cpu_sparse` call the other
functions of the extension.
"""
