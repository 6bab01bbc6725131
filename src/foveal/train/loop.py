"""The one training loop, for every task, on one device or many: two functions that one reads from top to bottom.

`train_epoch` and `validate` are the loop; `foveal.train.training.Training` is all that changes meanwhile. Lightning
Fabric takes care of devices, precision and processes. Files, progress and signals are the business of whoever calls:
`Run` for a run folder, a worker of `foveal.compare` for many short runs.

Every random choice is a function of (seed, position in the run), never of what was drawn before. A run can therefore
stop anywhere and continue to the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from foveal.train.memory_format import channels_last
from foveal.train.nonfinite import NonFiniteError, first_non_finite
from foveal.train.processes import any_process, broadcast_buffers, merged
from foveal.train.training import Training

Batches = Iterable[list[dict[str, Any]]]


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
            require_finite(t, sum(float(value.detach()) for value in losses.values()), batch)
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
    t.gather()
    if not math.isfinite(loss):
        torch.manual_seed(t.seed())
        where = first_non_finite(t.whole_net, batch["image"])
    raise NonFiniteError(
        f"the loss must be finite, got {loss} in epoch {t.epoch + 1}, batch {t.batch + 1}, first in {where}"
    )


@torch.no_grad()
def validate(
    training: Training,
    loader: Batches,
    classes: list[str],
    after_batch: Callable[[], None] | None = None,
    metric: Any = None,
) -> dict[str, float]:
    """Finish an epoch: the mean of its training losses and the figures on the validation data, over all processes.

    Args:
        classes: those of the validation data.
        after_batch: called after each batch; it may raise to stop the run.
        metric: a new metric of the task to count with, for callers that want more of it than its figures.

    Returns:
        ``lr``, ``train_loss`` (and ``train_NAME`` for each part where there are several), ``val_NAME`` for each
        figure of the task.
    """
    t = training
    t.gather()
    net = t.evaluated
    broadcast_buffers(t.fabric, net)
    metric = metric or t.task.new_metric(t.info, classes)
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


def refuse_broken(t: Training, row: Mapping[str, Any]) -> None:
    """Raise where an epoch ended with figures or weights that are not finite.

    Args:
        row: what `validate` returned.

    Raises:
        NonFiniteError: the last steps broke the network, after a training loss that was finite.
    """
    for key in ("val_loss", f"val_{t.task.metric}"):
        if not math.isfinite(row.get(key, 0.0)):
            raise NonFiniteError(f"{key} must be finite, got {row[key]} in epoch {t.epoch}")
    t.refuse_broken_weights()


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
        batch["image"] = batch["image"].contiguous(memory_format=channels_last(batch["image"]))
    return batch
