"""The backends: kernels and their launch, nothing else."""
