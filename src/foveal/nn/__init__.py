"""Blocks: a feature map in, a feature map of the same shape out."""

from foveal.nn.cbam import CBAM, ChannelGate, SpatialGate
from foveal.nn.dual_attention import ChannelAttention, DualAttention, PositionAttention
from foveal.nn.non_local import NonLocal
from foveal.nn.self_attention import SelfAttention
from foveal.nn.squeeze_excite import SqueezeExcite

# the classes by the names a user types
BLOCKS = {
    "se": SqueezeExcite,
    "cbam": CBAM,
    "nonlocal": NonLocal,
    "selfattention": SelfAttention,
    "dual": DualAttention,
    "position": PositionAttention,
    "channel": ChannelAttention,
}

__all__ = [
    "BLOCKS",
    "CBAM",
    "ChannelAttention",
    "ChannelGate",
    "DualAttention",
    "NonLocal",
    "PositionAttention",
    "SelfAttention",
    "SpatialGate",
    "SqueezeExcite",
]
