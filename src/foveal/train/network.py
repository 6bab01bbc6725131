"""The network of a config: built by its task, looked at for its preprocessing, with the blocks inserted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foveal.data.loader import seed_for
from foveal.errors import FovealError
from foveal.insertion import insert, parse_insertion, undo_zero_init
from foveal.model_info import GREY_MEAN, GREY_STD, ModelInfo
from foveal.models import data_config
from foveal.train.config import TrainConfig
from foveal.train.memory_format import channels_last
from foveal.train.start import network_from, start_info


def build_network(config: TrainConfig, classes: Sequence[str]) -> nn.Module:
    """The network before `add_blocks`; networks of one seed begin with the same weights.

    Args:
        classes: names in the order of the outputs.

    Raises:
        FovealError: the model is unknown, or cannot do the task.
    """
    torch.manual_seed(seed_for(config.seed, "weights"))
    if config.from_weights is not None:
        return network_from(config, classes)
    options = {**config.model_options, "pretrained": config.pretrained}
    return config.the_task.build(config.model, len(classes), **options)


def describe_network(config: TrainConfig, net: nn.Module, data: dict[str, Any]) -> ModelInfo:
    """What the weights file will say: published weights keep the preprocessing they were trained with.

    Args:
        data: the parts ``train`` and ``val``.
    """
    task = config.the_task
    preprocessing: dict[str, Any] = dict(getattr(task, "preprocessing", {}))
    size = config.image_size or fixed_size(net)
    if config.from_weights is not None:
        before = start_info(config)
        kept = ("mean", "std", "interpolation", "crop_share")
        preprocessing = {name: getattr(before, name) for name in kept}
        size = size or before.image_size
    elif config.pretrained:
        own = data_config(net)
        preprocessing = published_preprocessing(own)
        # a network for segmentation takes any size: its backbone's own is none of the data's
        if not hasattr(net, "backbone"):
            size = size or own["input_size"][-1]
    elif in_chans(config) == 1:
        preprocessing = {"mean": GREY_MEAN, "std": GREY_STD}
    # packed data say it themselves; files that are predicted later say nothing
    bits = getattr(data["train"], "grey_bits", 16)
    grey = {} if bits == 16 else {"grey_bits": bits}
    return ModelInfo(
        task=config.task,
        classes=list(data["train"].classes),
        image_size=size or task.default_image_size(data["train"]),
        **preprocessing,
        data=config.data,
        data_options=data_options(config) | grey,
        model=config.model,
        extra=task.describe(data, config.options),
    )


def in_chans(config: TrainConfig) -> int:
    """Channels of the images the network takes.

    Raises:
        FovealError: neither 3 nor 1.
    """
    channels = config.model_options.get("in_chans", 3)
    if channels not in (1, 3):
        raise FovealError(
            f"in_chans must be 3 (images are read as RGB) or 1 (as grey), got {channels!r}; of more bands, write "
            "three as RGB files, or train in a loop of your own (docs/other-loops.md)"
        )
    return channels


def data_options(config: TrainConfig) -> dict[str, Any]:
    """Options to open the data with: a network for grey images gets grey images."""
    grey = in_chans(config) == 1 and not config.data.startswith("scenes")
    return {**config.data_options, "channels": 1} if grey else config.data_options


def published_preprocessing(own: dict[str, Any]) -> dict[str, Any]:
    """From `foveal.models.data_config` to fields of `ModelInfo`."""
    interpolation = own["interpolation"]
    return {
        "mean": own["mean"],
        "std": own["std"],
        # timm's "random" is a training option; evaluation takes bicubic then
        "interpolation": interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        "crop_share": own["crop_pct"],
    }


def fixed_size(net: nn.Module) -> int | None:
    """The only size of image that the network takes, if there is only one."""
    own = getattr(net, "pretrained_cfg", None) or {}
    return own["input_size"][-1] if own.get("fixed_input_size") and own.get("input_size") else None


def add_blocks(net: nn.Module, config: TrainConfig, image_size: int) -> nn.Module:
    """Insert the blocks in the order given, and bring the weights into the memory format that was asked for.

    Where nothing is pretrained, norms that start at zero and feed a block start at one (`foveal.undo_zero_init`).

    Raises:
        FovealError: the network does not take such images, a block is unknown or cannot go where it was asked for.
    """
    example = example_input(config, image_size)
    require_forward(net, example, config.model)
    for text in config.insert:
        insert(net, **{"start": config.start, "example": example, **parse_insertion(text)})
    if not config.pretrained and config.from_weights is None:
        # of a branch that starts at zero a block sees nothing, and learns nothing for a long time
        undo_zero_init(net, torch.rand(2, *example.shape[1:], generator=torch.Generator().manual_seed(0)))
    if config.channels_last:
        net = net.to(memory_format=channels_last(example))  # pyright: ignore[reportCallIssue]
    return net


def example_input(config: TrainConfig, image_size: int) -> torch.Tensor:
    """One input of zeros, as large as the task's networks take them."""
    of_task = getattr(config.the_task, "example_size", None)
    size = (image_size, image_size) if of_task is None else of_task(image_size)
    return torch.zeros(1, in_chans(config), *size)


def require_forward(net: nn.Module, example: torch.Tensor, name: str) -> None:
    """Run the network once, in eval mode, so that images it cannot take are refused before anything is read.

    Raises:
        FovealError: the network does not take such images.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            net(example)
    except (RuntimeError, AssertionError, TypeError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FovealError(
            f"the network must take images of shape {tuple(example.shape)}, got {name}: {reason}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
