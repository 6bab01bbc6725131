"""Average precision over a split. It is no sum: detections are gathered, from all processes, and ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.tasks.classes import class_indices
from foveal.tasks.detect import DetectInference
from foveal.tasks.detect.average_precision import (
    AveragePrecision,
    ImageResult,
    average_precision,
    interval,
    overlaps,
)
from foveal.tasks.detect.prediction import chosen, scaled

TOUCHING = 0.1
"""IoU from which a detection speaks of an object, however roughly."""


class DetectionMetric:
    """What was found in every image, with what there is.

    Args:
        ours: the classes of the network, in the order of its outputs.
        theirs: the classes of the data, in the order of the labels.
        inference: which detections count.
    """

    def __init__(self, ours: Sequence[str], theirs: Sequence[str], inference: DetectInference) -> None:
        self.ours, self.theirs, self.inference = list(ours), list(theirs), inference
        self.index_of = class_indices(theirs, ours)
        self.results: list[ImageResult] = []
        self.spreads: list[float] = []
        self.loss_sum, self.loss_images = 0.0, 0

    @property
    def images(self) -> int:
        return len(self.results)

    def update(self, net: nn.Module, batch: dict[str, Any]) -> None:
        device = batch["image"].device
        sizes = batch["sizes"].to(device)
        targets = [
            {"boxes_xyxy": t["boxes_xyxy"].to(device), "labels": self.index_of[t["labels"].cpu()].to(device)}
            for t in batch["targets"]
        ]
        outputs = net(batch["image"], sizes, targets)
        # image by image: a batch's loss is an average over its boxes, and who is in it would matter
        for i, target in enumerate(targets):
            one = {name: value[i : i + 1] for name, value in outputs.items() if name in ("logits", "boxes")}
            if "losses" in outputs:
                one["losses"] = {name: value[i] for name, value in outputs["losses"].items()}
            losses = net.losses(one, [target], sizes[i : i + 1])  # pyright: ignore[reportCallIssue]
            self.loss_sum += float(sum(losses.values()))
        self.loss_images += len(targets)
        # how far the boxes of one image's queries differ, as a share of the image
        self.spreads += outputs["boxes"].float().std(1, correction=0).mean(1).tolist()
        found = chosen(net, outputs, sizes, self.inference)
        for one, record, size in zip(found, batch["records"], batch["sizes"].tolist(), strict=True):
            self.results.append(self._result(one, record, size))

    def _result(self, found: dict[str, Tensor], record: dict[str, Any], seen: list[int]) -> ImageResult:
        size = tuple(int(side) for side in record["original_size"])
        labels = record["labels"].cpu()
        arrays = {name: record[name].cpu().numpy() for name in ("original_xyxy", "crowd", "area")}
        return ImageResult(
            image_id=record["image_id"],
            file=record.get("file", str(record["image_id"])),
            size=(size[0], size[1]),
            boxes=arrays["original_xyxy"].astype(np.float64),
            labels=self.index_of[labels].numpy(),
            crowd=arrays["crowd"],
            area=arrays["area"].astype(np.float64),
            found=scaled(found["boxes_xyxy"], seen, size).numpy().astype(np.float64),
            scores=found["scores"].numpy().astype(np.float64),
            found_labels=found["labels"].numpy(),
        )

    def merge(self, other: DetectionMetric) -> None:
        self.results += other.results
        self.spreads += other.spreads
        self.loss_sum += other.loss_sum
        self.loss_images += other.loss_images
        self.__dict__.pop("precision", None)

    @cached_property
    def precision(self) -> AveragePrecision:
        """COCO's figures; images in the order of their ids, as in COCO, so that no order of batches matters."""
        ordered = sorted(self.results, key=lambda one: (str(one.image_id).zfill(20), one.file))
        return average_precision(ordered, len(self.ours), self.inference.limit)

    def compute(self) -> dict[str, float]:
        """``loss`` an image and COCO's ``ap``, ``ap50``, ``ap75``, ``ap_small``, ... of sizes that occur, in [0, 1];
        ``query_spread`` and ``found_probability``, which tell what stands still while AP is 0.

        Raises:
            FovealError: the data have no object.
        """
        self.__dict__.pop("precision", None)
        if not any(len(one.boxes) for one in self.results):
            raise FovealError("the images must hold at least 1 object, got none: AP is not defined")
        figures = {name: value for name, value in self.precision.figures.items() if value == value}
        return {
            "loss": self.loss_sum / self.loss_images,
            **{"ap": 0.0, "ap50": 0.0, **figures},
            "query_spread": float(np.mean(self.spreads)),
            "found_probability": found_probability(self.results),
        }

    def report(self) -> dict[str, Any]:
        """The interval of AP, and AP and AP50 of every class that the data have."""
        ap = dict(zip(self.ours, self.precision.per_class.tolist(), strict=True))
        return {
            "interval": interval(self.results, len(self.ours)),
            "interval_of": "other sets of as many images, not training runs",
            "per_class": {name: _none_if_nan(ap[name][0]) for name in self.ours if name in self.theirs},
        }


def _none_if_nan(value: float) -> float | None:
    return None if value != value else value


def found_probability(results: Sequence[ImageResult]) -> float:
    """Mean over all objects of the best score of a detection of its class that touches it, 0 where there is none.

    It rises long before boxes are good enough to count in AP.
    """
    best: list[float] = []
    for one in results:
        overlap = overlaps(one.found, one.boxes, one.crowd) >= TOUCHING
        same = overlap & (one.found_labels[:, None] == one.labels[None])
        scores = np.where(same, one.scores[:, None], 0.0).max(axis=0, initial=0.0)
        best += scores[~one.crowd].tolist()
    return float(np.mean(best)) if best else 0.0
