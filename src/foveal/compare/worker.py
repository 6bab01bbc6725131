"""One run of a comparison: train, evaluate, measure where the attention lies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.checkpoint import save
from foveal.compare.arrays import ArrayDataset, fold, spread
from foveal.compare.job import Job
from foveal.data import JointTransform
from foveal.data.loader import EpochBatchSampler, MemoryLoader, SequentialBatchSampler, make_loader
from foveal.look.measures import attention_map, has_map, share_on_object
from foveal.look.watching import watch
from foveal.tasks import Task
from foveal.train import loop
from foveal.train.block_report import block_report
from foveal.train.nonfinite import NonFiniteError

EVAL_BATCH = 256
REPORT_IMAGES = 128
"""Images on which is measured how much each block changes its input."""
SHARE_IMAGES = 512
"""Images on which the share of attention on the object is measured."""


def run_job(
    job: Job, images: Path, on_step: Callable[[int], None] | None = None
) -> tuple[dict[str, Any], bytes | None]:
    """Do one run. Nothing is written.

    Args:
        images: folder of `foveal.compare.arrays.save_arrays`.
        on_step: called with the number of optimiser steps done.

    Returns:
        The result: ``figures`` of the last epoch, ``metric`` (the one that counts), ``curve`` (it, epoch by epoch),
        ``seconds``; ``change``: site -> how much the block there changes its input; ``share``: site -> [share of the
        attention on the object, chance], where images have objects and the block has a map. A run whose loss became
        infinite has ``failed`` instead, with the reason. And the trained weights as the bytes of a file, where the job
        keeps them.
    """
    start = time.perf_counter()
    config, task = job.config, job.config.the_task
    train, val = parts_of(job, images)
    net = job.build()
    batches = EpochBatchSampler(len(train), config.batch_size, seed=config.seed)
    training = loop.Training(net, task, config, job.info, batches)
    to_train = task.train_transform(train, job.info, config.options, config.augment)
    normalize = JointTransform([], job.info.mean, job.info.std)
    val_batches = SequentialBatchSampler(len(val), max(EVAL_BATCH, 2 * config.batch_size))
    train_loader = _loader(task, train, to_train if to_train.random else normalize, batches, config.seed)
    # training images for random crops are stored as they are, and a trial measures on some of them
    stored_whole = job.trial_share is not None and to_train.random
    val_loader = _loader(
        task, val, task.eval_transform(job.info) if stored_whole else normalize, val_batches, 0
    )
    result: dict[str, Any] = {"variant": job.variant.name, "seed": config.seed}
    curve: list[float] = []
    figures: dict[str, float] = {}

    def after_step(t: loop.Training) -> None:
        if on_step is not None:
            on_step(t.step)

    try:
        while training.epoch < config.epochs:
            batches.start_at(training.epoch)
            loop.train_epoch(training, train_loader, after_step)
            figures = loop.validate(training, val_loader, val.classes)
            curve.append(figures[f"val_{task.metric}"])
    except NonFiniteError as error:
        return {**result, "failed": str(error), "seconds": round(time.perf_counter() - start, 2)}, None
    net = training.evaluated.eval()
    figures = {name.removeprefix("val_"): v for name, v in figures.items() if name.startswith("val_")}
    result |= {"metric": figures[task.metric], "figures": figures, "curve": curve}
    if job.variant.attends and hasattr(task, "object_mask") and job.trial_share is None:
        result["share"] = attention_shares(net, val, job)
    if job.variant.insert is not None and job.trial_share is None:
        images_of = (batch["image"] for batch in prepared_batches(val, job, REPORT_IMAGES))
        result["change"] = {row["site"]: row["contribution"] for row in block_report(net, images_of)}
    result["seconds"] = round(time.perf_counter() - start, 2)
    return result, _weights(net, job, figures) if job.keep_weights else None


def parts_of(job: Job, images: Path) -> tuple[ArrayDataset, ArrayDataset]:
    """What to train and what to measure on; a trial of tuning has both from the training images."""
    if job.trial_share is None:
        return ArrayDataset(images, "train"), ArrayDataset(images, "val")
    whole = ArrayDataset(images, "train")
    first, second = fold(len(whole), job.trial_share)
    return ArrayDataset(images, "train", first), ArrayDataset(images, "train", second)


def _weights(net: nn.Module, job: Job, figures: dict[str, float]) -> bytes:
    from dataclasses import replace

    validated = {f"val_{name}": value for name, value in figures.items()}
    info = replace(job.info, figures={"epoch": job.config.epochs, **validated})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save(net, path, **info.to_dict())
        return path.read_bytes()


def _loader(task: Task, data: ArrayDataset, transform: JointTransform, batches: Any, seed: int) -> Any:
    """Batches of stored items: from memory where only their values are left to change and all have one shape.

    The driver stored what draws no random numbers, so that a transform without steps is all that remains of it.
    """
    arrays = None if transform.steps else data.as_tensors()
    if arrays is None:
        return make_loader(data, transform, batches, task.collate, seed=seed)
    return MemoryLoader(
        arrays, batches, lambda batch: {**batch, "image": transform.normalize(batch["image"])}
    )


def prepared_batches(val: ArrayDataset, job: Job, most: int) -> Iterator[dict[str, Tensor]]:
    """At most ``most`` validation images, spread evenly over the split, as batches for the network."""
    normalize = JointTransform([], job.info.mean, job.info.std)
    chosen = list(spread(len(val), most))
    for start in range(0, len(chosen), EVAL_BATCH):
        samples = [normalize(val[i]) for i in chosen[start : start + EVAL_BATCH]]
        for batch in job.config.the_task.collate(samples):
            yield {name: v.to(job.device) if isinstance(v, Tensor) else v for name, v in batch.items()}


@torch.no_grad()
def attention_shares(net: nn.Module, val: ArrayDataset, job: Job) -> dict[str, list[float]]:
    """Site -> [share of the attention that lies on the object, share of the image the object takes]."""
    gathered: dict[str, list[Tensor]] = {}
    for batch in prepared_batches(val, job, SHARE_IMAGES):
        objects = job.config.the_task.object_mask(batch)  # pyright: ignore[reportAttributeAccessIssue]
        if objects is None:
            return {}
        with watch(net) as seen:
            net(batch["image"])
        for name, record in seen.items():
            if has_map(record):
                share, _, chance = share_on_object(attention_map(record), objects)
                gathered.setdefault(name, []).append(torch.stack([share, chance]))
    return {name: torch.cat(parts, dim=1).nanmean(1).tolist() for name, parts in gathered.items()}
