"""The figures of trained weights on a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveal.data.loader import SequentialBatchSampler, make_loader, worker_count
from foveal.errors import FovealError
from foveal.inference import Predictor, predictor
from foveal.model_info import ModelInfo
from foveal.tasks import items_of

NOT_FROM_WEIGHTS = ("download", "cache", "cache_gib")
"""Options of data that a weights file does not decide."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one network on one split of a data set.

    Attributes:
        weights, data, split: what was measured on what.
        images: how many; ``items`` says what they are called, "clips" of clips.
        metric: the figure that counts, a key of ``figures``.
        figures: such as ``accuracy``, ``top5`` and ``loss`` of a classifier.
        interval: 95 % interval of the metric; ``interval_of`` says over what.
        per_class: the metric of each class; None where it is undefined.
        inference: the options of the task, which say how images went through the network.
        image_size: size in pixels at which the network saw them.
        skipped: unreadable files with the reason.
        notes: what a person should know of the data, in sentences, such as classes without an image.
        details: what the task adds, such as precision, recall, confusions and calibration of a classifier.
        dataset: what was measured on, for pictures.
        gathered: the task's metric, with all it gathered.
    """

    weights: str
    data: str
    split: str
    images: int
    metric: str
    figures: dict[str, float]
    interval: tuple[float, float]
    interval_of: str
    per_class: dict[str, float | None]
    inference: Any
    image_size: int
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    items: str = field(default="images", repr=False)
    gathered: Any = field(default=None, repr=False, compare=False)
    dataset: Any = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; the figures lie flat in it."""
        flat = {name: getattr(self, name) for name in ("weights", "data", "split", "images", "metric")}
        how = self.inference.to_dict() if hasattr(self.inference, "to_dict") else asdict(self.inference)
        return {
            **flat,
            **self.figures,
            "interval": self.interval,
            "interval_of": self.interval_of,
            "per_class": self.per_class,
            **({"details": self.details} if self.details else {}),
            "inference": how,
            "image_size": self.image_size,
            "skipped": self.skipped,
            "notes": self.notes,
        }


@torch.no_grad()
def evaluate(
    weights: str | os.PathLike[str] | Predictor,
    data: str | None = None,
    *,
    split: str = "val",
    data_options: Mapping[str, Any] | None = None,
    inference: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> Evaluation:
    """Run a network over every image of a split.

    Args:
        weights: a file of `foveal train`, the name of a model with published weights, or a predictor.
        data: as for training; by default the data it was trained on.
        split: "train", "val" or "test".
        data_options: options of the data set. On the data of the training its options hold, but for those given.
        inference: options of the task, such as ``{"inference": "sliding"}`` to segment.
        batch_size: images at a time; by default twice that of training.
        device: "auto", "cpu", "cuda", ...

    Raises:
        FovealError: wrong weights, an option out of its range, or data with a class that the network does not know.

    Example:
        >>> from foveal.inference import open_bundled
        >>> evaluate(open_bundled(), split="test", data_options={"length": 20}).images
        20
    """
    from foveal.train.parts import open_split

    ready = weights if isinstance(weights, Predictor) else predictor(weights, device)
    task, info = ready.task, ready.info
    spec = data or info.data
    if spec is None:
        raise FovealError(f"data must be given, for {ready.name} does not say what it was trained on")
    if data is None and "://" in spec:
        raise FovealError(
            f"data on the network must be named, as a weights file has nothing fetched, got none: {spec}"
        )
    options = ready.inference_options(inference or {})
    options_of_data = data_options_for(ready.info, data, data_options or {}, task)
    dataset = open_split(task, spec, split, options_of_data)
    metric = task.new_metric(info, list(dataset.classes), options)
    size = _usual_batch(task, options) if batch_size is None else batch_size
    for batch in _batches(ready, dataset, options, size, workers):
        metric.update(ready.net, batch)
    if metric.images == 0:
        raise FovealError(f"the data must hold at least 1 image, got 0 in {spec}, split {split}")
    floor_data: Any = getattr(task, "floor_data", None)
    other = floor_data(spec, split, options_of_data) if floor_data else None
    if other is not None:
        # about twice as many, evenly spread, for the metric may want as many of each class
        every = max(1, len(other) // (2 * metric.images))
        for batch in _batches(ready, other, options, size, workers, every):
            metric.update_floor(batch)  # pyright: ignore[reportAttributeAccessIssue]
    report = metric.report()
    return Evaluation(
        weights=str(weights) if not isinstance(weights, Predictor) else weights.name,
        data=spec,
        split=split,
        images=metric.images,
        metric=task.metric,
        figures=metric.compute(),
        interval=report.get("interval", (float("nan"), float("nan"))),
        interval_of=report.get("interval_of", ""),
        per_class=report.get("per_class", {}),
        inference=options,
        image_size=info.image_size,
        skipped=dict(dataset.skipped),
        notes=list(getattr(dataset, "notes", ())),
        details=report.get("details", {}),
        items=items_of(task),
        gathered=metric,
        dataset=dataset,
    )


def _batches(
    ready: Predictor, dataset: Any, options: Any, batch_size: int, workers: int | None, every: int = 1
) -> Iterator[dict[str, Any]]:
    """Items of a data set, all or each ``every``-th, as the network takes them, on its device."""
    task, info = ready.task, ready.info
    loader = make_loader(
        dataset,
        task.eval_transform(info, options),
        SequentialBatchSampler(len(dataset), batch_size, world=every),
        task.collate,
        workers=worker_count(workers, info.image_size),
    )
    for batches in loader:
        for batch in batches:
            yield {k: v.to(ready.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _usual_batch(task: Any, options: Any) -> int:
    """Twice as many as in training; fewer where each item goes through the network in several views."""
    return max(1, 2 * task.default_batch_size // getattr(options, "inputs_each", 1))


def data_options_for(
    info: ModelInfo, data: str | None, given: Mapping[str, Any], task: Any
) -> dict[str, Any]:
    """The options to open data with: on the data of the training those of the training, but for what is given.

    Nothing is fetched or removed because a weights file says so: ``download`` and ``cache`` are never taken from it.

    Args:
        data: as typed; None is the data of the training.
    """
    if data is None or same_data(data, info.data):
        stored = {name: value for name, value in info.data_options.items() if name not in NOT_FROM_WEIGHTS}
        return {**stored, **given}
    inherited = task.inherited_data_options(info, data) if hasattr(task, "inherited_data_options") else {}
    if info.grey_bits != 16 and (os.path.exists(data) or "://" in data):
        inherited = {"grey_bits": info.grey_bits, **inherited}
    return {**inherited, **given}


def same_data(data: str, other: str | None) -> bool:
    """Whether two names mean the same data: the same word, or paths to the same place."""
    if other is None:
        return False
    return data == other or (os.path.exists(data) and Path(data).resolve() == Path(other).resolve())
