"""Whether a file computes what the network computes: on real images or clips, in more than one batch, at more sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.export.program import shipment_of
from foveal.image_files import find_images
from foveal.inference import Predictor
from foveal.look.images import bundled_images
from foveal.model_info import LARGEST_SIZE
from foveal.tasks.shipping import Shipment

TOLERANCES = {"float32": 1e-4, "float16": 0.02, "int8": float("inf")}
"""Largest difference of an output that a precision may make, as a share of the largest output. What eight bits cost
depends on the network: that is measured in accuracy and told."""
IMAGES = 8

Run = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Batch:
    """Real images of one size.

    Attributes:
        prepared: (b, c, h, w), or of clips (b, c, t, h, w), as the network takes them.
        input: the same as the file takes them: these, or bytes.
        wanted: what the network gives for them, in float32, once it has been asked.
    """

    prepared: Tensor
    input: np.ndarray
    wanted: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Check:
    """What came of one batch.

    Attributes:
        shape: of the images, (b, c, h, w), or of the clips.
        difference: the largest of any output, as a share of the largest output.
        agreement: share of equal answers, from 0 to 1; of what, the task says.
    """

    shape: tuple[int, ...]
    difference: float
    agreement: float


def real_images(predictor: Predictor, folder: str | None) -> list[Tensor]:
    """Images, or clips, of a person's folder, or those that come with foveal; uint8 (c, h, w) or (c, t, h, w).

    Raises:
        FovealError: no image of the folder can be read.
        FileNotFoundError: there is no such folder.
    """
    if folder is None:
        return [image for _, image in bundled_images(predictor)]
    found, reason = [], "it holds none"
    if not Path(folder).exists():
        raise FileNotFoundError(f"images must be a folder that exists, got {folder}")
    find = getattr(predictor.task, "find_files", find_images)
    for file in [folder] if Path(folder).is_file() else find(Path(folder)):
        try:
            found.append(predictor.read(file))
        except (FovealError, OSError) as error:
            reason = str(error)
        if len(found) == IMAGES:
            break
    if not found:
        raise FovealError(f"images must hold an image that can be read, got {folder}: {reason}")
    return found


def make_batches(
    predictor: Predictor, images: Sequence[Tensor], *, static: bool, normalise: bool
) -> list[Batch]:
    """The batch that is recorded, and those that prove it.

    First the traced size, two images; then one image alone; then three, where sizes are free at another size, odd and
    not square. Where ``static``, the first image, and another of its size.
    """
    if static:
        views = _views(predictor, images, first=True)
        return [_batch(predictor, [view], normalise) for view in [*views, *views][:2]]
    views = _views(predictor, images)
    others = views
    if 2 in shipment_of(predictor).free:
        size = predictor.info.image_size
        other = size * 5 // 4 | 1
        # nothing sees images above the largest size
        other = other if other <= LARGEST_SIZE else size * 3 // 4 | 1
        larger = replace(predictor, info=replace(predictor.info, image_size=other))
        others = [view[..., : view.shape[-1] * 4 // 5] for view in _views(larger, images)]
    return [
        _batch(predictor, (views * 2)[:2], normalise),
        _batch(predictor, views[-1:], normalise),
        _batch(predictor, (others * 3)[:3], normalise),
    ]


def _views(predictor: Predictor, images: Sequence[Tensor], *, first: bool = False) -> list[Tensor]:
    """Images as the network sees them: those of the most frequent size, or of that of the ``first``."""
    views = [predictor.view({"image": image})["image"] for image in images]
    shapes = [view.shape for view in views]
    usual = shapes[0] if first else max(shapes, key=shapes.count)
    return [view for view in views if view.shape == usual]


def _batch(predictor: Predictor, views: Sequence[Tensor], normalise: bool) -> Batch:
    prepared = torch.stack([predictor.prepare(view) for view in views])
    seen = torch.stack([view[: predictor.info.channels] for view in views])
    return Batch(prepared, (seen if normalise else prepared).numpy())


def check(shipment: Shipment, run: Run, batch: Batch) -> Check:
    """Compare a file's outputs with those wanted."""
    found = [torch.from_numpy(np.array(output, dtype=np.float32)) for output in run(batch.input)]
    difference = largest_difference(batch.wanted, found)
    agreement = shipment.agreement(batch.wanted, found) if difference < float("inf") else 0.0
    return Check(tuple(batch.prepared.shape), difference, agreement)


def largest_difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """As a share of the largest finite value that was wanted; infinite where shapes or what is finite differ.

    Example:
        >>> largest_difference([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -3.0])])
        0.25
    """
    if [one.shape for one in wanted] != [one.shape for one in found]:
        return float("inf")
    largest = 0.0
    for one, other in zip(wanted, found, strict=True):
        differ = ~((one == other) | (one.isnan() & other.isnan()))
        scale = one[one.isfinite()].abs().max() if one.isfinite().any() else torch.tensor(1.0)
        if differ.any():
            share = float((one[differ] - other[differ]).abs().max() / scale.clamp_min(1e-30))
            largest = max(largest, share if share == share else float("inf"))
    return largest


class RuntimeNet(nn.Module):
    """A network that runs in the file, for whatever takes a network: `Predictor`, evaluation.

    Args:
        net: the network itself, which answers for all but its pass, such as how its outputs become boxes.
    """

    def __init__(self, run: Run, shipment: Shipment, net: nn.Module) -> None:
        super().__init__()
        self.run, self.shipment, self.net = run, shipment, net

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, images: Tensor, *others: Any) -> Any:
        outputs = self.run(images.numpy(force=True))
        return self.shipment.rebuild([torch.from_numpy(np.array(output)) for output in outputs])
