"""How an exported segmentation network is used: see `foveal.tasks.shipping`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.model_info import ModelInfo
from foveal.tasks.shipping import Path, Shipment, in_bytes, network_input, read, resize


def ship(info: ModelInfo) -> Shipment:
    """Logits (b, classes, h, w) at the size of the images, which may be any."""
    return Shipment(
        outputs=("logits",),
        call=lambda net, images: (net(images)["fused"],),
        rebuild=lambda outputs: {"fused": outputs[0]},
        agreement=mean_overlap,
        agreement_of="mIoU",
        preprocessing={"resize_shorter": info.image_size},
        script=(read, in_bytes, resize, network_input, prepare, bilinear, answer),
        browser=("shipping.js", "segment/shipping.js"),
    )


def mean_overlap(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Mean over classes of intersection over union of the two answers, as if one of them were the truth."""
    ours, theirs = wanted[0].argmax(1), found[0].argmax(1)
    overlaps = [
        ((ours == k) & (theirs == k)).sum() / ((ours == k) | (theirs == k)).sum()
        for k in torch.cat([ours.unique(), theirs.unique()]).unique()
    ]
    return float(torch.stack(overlaps).mean())


def prepare(image, facts):
    """The whole image, its shorter side resized."""
    factor = facts["resize_shorter"] / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return network_input(resize(np.asarray(image), height, width), facts)


def bilinear(size, length):
    """The matrix (size, length) that resizes a line as PyTorch's bilinear without corners does."""
    place = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    return np.maximum(0, 1 - abs(place[:, None] - np.arange(length))).astype(np.float32)


def answer(outputs, image, name, about):
    """The share of the image that each class has; the class of each pixel goes to a new PNG in the present folder."""
    width, height = image.size
    logits = outputs[0][0]
    rows, columns = bilinear(height, logits.shape[1]), bilinear(width, logits.shape[2]).T
    best, chosen = rows @ logits[0] @ columns, np.zeros((height, width), np.uint16)
    for k in range(1, len(logits)):
        score = rows @ logits[k] @ columns
        better = score > best
        best[better], chosen[better] = score[better], k
    file, number = f"{Path(name).stem}.classes.png", 1
    while Path(file).exists():
        number += 1
        file = f"{Path(name).stem}-{number}.classes.png"
    Image.fromarray(chosen.astype(np.uint8 if len(logits) <= 256 else np.uint16)).save(file)
    shares = [(c, float((chosen == k).mean())) for k, c in enumerate(about["classes"])]
    return {"labels": sorted((one for one in shares if one[1]), key=lambda one: -one[1]), "classes_png": file}
