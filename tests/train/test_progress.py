"""What a person sees of a run in a terminal."""

import io

import torch
from rich.console import Console
from torch import nn

from foveal.train import TrainConfig
from foveal.train.progress import Progress, opening_lines


class Part(list):
    """A part of some data, and what of it could not be read."""

    classes = ("blue", "red")

    def __init__(self, length, skipped):
        super().__init__(range(length))
        self.skipped = skipped


def test_the_bar_names_epoch_and_batch_and_is_as_long_as_the_run():
    config = TrainConfig(epochs=4)
    progress = Progress(config, 9, config.the_task)
    progress.bars.disable = False
    progress.bars.live.console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress.start(0, 0)
    progress.batch(2, 3, 0.5)
    seen = Console(file=io.StringIO(), width=120)
    seen.print(progress.bars.get_renderable())
    progress.stop()
    shown = seen.file.getvalue()
    assert "epoch 2/4" in shown
    assert "batch 3/9" in shown
    assert "loss 0.500" in shown
    assert (progress.bars.tasks[0].completed, progress.bars.tasks[0].total) == (12, 36)


def test_what_cannot_be_read_is_named_before_the_first_step(tmp_path):
    names = {f"red/{i}.png": f"red/{i}.png: image file is\ntruncated" for i in range(5)}
    data = {"train": Part(95, names), "val": Part(10, {})}
    lines = opening_lines(TrainConfig(data=str(tmp_path)), data, nn.Linear(1, 1), torch.device("cpu"), 24)
    assert "95 train and 10 val images of 2 classes, 5 unreadable and left out" in lines[0]
    assert lines[1:] == [
        *(f"left out: red/{i}.png: image file is truncated" for i in range(3)),
        f"left out: 2 more; foveal check {tmp_path} names all",
    ]
