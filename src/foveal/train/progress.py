"""What a person sees while a network trains: a live bar in a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from foveal.train.config import TrainConfig


def metric_name(metric: str) -> str:
    """A figure's name for people.

    Example:
        >>> metric_name("val_miou"), metric_name("val_accuracy")
        ('mIoU', 'accuracy')
    """
    return metric.removeprefix("val_").replace("_", " ").replace("miou", "mIoU")


class Progress:
    """Lines on the standard error output, so that results alone go to the standard output.

    Args:
        batches: batches in an epoch.
        metric: the figure to show beside the losses.
        quiet: show nothing.
    """

    def __init__(self, config: TrainConfig, batches: int, metric: str, *, quiet: bool = False) -> None:
        self.epochs, self.batches, self.metric = config.epochs, batches, metric
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )

    def start(self, epochs_done: int, batches_done: int) -> None:
        self.task = self.bars.add_task(
            f"epoch {epochs_done + 1}/{self.epochs}",
            total=self.epochs * self.batches,
            completed=epochs_done * self.batches + batches_done,
            loss="-",
        )
        self.bars.start()

    def batch(self, epoch: int, batches_done: int, loss: float) -> None:
        if not self.bars.disable:
            completed = (epoch - 1) * self.batches + batches_done
            self.bars.update(
                self.task, completed=completed, loss=f"{loss:.3f}", description=f"epoch {epoch}/{self.epochs}"
            )

    def epoch(self, row: dict[str, Any], better: bool) -> None:
        self.console.print(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  train loss {row['train_loss']:.3f}  "
            f"val loss {row['val_loss']:.3f}  {metric_name(self.metric)} {100 * row[self.metric]:.1f} %  "
            f"{row['seconds']:.1f} s"
            f"{'  best so far' if better else ''}",
            soft_wrap=True,
        )

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def stop(self) -> None:
        self.bars.stop()
