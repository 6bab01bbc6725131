"""How detectors are trained: for few images and from nothing, or as their papers do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.errors import FovealError

if TYPE_CHECKING:
    from torch import nn


SGD_RANGE = (1e-4, 0.05)
OVERFIT_EPOCHS = 150
SCENE_QUERIES, STORED_QUERIES = 16, 64
SCENE_PROPOSALS, STORED_PROPOSALS = 64, 256


@dataclass(frozen=True)
class Recipe:
    """Options of training and of the network that belong together.

    Attributes:
        name: small or paper.
        why: when it is right, in words.
        training: options of training that hold where the person says nothing.
        model_options: the same of the network.
        backbone_lr: learning rate of the backbone as a factor of lr.
        lr_range: smallest and largest rate of AdamW that has ever been of use.
    """

    name: str
    why: str
    training: dict[str, Any]
    model_options: dict[str, Any]
    backbone_lr: float
    lr_range: tuple[float, float]

    def settled(self, config: Any) -> dict[str, Any]:
        """What a config lacks, see `foveal.tasks.Task`.

        Raises:
            FovealError: the learning rate is outside the sane range.
        """
        low, high = SGD_RANGE if config.optimizer == "sgd" else self.lr_range
        if config.lr is not None and not low <= config.lr <= high:
            raise FovealError(
                f"lr must be {low:g} to {high:g} for {config.model} with {config.optimizer or 'adamw'} and recipe "
                f"{self.name}, got {config.lr:g}"
            )
        training = dict(self.training)
        if config.options.overfit:
            # a few images make a step or two an epoch
            training |= {"epochs": OVERFIT_EPOCHS, "warmup_epochs": 5.0}
        if config.optimizer == "sgd":
            training["lr"] = 0.01
        return {**training, "model_options": self.model_options}

    def lines(self, config: Any) -> list[str]:
        """The recipe, as the first lines of a run say it."""
        backbone = backbone_lr(config)
        of_backbone = f", backbone x{backbone:g}" if backbone != 1 else ""
        network = ", ".join(f"{name}={value}" for name, value in self.model_options.items())
        return [
            f"recipe {self.name} ({self.why}): {config.optimizer}, lr {config.lr:g}{of_backbone}, weight decay "
            f"{config.weight_decay:g}, clip {config.clip_norm:g}, {config.epochs} epochs, batch {config.batch_size}"
            + (f"; network {network}" if network else "")
        ]


SMALL_TRAINING = {
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "clip_norm": 1.0, "schedule": "cosine",
}  # fmt: skip
FROM_NOTHING = "for few images, nothing pretrained"


def recipe_of(config: Any) -> Recipe:
    """The recipe that a config asks for, or that fits it.

    Raises:
        FovealError: no network that detects.
    """
    asked = config.options.recipe
    name = asked if asked != "auto" else "paper" if config.pretrained else "small"
    if config.from_weights is not None:
        # the network is that of the weights, which a rate for a new one would undo
        training = {**SMALL_TRAINING, "lr": 1e-4, "epochs": 50, "warmup_epochs": 1.0}
        return Recipe(name, "to go on from weights", training, {}, 1.0, (1e-6, 2e-3))
    sparse = config.model.startswith("sparse_rcnn")
    regions = config.model.startswith(("fcos", "faster_rcnn"))
    scenes = config.data == "scenes"
    if name == "small" and regions:
        return _small_regions(config.model, scenes)
    if name == "small":
        return _small_sparse(scenes) if sparse else _small_detr(scenes)
    published = "as published, for a pretrained backbone"
    training = {
        "optimizer": "adamw",
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "epochs": 50,
    }
    if regions:
        training |= {"optimizer": "sgd", "lr": 0.01, "clip_norm": 10.0, "epochs": 26}
        return Recipe("paper", published, training, {}, 1.0, (1e-6, 2e-3))
    if sparse:
        training |= {"lr": 2.5e-5, "clip_norm": 1.0, "epochs": 36}
        return Recipe("paper", published, training, {}, 1.0, (1e-6, 2.5e-4))
    return Recipe("paper", published, training | {"lr": 1e-4, "clip_norm": 0.1}, {}, 0.1, (1e-6, 1e-3))


def _small_sparse(scenes: bool) -> Recipe:
    options: dict[str, Any] = {
        "stages": 3, "width": 64, "ffn_width": 256, "dynamic_width": 32, "start_boxes": "grid", "zero_deltas": True,
        "heads": 4, "num_queries": SCENE_QUERIES if scenes else STORED_QUERIES,
    }  # fmt: skip
    training: dict[str, Any] = dict(SMALL_TRAINING)
    if scenes:
        options["strides"] = [4, 8, 16]
        training["batch_size"] = 32
    training |= {"epochs": 4 if scenes else 50, "warmup_epochs": 0.2 if scenes else 2.0}
    return Recipe("small", FROM_NOTHING, training, options, 1.0, (1e-6, 2e-3))


def _small_regions(model: str, scenes: bool) -> Recipe:
    """The rate and the number of epochs of the small Sparse R-CNN, for a comparison on even terms."""
    options: dict[str, Any] = {"width": 64, "anchor_strides": 4.0}
    if model.startswith("faster_rcnn"):
        # at the published size its head alone takes twenty times as long as all of the small Sparse R-CNN
        options |= {"head_width": 256, "proposals": SCENE_PROPOSALS if scenes else STORED_PROPOSALS}
    training: dict[str, Any] = dict(SMALL_TRAINING)
    if scenes:
        options["strides"] = [4, 8, 16]
        training["batch_size"] = 32
    training |= {"epochs": 4 if scenes else 50, "warmup_epochs": 0.2 if scenes else 2.0}
    return Recipe("small", FROM_NOTHING, training, options, 1.0, (1e-6, 2e-3))


def _small_detr(scenes: bool) -> Recipe:
    options: dict[str, Any] = {
        "queries": "selected", "concatenated": True, "denoising": 3, "classification": "focal", "dropout": 0.0,
        "encoder_layers": 2, "decoder_layers": 2, "width": 128, "ffn_width": 512, "stride": 8 if scenes else 16,
        "num_queries": SCENE_QUERIES if scenes else STORED_QUERIES,
    }  # fmt: skip
    training: dict[str, Any] = {**SMALL_TRAINING, **({"batch_size": 32} if scenes else {})}
    training |= {"epochs": 5 if scenes else 100, "warmup_epochs": 0.2 if scenes else 4.0}
    return Recipe("small", FROM_NOTHING, training, options, 1.0, (1e-6, 2e-3))


def backbone_lr(config: Any) -> float:
    """The learning rate of the backbone as a factor of lr."""
    factor = config.options.backbone_lr
    return recipe_of(config).backbone_lr if factor is None else factor


def crowded(net: nn.Module, data: Mapping[str, Any]) -> list[str]:
    """A line where images have more objects than the network has queries: what is beyond can be neither learned nor
    found.
    """
    queries = getattr(net, "num_queries", None)
    told = []
    for part, images in data.items():
        counts = getattr(images, "object_counts", None)
        if queries is None or counts is None:
            continue
        over = [count - queries for count in counts if count > queries]
        if over:
            told.append(
                f"{len(over)} images for {part} have more objects than the network has queries ({queries}), "
                f"{sum(over)} objects too many: --model_options.num_queries {max(counts)}"
            )
    return told
