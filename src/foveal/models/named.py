"""The article's networks by name, assembled by insertion into timm's: nothing here repeats a ResNet.

Each builder takes timm's habits (``pretrained`` of the plain backbone, ``num_classes``, ``in_chans``,
``features_only``, ``out_indices``) and the block's own options.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from foveal.errors import FovealError
from foveal.insertion import insert
from foveal.models.backbone import feature_maps, timm_backbone
from foveal.models.cifar_resnet import cifar_resnet
from foveal.models.legacy_senet import LEGACY, legacy_senet, stride_in_first
from foveal.models.segmentation import HEADS, SegmentationNet
from foveal.models.video import KINDS, STAGES, SmallVideoResNet, VideoResNet, nonlocal_sites

CIFAR_OPTIONS = ("pretrained", "num_classes", "features_only", "out_indices")
SMALL = (64, 64)  # enough to trace a classifier for its channels


def at_residuals(
    block: str,
    backbone: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    stride_first: bool = False,
    **options: Any,
) -> nn.Module:
    """``backbone`` with ``block`` at the end of every residual branch, at the paper's initialisation.

    ``stride_first`` moves stride 2 from the 3x3 into the first 1x1 convolution, where the released networks have it.
    """
    if not pretrained:
        # timm starts the last norm of each branch at zero, and a gate behind it would see nothing; the papers do not
        options.setdefault("zero_init_last", False)
    net = timm_backbone(backbone, pretrained, num_classes, in_chans, options)
    if stride_first:
        stride_in_first(net)
    example = torch.zeros(1, in_chans, *SMALL)
    return insert(net, block, at="residual", **{"start": "paper", "example": example, **options})


def cifar(block: str, depth: int, *, in_chans: int = 3, **options: Any) -> nn.Module:
    """`cifar_resnet` with ``block`` at the end of every residual branch, reduction 4: its stages are narrow."""
    own = {key: options.pop(key) for key in CIFAR_OPTIONS if key in options}
    net = cifar_resnet(depth, in_chans=in_chans, **own)
    example = torch.zeros(1, in_chans, 32, 32)
    return insert(
        net, block, at="residual", **{"start": "paper", "reduction": 4, "example": example, **options}
    )


def senet154(
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> nn.Module:
    """SENet-154: 64 groups, deep stem, 3x3 projections, SE of reduction 16 (Hu et al., appendix).

    Assembled on timm's ResNet. Deviation: stride 2 sits in the 3x3 convolution as there; the dropout of 0.2 before
    the classifier is `drop_rate`.
    """
    from timm.models.resnet import Bottleneck, ResNet

    if pretrained:
        raise FovealError("pretrained must be False, no weights are published for it, got True")
    net = ResNet(
        Bottleneck,  # type: ignore[arg-type]
        (3, 8, 36, 3),
        num_classes=num_classes,
        in_chans=in_chans,
        cardinality=64,
        base_width=4,
        stem_type="deep",
        down_kernel_size=3,
        block_reduce_first=2,
        drop_rate=options.pop("drop_rate", 0.2),
        zero_init_last=options.pop("zero_init_last", False),
    )
    if features_only:
        net = feature_maps(net, out_indices)
    example = torch.zeros(1, in_chans, *SMALL)
    return insert(
        net, "se", at="residual", **{"start": "paper", "reduction": 16, "example": example, **options}
    )


def nonlocal_resnet(
    depth: int,
    *,
    blocks: int = 5,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    **options: Any,
) -> nn.Module:
    """ResNet-50 or -101 with 1, 5 or 10 Non-local blocks at the paper's places (`nonlocal_sites`)."""
    net = timm_backbone(f"resnet{depth}", pretrained, num_classes, in_chans, options)
    example = torch.zeros(1, in_chans, *SMALL)
    for site in nonlocal_sites(depth, blocks):
        insert(net, "nonlocal", at=site, **{"start": "paper", "example": example, **options})
    return net


def detr(backbone: str, **options: Any) -> nn.Module:
    """`foveal.models.detr.DETR`, whose parts of torchvision are imported when one is built."""
    from foveal.models.detr import DETR

    return DETR(backbone, **options)


def sparse_rcnn(backbone: str, **options: Any) -> nn.Module:
    """`foveal.models.sparse_rcnn.SparseRCNN`, imported when one is built."""
    from foveal.models.sparse_rcnn import SparseRCNN

    return SparseRCNN(backbone, **options)


def region_detector(kind: str, backbone: str, **options: Any) -> nn.Module:
    """`foveal.models.region_detectors.RegionDetector`, imported when one is built."""
    from foveal.models.region_detectors import RegionDetector

    return RegionDetector(kind, backbone, **options)


DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "detr": detr,
    "detr_dc5": functools.partial(detr, dc5=True),
    "sparse_rcnn": sparse_rcnn,
    "fcos": functools.partial(region_detector, "fcos"),
    "faster_rcnn": functools.partial(region_detector, "faster_rcnn"),
}
"""By the beginning of their names, networks that detect."""

NAMED: dict[str, Callable[..., nn.Module]] = {
    **{
        f"se_resnet{depth}": functools.partial(at_residuals, "se", f"resnet{depth}")
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        f"se_resnext{depth}_32x4d": functools.partial(at_residuals, "se", f"resnext{depth}_32x4d")
        for depth in (50, 101)
    },
    "se_net154": senet154,
    **{f"legacy_se_{name}": functools.partial(legacy_senet, name) for name in LEGACY},
    **{f"cifar_se_resnet{depth}": functools.partial(cifar, "se", depth) for depth in (20, 32, 56, 110)},
    **{
        f"cbam_resnet{depth}": functools.partial(at_residuals, "cbam", f"resnet{depth}", variant="article")
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        f"cifar_cbam_resnet{depth}": functools.partial(cifar, "cbam", depth, variant="article")
        for depth in (20, 32, 56, 110)
    },
    **{f"nonlocal_resnet{depth}": functools.partial(nonlocal_resnet, depth) for depth in (50, 101)},
    **{
        f"nonlocal_{kind}_resnet{depth}": functools.partial(VideoResNet, kind, depth)
        for kind in KINDS
        for depth in STAGES
    },
    **{
        f"nonlocal_{kind}_cifar_resnet{depth}": functools.partial(SmallVideoResNet, kind, depth)
        for kind in KINDS
        for depth in (8, 20)
    },
    **{
        f"{head}_resnet{depth}": functools.partial(SegmentationNet, head, f"resnet{depth}")
        for head in HEADS
        for depth in (18, 34, 50, 101)
    },
    **{
        f"{head}_resnet{depth}": functools.partial(build, f"resnet{depth}")
        for head, build in DETECTORS.items()
        for depth in (18, 34, 50, 101)
    },
}


def head_and_backbone(name: str) -> Callable[..., nn.Module] | None:
    """The builder of ``HEAD_BACKBONE`` for any backbone, such as ``"danet_mobilenetv3_small_050"``, or None.

    Example:
        >>> head_and_backbone("danet_position_resnet18")().position is not None
        True
    """
    heads = [head for head in (*HEADS, *DETECTORS) if name.startswith(f"{head}_")]
    if not heads:
        return None
    head = max(heads, key=len)  # "danet_position_x" is not "danet" on "position_x"
    rest = name[len(head) + 1 :]
    if head in DETECTORS:
        return functools.partial(DETECTORS[head], rest)
    return functools.partial(SegmentationNet, head, rest)
