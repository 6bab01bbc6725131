"""The Lightning side of training: one module for every task, and one callback that keeps the run folder.

Importing this file imports Lightning, which takes seconds: `foveal.train.run` does so when a run begins.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foveal.checkpoint import save
from foveal.files import atomic_write, write_text
from foveal.train.batches import InOrder
from foveal.train.config import TrainConfig
from foveal.train.files import table_text
from foveal.train.progress import Progress
from foveal.train.recipe import (
    Average,
    EpochBatches,
    Freeze,
    NonFiniteLoss,
    first_non_finite,
    make_optimizer,
    rate_factor,
    seed_for,
    set_rate,
)


class Stopped(Exception):
    """Ctrl-C or SIGTERM was answered; everything worth keeping is on the disk."""


class Training(LightningModule):
    """A network in training, for any task: ``task`` gives loss, counts and metrics as plain functions."""

    def __init__(
        self, net: nn.Module, task: ModuleType, config: TrainConfig, classes: int, steps: int
    ) -> None:
        super().__init__()
        self.net, self.task, self.config, self.classes, self.steps = net, task, config, classes, steps
        self.average = Average(net, config.ema) if config.ema else None
        self.loss_sum, self.loss_count = 0.0, 0
        self.counts: Tensor | None = None
        self.backbone_freeze = Freeze(net, config.freeze_epochs)
        self.modes_set_for = -1

    @property
    def evaluated(self) -> nn.Module:
        """What is validated and kept: the running average where there is one."""
        return self.net if self.average is None else self.average.net

    def configure_optimizers(self) -> torch.optim.Optimizer:
        c = self.config
        return make_optimizer(
            self.net,
            optimizer=c.optimizer,
            lr=c.lr,
            inserted_lr=c.inserted_lr,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """A batch to train on, or the list of batches, one a size of image, to validate on."""
        if self.config.channels_last:
            for one in batch if isinstance(batch, list) else [batch]:
                one["image"] = one["image"].contiguous(memory_format=torch.channels_last)
        return batch

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        torch.manual_seed(self._step_seed(batch_idx))  # for dropout and stochastic depth
        if self.modes_set_for != self.current_epoch:
            self._set_modes()
        steps_per_epoch = self.steps / self.config.epochs
        factor = rate_factor(
            self.global_step,
            steps=self.steps,
            warmup_steps=round(self.config.warmup_epochs * steps_per_epoch),
            schedule=self.config.schedule,
        )
        for optimizer in self.trainer.optimizers:
            set_rate(optimizer, factor)

    def _step_seed(self, batch_idx: int) -> int:
        return seed_for(self.config.seed, "step", self.current_epoch, batch_idx, self.global_rank)

    def _set_modes(self) -> None:
        self.modes_set_for = self.current_epoch
        strategy = self.trainer.strategy
        if self.backbone_freeze.begin(self.current_epoch) and isinstance(
            strategy.model, DistributedDataParallel
        ):
            # it settles when it is made for which gradients the processes wait
            strategy.model = strategy._setup_model(self)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._step_seed(batch_idx))
        loss = self.task.loss(self.net, batch, self.config, generator)
        value = float(loss.detach())
        # all processes stop together: one that stopped alone would leave the others waiting for its gradients
        if not self.trainer.strategy.reduce_boolean_decision(math.isfinite(value), all=True):
            self._explain(value, batch, batch_idx)
        self.loss_sum += value
        self.loss_count += 1
        return loss

    def _explain(self, value: float, batch: dict[str, Tensor], batch_idx: int) -> None:
        where = "another process"
        if not math.isfinite(value):
            torch.manual_seed(self._step_seed(batch_idx))
            where = first_non_finite(self.net, batch["image"])
        raise NonFiniteLoss(
            f"the loss must be finite, got {value} in epoch {self.current_epoch + 1}, "
            f"batch {batch_idx + 1}, first in {where}"
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.net)

    def validation_step(self, batches: list[dict[str, Tensor]], batch_idx: int) -> None:
        for batch in batches:
            counts = self.task.count(self.evaluated, batch, self.classes)
            self.counts = counts if self.counts is None else self.counts + counts

    def epoch_row(self) -> dict[str, float]:
        """Training loss and validation figures of the epoch that ends, over all processes."""
        assert self.counts is not None
        own = torch.tensor([self.loss_sum, self.loss_count], dtype=torch.float64, device=self.counts.device)
        loss_sum, loss_count = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        counts = self.trainer.strategy.reduce(self.counts, reduce_op="sum")
        self.counts, self.loss_sum, self.loss_count = None, 0.0, 0
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        return {"lr": rate, "train_loss": loss_sum / loss_count, **self.task.metrics(counts)}


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        def write(part: Path) -> None:
            with part.open("wb") as file:
                torch.save(checkpoint, file)

        atomic_write(Path(path), write)


class RunFolder(Callback):
    """Metrics, weights and checkpoints into the run folder; stops at the next step when asked to.

    Its state is part of the checkpoint, so a run that continues writes the same metrics.csv as one that was
    never stopped, without a row twice.
    """

    def __init__(
        self,
        module: Training,
        folder: Path,
        config: TrainConfig,
        info: dict[str, Any],
        batches: EpochBatches,
        val_batches: InOrder,
        progress: Progress,
    ) -> None:
        self.module, self.folder, self.config, self.info = module, folder, config, info
        self.progress = progress
        self.batches, self.val_batches = batches, val_batches
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.stop_asked = False
        self.kept = "nothing yet"
        self.epoch_seconds = 0.0
        self.since = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # which process this is, Lightning only knows after it has started the others
        self.batches.rank = self.val_batches.rank = trainer.global_rank

    # ------------------------------------------------------------------------------------ what a checkpoint adds

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        done = 0 if self._epoch_is_over(trainer) else loop.batch_progress.current.ready
        checkpoint["foveal"] = {
            "rows": self.rows,
            "best": self.best,
            "batches_done": done,
            "loss_sum": self.module.loss_sum,
            "loss_count": self.module.loss_count,
            "epoch_seconds": self.epoch_seconds + time.monotonic() - self.since,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["foveal"]
        self.rows, self.best = state["rows"], state["best"]
        self.batches.continue_at(len(self.rows), state["batches_done"])
        self.module.loss_sum, self.module.loss_count = state["loss_sum"], state["loss_count"]
        self.epoch_seconds = state["epoch_seconds"]
        done = state["batches_done"]
        self.kept = f"epoch {len(self.rows) + 1}, batch {done}" if done else f"epoch {len(self.rows)}"

    def _epoch_is_over(self, trainer: Trainer) -> bool:
        return trainer.fit_loop.epoch_loop.batch_progress.current.ready >= len(self.batches)

    # ------------------------------------------------------------------------------------------- during training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()
        self.progress.start(len(self.rows), self.batches.passed_over[1])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches.epoch = trainer.current_epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.batch(
            len(self.rows) + 1, batch_idx + 1, self.module.loss_sum / max(self.module.loss_count, 1)
        )
        if self._epoch_is_over(trainer) or (batch_idx + 1) % self.config.accumulate:
            return  # the epoch's end saves; half an accumulated gradient is in no checkpoint
        every, stopping = self.config.checkpoint_steps, self._stopping(trainer)
        if stopping or (every and trainer.global_step % every == 0):
            self._save_checkpoint(trainer)
            self.kept = f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}"
        if stopping:
            raise Stopped

    def on_validation_batch_end(self, trainer: Trainer, *_args: Any, **_named: Any) -> None:
        if self.stop_asked and trainer.world_size == 1:  # several may have different numbers of batches
            raise Stopped  # the epoch's last batches are repeated when the run continues

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.module.epoch_row()
        now = time.monotonic()
        seconds, self.epoch_seconds, self.since = self.epoch_seconds + now - self.since, 0.0, now
        row = {"epoch": len(self.rows) + 1, "step": trainer.global_step, **row, "seconds": seconds}
        self.rows.append(row)
        metric = self.module.task.METRIC
        better = self.best is None or row[metric] > self.best[metric]
        if better:
            self.best = row
        self.progress.epoch(row, better)
        if not math.isfinite(row["val_loss"]):
            raise NonFiniteLoss(
                f"the validation loss must be finite, got {row['val_loss']} in epoch {row['epoch']}"
            )
        self._refuse_broken_weights()
        if trainer.is_global_zero:
            weights = self.folder / "weights"
            info = {
                **self.info,
                "epoch": row["epoch"],
                **{k: v for k, v in row.items() if k.startswith("val_")},
            }
            if better:
                save(self.module.evaluated, weights / "best.safetensors", **info)
            save(self.module.evaluated, weights / "last.safetensors", **info)
            write_text(self.folder / "metrics.csv", table_text(self.rows))
        self._save_checkpoint(trainer)
        self.kept = f"epoch {row['epoch']}"
        if self._stopping(trainer) and len(self.rows) < self.config.epochs:
            raise Stopped

    def _stopping(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop: all stop after the same step, or some would wait for ever."""
        return bool(trainer.strategy.reduce_boolean_decision(self.stop_asked, all=False))

    def _save_checkpoint(self, trainer: Trainer) -> None:
        self._refuse_broken_weights()
        trainer.save_checkpoint(self.folder / "checkpoint.ckpt")

    def _refuse_broken_weights(self) -> None:
        """Before anything good is overwritten."""
        for name, value in self.module.net.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise NonFiniteLoss(
                    f"the weights must be finite, got {name} with a value that is not, in epoch "
                    f"{self.module.current_epoch + 1}, while the loss still was"
                )
