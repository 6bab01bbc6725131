"""Non-local pairwise functions (dot product, concatenation) without the N x N matrix."""

from foveal.ops import reference

dot_product = reference.dot_product
concatenation = reference.concatenation
concatenation_attention = reference.concatenation_attention
