"""A whole training run: from options to a run folder, stopped and continued at will."""

from __future__ import annotations

import copy
import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foveal.errors import FovealError
from foveal.files import atomic_write
from foveal.folders import locked
from foveal.machine import versions
from foveal.signals import stop_signals
from foveal.tasks import Task
from foveal.train import loop, run_folder
from foveal.train.config import TrainConfig
from foveal.train.loggers import Logger, open_logger, require_logger
from foveal.train.nonfinite import NonFiniteError
from foveal.train.prepare import prepare
from foveal.train.processes import (
    any_process,
    in_every_process,
    launch_fabric,
    one_line_where_lost,
    processes_of_a_run,
    require_same,
    require_world,
)
from foveal.train.progress import Progress, opening_lines, unreadable_in
from foveal.train.resume import settled
from foveal.train.run_folder import CHECKPOINT, CHECKPOINT_FORMAT, read_checkpoint
from foveal.train.start import start_lines
from foveal.train.waiting import ended_by_signals


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run; the message says how to continue it."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM was answered; everything worth keeping is on the disk."""


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Attributes:
        folder: the run folder.
        config: its options.
        metric: name of the figure that decided which weights are best, such as "val_accuracy".
        rows: of metrics.csv, one an epoch.
        best: the row of the best epoch.
        blocks: one row for each attention block, see `foveal.train.block_report.block_report`.
        classes: class names in the order of the outputs.
        skipped: unreadable files of both splits, with the reason.
        first_process: whether this process is the one that writes and prints.
    """

    folder: Path
    config: TrainConfig
    metric: str
    rows: list[dict[str, Any]]
    best: dict[str, Any]
    blocks: list[dict[str, Any]]
    classes: list[str]
    skipped: dict[str, str]
    first_process: bool = True

    @property
    def weights(self) -> Path:
        """The best epoch's weights."""
        return self.folder / "weights" / "best.safetensors"


def fit(
    config: TrainConfig | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> RunResult:
    """Train a network and write its run folder; or continue a run that was stopped.

    Args:
        config: what to train. With ``resume`` it may be left out, and only its options that say where the run
            computes (accelerator, strategy, workers) may differ from their defaults, and ``blocks``, the files of
            its blocks of one's own: what a run folder names is not run unless it is named here too.
        resume: folder of a run that was stopped. It continues from its last checkpoint, to the same weights as a
            run that was never stopped (bit for bit on a CPU with the same number of threads). "auto" continues
            the run in ``config.out`` if there is one, and begins it otherwise.
        quiet: print nothing.

    Returns:
        Where things are, and the figures of each epoch.

    Raises:
        FovealError: an option is wrong, the data changed since the run was stopped, or the loss or a weight became
            infinite or not a number; the weights and the checkpoint before that stay.
        OSError: the run folder cannot be written; what was written before stays whole.
        Interrupted: Ctrl-C or SIGTERM.

    Example:
        >>> import tempfile
        >>> result = fit(TrainConfig(epochs=1, data_options={"length": 640}, out=tempfile.mkdtemp()), quiet=True)
        >>> result.weights.name, len(result.rows), result.best["step"]
        ('best.safetensors', 1, 10)
    """
    config, folder = settled(config, resume)
    # random states are put back when the run is over, those of GPUs too
    with (
        processes_of_a_run(),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        ExitStack() as stack,
    ):
        with ended_by_signals(lambda: "stopped before the first step"):
            run = Run(config, folder, quiet=quiet)
            lock = locked(run.folder, "a training run") if run.fabric.is_global_zero else nullcontext()
            in_every_process(run.fabric, partial(stack.enter_context, lock))
        run.train()
        return run.finish()


class Run:
    """One training run: its data, its network in training, and its folder.

    Args:
        config: what to train.
        folder: of a run to continue; None makes a new one.
        quiet: print nothing.

    Attributes:
        rows: of metrics.csv, one an epoch; ``best`` is that of the best one.
        last_saved: what is on the disk, in words.
        stop_asked: set to stop after the current step.
    """

    def __init__(self, config: TrainConfig, folder: Path | None, *, quiet: bool = False) -> None:
        require_logger(config.logger)
        self.config, self.task = config, config.the_task
        self.last_saved, self.stop_asked = "nothing yet", False
        require_world(config)
        self.fabric = launch_fabric(config, self.lost_message)
        with one_line_where_lost(lambda: self.fabric.world_size, self.lost_message):
            self._begin(folder, quiet)

    def _begin(self, folder: Path | None, quiet: bool) -> None:
        """Everything before the first step; what is refused in one process is refused in all."""
        config = self.config
        require_same(self.fabric, config.of_all_nodes)
        prepared = in_every_process(self.fabric, partial(prepare, config, self.fabric))
        self.data, self.info, self.batches = prepared.data, prepared.info, prepared.batches
        self.train_loader, self.val_loader = prepared.train_loader, prepared.val_loader
        images = {f"images for {part}": len(data) for part, data in self.data.items()}
        parameters = sum(parameter.numel() for parameter in prepared.net.parameters())
        require_same(self.fabric, {**images, "classes": self.info.classes, "parameters": parameters})
        self.training = loop.Training(prepared.net, self.task, config, self.info, self.batches, self.fabric)
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.epoch_seconds, self.since = 0.0, time.monotonic()
        self.folder = self._settle_folder(folder)
        self.progress = Progress(
            config,
            len(self.batches),
            self.task,
            val_batches=len(self.val_loader),
            quiet=quiet or not self.fabric.is_global_zero,
        )
        own_lines = getattr(self.task, "opening_lines", None)
        opening = opening_lines(config, self.data, prepared.net, self.fabric.device, self.info.image_size)
        opening += start_lines(config, self.info.classes)
        for line in opening if own_lines is None else [*opening, *own_lines(config, prepared.net, self.data)]:
            self.progress.say(line)
        self._restore()
        self.logger: Logger | None = None
        if self.fabric.is_global_zero:
            self.logger = open_logger(config.logger, self.folder, config.to_dict(), self.rows)

    def _settle_folder(self, folder: Path | None) -> Path:
        """The folder, made by the first process and known to all."""

        def settle() -> Path | None:
            first = folder is None and self.fabric.is_global_zero
            return run_folder.make_run_folder(self.config) if first else folder

        folder = self.fabric.broadcast(in_every_process(self.fabric, settle))
        assert folder is not None
        return folder

    # ------------------------------------------------------------------------------------------------- checkpoints

    @property
    def checkpoint(self) -> Path:
        """Where the run continues from."""
        return self.folder / CHECKPOINT

    def _place(self) -> str:
        """Where the training stands, in words."""
        epoch, batch = self.training.epoch, self.training.batch
        return f"epoch {epoch + 1}, batch {batch}" if batch else f"epoch {epoch}"

    @property
    def again(self) -> str:
        """The command that continues this run."""
        return f"foveal train --resume {self.folder}" + run_folder.blocks_option(self.config)

    def lost_message(self, reason: str) -> str:
        """What to say where another process was lost, at any time: the folder may not be settled yet."""
        again = f"; continue with: {self.again}" if hasattr(self, "folder") else ""
        return f"every process must go on to the end, got one that was lost: {reason}; kept: {self.last_saved}{again}"

    def _data_state(self) -> dict[str, Any]:
        """What tells these data from others."""
        return {
            part: {"images": len(data), "fingerprint": getattr(data, "fingerprint", None)}
            for part, data in self.data.items()
        }

    def save_checkpoint(self) -> None:
        """Write everything that continuing needs, whole or not at all."""
        self.training.refuse_broken_weights()
        state = {
            "foveal": CHECKPOINT_FORMAT,
            "versions": versions(),
            "data": self._data_state(),
            "training": self.training.state_dict(),
            "rows": self.rows,
            "best": self.best,
            "epoch_seconds": self.epoch_seconds + time.monotonic() - self.since,
        }
        if self.fabric.is_global_zero:
            atomic_write(self.checkpoint, lambda temporary: run_folder.write_checkpoint(state, temporary))
        self.last_saved = self._place()

    def _restore(self) -> None:
        """Continue from the checkpoint, where there is one.

        Raises:
            FovealError: it is damaged or foreign, or the data changed meanwhile.
        """

        def read() -> dict[str, Any] | None:
            if not self.fabric.is_global_zero or not self.checkpoint.exists():
                return None
            state = read_checkpoint(self.checkpoint)
            if state["data"] != self._data_state():
                raise FovealError(
                    f"the data must be those of the run in {self.folder}, got others in {self.config.data}: files "
                    "were added, removed or changed since it was stopped; begin a new run"
                )
            return state

        # of the first process: the others may not see its disk
        state = self.fabric.broadcast(in_every_process(self.fabric, read))
        if state is None:
            return
        for name in ("foveal", "torch"):
            before, now = state["versions"].get(name), versions()[name]
            if before != now:
                self.progress.say(f"the run began with {name} {before} and continues with {now}")
        self.training.load_state_dict(state["training"])
        self.rows, self.best, self.epoch_seconds = state["rows"], state["best"], state["epoch_seconds"]
        self.last_saved = self._place()

    # ------------------------------------------------------------------------------------------------ the run itself

    def train(self) -> None:
        """Train until the last epoch is done.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
            NonFiniteError: the loss or a weight became infinite or not a number.
            ConnectionError: another process was lost.
        """
        try:
            with (
                stop_signals(self._ask_to_stop),
                ended_by_signals(self._stopped_line, signals=2),
                one_line_where_lost(lambda: self.fabric.world_size, self.lost_message),
            ):
                self._train()
        except (Stopped, KeyboardInterrupt):
            # one process a machine says so
            if self.fabric.local_rank:
                raise SystemExit(0) from None
            raise Interrupted(self._stopped_line()) from None
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{error}; kept: {self.last_saved}, in {self.folder}; try a lower lr, a longer warm-up or clip_norm=1"
            ) from None
        except ConnectionError:
            # another process was lost, as its line says
            raise
        except OSError as error:
            reason = f"{error.strerror or error} (kept: {self.last_saved}; continue with: {self.again})"
            raise OSError(error.errno, reason, error.filename) from error
        finally:
            self.progress.stop()
            if self.logger is not None:
                self.logger.close()

    def _stopped_line(self) -> str:
        return f"stopped; kept: {self.last_saved}; continue with: {self.again}"

    def _train(self) -> None:
        t = self.training
        self.since = time.monotonic()
        self.progress.start(t.epoch, t.batch)
        while t.epoch < self.config.epochs:
            self.batches.start_at(t.epoch, t.batch)
            loop.train_epoch(t, self.train_loader, self._after_step)
            row = loop.validate(t, self.val_loader, list(self.data["val"].classes), self._after_val_batch)
            self._finish_epoch(row)

    def _after_step(self, t: loop.Training) -> None:
        self.progress.batch(t.epoch + 1, t.batch, sum(t.loss_sums.values()) / t.loss_count)
        if t.batch == len(self.batches):
            # the epoch's end saves
            return
        every, stopping = self.config.checkpoint_steps, any_process(self.fabric, self.stop_asked)
        if stopping or (every and t.step % every == 0):
            self.save_checkpoint()
        if stopping:
            raise Stopped

    def _after_val_batch(self) -> None:
        # several processes may have different numbers of batches, and stop at the epoch's end
        if self.stop_asked and self.fabric.world_size == 1:
            raise Stopped

    def _ask_to_stop(self) -> None:
        if self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True
        self.progress.say("stopping after this step (once more: at once)")

    def _finish_epoch(self, figures: dict[str, float]) -> None:
        """A row of metrics, the weights if they are the best, and a checkpoint."""
        t, name = self.training, f"val_{self.task.metric}"
        now = time.monotonic()
        seconds, self.epoch_seconds, self.since = self.epoch_seconds + now - self.since, 0.0, now
        row = {"epoch": t.epoch, "step": t.step, **figures, "seconds": seconds}
        self.rows.append(row)
        better = self.best is None or is_better(self.task, row[name], self.best[name])
        if better:
            self.best = row
        self.progress.epoch(row, better)
        remarks = getattr(self.task, "remarks", None)
        for line in () if remarks is None else remarks(self.rows, self.config):
            self.progress.say(line)
        loop.refuse_broken(t, row)
        if self.fabric.is_global_zero:
            run_folder.write_epoch(self.folder, self.task, t.evaluated, self.info, self.rows, better=better)
        self.save_checkpoint()
        if self.logger is not None:
            self.logger.log(row)
        if len(self.rows) < self.config.epochs and any_process(self.fabric, self.stop_asked):
            raise Stopped

    def finish(self) -> RunResult:
        """What the blocks do in the best network, the pictures, and the result."""
        assert self.best is not None
        blocks: list[dict[str, Any]] = []
        if self.fabric.is_global_zero:
            net = copy.deepcopy(self.training.evaluated).to(self.fabric.device)
            blocks = run_folder.write_end(self.folder, self.task, net, self.info, self.rows, self.data["val"])
        return RunResult(
            self.folder,
            self.config,
            f"val_{self.task.metric}",
            self.rows,
            self.best,
            blocks,
            self.info.classes,
            unreadable_in(self.data),
            self.fabric.is_global_zero,
        )


def is_better(task: Task, value: float, best: float) -> bool:
    """Whether a value of the task's metric is better than the best one so far."""
    return value > best if task.higher_is_better else value < best
