"""Kernels that the functions beside this folder choose between; nothing else calls them."""
