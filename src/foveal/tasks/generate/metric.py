"""How near generated images are to real ones, in the features of a classifier that is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.model_info import ModelInfo
from foveal.tasks.classes import class_indices
from foveal.tasks.generate.features import (
    FeatureNetwork,
    InceptionFeatures,
    frechet_distance,
    kernel_distance,
    precision_recall,
    spread,
)
from foveal.tasks.generate.prediction import noise_of

FEWEST = 16
VALIDATION_SEED = 2**31 - 1


class GenerationQuality:
    """Features of real images, and of as many generated ones of the same classes from noise that is always the same.

    Args:
        features: the network to measure with.
        info: of the network.
        theirs: the classes of the data.
        full: also measure floor, ceiling, precision and recall.
    """

    def __init__(
        self,
        features: FeatureNetwork | InceptionFeatures,
        info: ModelInfo,
        theirs: Sequence[str],
        *,
        full: bool,
    ) -> None:
        self.features, self.info, self.full = features, info, full
        self.index_of = class_indices(theirs, info.classes)
        self.real: list[Tensor] = []
        self.made: list[Tensor] = []
        self.untrained: list[Tensor] = []
        self.others: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.other_labels: list[Tensor] = []
        self.confirmed = 0
        self.conditional, self.knows_classes, self.gammas = True, True, 0.0
        self.start: Any = None

    @property
    def images(self) -> int:
        return sum(len(one) for one in self.real)

    def update(self, net: Any, batch: dict[str, Any]) -> None:
        images, device = batch["image"], batch["image"].device
        labels = self.index_of.to(device)[batch["label"]]
        numbers = range(self.images, self.images + len(images))
        noise = torch.stack([noise_of(VALIDATION_SEED, number, net.latent) for number in numbers]).to(device)
        self.gammas = mean_gamma(net.generator)
        self.real.append(self.features(self._unit(images))[0])
        self.labels.append(labels.cpu())
        found, answers = self.features(self._unit(net.generate(noise, labels)))
        self.made.append(found)
        self.conditional = net.conditional
        self.knows_classes = net.conditional and answers is not None
        wanted = [self.info.classes[i] for i in labels.tolist()]
        self.confirmed += sum(a == w for a, w in zip(answers or [], wanted, strict=False))
        if self.full:
            if self.start is None:
                self.start = untrained(net).to(device)
            self.untrained.append(self.features(self._unit(self.start.generate(noise, labels)))[0])

    def update_floor(self, batch: dict[str, Any]) -> None:
        """Add real images of another part: how near real images are to real ones is the floor."""
        self.others.append(self.features(self._unit(batch["image"]))[0])
        self.other_labels.append(self.index_of[batch["label"].cpu()])

    def _unit(self, images: Tensor) -> Tensor:
        """From what the networks take and make to 0..1, with three channels."""
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None] for v in (self.info.mean, self.info.std)
        )
        return (images.float() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)

    def merge(self, other: GenerationQuality) -> None:
        self.real += other.real
        self.made += other.made
        self.untrained += other.untrained
        self.others += other.others
        self.labels += other.labels
        self.other_labels += other.other_labels
        self.confirmed += other.confirmed

    def compute(self) -> dict[str, float]:
        """``frechet``, ``kernel``, ``spread`` (1 is that of real images), ``gamma``, and ``confirmed`` with classes."""
        if self.images < FEWEST:
            raise FovealError(
                f"task generate needs at least {FEWEST} images to compare with, got {self.images}"
            )
        real, made = torch.cat(self.real), torch.cat(self.made)
        figures = {
            "frechet": frechet_distance(real, made),
            "kernel": kernel_distance(real, made),
            "spread": spread(made) / max(spread(real), 1e-12),
            "gamma": self.gammas,
        }
        return {**figures, "confirmed": self.confirmed / self.images} if self.knows_classes else figures

    def report(self) -> dict[str, Any]:
        """The features' name, floor and ceiling, each with its number of images; precision and recall.

        Floor: as many real images of another part as there are, or, without another part, one half of the images from
        the other; of the same classes, where the generator is told those of the real images. Ceiling: images of an
        untrained generator.
        """
        if not self.full:
            return {}
        real, made, start = torch.cat(self.real), torch.cat(self.made), torch.cat(self.untrained)
        precision, recall = precision_recall(real, made)
        here, there, what = self._floor(real)
        return {
            "details": {
                "features": self.features.name,
                **({"fid": frechet_distance(real, made)} if self.features.is_inception else {}),
                "images": len(real),
                "floor": {
                    "frechet": frechet_distance(here, there),
                    "kernel": kernel_distance(here, there),
                    "images": len(there),
                    "between": what,
                },
                "ceiling": {
                    "frechet": frechet_distance(real, start),
                    "kernel": kernel_distance(real, start),
                    "images": len(start),
                },
                "precision": precision,
                "recall": recall,
            }
        }

    def _floor(self, real: Tensor) -> tuple[Tensor, Tensor, str]:
        """Two sets of real images of one number, and what they are."""
        if not self.others:
            # data lie class by class: each half takes every second image
            half = len(real) // 2
            return real[::2][:half], real[1::2], "one half of the real images and the other"
        others = torch.cat(self.others)
        if self.conditional:
            here, there = same_classes(torch.cat(self.labels), torch.cat(self.other_labels))
            return (
                real[here],
                others[there],
                "real images and real images of another part, of the same classes",
            )
        count = min(len(real), len(others))
        return evenly(real, count), evenly(others, count), "real images and real images of another part"


def same_classes(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Places in two lists of labels that hold as many of each class, as many as both have, evenly spread.

    Example:
        >>> here, there = same_classes(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 0, 2, 1]))
        >>> here.tolist(), there.tolist()
        ([0, 2, 3], [1, 0, 3])
    """
    places = [[(labels == label).nonzero()[:, 0] for labels in (one, other)] for label in one.unique()]
    counts = [min(len(mine), len(theirs)) for mine, theirs in places]
    here, there = (
        torch.cat([evenly(of_class[side], count) for of_class, count in zip(places, counts, strict=True)])
        for side in (0, 1)
    )
    return here, there


def evenly(features: Tensor, count: int) -> Tensor:
    """So many rows, evenly spread, for data lie class by class.

    Example:
        >>> evenly(torch.arange(10)[:, None], 4)[:, 0].tolist()
        [0, 2, 5, 7]
    """
    return features[[i * len(features) // count for i in range(count)]]


def mean_gamma(net: nn.Module) -> float:
    """Mean size of the scales that let attention through; 0 where there are none."""
    found = [p.detach().abs().mean() for name, p in net.named_parameters() if name.split(".")[-1] == "gamma"]
    return float(torch.stack(found).mean()) if found else 0.0


def untrained(net: Any) -> nn.Module:
    """A network of the same kind as it was before training, with seed 0."""
    from foveal.models import create_model

    made = net.foveal_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(made["name"], **made["kwargs"]).eval()
