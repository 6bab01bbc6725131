"""Segmentation networks: a dilated timm backbone and one of five heads.

``danet`` is Fu et al.'s; the others hold everything else equal, so that a comparison measures the attention alone.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.models.backbone import features_backbone
from foveal.nn import ChannelAttention, NonLocal, PositionAttention, check

HEADS = ("danet", "danet_position", "danet_channel", "fcn_nonlocal", "fcn")
AUXILIARY_WEIGHT = 0.4


def conv_bn_relu(channels_in: int, channels: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class AttentionBranch(nn.Sequential):
    """3x3 convolution to the head's width, attention, 3x3 convolution (DANet figure 2, one of its two rows)."""

    def __init__(self, channels_in: int, channels: int, attention: nn.Module | None):
        super().__init__(conv_bn_relu(channels_in, channels))
        if attention is not None:
            self.append(attention)
        self.append(conv_bn_relu(channels, channels))


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))


class SegmentationNet(nn.Module):
    """Backbone at stride 8, head, logits at the size of the input.

    Args:
        head: ``"danet"`` (position and channel attention, summed, three classifiers), ``"danet_position"``,
            ``"danet_channel"`` (one of the two), ``"fcn_nonlocal"`` (a Non-local block in their place) or ``"fcn"``
            (none).
        backbone: any timm model with ``features_only`` and ``output_stride``, such as ``"resnet18"``.
        pretrained: load timm's weights of the backbone.
        num_classes: classes.
        in_chans: channels of the image.
        output_stride: 8, 16 or 32, by dilation.
        multi_grid: factors on the dilation of the last stage's blocks, ``(1, 2, 4)`` in DANet's code; ResNets only.
        width: channels of the head; a quarter of the backbone's, at least 64, as in the published code.
        channel_form: softmax of the channel attention, ``"code"`` (the default) or ``"paper"``, see
            `ChannelAttention`; for heads that have it.
        attention: False leaves the attention out of head ``"danet"``, whose two branches and three classifiers stay.
        branch_classifiers: False leaves out the classifiers of the two branches of head ``"danet"``, and with them
            their losses. Both are for telling apart what attention does and what the two more losses do.
        auxiliary: a plain classifier on the stage before the last (mmsegmentation gives its loss weight 0.4).
        dropout: before each classifier, from 0 to below 1.
        align_corners: of the bilinear enlargement of the logits; True in DANet's code, False in mmsegmentation.

    ``forward``: images (b, in_chans, h, w) of any size -> dictionary of logits (b, num_classes, h, w): ``"fused"``
    and, while training, ``"position"``, ``"channel"`` and ``"auxiliary"`` where the head has them.

    Raises:
        ValueError: unknown head or backbone, a backbone without dilation, multi_grid of the wrong length, an option
            outside its range or one that the head does not have.

    Source: Fu et al., Dual Attention Network for Scene Segmentation, figure 2 and section 3.4; the published code
    for the three classifiers, the widths and the multi-grid.

    Example:
        >>> import torch
        >>> net = SegmentationNet("danet", "resnet18", num_classes=5)
        >>> {k: tuple(v.shape) for k, v in net(torch.randn(2, 3, 65, 80)).items()}
        {'fused': (2, 5, 65, 80), 'position': (2, 5, 65, 80), 'channel': (2, 5, 65, 80)}
        >>> list(net.eval()(torch.randn(1, 3, 65, 80)))
        ['fused']
    """

    def __init__(
        self,
        head: str = "danet",
        backbone: str = "resnet18",
        *,
        pretrained: bool = False,
        num_classes: int = 19,
        in_chans: int = 3,
        output_stride: int = 8,
        multi_grid: tuple[int, ...] | None = None,
        width: int | None = None,
        channel_form: str | None = None,
        attention: bool = True,
        branch_classifiers: bool = True,
        auxiliary: bool = False,
        dropout: float = 0.1,
        align_corners: bool = False,
    ):
        super().__init__()
        if head not in HEADS:
            raise FovealError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
        both = head == "danet"
        channel = both or head == "danet_channel"
        check.rules(
            ("num_classes", num_classes, "at least 1", num_classes >= 1),
            ("output_stride", output_stride, "8, 16 or 32", output_stride in (8, 16, 32)),
            ("width", width, "at least 1 or None", width is None or width >= 1),
            ("dropout", dropout, "from 0 to below 1", 0 <= dropout < 1),
            ("channel_form", channel_form, f"left out of head {head!r}", channel or channel_form is None),
            ("attention", attention, f"True in head {head!r}", both or attention),
            ("branch_classifiers", branch_classifiers, f"True in head {head!r}", both or branch_classifiers),
        )
        backbone_net: Any = features_backbone(
            backbone,
            pretrained=pretrained,
            in_chans=in_chans,
            out_indices=(-2, -1),
            output_stride=None if output_stride == 32 else output_stride,
        )
        if multi_grid is not None:
            _dilate(backbone_net, tuple(multi_grid))
        before, last = backbone_net.feature_info.channels()
        self.backbone = backbone_net
        self.align_corners, self.num_classes = align_corners, num_classes
        width = max(64, last // 4) if width is None else width
        self.default_cfg = {"input_size": (in_chans, 224, 224)}
        self.position = self.channel = None
        if both or head == "danet_position":
            self.position = AttentionBranch(last, width, PositionAttention(width) if attention else None)
        if channel:
            module = ChannelAttention(width, form=channel_form or "code") if attention else None
            self.channel = AttentionBranch(last, width, module)
        if head in ("fcn_nonlocal", "fcn"):
            self.plain = AttentionBranch(last, width, NonLocal(width) if head == "fcn_nonlocal" else None)
        self.classify = classifier(width, num_classes, dropout)
        branches = both and branch_classifiers
        self.classify_position = classifier(width, num_classes, dropout) if branches else None
        self.classify_channel = classifier(width, num_classes, dropout) if branches else None
        self.classify_auxiliary = (
            nn.Sequential(
                conv_bn_relu(before, max(64, before // 4)),
                classifier(max(64, before // 4), num_classes, dropout),
            )
            if auxiliary
            else None
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b k h w"]]:
        before, last = self.backbone(x)
        position = self.position(last) if self.position is not None else None
        channel = self.channel(last) if self.channel is not None else None
        if position is not None and channel is not None:
            fused = position + channel
        else:
            fused = position if position is not None else channel if channel is not None else self.plain(last)
        logits = {"fused": self.classify(fused)}
        if self.training:
            for name, head, features in (
                ("position", self.classify_position, position),
                ("channel", self.classify_channel, channel),
                ("auxiliary", self.classify_auxiliary, before),
            ):
                if head is not None:
                    logits[name] = head(features)
        size = x.shape[-2:]
        return {
            k: F.interpolate(v, size, mode="bilinear", align_corners=self.align_corners)
            for k, v in logits.items()
        }

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}"


def _dilate(backbone: Any, multi_grid: tuple[int, ...]) -> None:
    """Multiply the dilation of the last stage's 3x3 convolutions, block by block."""
    stage = getattr(backbone, "layer4", None)
    if stage is None or len(stage) != len(multi_grid):
        blocks = "no layer4" if stage is None else f"{len(stage)} blocks in layer4"
        raise FovealError(
            f"multi_grid must have one factor for each block of layer4, got {multi_grid} for {blocks}"
        )
    # timm gives a dilated stage's first block the dilation of the stage before
    full = max(m.dilation[0] for m in stage.modules() if isinstance(m, nn.Conv2d))
    for block, factor in zip(stage, multi_grid, strict=True):
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (factor * full, factor * full)
