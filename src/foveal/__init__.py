"""Attention for convolutional networks, from paper to product."""

__version__ = "0.1.0"
