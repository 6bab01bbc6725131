"""One label a pixel: the loss to train by and the figures to report, in plain torch.

Masks hold class numbers; any value that is no class (11 in CamVid, 255 elsewhere) is ignored.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from foveal.data import SceneMasks, segmentation_eval_transform, segmentation_train_transform
from foveal.errors import FovealError
from foveal.models.segmentation import AUXILIARY_WEIGHT
from foveal.train.config import TrainConfig
from foveal.train.windows import resized

METRIC = "val_miou"
NO_CLASS = -100
OHEM_CONFIDENCE = 0.7
OHEM_SHARE = 1 / 16
LOOKED_AT = 32  # images whose size is looked at to find that of a data set
PIXELS_AT_ONCE = 2**22  # of one validation batch that go through the network together


def targets(mask: Int[Tensor, "b h w"], classes: int) -> Int[Tensor, "b h w"]:
    """Class numbers as int64; ``NO_CLASS`` wherever the mask holds no class."""
    mask = mask.long()
    return torch.where((mask >= 0) & (mask < classes), mask, NO_CLASS)


def segmentation_loss(
    logits: dict[str, Float[Tensor, "b k h w"]],
    mask: Int[Tensor, "b h w"],
    *,
    class_weights: Float[Tensor, " k"] | None = None,
    ohem: bool = False,
) -> Float[Tensor, ""]:
    """Sum over heads of the mean cross-entropy of a batch's labelled pixels; the auxiliary head counts 0.4.

    Args:
        logits: one entry a head, at the size of the mask.
        mask: class numbers; other values are ignored. A batch without any labelled pixel has loss 0.
        class_weights: factor of each class.
        ohem: keep hard pixels only: those whose class has less than 0.7 probability, and at least a sixteenth of all.

    Example:
        >>> logits = {"fused": torch.zeros(1, 4, 2, 2)}
        >>> round(segmentation_loss(logits, torch.tensor([[[0, 1], [3, 255]]])).item(), 4)  # log 4
        1.3863

    Source: Fu et al., DANet's published code, for three equal losses; mmsegmentation for the auxiliary weight and the
    hard-pixel rule's threshold of 0.7.
    """
    total = next(iter(logits.values())).new_zeros((), dtype=torch.float32)
    for name, scores in logits.items():
        scores = scores.float()
        target = targets(mask, scores.shape[1])
        losses = F.cross_entropy(
            scores, target, weight=class_weights, ignore_index=NO_CLASS, reduction="none"
        )
        counted = (target != NO_CLASS).float()
        if class_weights is not None:
            counted = counted * class_weights[target.clamp_min(0)]
        if ohem:
            counted = counted * _hard(scores.detach(), target)
            losses = losses * (counted > 0)
        mean = losses.sum() / counted.sum().clamp_min(1e-12)
        total = total + (AUXILIARY_WEIGHT if name == "auxiliary" else 1.0) * mean
    return total


def _hard(scores: Tensor, target: Tensor) -> Tensor:
    """1 for the pixels that online hard example mining keeps, else 0."""
    labelled = target != NO_CLASS
    confidence = scores.softmax(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    confidence = torch.where(labelled, confidence, 2.0)
    kept = max(1, int(OHEM_SHARE * target.numel()))
    threshold = confidence.flatten().kthvalue(kept).values.clamp_min(OHEM_CONFIDENCE)
    return (labelled & (confidence <= threshold)).float()


def confusion(
    predicted: Int[Tensor, "b h w"], mask: Int[Tensor, "b h w"], classes: int
) -> Float[Tensor, "k k"]:
    """Pixels by (true class, predicted class), float64; pixels without a class are left out.

    Example:
        >>> confusion(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]), 2).tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """
    target = targets(mask, classes)
    labelled = target != NO_CLASS
    cells = target[labelled] * classes + predicted[labelled].long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes).double()


def scores(matrix: Shaped[Tensor, "k k"]) -> dict[str, float | list[float]]:
    """``miou``, ``pixel_accuracy`` and ``iou`` (one a class), in [0, 1], of one confusion matrix over a data set.

    A class that neither the masks nor the predictions hold has IoU NaN and is left out of the mean. This is the mean
    over classes of a data set's IoU, not a mean of image means.

    Example:
        >>> scores(torch.tensor([[3, 1], [0, 4]]))
        {'miou': 0.775, 'pixel_accuracy': 0.875, 'iou': [0.75, 0.8]}
    """
    matrix = matrix.double()
    right = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - right
    iou = right / union
    return {
        "miou": iou.nanmean().item(),
        "pixel_accuracy": (right.sum() / matrix.sum()).item(),
        "iou": iou.tolist(),
    }


# ------------------------------------------------------------------------------- what the training loop calls


def loss(net: nn.Module, batch: dict[str, Tensor], config: TrainConfig, generator: torch.Generator) -> Tensor:
    """The training loss of one batch, with the config's class weights and hard-pixel mining."""
    weights = None
    if config.class_weights is not None:
        weights = torch.tensor(config.class_weights, dtype=torch.float32, device=batch["image"].device)
    return segmentation_loss(net(batch["image"]), batch["mask"], class_weights=weights, ohem=config.ohem)


@torch.no_grad()
def count(net: nn.Module, batch: dict[str, Tensor], classes: int) -> Tensor:
    """Sums over a batch that add over batches and processes, float64 (classes, classes + 2).

    The confusion matrix; then, in the first row, the sum of the cross-entropies and the number of labelled pixels.
    Logits are brought to the size of the mask before the highest is chosen: what is counted are the mask's own pixels.
    """
    sums = torch.zeros(classes, classes + 2, dtype=torch.float64, device=batch["image"].device)
    for image, mask in in_turn(batch):
        logits = resized(net(image)["fused"], mask.shape[-2:])
        target = targets(mask, classes)
        losses = F.cross_entropy(logits, target, ignore_index=NO_CLASS, reduction="none").double()
        sums[:, :classes] += confusion(logits.argmax(1), mask, classes)
        sums[0, classes] += losses.sum()
        sums[0, classes + 1] += (target != NO_CLASS).sum()
    return sums


def in_turn(batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Images and masks of a batch, in parts that the memory for their logits allows."""
    images, masks = batch["image"], batch["mask"]
    together = max(1, PIXELS_AT_ONCE // max(images[0, 0].numel(), masks[0].numel()))
    return list(zip(images.split(together), masks.split(together), strict=True))


def metrics(counts: Tensor) -> dict[str, float]:
    """From `count`'s sums: val_loss a pixel, val_miou and val_pixel_accuracy over all images."""
    classes = len(counts)
    losses, pixels = counts[0, classes:].tolist()
    values = scores(counts[:, :classes])
    return {
        "val_loss": losses / max(pixels, 1),
        "val_miou": float(values["miou"]),  # type: ignore[arg-type]
        "val_pixel_accuracy": float(values["pixel_accuracy"]),  # type: ignore[arg-type]
    }


# --------------------------------------------------------------------------------------------- what a run asks for


def facts(config: TrainConfig, data: dict[str, Any]) -> dict[str, Any]:
    """What the weights file must also say: ``ignore_index``, ``crop_size`` and the class weights as numbers.

    Raises:
        ValueError: a part has no labelled pixel at all, or as many class weights as classes are not given.
    """
    classes = len(data["train"].classes)
    for part, images in data.items():
        if not any((targets(images[i]["mask"], classes) != NO_CLASS).any() for i in range(len(images))):
            raise FovealError(
                f"the masks must hold at least 1 labelled pixel for {part}, got none in {config.data}"
            )
    weights = config.class_weights
    if weights == "balanced":
        weights = balanced_weights(data["train"], classes)
    if weights is not None and len(weights) != classes:
        raise FovealError(
            f"class_weights must be one a class, {classes} of them ({', '.join(data['train'].classes)}), "
            f"got {len(weights)}"
        )
    ignore = data["train"].ignore_index
    return {"ignore_index": ignore, "crop_size": config.crop_size, "class_weights": weights}


def balanced_weights(data: Any, classes: int) -> list[float]:
    """Median frequency over the frequency of each class, in the images that hold it; 1 for a class in no image.

    Source: Eigen and Fergus (2015), section 6.3.2.
    """
    pixels, of_images = torch.zeros(classes), torch.zeros(classes)
    for index in range(len(data)):
        target = targets(data[index]["mask"], classes)
        counts = torch.bincount(target[target != NO_CLASS], minlength=classes)
        pixels += counts
        of_images += (counts > 0) * counts.sum()
    share = pixels / of_images  # nan for a class in no image
    return (share.nanmedian() / share).nan_to_num(nan=1.0).tolist()


def natural_size(data: Any) -> int:
    """The shorter side of the data's images in pixels: its median over some of them."""
    chosen = range(0, len(data), max(1, len(data) // LOOKED_AT))
    return int(statistics.median_low(min(data[i]["image"].shape[-2:]) for i in chosen))


def transforms(config: TrainConfig, data: Any, size: int, colours: dict[str, Any]) -> tuple[Any, Any]:
    """From a stored sample to what the network takes: a square crop to train on, the whole image to evaluate.

    Scenes are left as they are: their digits lie anywhere already, and a scaled or mirrored one may be no digit.
    """
    augment = config.augment and not isinstance(data, SceneMasks)
    to_train = segmentation_train_transform(
        config.crop_size or size,
        shorter=size,
        scale=config.scale_range if augment else (1.0, 1.0),
        flip=0.5 if augment and getattr(data, "mirror", True) else 0.0,
        ignore_index=data.ignore_index,
        **colours,
    )
    return to_train, segmentation_eval_transform(shorter=size, **colours)
