"""A whole training run: from options to a run folder, stopped and continued at will."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.checkpoint import load
from foveal.errors import FovealError
from foveal.insertion import insert, parse_insertion
from foveal.models import create_model
from foveal.models.segmentation import HEADS, SegmentationNet
from foveal.train import classify, files, segment
from foveal.train.batches import (
    Augmented,
    InOrder,
    class_names,
    collate_by_size,
    colours_of,
    make_loader,
    open_data,
    worker_count,
)
from foveal.train.config import MOVABLE, TrainConfig
from foveal.train.health import health
from foveal.train.progress import Progress
from foveal.train.recipe import EpochBatches, NonFiniteLoss, seed_for

TASKS = {"classify": classify, "segment": segment}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
HEALTH_IMAGES = 128
HEALTH_PIXELS = 2**23  # of all images for the health table together
LOST = ("gloo", "NCCL", "onnection closed", "onnection reset")  # in what PyTorch says when a process is gone
FOLDER_VARIABLE = "FOVEAL_RUN_FOLDER"  # tells the processes that Lightning starts where the first one writes


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run; the message says how to continue it."""


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Attributes:
        folder: the run folder.
        config: its options.
        metric: name of the figure that decided which weights are best, such as "val_accuracy".
        rows: of metrics.csv, one an epoch.
        best: the row of the best epoch.
        health: one row for each attention block, see `foveal.train.health.health`.
        classes: class names in the order of the logits.
        skipped: unreadable files of both splits, with the reason.
    """

    folder: Path
    config: TrainConfig
    metric: str
    rows: list[dict[str, Any]]
    best: dict[str, Any]
    health: list[dict[str, Any]]
    classes: list[str]
    skipped: dict[str, str]

    @property
    def weights(self) -> Path:
        """The best epoch's weights."""
        return self.folder / "weights" / "best.safetensors"


def fit(
    config: TrainConfig | None = None, *, resume: str | os.PathLike[str] | None = None, quiet: bool = False
) -> RunResult:
    """Train a network and write its run folder; or continue a run that was stopped.

    Args:
        config: what to train. With ``resume`` it may be left out, and only its options that say where the run
            computes (accelerator, strategy, workers) may differ from their defaults.
        resume: folder of a run that was stopped. It continues from its last checkpoint, to the same weights as a
            run that was never stopped (bit for bit on a CPU with the same number of threads).
        quiet: print nothing.

    Returns:
        Where things are, and the figures of each epoch.

    Raises:
        ValueError: an option is wrong, or the loss or a weight became infinite or not a number; the weights and
            the checkpoint before that stay.
        OSError: the run folder cannot be written; what was written before stays whole.
        Interrupted: Ctrl-C or SIGTERM.

    Example:
        >>> import tempfile
        >>> result = fit(TrainConfig(epochs=1, data_options={"length": 640}, out=tempfile.mkdtemp()), quiet=True)
        >>> result.weights.name, len(result.rows), result.best["step"]
        ('best.safetensors', 1, 10)
    """
    config, folder = _settled(config, resume)
    task = TASKS[config.task]
    with torch.random.fork_rng(devices=[]), _quietly():
        data = {
            part: open_data(config.data, part, config.data_options, config.task) for part in ("train", "val")
        }
        classes = class_names(config, data)
        facts = task.facts(config, data)
        size = config.image_size or task.natural_size(data["train"])
        net = make_network(config, classes=len(classes), image_size=size)
        colours = colours_of(net, pretrained=config.pretrained)

        from foveal.train import loop

        trainer = _trainer(config)
        _check_shares(data, trainer.world_size)
        batches = EpochBatches(
            len(data["train"]), config.batch_size, seed=config.seed, world=trainer.world_size
        )
        val_batches = InOrder(len(data["val"]), 2 * config.batch_size, world=trainer.world_size)
        to_train, to_eval = task.transforms(config, data["train"], size, colours)
        how = {
            "workers": worker_count(config.workers, size),
            "pin_memory": trainer.strategy.root_device.type == "cuda",
        }
        train_loader = make_loader(data["train"], to_train, batches, seed=config.seed, **how)
        val_loader = make_loader(data["val"], to_eval, val_batches, by_size=True, **how)

        steps = config.epochs * -(-len(batches) // config.accumulate)
        weighted = replace(config, class_weights=facts.get("class_weights"))
        module = loop.Training(net, task, weighted, classes=len(classes), steps=steps)
        if folder is None:
            folder = files.new_folder(config) if first_process() else _folder_of_first_process(config)
            os.environ[FOLDER_VARIABLE] = str(folder)
        info = {"task": config.task, "classes": classes, "image_size": size, **colours, **facts}
        info |= {"data": config.data, "data_options": config.data_options}
        progress = Progress(config, len(batches), task.METRIC, quiet=quiet or not first_process())
        keeper = loop.RunFolder(module, folder, config, info, batches, val_batches, progress)
        trainer.callbacks.append(keeper)
        _run_trainer(trainer, module, train_loader, val_loader, keeper)

        table: list[dict[str, Any]] = []
        if first_process():
            images = Augmented(data["val"], to_eval, seed=0)
            device = trainer.strategy.root_device
            table = _health_of(folder / "weights" / "best.safetensors", images, device)
            files.write_json(folder / "health.json", table)
            files.write_curves(folder / "curves.png", keeper.rows, task.METRIC)
    assert keeper.best is not None
    skipped = {**data["train"].skipped, **data["val"].skipped}
    return RunResult(folder, config, task.METRIC, keeper.rows, keeper.best, table, classes, skipped)


def make_network(config: TrainConfig, *, classes: int, image_size: int) -> nn.Module:
    """The network of a config: initial weights from its seed, blocks inserted in the order given.

    Networks of one seed begin with the same weights, whatever is inserted.

    Raises:
        ValueError: unknown model or block, or a site where a block cannot go.
    """
    torch.manual_seed(seed_for(config.seed, "weights"))
    net = create_model(
        config.model, pretrained=config.pretrained, **{**config.model_options, "num_classes": classes}
    )
    if isinstance(net, SegmentationNet) != (config.task == "segment"):
        kind = "segment" if config.task == "segment" else "classify"
        raise FovealError(
            f"task {config.task} needs a network that can {kind}, got {config.model}"
            f"; to segment, take one of {', '.join(f'{head}_BACKBONE' for head in HEADS)}"
        )
    example = torch.zeros(1, 3, image_size, image_size)
    for text in config.insert:
        insert(net, **{"start": config.start, "example": example, **parse_insertion(text)})
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return net


# ------------------------------------------------------------------------------------------ before the first step


def _settled(
    config: TrainConfig | None, resume: str | os.PathLike[str] | None
) -> tuple[TrainConfig, Path | None]:
    """The config to run with (the caller's own is left alone), and its folder if it exists already."""
    if resume is None:
        return replace(config or TrainConfig()), None
    folder = Path(resume)
    kept = files.read_config(folder)
    given, default = config or TrainConfig(), TrainConfig()
    changed = {f.name for f in fields(given) if getattr(given, f.name) != getattr(default, f.name)}
    if changed - set(MOVABLE):
        raise FovealError(
            f"a resumed run takes its options from {folder / 'config.yaml'}; only {', '.join(MOVABLE)} may "
            f"be given, got {', '.join(sorted(changed - set(MOVABLE)))}"
        )
    return replace(kept, **{name: getattr(given, name) for name in changed}), folder


def _check_shares(data: dict[str, Any], processes: int) -> None:
    for part, images in data.items():
        if len(images) < processes:
            raise FovealError(
                f"the data must hold an image for {part} for each of {processes} processes, got {len(images)}"
            )


def first_process() -> bool:
    """Whether this is the process that writes and prints; True where there is only one."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name]) == 0
    return True


def _folder_of_first_process(config: TrainConfig) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE, config.out)
    if folder is None:
        raise FovealError("several processes started from outside must share one folder, got no out")
    return Path(folder)


def _trainer(config: TrainConfig) -> Any:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    from foveal.train.loop import WholeFiles

    if config.precision == "float16" and not torch.cuda.is_available():
        raise FovealError("precision float16 needs a CUDA GPU, got none here; bfloat16 runs on any device")
    try:
        return Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            precision=PRECISIONS[config.precision],  # pyright: ignore[reportArgumentType]
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_norm or None,
            plugins=[WholeFiles()],
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        chosen = ", ".join(
            f"{n}={getattr(config, n)}" for n in ("accelerator", "devices", "nodes", "strategy")
        )
        raise FovealError(f"Lightning must be able to run {chosen}, got: {_line(error)}") from error


# ------------------------------------------------------------------------------------------------ the run itself


def _run_trainer(trainer: Any, module: Any, train_loader: Any, val_loader: Any, keeper: Any) -> None:
    from foveal.train.loop import Stopped

    checkpoint = keeper.folder / "checkpoint.ckpt"
    start = None
    if checkpoint.exists():
        _check_checkpoint(checkpoint)
        start = str(checkpoint)
    again = f"foveal train --resume {keeper.folder}"
    try:
        with _stopping_on_signals(keeper):
            trainer.fit(module, train_loader, val_loader, ckpt_path=start, weights_only=True)
    except (Stopped, KeyboardInterrupt, SystemExit):  # Lightning turns a second Ctrl-C into SystemExit
        if not first_process():
            raise SystemExit(0) from None
        raise Interrupted(f"train: stopped; kept: {keeper.kept}; continue with: {again}") from None
    except NonFiniteLoss as error:
        raise NonFiniteLoss(
            f"{error}; kept: {keeper.kept}, in {keeper.folder}; try a lower lr, a longer warm-up or clip_norm=1"
        ) from None
    except RuntimeError as error:
        if trainer.world_size == 1 or not any(sign in str(error) for sign in LOST):
            raise
        raise ConnectionError(
            f"every process must go on to the end, got one that was lost: {_line(error)[:120]}; "
            f"kept: {keeper.kept}; continue with: {again}"
        ) from error
    except OSError as error:
        reason = f"{error.strerror or _line(error)} (kept: {keeper.kept}; continue with: {again})"
        raise OSError(error.errno, reason, error.filename) from error
    finally:
        keeper.progress.stop()


def _check_checkpoint(path: Path) -> None:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        known = "foveal" in checkpoint
    except (
        Exception
    ) as error:  # a foreign or damaged file fails in many ways, none of them by running its code
        raise FovealError(
            f"resume needs a checkpoint this library wrote, got {path}: {_line(error)}"
        ) from None
    if not known:
        raise FovealError(f"resume needs a checkpoint this library wrote, got another one in {path}")


@contextmanager
def _stopping_on_signals(keeper: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the run after the current step; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, _frame: Any) -> None:
        if keeper.stop_asked:
            raise KeyboardInterrupt
        keeper.stop_asked = True
        keeper.progress.say("stopping after this step (once more: at once)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Lightning's banners, tips and warnings."""
    import lightning.pytorch  # noqa: F401  importing it sets the levels that are changed here

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\b")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _health_of(weights: Path, images: Augmented, device: torch.device) -> list[dict[str, Any]]:
    """Over images spread evenly, since folders list one class after the other; fewer where they are large."""
    pixels = images[0, 0]["image"][0].numel()
    wanted = min(HEALTH_IMAGES, max(1, HEALTH_PIXELS // pixels))
    together = max(1, min(32, wanted // 4))
    chosen = range(0, len(images), max(1, len(images) // wanted))[:wanted]
    batches = (
        batch["image"].to(device)
        for k in range(0, len(chosen), together)
        for batch in collate_by_size(images.__getitems__([(0, i) for i in chosen[k : k + together]]))
    )
    return health(load(weights).to(device), batches)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
