"""Whole networks by name: every timm model, and our own."""

import difflib
import fnmatch
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn

from foveal.models.cifar_resnet import CifarResNet
from foveal.models.fetching import fetching
from foveal.models.named import NAMED, segmentation_net

OWN: dict[str, Callable[..., nn.Module]] = {
    **{f"cifar_resnet{depth}": functools.partial(CifarResNet, depth) for depth in (8, 20, 32, 56, 110)},
    **NAMED,
}

READS_FILES = ("pretrained", "checkpoint_path", "cache_dir")
"""Beginnings of timm arguments that open files or the network; never kept with a model, never taken from a file."""


def create_model(
    name: str, pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any
) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of `list_models`: ours, such as ``"cifar_resnet20"`` or ``"se_resnet50"``, or any timm model,
            such as ``"resnet50"`` or ``"resnet50.a1_in1k"``, or a segmentation head on one, such as
            ``"danet_mobilenetv3_small_050"``.
        pretrained: load published weights of the backbone (needs a network connection or a cache).
        num_classes: outputs.
        in_chans: channels of the image.
        **kwargs: passed on, such as ``drop_path_rate=0.1`` for a timm model.

    Returns:
        The network, with ``net.foveal_model = {"name", "kwargs"}`` from which `foveal.load` rebuilds it.

    Raises:
        ValueError: unknown name (close ones are suggested), options the model does not take, or pretrained
            weights that do not exist.
        ConnectionError: published weights are neither in the cache nor to be fetched.

    Example:
        >>> import foveal
        >>> net = foveal.create_model("cifar_resnet20", num_classes=10)
        >>> net.foveal_model
        {'name': 'cifar_resnet20', 'kwargs': {'num_classes': 10, 'in_chans': 3}}
    """
    kept = {"num_classes": num_classes, "in_chans": in_chans, **kwargs}
    try:
        with fetching(name) if pretrained else nullcontext():
            build = OWN.get(name) or segmentation_net(str(name))
            if build is None:
                net = _from_timm(name, pretrained, kept)
            else:  # not every one has weights to offer, and those without refuse the argument
                net = build(**kept, **({"pretrained": True} if pretrained else {}))
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"create_model: {name!r} could not be built: {reason}") from error
    kept = {key: value for key, value in kept.items() if not key.startswith(READS_FILES)}
    net.foveal_model = {"name": name, "kwargs": kept}  # type: ignore[assignment]
    return net


def list_models(pattern: str = "*") -> list[str]:
    """Names `create_model` takes that match a glob ``pattern``; ours first.

    Example:
        >>> import foveal
        >>> foveal.list_models("cifar*")[:2]
        ['cifar_resnet8', 'cifar_resnet20']
    """
    import timm

    return [name for name in [*OWN, *timm.list_models()] if fnmatch.fnmatchcase(name, pattern)]


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    # timm also takes "hf-hub:..." and "local-dir:..." names, which fetch or open what they name
    if not isinstance(name, str) or not timm.is_model(name):
        names = [*OWN, *timm.list_models()]
        close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ValueError(
            f"create_model: name must be one of the {len(names)} of list_models(), got {name!r}{hint}"
        )
    return timm.create_model(name, pretrained=pretrained, **kwargs)
