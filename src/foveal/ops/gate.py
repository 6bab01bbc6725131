"""Multiply a feature map by weights: channel and spatial gates."""

from foveal.ops import reference

squeeze = reference.squeeze
channel_scale = reference.channel_scale
spatial_statistics = reference.spatial_statistics
dual_scale = reference.dual_scale
