"""Generated images, alone, in a grid and in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foveal.errors import FovealError
from foveal.files import write_bytes, write_json
from foveal.folders import new_folder
from foveal.model_info import ModelInfo
from foveal.tasks.generate import GenerateInference
from foveal.tasks.picture import png_bytes

TOGETHER = 64
GAP = 2


@dataclass(frozen=True)
class GeneratedImage:
    """An image made from noise.

    Attributes:
        labels: its class, and 1; an empty class where the network knows none.
        file: its name.
        image: uint8 (3, h, w).
    """

    labels: list[tuple[str, float]]
    file: str
    image: UInt8[Tensor, "3 h w"] = field(repr=False)

    def draw(self, image: Tensor) -> np.ndarray:
        """The image itself."""
        return image.permute(1, 2, 0).cpu().numpy()

    def _repr_png_(self) -> bytes:
        return png_bytes(self.draw(self.image))


@torch.no_grad()
def sampled(net: Any, info: ModelInfo, inference: GenerateInference) -> Iterator[tuple[Tensor, str | None]]:
    """Images, uint8 (3, h, w), with their classes; image ``i`` of a seed does not depend on how many are made.

    Raises:
        FovealError: ``label`` is no class, or the network knows no classes.
    """
    if inference.label is not None:
        if not net.conditional:
            raise FovealError(
                f"label must be left out, for this network knows no classes, got {inference.label}"
            )
        if inference.label not in info.classes:
            raise FovealError(f"label must be one of {', '.join(info.classes)}, got {inference.label}")
    device = next(net.parameters()).device
    training = net.training
    net.eval()
    try:
        end = inference.first + inference.count
        for start in range(inference.first, end, TOGETHER):
            numbers = range(start, min(start + TOGETHER, end))
            noise = torch.stack([noise_of(inference.seed, number, net.latent) for number in numbers])
            labels = [
                info.classes.index(inference.label)
                if inference.label is not None
                else number % len(info.classes)
                for number in numbers
            ]
            images = net.generate(noise.to(device), torch.tensor(labels, device=device))
            for image, label in zip(as_bytes(images, info), labels, strict=True):
                yield image, info.classes[label] if net.conditional else None
    finally:
        net.train(training)


def noise_of(seed: int, number: int, latent: int) -> Tensor:
    """The noise of one image, a function of the seed and its number."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    return torch.randn(latent, generator=generator)


def as_bytes(images: Tensor, info: ModelInfo) -> UInt8[Tensor, "b 3 h w"]:
    """From what the network makes to uint8."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (info.mean, info.std))
    return ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).cpu().expand(-1, 3, -1, -1)


def picture_grid(images: Sequence[Tensor], columns: int) -> np.ndarray:
    """Images of one size in rows, uint8 (h, w, 3).

    Example:
        >>> picture_grid([torch.zeros(3, 4, 4, dtype=torch.uint8)] * 5, columns=3).shape
        (14, 20, 3)
    """
    height, width = images[0].shape[1:]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    grid = np.full(shape, 128, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = (
            (place * (side + GAP)) + GAP
            for place, side in zip(divmod(number, columns), (height, width), strict=True)
        )
        grid[top : top + height, left : left + width] = image.permute(1, 2, 0).numpy()
    return grid


def write_images(
    predictions: Iterable[tuple[GeneratedImage, Tensor]], folder: Path, inference: GenerateInference
) -> tuple[int, str]:
    """Write each image, ``grid.png`` of all, and ``images.json``: how they came about.

    Raises:
        FovealError: ``folder`` holds something already.
    """
    new_folder(folder)
    images, names = [], []
    for prediction, image in predictions:
        write_bytes(folder / prediction.file, png_bytes(prediction.draw(image)))
        images.append(image)
        names.append(prediction.file)
    columns = max(1, round(len(images) ** 0.5))
    write_bytes(folder / "grid.png", png_bytes(picture_grid(images, columns)))
    write_json(folder / "images.json", {"seed": inference.seed, "label": inference.label, "files": names})
    return len(images), f"{len(images)} images and grid.png in {folder}\n"
