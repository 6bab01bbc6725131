"""Gates on a CPU in one call: kernels that numba compiles, on PyTorch's own threads."""
