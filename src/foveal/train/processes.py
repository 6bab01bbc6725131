"""Devices and processes, by Lightning Fabric; and what several processes must agree on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import nn

from foveal.errors import FovealError
from foveal.tasks import Metric
from foveal.train.config import TrainConfig
from foveal.train.lost_process import ProcessWatch

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def launch_fabric(config: TrainConfig, lost_message: Callable[[str], str] = str) -> Fabric:
    """Lightning Fabric for the devices, precision and strategy of a config; from here on there are all its processes.

    Args:
        lost_message: from how a process that was started here ended to what is said then, see `ProcessWatch`.

    Raises:
        FovealError: this machine cannot run what was asked for.
    """
    if config.precision == "float16" and not torch.cuda.is_available():
        raise FovealError("precision float16 needs a CUDA GPU, got none here; bfloat16 runs on any device")
    try:
        with _quiet_lightning(), _watching(lost_message):
            fabric = Fabric(
                accelerator=config.accelerator,
                devices=config.devices,
                num_nodes=config.nodes,
                strategy=config.strategy,
                precision=PRECISIONS[config.precision],  # pyright: ignore[reportArgumentType]
            )
            fabric.launch()
        return fabric
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        names = ("accelerator", "devices", "nodes", "strategy")
        chosen = ", ".join(f"{name}={getattr(config, name)}" for name in names)
        reason = " ".join(str(error).split())
        raise FovealError(f"Lightning must be able to run {chosen}, got: {reason}") from error


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's banner of processes, and its hint at srun on every machine that has one, asked for or not."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The `srun` command is available")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _watching(lost_message: Callable[[str], str]) -> Iterator[None]:
    """Processes that Fabric starts meanwhile are watched here, not by its own observer, which kills without a word."""
    with patch(
        "lightning_fabric.strategies.launchers.subprocess_script._launch_process_observer",
        lambda children: ProcessWatch(children, lost_message).start(),
    ):
        yield


def any_process(fabric: Fabric, mine: bool) -> bool:
    """Whether it is true in any process."""
    if fabric.world_size == 1:
        return mine
    flag = torch.tensor([float(mine)], device=fabric.device)
    return bool(fabric.all_reduce(flag, reduce_op="sum") > 0)  # pyright: ignore[reportOperatorIssue]


def broadcast_buffers(fabric: Fabric, net: nn.Module) -> None:
    """Give all processes the batch statistics of the first one, so that all validate the network that is kept.

    DistributedDataParallel does so before a forward pass in training; none comes after the last batch of an epoch.
    """
    if fabric.world_size > 1:
        for buffer in net.buffers():
            torch.distributed.broadcast(buffer, src=0)


def merged(fabric: Fabric, metric: Metric) -> Metric:
    """The metric of all processes together, in each of them."""
    if fabric.world_size == 1:
        return metric
    gathered: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(gathered, metric)
    first, *others = gathered
    for other in others:
        first.merge(other)
    return first


def refuse_empty_shares(sizes: dict[str, int], processes: int) -> None:
    """Every process needs an image of every part.

    Raises:
        FovealError: a part has fewer images than there are processes.
    """
    for part, size in sizes.items():
        if size < processes:
            raise FovealError(
                f"the data must hold an image for {part} for each of {processes} processes, got {size}"
            )
