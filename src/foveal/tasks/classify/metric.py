"""Accuracy over the images of a split, with what belongs to it: loss, top 5, by class, confusion, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.statistics import wilson_interval
from foveal.tasks.classes import class_indices
from foveal.tasks.classify.loss import class_probabilities

COLUMNS = ("images", "right", "right among 5", "loss")
BINS = 15
"""Of confidence, for calibration, as in Guo et al."""
# the logarithm of a probability of 0 stays finite
TINY = 1e-30
WORST = 24
"""Images of the largest loss that an evaluation names."""


def network_logits(net: nn.Module, images: Tensor) -> Tensor:
    """What the network says, as it says it."""
    return net(images).float()


def flipped_logits(net: nn.Module, images: Tensor) -> Tensor:
    """The logarithm of the mean of the probabilities of each image and of its mirror image."""
    return class_probabilities(net, images, flip=True).clamp_min(TINY).log()


class Accuracy:
    """Counts of each class over a split.

    Args:
        ours: the classes of the network, in the order of its outputs.
        theirs: the classes of the data, in the order of their labels.
        logits: how a network answers for a batch, such as `flipped_logits`.

    Example:
        >>> metric = Accuracy(["cat", "dog"], ["cat", "dog"])
        >>> metric.update(nn.Flatten(), {"image": torch.tensor([[[[3.0]], [[1.0]]]]), "label": torch.tensor([0])})
        >>> metric.compute()["accuracy"]
        1.0
    """

    def __init__(
        self,
        ours: Sequence[str],
        theirs: Sequence[str],
        *,
        logits: Callable[[nn.Module, Tensor], Tensor] = network_logits,
    ) -> None:
        self.classes, self.logits = list(ours), logits
        self.index_of = class_indices(theirs, ours)
        # (classes, 4) in the order of COLUMNS, on the CPU, as not every device has float64
        self.counts = torch.zeros(len(ours), len(COLUMNS), dtype=torch.float64)
        # of each image: label, answer, confidence, loss, place in the data
        self.rows: list[Tensor] = []

    @property
    def images(self) -> int:
        return int(self.counts[:, 0].sum())

    def update(self, net: nn.Module, batch: dict[str, Any]) -> None:
        logits = self.logits(net, batch["image"])
        labels = self.index_of.to(logits.device)[batch["label"]]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        rows = torch.stack([torch.ones_like(losses), hits[:, 0], hits.any(1), losses], dim=1)
        self.counts.index_add_(0, labels.cpu(), rows.cpu().double())
        confidence = logits.softmax(1).amax(1)
        places = batch.get("index", torch.full_like(labels, -1))
        # on the CPU first, as not every device has float64; places above 2^24 are no float32
        row = [one.cpu().double() for one in (labels, best[:, 0], confidence, losses, places)]
        self.rows.append(torch.stack(row, dim=1))

    def merge(self, other: Accuracy) -> None:
        self.counts += other.counts
        self.rows += other.rows

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
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        """Figures by class, confusions, calibration, and the images of the largest loss."""
        rows = torch.cat(self.rows)
        labels, answers, confidence, losses, places = rows.unbind(1)
        true, predicted = labels.long(), answers.long()
        known = [c for c in range(len(self.classes)) if bool((true == c).any())]
        by_class = {self.classes[c]: _class_figures(true == c, predicted == c) for c in known}
        wrong = true != predicted
        pairs, counts = torch.stack([true[wrong], predicted[wrong]], dim=1).unique(dim=0, return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        worst = losses.argsort(descending=True, stable=True)[:WORST]
        return {
            "classes": by_class,
            "macro": {
                name: sum(one[name] for one in by_class.values()) / len(by_class)
                for name in ("precision", "recall", "f1")
            },
            "confusions": [
                {"true": self.classes[t], "predicted": self.classes[p], "images": n}
                for (t, p), n in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
            ],
            "calibration": calibration(confidence, ~wrong),
            "worst": [
                {
                    "index": int(places[i]),
                    "true": self.classes[int(true[i])],
                    "predicted": self.classes[int(predicted[i])],
                    "confidence": float(confidence[i]),
                    "loss": float(losses[i]),
                }
                for i in worst.tolist()
            ],
        }


def _class_figures(true: Tensor, predicted: Tensor) -> dict[str, float]:
    """Images, precision (0 where nothing is called so), recall and their harmonic mean, of one class."""
    right, have, called = (int(v.sum()) for v in (true & predicted, true, predicted))
    return {
        "images": have,
        "precision": right / called if called else 0.0,
        "recall": right / have if have else 0.0,
        "f1": 2 * right / (have + called) if have + called else 0.0,
    }


def calibration(confidence: Tensor, right: Tensor, bins: int = BINS) -> dict[str, Any]:
    """How far confidence is from accuracy.

    Args:
        confidence: probability of the answer, (n,) in 0..1.
        right: whether the answer is right, (n,).
        bins: of equal width.

    Returns:
        ``expected_error``: the mean over images of |accuracy - confidence| of their bin, and ``bins`` that hold
        images, each with ``low``, ``high``, ``images``, ``confidence`` and ``accuracy``.

    Example:
        >>> round(calibration(torch.tensor([0.9, 0.9]), torch.tensor([True, False]))["expected_error"], 3)
        0.4

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), equation 5.
    """
    # bins are open below and closed above, as in the paper
    place = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        if bool(inside.any()):
            found.append(
                {
                    "low": number / bins,
                    "high": (number + 1) / bins,
                    "images": int(inside.sum()),
                    "confidence": float(confidence[inside].double().mean()),
                    "accuracy": float(right[inside].double().mean()),
                }
            )
    error = sum(one["images"] * abs(one["accuracy"] - one["confidence"]) for one in found) / len(confidence)
    return {"expected_error": error, "bins": found}


def _share(row: Tensor) -> float:
    return float(row[1] / row[0])
