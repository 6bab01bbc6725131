"""One run of a comparison: train, evaluate, measure where the attention lies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.checkpoint import save
from foveal.compare.arrays import ArrayDataset, fold, spread
from foveal.compare.job import Job
from foveal.data.loader import (
    EpochBatchSampler,
    MemoryLoader,
    SequentialBatchSampler,
    chunks_of,
    make_loader,
)
from foveal.look.measures import attention_map, has_map, share_on_object
from foveal.look.watching import watch
from foveal.tasks import Task, collate_training
from foveal.train import loop
from foveal.train.block_report import block_report
from foveal.train.nonfinite import NonFiniteError

EVAL_BATCH = 256
UNTIMED_STEPS = 3
TIMED_STEPS = 40
TIMED_SECONDS = 1.0
"""A few steps are timed until there are so many, or they took so long."""
TIMED_IMAGES = 512
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
        The result: ``figures`` of the last epoch, ``metric`` (the one that counts), ``per_class``, ``curve`` (the
        metric epoch by epoch), ``clock`` (seconds from the start to the end of each epoch's training), ``seconds``;
        ``change``: site -> how much the block there changes its input; ``share``: site -> [share of the attention on
        the object, chance], where images have objects and the block has a map. A run whose loss became infinite has
        ``failed`` instead, with the reason; of a job that is only timed, what `time_job` returns. And the trained
        weights as the bytes of a file, where the job keeps them.
    """
    start = time.perf_counter()
    if job.only_time:
        return time_job(job, images), None
    run = Prepared(job, images)
    task, training = job.config.the_task, run.training
    result: dict[str, Any] = {"variant": job.variant.name, "seed": job.config.seed}
    curve: list[float] = []
    clock: list[float] = []
    figures: dict[str, float] = {}
    metric: Any = None

    def after_step(t: loop.Training) -> None:
        if on_step is not None:
            on_step(t.step)

    try:
        while training.epoch < job.config.epochs:
            run.batches.start_at(training.epoch)
            loop.train_epoch(training, run.train_loader, after_step)
            clock.append(round(time.perf_counter() - start, 2))
            metric = task.new_metric(job.info, run.val.classes)
            figures = loop.validate(training, run.val_loader, run.val.classes, metric=metric)
            loop.refuse_broken(training, figures)
            curve.append(figures[f"val_{task.metric}"])
    except NonFiniteError as error:
        return {**result, "failed": str(error), "seconds": round(time.perf_counter() - start, 2)}, None
    net = training.evaluated.eval()
    figures = {name.removeprefix("val_"): v for name, v in figures.items() if name.startswith("val_")}
    result |= {"metric": figures[task.metric], "figures": figures, "curve": curve, "clock": clock}
    result["per_class"] = metric.report().get("per_class", {})
    result |= run.report(net)
    result["seconds"] = round(time.perf_counter() - start, 2)
    return result, _weights(net, job, figures) if job.keep_weights else None


class Prepared:
    """A run before its first step: data, network and optimiser."""

    def __init__(self, job: Job, images: Path) -> None:
        config, task = job.config, job.config.the_task
        self.job, self.task = job, task
        train, self.val = parts_of(job, images)
        self.batches = EpochBatchSampler(
            len(train), config.batch_size, seed=config.seed, chunks=chunks_of(train)
        )
        self.training = loop.Training(job.build(), task, config, job.info, self.batches)
        to_train = task.train_transform(train, job.info, config.options, config.augment)
        normalize = task.eval_transform(job.info).normalization_alone()
        val_batches = SequentialBatchSampler(len(self.val), max(EVAL_BATCH, 2 * config.batch_size))
        self.train_loader = _loader(
            task,
            train,
            to_train if to_train.random else normalize,
            self.batches,
            config.seed,
            collate_training(task),
        )
        # training images for random crops are stored as they are, and a trial measures on some of them
        stored_whole = job.trial_share is not None and to_train.random
        self.val_loader = _loader(
            task,
            self.val,
            task.eval_transform(job.info) if stored_whole else normalize,
            val_batches,
            0,
            task.collate,
        )

    def report(self, net: nn.Module) -> dict[str, Any]:
        """Where the attention lies, and how much each block changes its input; nothing for a trial."""
        job, found = self.job, {}
        if job.variant.attends and hasattr(self.task, "object_mask") and job.trial_share is None:
            found["share"] = attention_shares(net, self.val, job)
        if job.variant.insert is not None and job.trial_share is None:
            images_of = (batch["image"] for batch in prepared_batches(self.val, job, REPORT_IMAGES))
            found["change"] = {row["site"]: row["contribution"] for row in block_report(net, images_of)}
        return found


def time_job(job: Job, images: Path) -> dict[str, Any]:
    """What the parts of a run take here: a few steps of training, a part of validation, the report on the blocks.

    Returns:
        ``variant``, and in seconds ``build``, ``step`` (one), ``validate`` (all, from some batches) and ``report``.
    """
    start = time.perf_counter()
    run = Prepared(job, images)
    found: dict[str, Any] = {"variant": job.variant.name, "build": time.perf_counter() - start}
    marks: list[float] = []

    def after_step(training: loop.Training) -> None:
        marks.append(time.perf_counter())
        enough = marks[-1] - marks[0] > TIMED_SECONDS and len(marks) > UNTIMED_STEPS
        if len(marks) >= TIMED_STEPS or enough:
            raise Enough

    run.batches.start_at(0)
    # a run whose loss becomes infinite is told of when it is done
    with suppress(Enough, NonFiniteError):
        loop.train_epoch(run.training, run.train_loader, after_step)
    # the first steps find memory and choose algorithms
    counted = marks[min(UNTIMED_STEPS, len(marks)) - 1 :] if marks else []
    steps = max(len(counted) - 1, 0)
    found["step"] = (
        (counted[-1] - counted[0]) / steps if steps else time.perf_counter() - start - found["build"]
    )
    net = run.training.evaluated.eval()
    seen, start = 0, time.perf_counter()
    with torch.no_grad():
        for batch in prepared_batches(run.val, job, TIMED_IMAGES):
            net(batch["image"])
            seen += len(batch["image"])
    found["validate"] = (time.perf_counter() - start) * len(run.val) / max(seen, 1)
    start = time.perf_counter()
    run.report(net)
    found["report"] = time.perf_counter() - start
    return found


class Enough(Exception):
    """A few steps were timed."""


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


def _loader(task: Task, data: ArrayDataset, transform: Any, batches: Any, seed: int, collate: Any) -> Any:
    """Batches of stored items: from memory where only their values are left to change and all have one shape.

    The driver stored what draws no random numbers, so that a transform without steps is all that remains of it.
    """
    stacked = getattr(task, "stacks_samples", True)
    arrays = None if transform.steps or not stacked else data.as_tensors()
    if arrays is None:
        return make_loader(data, transform, batches, collate, seed=seed)
    return MemoryLoader(
        arrays, batches, lambda batch: {**batch, "image": transform.normalize(batch["image"])}
    )


def prepared_batches(val: ArrayDataset, job: Job, most: int) -> Iterator[dict[str, Tensor]]:
    """At most ``most`` validation images, spread evenly over the split, as batches for the network."""
    normalize = job.config.the_task.eval_transform(job.info).normalization_alone()
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
        with watch(net, required=False) as seen:
            net(batch["image"])
        if not any(has_map(record) for record in seen.values()):
            return {}
        for name, record in seen.items():
            if has_map(record):
                share, _, chance = share_on_object(attention_map(record), objects)
                gathered.setdefault(name, []).append(torch.stack([share, chance]))
    return {name: torch.cat(parts, dim=1).nanmean(1).tolist() for name, parts in gathered.items()}
