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
    assert "to the end" in shown
    assert (progress.bars.tasks[0].completed, progress.bars.tasks[0].total) == (12, 36)


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def lines_of(monkeypatch, capsys, batches_at_once=1, done=(0, 0)):
    """What a run of 4 epochs of 20 batches, of 1 s each after slow first ones, says in its first epoch here."""
    clock = Clock()
    monkeypatch.setattr("foveal.train.progress.time", clock)
    config = TrainConfig(epochs=4)
    progress = Progress(config, 20, config.the_task, val_batches=6)
    progress.start(*done)
    for batch in range(done[1] + batches_at_once, 21, batches_at_once):
        clock.now += batches_at_once * (1 if batch > done[1] + 2 else 50)
        progress.batch(done[0] + 1, batch, 0.5)
    row = {"epoch": done[0] + 1, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "seconds": 30.0}
    progress.epoch(row, True)
    progress.stop()
    return capsys.readouterr().err.splitlines()


def test_without_a_bar_the_first_batches_say_once_how_long_the_run_takes(monkeypatch, capsys):
    # 4 epochs of 20 batches and 6 of validation, at two thirds of a batch each; 10 batches are done
    estimate, epoch = lines_of(monkeypatch, capsys)
    assert estimate == "about 86 s left to the end of epoch 4"
    assert "30.0 s  about 90 s left  best so far" in epoch


def test_accumulation_and_a_run_that_continues_change_nothing_of_the_estimate(monkeypatch, capsys):
    # 12 are done when it is said
    assert lines_of(monkeypatch, capsys, batches_at_once=4)[0] == "about 84 s left to the end of epoch 4"
    # the third epoch is at batch 5 + 2 + 8
    assert lines_of(monkeypatch, capsys, done=(2, 5))[0] == "about 33 s left to the end of epoch 4"


def test_the_last_epoch_says_no_time(monkeypatch, capsys):
    *_, epoch = lines_of(monkeypatch, capsys, done=(3, 0))
    assert "left" not in epoch


def test_what_cannot_be_read_is_named_before_the_first_step(tmp_path):
    names = {f"red/{i}.png": f"red/{i}.png: image file is\ntruncated" for i in range(5)}
    data = {"train": Part(95, names), "val": Part(10, {})}
    lines = opening_lines(TrainConfig(data=str(tmp_path)), data, nn.Linear(1, 1), torch.device("cpu"), 24)
    assert "95 train and 10 val images of 2 classes, 5 unreadable and left out" in lines[0]
    assert lines[1:] == [
        *(f"left out: red/{i}.png: image file is truncated" for i in range(3)),
        f"left out: 2 more; foveal check {tmp_path} names all",
    ]
