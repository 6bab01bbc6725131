"""What a run has before its first step: the data, the network with its blocks, and the loaders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from foveal.data.loader import (
    EpochBatchSampler,
    SequentialBatchSampler,
    chunks_of,
    make_loader,
    worker_count,
)
from foveal.model_info import ModelInfo
from foveal.tasks import collate_training
from foveal.train.config import TrainConfig
from foveal.train.network import add_blocks, build_network, describe_network
from foveal.train.parts import open_parts
from foveal.train.processes import refuse_empty_shares


@dataclass(frozen=True)
class Prepared:
    """What one process trains on and with.

    Attributes:
        data: the data sets, by "train" and "val".
        net: the network with its blocks, not yet on a device.
        info: what describes the network in its weights files.
        batches: which images are in each batch of an epoch, of this process.
        train_loader: the batches in the order of ``batches``, which can begin anywhere in an epoch.
        val_loader: the validation images of this process, once each.
    """

    data: dict[str, Any]
    net: nn.Module
    info: ModelInfo
    batches: EpochBatchSampler
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]


def prepare(config: TrainConfig, fabric: Fabric) -> Prepared:
    """Open the data, build the network with its blocks, and make the loaders of this process.

    Raises:
        FovealError: an option is wrong, the data do not fit the task, or a process would have no image.
    """
    task, data = config.the_task, open_parts(config)
    net = build_network(config, list(data["train"].classes))
    info = describe_network(config, net, data)
    net = add_blocks(net, config, info.image_size)
    refuse_empty_shares({part: len(d) for part, d in data.items()}, fabric.world_size)

    train, val = data["train"], data["val"]
    share = {"rank": fabric.global_rank, "world": fabric.world_size}
    batches = EpochBatchSampler(
        len(train), config.batch_size, seed=config.seed, chunks=chunks_of(train), **share
    )
    val_batches = SequentialBatchSampler(len(val), 2 * config.batch_size, **share)
    train_transform = task.train_transform(train, info, config.options, config.augment)
    how = {
        "workers": worker_count(config.workers, info.image_size),
        "pin_memory": fabric.device.type == "cuda",
    }
    train_loader = make_loader(
        train, train_transform, batches, collate_training(task), seed=config.seed, **how
    )
    val_loader = make_loader(val, task.eval_transform(info), val_batches, task.collate, **how)
    return Prepared(data, net, info, batches, train_loader, val_loader)
