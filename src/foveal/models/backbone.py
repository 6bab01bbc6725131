"""The plain networks that blocks are inserted into: timm's with its own options, and ours as feature maps alone."""

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from foveal.errors import FovealError

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


def features_backbone(
    name: str,
    *,
    pretrained: bool = False,
    in_chans: int = 3,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
) -> Any:
    """A network that returns the feature maps of some stages.

    Args:
        name: of a timm model with ``features_only``, or ours (``cifar_resnet8``).
        pretrained: load timm's weights.
        in_chans: channels of the image.
        out_indices: which stages, from 0 or from -1, the last one; None: all.
        output_stride: of the last stage, smaller than the network's own by dilation; None: the network's own.

    Returns:
        The model: images (b, in_chans, h, w) -> list of feature maps, with ``feature_info.channels()``.

    Raises:
        FovealError: there is no such model, or it cannot give such features.

    Example:
        >>> features_backbone("resnet18", out_indices=(-1,)).feature_info.channels()
        [512]
    """
    build = own_or_timm(name)
    # not every model knows output_stride
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    if out_indices is not None:
        options["out_indices"] = tuple(out_indices)
    try:
        return build(pretrained=pretrained, in_chans=in_chans, features_only=True, **options)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        dilated = "" if output_stride is None else f" at output_stride={output_stride}"
        raise FovealError(f"backbone must offer feature maps{dilated}, got {name!r}: {reason}") from error


def own_or_timm(name: str) -> Callable[..., nn.Module]:
    """The builder of a plain network by name: ours for small images, or any of timm's.

    Raises:
        FovealError: there is none; close names are suggested.
    """
    import timm

    from foveal.models.cifar_resnet import cifar_resnet

    if re.fullmatch(r"cifar_resnet\d+", name):
        return functools.partial(cifar_resnet, int(name.removeprefix("cifar_resnet")))
    if timm.is_model(name):
        return functools.partial(timm.create_model, name)
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise FovealError(f"backbone must be a timm model or cifar_resnetN, got {name!r}{hint}")
