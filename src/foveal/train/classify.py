"""One label an image: the loss to train by and the figures to report, in plain torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from foveal.data import Scenes, eval_transform, train_transform
from foveal.train.config import TrainConfig
from foveal.train.recipe import classification_loss

METRIC = "val_accuracy"


def loss(net: nn.Module, batch: dict[str, Tensor], config: TrainConfig, generator: torch.Generator) -> Tensor:
    """The training loss of one batch, with the config's label smoothing and mixup."""
    return classification_loss(
        net,
        batch["image"],
        batch["label"],
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        generator=generator,
    )


@torch.no_grad()
def count(net: nn.Module, batch: dict[str, Tensor], classes: int) -> Tensor:
    """Sums over a batch that add over batches and processes, float64 (classes, 4).

    Columns: images of the class, those whose highest logit is right, those right among the highest five, and the
    sum of their cross-entropies.
    """
    logits, labels = net(batch["image"]).float(), batch["label"]
    highest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = highest == labels[:, None]
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    rows = torch.stack([torch.ones_like(losses), hits[:, 0], hits.any(1), losses], dim=1).double()
    return torch.zeros(classes, 4, dtype=torch.float64, device=rows.device).index_add_(0, labels, rows)


def metrics(counts: Tensor) -> dict[str, float]:
    """From `count`'s sums: val_loss, val_accuracy and val_top5, over all images, accuracies in [0, 1].

    Example:
        >>> metrics(torch.tensor([[8.0, 6, 8, 4], [2, 0, 1, 4]]))
        {'val_loss': 0.8, 'val_accuracy': 0.6, 'val_top5': 0.9}
    """
    images, right, right5, losses = counts.sum(0).tolist()
    return {"val_loss": losses / images, "val_accuracy": right / images, "val_top5": right5 / images}


def facts(config: TrainConfig, data: dict[str, Any]) -> dict[str, Any]:
    """What else the weights file must say: nothing."""
    return {}


def natural_size(data: Any) -> int:
    """Side of the square images where the user names none: the data's own up to 96 pixels, else 224."""
    longest = max(data[0]["image"].shape[-2:])
    return longest if longest <= 96 else 224


def augmentation(config: TrainConfig, data: Any) -> tuple[str, float]:
    """How to crop, and how often to mirror."""
    if not config.augment or isinstance(
        data, Scenes
    ):  # a scene's digit is anywhere already, and crops cut it
        return "none", 0.0
    return "auto", 0.5 if getattr(data, "mirror", True) else 0.0


def transforms(config: TrainConfig, data: Any, size: int, colours: dict[str, Any]) -> tuple[Any, Any]:
    """From a stored sample to what the network takes: to train on, and to evaluate."""
    crop, flip = augmentation(config, data)
    return train_transform(size, crop=crop, flip=flip, **colours), eval_transform(size, **colours)


def wilson_interval(right: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of an accuracy, from the number of images alone.

    It says nothing of other training runs, which differ by more: `foveal compare` measures those.

    Example:
        >>> [round(x, 3) for x in wilson_interval(90, 100)]
        [0.826, 0.945]

    Source:
        Wilson (1927): the score interval of a binomial share.
    """
    p, n = right / images, images
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half
