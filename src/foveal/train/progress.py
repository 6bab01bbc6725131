"""What a person sees while a network trains: a live bar in a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from foveal.tasks import Task, items_of
from foveal.terminal import plain, time_left
from foveal.train.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

NAMED = 3
"""So many unreadable files are named before training begins."""
WARMING, TIMED = 2, 8
"""Batches that an estimate of the time leaves out at first, and those that it is made from."""


def metric_name(metric: str) -> str:
    """A figure's name for people.

    Example:
        >>> metric_name("val_miou"), metric_name("pixel_accuracy"), metric_name("ap50"), metric_name("ap_small")
        ('mIoU', 'pixel accuracy', 'AP50', 'AP small')
    """
    name = re.sub(r"^(ap|ar)(?=\d|_|$)", lambda found: found[0].upper(), metric.removeprefix("val_"))
    return name.replace("_", " ").replace("miou", "mIoU")


def metric_text(task: Task, value: float) -> str:
    """A value of the task's metric for people: shares as per cent."""
    return f"{100 * value:.1f} %" if task.is_share else f"{value:.4g}"


def unreadable_in(data: Mapping[str, Any]) -> dict[str, str]:
    """The unreadable files of all parts, with the reason."""
    return {name: reason for part in data.values() for name, reason in part.skipped.items()}


def notes_on(data: Mapping[str, Any]) -> list[str]:
    """What a person should know of the parts of a data set, each sentence once."""
    return list(dict.fromkeys(note for part in data.values() for note in getattr(part, "notes", ())))


def opening_lines(
    config: TrainConfig, data: dict[str, Any], net: nn.Module, device: torch.device, image_size: int
) -> list[str]:
    """What is about to be trained, on what, at which size, where; then what a person should know of the data."""
    from foveal.insertion import inserted

    items = items_of(config.the_task)
    counts = " and ".join(f"{len(part):,} {name}" for name, part in data.items())
    unreadable = unreadable_in(data)
    broken = f", {len(unreadable)} unreadable and left out" if unreadable else ""
    blocks = len(inserted(net))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    with_blocks = f" with {blocks} inserted block{'s' * (blocks != 1)}" if config.insert else ""
    first = (
        f"{config.data}: {counts} {items} of {len(data['train'].classes)} classes{broken}; {config.model}"
        f"{with_blocks}, {parameters:,} parameters, at {image_size} pixels, on {device}"
    )
    reasons = [f"left out: {' '.join(reason.split())}" for reason in list(unreadable.values())[:NAMED]]
    if len(unreadable) > NAMED:
        reasons.append(f"left out: {len(unreadable) - NAMED} more; foveal check {config.data} names all")
    left_out = dict.fromkeys(name for part in data.values() for name in getattr(part, "left_out", ()))
    told = (
        [f"{len(left_out)} files are no {items} of these data: {', '.join(list(left_out)[:3])}"]
        if left_out
        else []
    )
    return [first, *reasons, *notes_on(data), *told]


class Progress:
    """Lines on the standard error output, so that results alone go to the standard output.

    Args:
        batches: batches in an epoch.
        val_batches: batches of its validation; they have twice the images, which are not trained on.
        task: whose metric to show beside the losses.
        quiet: show nothing.
    """

    def __init__(
        self, config: TrainConfig, batches: int, task: Task, *, val_batches: int = 0, quiet: bool = False
    ) -> None:
        self.epochs, self.batches, self.task = config.epochs, batches, task
        # forward alone is a third of a step
        self.epoch_work = batches + 2 * val_batches / 3
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("batch {task.fields[place]}"),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            TextColumn("to the end"),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )

    def start(self, epochs_done: int, batches_done: int) -> None:
        """Show the bar, at the place where the run continues."""
        self.bar = self.bars.add_task(
            f"epoch {epochs_done + 1}/{self.epochs}",
            total=self.epochs * self.batches,
            completed=epochs_done * self.batches + batches_done,
            loss="-",
            place=f"{batches_done}/{self.batches}",
        )
        self.first_epoch, self.first_batch = epochs_done + 1, batches_done + WARMING
        self.began, self.told = None, False
        self.bars.start()

    def batch(self, epoch: int, batches_done: int, loss: float) -> None:
        """Move the bar; where there is none, say once after some batches how long the run will take."""
        if self.bars.disable and not self.told and epoch == self.first_epoch:
            self._tell_time(epoch, batches_done)
        if not self.bars.disable:
            completed = (epoch - 1) * self.batches + batches_done
            self.bars.update(
                self.bar,
                completed=completed,
                loss=f"{loss:.3f}",
                description=f"epoch {epoch}/{self.epochs}",
                place=f"{batches_done}/{self.batches}",
            )

    def _tell_time(self, epoch: int, batches_done: int) -> None:
        if batches_done < self.first_batch:
            return
        now = time.monotonic()
        if self.began is None:
            self.first_batch, self.began = batches_done, now
        elif batches_done - self.first_batch >= TIMED:
            work = self.epoch_work * (self.epochs - epoch + 1) - batches_done
            seconds = (now - self.began) / (batches_done - self.first_batch) * work
            self.say(f"{time_left(seconds)} to the end of epoch {self.epochs}")
            self.told = True

    def epoch(self, row: dict[str, Any], better: bool) -> None:
        """A line for an epoch that is done."""
        name = self.task.metric
        epochs_left = self.epochs - row["epoch"]
        left = f"  {time_left(epochs_left * row['seconds'])}" if epochs_left else ""
        val_loss = f"val loss {row['val_loss']:.3f}  " if "val_loss" in row else ""
        self.say(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  train loss {row['train_loss']:.3f}  "
            f"{val_loss}{metric_name(name)} {metric_text(self.task, row[f'val_{name}'])}  {row['seconds']:.1f} s"
            f"{left}{'  best so far' if better else ''}"
        )

    def say(self, text: str) -> None:
        """A line as it is: names in it are no markup."""
        self.console.print(plain(text), soft_wrap=True)

    def stop(self) -> None:
        """Take the bar away."""
        self.bars.stop()
