"""The plain networks that blocks are inserted into: timm's with its own options, and ours as feature maps alone."""

from collections.abc import Sequence
from typing import Any

from torch import nn

TIMM_OPTIONS = (
    "features_only",
    "out_indices",
    "output_stride",
    "drop_rate",
    "drop_path_rate",
    "global_pool",
    "zero_init_last",
)


def timm_backbone(
    name: str, pretrained: bool, num_classes: int, in_chans: int, options: dict[str, Any]
) -> nn.Module:
    """The plain timm network; takes its options out of ``options``."""
    import timm

    own = {key: options.pop(key) for key in TIMM_OPTIONS if key in options}
    if not own.get("features_only"):
        own["num_classes"] = num_classes
    return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **own)


def feature_maps(net: Any, out_indices: int | Sequence[int] | None = None) -> nn.Module:
    """``net`` without its classifier, giving a list of feature maps, as timm's ``features_only``.

    Args:
        net: a network with timm's ``feature_info`` whose modules run in the order of their registration.
        out_indices: the maps wanted, by their place in ``feature_info``; all of them by default.

    Example:
        >>> import torch
        >>> from foveal.models.cifar_resnet import CifarResNet
        >>> net = feature_maps(CifarResNet(8), out_indices=(1, 3))
        >>> [tuple(y.shape) for y in net(torch.randn(2, 3, 32, 32))]
        [(2, 16, 32, 32), (2, 64, 8, 8)]
    """
    from timm.models import FeatureListNet

    wanted: Any = tuple(range(len(net.feature_info))) if out_indices is None else out_indices
    maps: Any = FeatureListNet(net, wanted)
    maps.default_cfg = getattr(net, "default_cfg", None)
    return maps
