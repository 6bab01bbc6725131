"""Residual networks for small images (He et al. 2016, section 4.2), of depth ``6 n + 2``.

Submodule names are torchvision's, so path patterns carry over from larger networks.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.models.backbone import feature_maps

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected (1x1) where shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if stride != 1 or channels_in != channels
            else None
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class CifarResNet(nn.Module):
    """Three stages of ``n`` blocks, widths 16, 32, 64, for images from about 8 x 8 up.

    Args:
        depth: ``6 n + 2``: 8, 20, 32, 56 or 110 in the paper (8 is ours, for quick runs).
        num_classes: outputs; with 0 the 64 pooled features.
        in_chans: channels of the image.
        stages: how many of the three there are, from the first; features see 7, 13 and 25 pixels of the image with 1, 2
            and 3 stages at depth 8.

    As in timm, `reset_classifier` puts another classifier in and `feature_info` describes the feature maps.

    Raises:
        ValueError: a depth that is not ``6 n + 2``.

    Source: He et al., Deep Residual Learning for Image Recognition, section 4.2. Deviation: shortcuts that
    change the shape are 1x1 projections (the paper's option B) instead of padded identities.

    Example:
        >>> import torch
        >>> from foveal.models.cifar_resnet import CifarResNet
        >>> CifarResNet(8, num_classes=10)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3, stages: int = 3):
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise FovealError(f"depth must be 6 n + 2 with n >= 1, got {depth}")
        if stages not in (1, 2, 3):
            raise FovealError(f"stages must be 1, 2 or 3, got {stages!r}")
        self.default_cfg = {"input_size": (in_chans, 32, 32), "classifier": "fc"}
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.act1 = nn.ReLU()
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], n, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], n, stride=2) if stages > 1 else nn.Identity()
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], n, stride=2) if stages > 2 else nn.Identity()
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": module}
            for width, reduction, module in zip(
                (WIDTHS[0], *WIDTHS), (1, 1, 2, 4), ("act1", "layer1", "layer2", "layer3"), strict=True
            )
        ][: stages + 1]
        self.num_features = WIDTHS[stages - 1]
        # foveal.models.video adds a clip's frames
        self.pooled: tuple[int, ...] = (2, 3)
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(self.pooled))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier with weights drawn anew; none with 0."""
        like = self.conv1.weight
        self.num_classes = num_classes
        self.fc = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )


def cifar_resnet(
    depth: int,
    *,
    pretrained: bool = False,
    num_classes: int = 10,
    in_chans: int = 3,
    stages: int = 3,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
) -> nn.Module:
    """`CifarResNet` by timm's arguments: maps from 0 (the stem) with ``features_only``; no weights are published."""
    if pretrained:
        raise FovealError("pretrained must be False, no weights are published for CIFAR networks, got True")
    net = CifarResNet(depth, num_classes, in_chans, stages)
    return feature_maps(net, out_indices) if features_only else net


def _stage(channels_in: int, channels: int, n: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(channels_in, channels, stride)]
    return nn.Sequential(*blocks, *(BasicBlock(channels, channels) for _ in range(n - 1)))
