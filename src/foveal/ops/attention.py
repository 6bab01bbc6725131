"""Softmax attention with unequal key and value widths."""

from foveal.ops import reference

softmax_attention = reference.softmax_attention
cosine_attention = reference.cosine_attention
perceptron_attention = reference.perceptron_attention
channel_attention = reference.channel_attention
