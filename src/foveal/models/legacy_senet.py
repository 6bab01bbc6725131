"""The released SE networks, which were trained with Caffe: the two things in which they differ from ours.

Stride 2 sits in a bottleneck's first 1x1 convolution, and the first max-pooling has no padding and rounds up.
"""

from typing import Any

import torch
from torch import nn

from foveal.errors import FovealError
from foveal.insertion import insert
from foveal.models.backbone import timm_backbone

LEGACY = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnext{depth}_32x4d" for depth in (26, 50, 101)),
    "net154",
)


def stride_in_first(net: nn.Module) -> nn.Module:
    """Move the stride of every timm bottleneck from its 3x3 convolution into its first 1x1, in place.

    No weight changes its shape, so a file of weights does not show where the stride was.

    Raises:
        ValueError: ``net`` has no bottleneck with a stride.
    """
    from timm.models.resnet import Bottleneck

    strided = [m for m in net.modules() if isinstance(m, Bottleneck) and m.conv2.stride != (1, 1)]
    if not strided:
        raise FovealError(
            f"the network must have bottlenecks with a stride of their own, got none in {type(net).__name__}"
        )
    for block in strided:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return net


def legacy_senet(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    **options: Any,
) -> nn.Module:
    """timm's ``legacy_se<name>``, the released networks' trunk, with foveal's blocks in place of its SE modules.

    Args:
        name: one of `LEGACY`, such as ``"resnet50"`` or ``"net154"``.
        **options: of `SqueezeExcite`, which has reduction 16, and timm's ``features_only``, ``out_indices``,
            ``drop_rate`` and ``global_pool``.

    Deviation from the paper, as released: in ResNet-18 and -34 a ReLU comes before the SE block.
    """
    if pretrained:
        raise FovealError(
            f"pretrained must be False for legacy_se_{name}; convert timm's weights with foveal.published, got True"
        )
    net = timm_backbone(f"legacy_se{name}", False, num_classes, in_chans, options)
    for module in list(net.modules()):
        if hasattr(module, "se_module"):
            module.se_module = nn.Identity()
    example = torch.zeros(1, in_chans, 64, 64)
    return insert(
        net,
        "se",
        at="layer?.*.se_module",
        **{"start": "paper", "reduction": 16, "example": example, **options},
    )
