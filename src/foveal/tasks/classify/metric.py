"""Accuracy over the images of a split, with what belongs to it: loss, top 5, by class, its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.statistics import wilson_interval
from foveal.tasks.classes import class_indices

COLUMNS = ("images", "right", "right among 5", "loss")


class Accuracy:
    """Counts of each class over a split.

    Args:
        ours: the classes of the network, in the order of its outputs.
        theirs: the classes of the data, in the order of their labels.

    Example:
        >>> metric = Accuracy(["cat", "dog"], ["cat", "dog"])
        >>> metric.update(nn.Flatten(), {"image": torch.tensor([[[[3.0]], [[1.0]]]]), "label": torch.tensor([0])})
        >>> metric.compute()["accuracy"]
        1.0
    """

    def __init__(self, ours: Sequence[str], theirs: Sequence[str]) -> None:
        self.classes = list(ours)
        self.index_of = class_indices(theirs, ours)
        # (classes, 4) in the order of COLUMNS, on the CPU, as not every device has float64
        self.counts = torch.zeros(len(ours), len(COLUMNS), dtype=torch.float64)

    @property
    def images(self) -> int:
        return int(self.counts[:, 0].sum())

    def update(self, net: nn.Module, batch: dict[str, Any]) -> None:
        logits = net(batch["image"]).float()
        labels = self.index_of.to(logits.device)[batch["label"]]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        rows = torch.stack([torch.ones_like(losses), hits[:, 0], hits.any(1), losses], dim=1)
        self.counts.index_add_(0, labels.cpu(), rows.cpu().double())

    def merge(self, other: Accuracy) -> None:
        self.counts += other.counts

    def compute(self) -> dict[str, float]:
        """``loss``, ``accuracy`` and ``top5``, over all images, accuracies in [0, 1]."""
        images, right, right5, losses = self.counts.sum(0).tolist()
        return {"loss": losses / images, "accuracy": right / images, "top5": right5 / images}

    def report(self) -> dict[str, Any]:
        images, right = (int(v) for v in self.counts.sum(0)[:2])
        return {
            "interval": wilson_interval(right, images),
            "interval_of": "the images drawn, not other training runs",
            "per_class": {
                c: _share(row) for c, row in zip(self.classes, self.counts, strict=True) if row[0] > 0
            },
        }


def _share(row: Tensor) -> float:
    return float(row[1] / row[0])
