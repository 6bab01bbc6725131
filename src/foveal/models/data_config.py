"""What images a network is made for: size and preprocessing, as its published weights were trained with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from foveal.models.create import create_model

# timm's own defaults, for networks without published weights
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATION, CROP_PCT = "bicubic", 0.875
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def data_config(net_or_name: nn.Module | str) -> dict[str, Any]:
    """The input size and the preprocessing of a network, read from timm's ``pretrained_cfg``, through its backbone.

    Args:
        net_or_name: a network, or a name that `create_model` takes.

    Returns:
        ``input_size`` (channels, [frames,] height, width), ``mean`` and ``std`` (one a channel, of values in 0 to 1),
        ``interpolation`` and ``crop_pct``: the image is resized so that the crop of ``input_size`` is this share of
        it. Networks without published weights have timm's defaults: ImageNet's mean and deviation, bicubic, 0.875.
        Where a network takes other than three channels, the mean over channels is repeated.

    Raises:
        FovealError: an unknown name.

    Example:
        >>> data_config("vit_tiny_patch16_224")["mean"], data_config("cifar_resnet20")["input_size"]
        ((0.5, 0.5, 0.5), (3, 32, 32))
    """
    net = net_or_name
    if not isinstance(net, nn.Module):
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            net = create_model(net)
    body = getattr(net, "backbone", net)
    published = _config(body, "pretrained_cfg")
    own = _config(net, "default_cfg")
    size = own.get("input_size") or published.get("input_size") or (3, 224, 224)
    first = next((m for m in net.modules() if isinstance(m, CONVOLUTIONS)), None)
    # where pixels are rearranged before the first convolution, it takes more channels than the image has
    changed = first is not None and first.in_channels < 3
    channels = first.in_channels if changed and first is not None else size[0]
    return {
        "input_size": (channels, *size[1:]),
        "mean": _for(channels, published.get("mean") or MEAN),
        "std": _for(channels, published.get("std") or STD),
        "interpolation": published.get("interpolation") or own.get("interpolation") or INTERPOLATION,
        "crop_pct": published.get("crop_pct") or own.get("crop_pct") or CROP_PCT,
    }


def _config(net: Any, name: str) -> dict[str, Any]:
    """A configuration of timm's, which is a mapping or, in some versions, a data class."""
    config = getattr(net, name, None)
    if config is None:
        return {}
    return dict(config) if isinstance(config, Mapping) else dict(vars(config))


def _for(channels: int, values: Any) -> tuple[float, ...]:
    values = tuple(float(value) for value in values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels
