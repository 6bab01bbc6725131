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
        self.confirmed = 0
        self.knows_classes, self.gammas = True, 0.0
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
        found, answers = self.features(self._unit(net.generate(noise, labels)))
        self.made.append(found)
        self.knows_classes = net.conditional and answers is not None
        wanted = [self.info.classes[i] for i in labels.tolist()]
        self.confirmed += sum(a == w for a, w in zip(answers or [], wanted, strict=False))
        if self.full:
            if self.start is None:
                self.start = untrained(net).to(device)
            self.untrained.append(self.features(self._unit(self.start.generate(noise, labels)))[0])

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
        """Floor: between two halves of the real images. Ceiling: from an untrained generator. Both with their n."""
        if not self.full:
            return {}
        real, made, start = torch.cat(self.real), torch.cat(self.made), torch.cat(self.untrained)
        precision, recall = precision_recall(real, made)
        half = len(real) // 2
        return {
            "details": {
                "features": self.features.name,
                **({"fid": frechet_distance(real, made)} if self.features.is_inception else {}),
                "images": len(real),
                "floor": {
                    "frechet": frechet_distance(real[:half], real[half:]),
                    "kernel": kernel_distance(real[:half], real[half:]),
                    "images": half,
                },
                "ceiling": {"frechet": frechet_distance(real, start), "kernel": kernel_distance(real, start)},
                "precision": precision,
                "recall": recall,
            }
        }


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
