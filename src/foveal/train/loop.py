"""The one training loop, for every task, on one device or many: two functions that one reads from top to bottom.

`Training` is what changes while a network trains; `train_epoch` and `validate` are the loop. Lightning Fabric takes
care of devices, precision and processes. Files, progress and signals are the business of whoever calls: `Run` for a
run folder, a worker of `foveal.compare` for many short runs.

Every random choice is a function of (seed, position in the run), never of what was drawn before. A run can therefore
stop anywhere and continue to the same weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import Tensor, nn

from foveal.data.loader import EpochBatchSampler, seed_for
from foveal.errors import FovealError
from foveal.model_info import ModelInfo
from foveal.tasks import Metric, Task
from foveal.train.config import TrainConfig
from foveal.train.ema import ModelEma
from foveal.train.freeze import Freezer
from foveal.train.nonfinite import NonFiniteError, first_non_finite
from foveal.train.optim import lr_scale, make_optimizer, set_lr

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
Batches = Iterable[list[dict[str, Any]]]


def launch_fabric(config: TrainConfig) -> Fabric:
    """Lightning Fabric for the devices, precision and strategy of a config; from here on there are all its processes.

    Raises:
        FovealError: this machine cannot run what was asked for.
    """
    if config.precision == "float16" and not torch.cuda.is_available():
        raise FovealError("precision float16 needs a CUDA GPU, got none here; bfloat16 runs on any device")
    try:
        with _quiet_lightning():
            fabric = Fabric(
                accelerator=config.accelerator,
                devices=config.devices,
                num_nodes=config.nodes,
                strategy=config.strategy,
                precision=PRECISIONS[config.precision],  # pyright: ignore[reportArgumentType]
            )
            fabric.launch()
        return fabric
    except (RuntimeError, ValueError, TypeError) as error:
        names = ("accelerator", "devices", "nodes", "strategy")
        chosen = ", ".join(f"{name}={getattr(config, name)}" for name in names)
        reason = " ".join(str(error).split())
        raise FovealError(f"Lightning must be able to run {chosen}, got: {reason}") from error


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without Lightning's banner of processes; its logger is as before afterwards."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Training:
    """A network in training: everything that changes, and all that a checkpoint must hold to continue.

    Attributes:
        net: the network itself; ``model`` is the same, wrapped for precision and several processes.
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
        self.model = self.fabric.setup_module(net)
        self.ema = ModelEma(net, config.ema) if config.ema else None
        own = getattr(task, "make_optimizers", None)
        made = own(net, config) if own is not None else [_optimizer(net, config)]
        self.optimizers: list[Any] = [self.fabric.setup_optimizers(optimizer) for optimizer in made]
        self.epoch = self.batch = self.step = 0
        self.loss_sums: dict[str, float] = {}
        self.loss_count = 0
        self.steps_per_epoch = -(-len(batches) // config.accumulate)
        self.modes_set_for = -1

    @property
    def evaluated(self) -> nn.Module:
        """What is validated and kept: the running average where there is one."""
        return self.net if self.ema is None else self.ema.net

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
            "net": self.net.state_dict(),
            "ema": None
            if self.ema is None
            else {"net": self.ema.net.state_dict(), "updates": self.ema.updates},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "precision": self.fabric.strategy.precision.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "loss_sums": self.loss_sums,
            "loss_count": self.loss_count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another process stopped."""
        self.net.load_state_dict(state["net"])
        if self.ema is not None:
            self.ema.net.load_state_dict(state["ema"]["net"])
            self.ema.updates = state["ema"]["updates"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.loss_sums, self.loss_count = dict(state["loss_sums"]), state["loss_count"]

    def refuse_broken_weights(self) -> None:
        """Raise before anything good is overwritten by weights that are not finite."""
        for name, value in self.net.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise NonFiniteError(
                    f"the weights must be finite, got {name} with a value that is not, in epoch {self.epoch + 1}, "
                    "while the loss still was"
                )


def _optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    assert config.lr is not None
    return make_optimizer(
        net,
        optimizer=config.optimizer,
        lr=config.lr,
        inserted_lr=config.block_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


# ------------------------------------------------------------------------------------------------------------ the loop


def train_epoch(
    training: Training, loader: Batches, after_step: Callable[[Training], None] | None = None
) -> None:
    """Train for one epoch, or for what is left of it.

    Args:
        loader: batches of this epoch from ``training.batch`` on, on any device.
        after_step: called after each optimiser step; it may raise to stop the run.

    Raises:
        NonFiniteError: the loss became infinite or not a number in any process.
    """
    t = training
    t.set_modes()
    for (batch,) in loader:
        batch = on_device(t, batch)
        # for dropout and stochastic depth
        torch.manual_seed(t.seed())
        generator = torch.Generator().manual_seed(t.seed())
        t.set_lr()
        own_step = getattr(t.task, "step", None)
        if own_step is not None:
            losses = own_step(t, batch, generator)
            t.step += 1
        else:
            losses = supervised_step(t, batch, generator)
        for name, value in losses.items():
            t.loss_sums[name] = t.loss_sums.get(name, 0.0) + float(value.detach())
        t.loss_count += 1
        t.batch += 1
        if after_step is not None and (t.batch % t.config.accumulate == 0 or t.batch == len(t.batches)):
            after_step(t)


def supervised_step(t: Training, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Losses, backward and, where the last batch of a group has come, one optimiser step."""
    last = (t.batch + 1) % t.config.accumulate == 0 or t.batch + 1 == len(t.batches)
    with t.fabric.no_backward_sync(t.model, enabled=not last and t.fabric.world_size > 1):
        losses = t.task.losses(t.model, batch, t.info, t.options, generator)
        loss = (
            torch.stack([value.float() for value in losses.values()]).sum()
            if len(losses) > 1
            else next(iter(losses.values()))
        )
        require_finite(t, float(loss.detach()), batch)
        t.fabric.backward(loss / t.group_size())
    if last:
        (optimizer,) = t.optimizers
        if t.config.clip_norm:
            t.fabric.clip_gradients(t.model, optimizer, max_norm=t.config.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        if t.ema is not None:
            t.ema.update(t.net)
        t.step += 1
    return losses


def require_finite(t: Training, loss: float, batch: dict[str, Any]) -> None:
    """All processes stop together: one that stopped alone would leave the others waiting for its gradients."""
    if not any_process(t.fabric, not math.isfinite(loss)):
        return
    where = "another process"
    if not math.isfinite(loss):
        torch.manual_seed(t.seed())
        where = first_non_finite(t.net, batch["image"])
    raise NonFiniteError(
        f"the loss must be finite, got {loss} in epoch {t.epoch + 1}, batch {t.batch + 1}, first in {where}"
    )


@torch.no_grad()
def validate(
    training: Training, loader: Batches, classes: list[str], after_batch: Callable[[], None] | None = None
) -> dict[str, float]:
    """Finish an epoch: the mean of its training losses and the figures on the validation data, over all processes.

    Args:
        classes: those of the validation data.
        after_batch: called after each batch; it may raise to stop the run.

    Returns:
        ``lr``, ``train_loss`` (and ``train_NAME`` for each part where there are several), ``val_NAME`` for each
        figure of the task.
    """
    t = training
    net = t.evaluated
    broadcast_buffers(t.fabric, net)
    metric = t.task.new_metric(t.info, classes)
    # not t.model: what is validated may be the running average, which is wrapped by nothing
    training_mode = net.training
    net.eval()
    with t.fabric.autocast():
        for batches in loader:
            for batch in batches:
                metric.update(net, on_device(t, batch))
            if after_batch is not None:
                after_batch()
    net.train(training_mode)
    t.modes_set_for = -1
    row = {"lr": t.lr, **mean_losses(t)}
    figures = merged(t.fabric, metric).compute()
    row |= {f"val_{name}": value for name, value in figures.items()}
    t.epoch, t.batch, t.loss_sums, t.loss_count = t.epoch + 1, 0, {}, 0
    return row


def mean_losses(t: Training) -> dict[str, float]:
    """The parts of the training loss and their sum, as means over the batches of all processes."""
    names = list(t.loss_sums)
    sums = torch.tensor(
        [*t.loss_sums.values(), t.loss_count],
        dtype=torch.float32 if t.fabric.device.type == "mps" else torch.float64,
    )
    if t.fabric.world_size > 1:
        sums = t.fabric.all_reduce(sums.to(t.fabric.device), reduce_op="sum")
    *totals, count = sums.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    means = {name: total / count for name, total in zip(names, totals, strict=True)}
    parts = {f"train_{name}": mean for name, mean in means.items()} if len(means) > 1 else {}
    return {"train_loss": sum(means.values()), **parts}


def on_device(t: Training, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch on the device of this process, images in the memory format that was asked for."""
    batch = t.fabric.to_device(batch)
    if t.config.channels_last:
        batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
    return batch


# --------------------------------------------------------------------------------------------------- several processes


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
