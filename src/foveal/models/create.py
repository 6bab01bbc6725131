"""Build a network by name, and list the names."""

import difflib
import fnmatch
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import nn

from foveal.errors import FovealError
from foveal.models.cifar_resnet import cifar_resnet
from foveal.models.fetching import fetching
from foveal.models.named import NAMED, detr, head_and_backbone, region_detector, sparse_rcnn
from foveal.models.sagan import SAGAN
from foveal.models.segmentation import SegmentationNet
from foveal.models.video import SmallVideoResNet, VideoResNet

OWN: dict[str, Callable[..., nn.Module]] = {
    **{f"cifar_resnet{depth}": functools.partial(cifar_resnet, depth) for depth in (8, 20, 32, 56, 110)},
    **NAMED,
    **{f"sagan_{size}": functools.partial(SAGAN, "released", size) for size in (128, 64, 32)},
    **{f"sagan_dcgan_{size}": functools.partial(SAGAN, "dcgan", size) for size in (64, 32)},
}

READS_FILES = ("pretrained", "checkpoint_path", "cache_dir")
"""Beginnings of timm arguments that open files or the network; never kept with a model, never taken from a file."""

FEATURES_OF: dict[Any, str] = {
    SegmentationNet: "take its `backbone`, which gives feature maps",
    detr: "take its `backbone`, which gives feature maps",
    sparse_rcnn: "take its `backbone`, which gives feature maps",
    region_detector: "take its `backbone`, which gives feature maps",
    VideoResNet: "hook the layers of its `net`",
    SmallVideoResNet: "hook the layers of its `net`",
    SAGAN: "take its `discriminator`",
}
"""Builders of networks that cannot be made feature maps by an option, and the way to theirs."""


def create_model(
    name: str, pretrained: bool = False, num_classes: int | None = None, in_chans: int = 3, **kwargs: Any
) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of `list_models`: ours, such as ``"cifar_resnet20"`` or ``"se_resnet50"``, or any timm model,
            such as ``"resnet50"`` or ``"resnet50.a1_in1k"``, or a head for segmentation or detection on one, such as
            ``"danet_mobilenetv3_small_050"``, ``"detr_resnet50"`` or ``"sparse_rcnn_resnet18"``.
        pretrained: load published weights of the backbone (needs a network connection or a cache).
        num_classes: outputs; 0 gives a classifier's pooled features. By default the network's own number: 1000 for
            ImageNet's, 10 for ``cifar_*``, 400 for video, 19 for segmentation, 91 and 80 for detection.
        in_chans: channels of the image.
        **kwargs: passed on, such as ``drop_path_rate=0.1`` for a timm model, or ``features_only=True`` and
            ``out_indices`` for any classifier of images.

    Returns:
        The network, with ``net.foveal_model = {"name", "kwargs"}`` from which `foveal.load` rebuilds it.

    Raises:
        ValueError: unknown name (close ones are suggested), options the model does not take or that are out of
            range, or pretrained weights that do not exist.
        ConnectionError: published weights are neither in the cache nor to be fetched.

    Example:
        >>> import foveal
        >>> net = foveal.create_model("cifar_resnet20", in_chans=1)
        >>> net.foveal_model
        {'name': 'cifar_resnet20', 'kwargs': {'num_classes': 10, 'in_chans': 1}}
    """
    options = {"in_chans": in_chans, **kwargs}
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        if (num_classes or 0) < 0 or in_chans < 1:
            raise FovealError(
                "num_classes must be at least 0 and in_chans at least 1, "
                f"got num_classes={num_classes}, in_chans={in_chans}"
            )
        with fetching(name) if pretrained else nullcontext():
            build = OWN.get(name) or head_and_backbone(str(name))
            if build is None:
                net = _from_timm(name, pretrained, options)
            else:  # not every one has weights to offer, and those without refuse the argument
                _refuse_features(name, getattr(build, "func", build), kwargs)
                net = build(**options, **({"pretrained": True} if pretrained else {}))
    except (RuntimeError, TypeError, AssertionError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise FovealError(f"{name!r} could not be built: {reason}") from error
    if num_classes is None:
        num_classes = getattr(net, "num_classes", None)
    kept = {"num_classes": num_classes, **options}
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


def _refuse_features(name: str, builder: Any, kwargs: dict[str, Any]) -> None:
    given = [key for key in ("features_only", "out_indices") if key in kwargs]
    if given and builder in FEATURES_OF:
        raise FovealError(
            f"features_only and out_indices are for classifiers of images, got {given[0]} for {name!r}; "
            f"{FEATURES_OF[builder]}"
        )


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    # timm also takes "hf-hub:..." and "local-dir:..." names, which fetch or open what they name; a weights file names a
    # model, and may make the library do neither
    if str(name).startswith(("hf-hub:", "local-dir:")):
        raise FovealError(
            f"name must be a model's, got {name!r}, which has weights: foveal.load({name!r}) opens them"
        )
    if not isinstance(name, str) or not timm.is_model(name):
        names = [*OWN, *timm.list_models()]
        close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise FovealError(f"name must be one of the {len(names)} of list_models(), got {name!r}{hint}")
    return timm.create_model(name, pretrained=pretrained, **kwargs)
