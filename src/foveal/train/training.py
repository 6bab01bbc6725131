"""Everything that changes while a network trains."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from foveal.data.loader import EpochBatchSampler, seed_for
from foveal.model_info import ModelInfo
from foveal.tasks import Task
from foveal.train.config import TrainConfig
from foveal.train.ema import ModelEma
from foveal.train.fabric import Fabric
from foveal.train.freeze import Freezer
from foveal.train.nonfinite import NonFiniteError
from foveal.train.optim import lr_scale, make_optimizer, set_lr
from foveal.train.processes import launch_fabric
from foveal.train.sharding import is_sharded, load_whole, load_whole_optimizer, whole


class Training:
    """A network in training: everything that changes, and all that a checkpoint must hold to continue.

    Attributes:
        net: the network itself; ``model`` is the same, wrapped for precision and several processes; ``whole_net`` the
            same with whole weights, a copy where those of ``net`` are in shards, as they were when `gather` was called.
        optimizers: one, unless the task makes its own.
        ema: the running average of the weights, if one is kept.
        epoch, batch: how many are done; ``batch`` counts within the epoch.
        step: optimiser steps done.
        loss_sums: the parts of the loss, summed over the batches of this epoch; ``loss_count`` batches.
    """

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        config: TrainConfig,
        info: ModelInfo,
        batches: EpochBatchSampler,
        fabric: Fabric | None = None,
    ) -> None:
        self.net, self.task, self.config, self.info, self.batches = net, task, config, info, batches
        self.options = config.options
        self.fabric = fabric or launch_fabric(config)
        self.freezer = Freezer(net, config.freeze_epochs)
        self.sharded = is_sharded(self.fabric)
        self.whole_net = copy.deepcopy(net).to(self.fabric.device) if self.sharded else net
        self.model = self.fabric.setup_module(net)
        self.ema = ModelEma(net, config.ema) if config.ema else None
        own = getattr(task, "make_optimizers", None)
        made = own(net, config) if own is not None else [_optimizer(net, config, task)]
        self.optimizers: list[Any] = [self.fabric.setup_optimizers(optimizer) for optimizer in made]
        self.epoch = self.batch = self.step = 0
        self.loss_sums: dict[str, float] = {}
        self.loss_count = 0
        self.steps_per_epoch = -(-len(batches) // config.accumulate)
        self.modes_set_for = -1

    @property
    def evaluated(self) -> nn.Module:
        """What is validated and kept: the running average where there is one."""
        return self.whole_net if self.ema is None else self.ema.net

    def gather(self) -> None:
        """Bring the whole network up to date, where the weights are in shards; all processes must call it."""
        if self.sharded:
            self.whole_net.load_state_dict(whole(self.net.state_dict()))

    @property
    def lr(self) -> float:
        """The highest learning rate of the last step."""
        return max(group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups)

    def seed(self) -> int:
        """The seed of this batch in this process."""
        return seed_for(self.config.seed, "step", self.epoch, self.batch, self.fabric.global_rank)

    def set_modes(self) -> None:
        """Put the network into the mode of this epoch, once: a frozen backbone thaws when its epochs are over."""
        if self.modes_set_for == self.epoch:
            return
        self.modes_set_for = self.epoch
        changed = self.freezer.start_epoch(self.epoch)
        if changed and self.fabric.world_size > 1:
            # DistributedDataParallel settles when it is made for which gradients the processes wait
            self.model = self.fabric.setup_module(self.net)

    def set_lr(self) -> None:
        """Give the optimisers the learning rate of this step."""
        scale = lr_scale(
            self.step,
            steps=self.config.epochs * self.steps_per_epoch,
            warmup_steps=round(self.config.warmup_epochs * self.steps_per_epoch),
            schedule=self.config.schedule,
        )
        for optimizer in self.optimizers:
            set_lr(optimizer, scale)

    def group_size(self) -> int:
        """How many batches share this batch's optimiser step: fewer than ``accumulate`` where an epoch ends."""
        first = self.batch - self.batch % self.config.accumulate
        return min(self.config.accumulate, len(self.batches) - first)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue to the same weights."""
        return {
            "net": whole(self.net.state_dict()),
            "ema": None
            if self.ema is None
            else {"net": self.ema.net.state_dict(), "updates": self.ema.updates},
            "optimizers": [whole(optimizer.state_dict()) for optimizer in self.optimizers],
            "precision": self.fabric.strategy.precision.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "loss_sums": self.loss_sums,
            "loss_count": self.loss_count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another process stopped."""
        load_whole(self.net, state["net"])
        if self.ema is not None:
            self.ema.net.load_state_dict(state["ema"]["net"])
            self.ema.updates = state["ema"]["updates"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            load_whole_optimizer(optimizer, kept)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.loss_sums, self.loss_count = dict(state["loss_sums"]), state["loss_count"]

    def refuse_broken_weights(self) -> None:
        """Raise before anything good is overwritten by weights that are not finite."""
        for name, value in whole(self.net.state_dict()).items():
            if value.is_floating_point() and not value.isfinite().all():
                epoch = self.epoch + (self.batch > 0)
                raise NonFiniteError(
                    f"the weights must be finite, got {name} with a value that is not, in epoch {epoch}, while the "
                    "loss still was"
                )


def _optimizer(net: nn.Module, config: TrainConfig, task: Task) -> torch.optim.Optimizer:
    assert config.lr is not None
    of_backbone = getattr(task, "backbone_lr", None)
    return make_optimizer(
        net,
        optimizer=config.optimizer,
        lr=config.lr,
        inserted_lr=config.block_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        backbone_lr=1.0 if of_backbone is None else of_backbone(config),
    )
