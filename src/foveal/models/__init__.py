"""Whole networks by name: every timm model, and small ones of our own."""

import difflib
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from foveal.models.cifar_resnet import CifarResNet

OWN: dict[str, Callable[..., nn.Module]] = {
    f"cifar_resnet{depth}": functools.partial(CifarResNet, depth) for depth in (8, 20, 32, 56, 110)
}

READS_FILES = ("pretrained", "checkpoint_path", "cache_dir")
"""Beginnings of timm arguments that open files or the network; never kept with a model, never taken from a file."""


def create_model(
    name: str, pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any
) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of `list_models`: ``cifar_resnet8/20/32/56/110`` or any timm model, such as ``"resnet50"`` or
            ``"resnet50.a1_in1k"``.
        pretrained: load timm's published weights (needs a network connection or timm's cache).
        num_classes: outputs.
        in_chans: channels of the image.
        **kwargs: passed on to timm, such as ``drop_path_rate=0.1``.

    Returns:
        The network, with ``net.foveal_model = {"name", "kwargs"}`` from which `foveal.load` rebuilds it.

    Raises:
        ValueError: unknown name (close ones are suggested), options the model does not take, or pretrained
            weights that do not exist.

    Example:
        >>> import foveal
        >>> net = foveal.create_model("cifar_resnet20", num_classes=10)
        >>> net.foveal_model
        {'name': 'cifar_resnet20', 'kwargs': {'num_classes': 10, 'in_chans': 3}}
    """
    kept = {"num_classes": num_classes, "in_chans": in_chans, **kwargs}
    if name in OWN:
        if pretrained:
            raise ValueError(f"create_model: pretrained weights exist for timm models only, got {name!r}")
        if kwargs:
            raise ValueError(f"create_model: {name} takes num_classes and in_chans, got {', '.join(kwargs)}")
        net = OWN[name](num_classes=num_classes, in_chans=in_chans)
    else:
        net = _from_timm(name, pretrained, kept)
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
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"create_model: timm could not build {name!r}: {reason}") from error
