"""Blocks: a feature map in, a feature map of the same shape out."""

from foveal.nn.cbam import CBAM, ChannelGate, SpatialGate
from foveal.nn.dual_attention import ChannelAttention, DualAttention, PositionAttention
from foveal.nn.non_local import NonLocal
from foveal.nn.plain_convolution import PlainConvolution
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

# the classes by the names that weights files have for them: those, and the control of a comparison
RECORDED_BLOCKS = {**BLOCKS, "PlainConvolution": PlainConvolution}

__all__ = [
    "BLOCKS",
    "CBAM",
    "ChannelAttention",
    "ChannelGate",
    "DualAttention",
    "NonLocal",
    "PlainConvolution",
    "PositionAttention",
    "SelfAttention",
    "SpatialGate",
    "SqueezeExcite",
]
