"""What a person sees of a run in a terminal."""

import io

from rich.console import Console

from foveal.train import TrainConfig
from foveal.train.progress import Progress


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
