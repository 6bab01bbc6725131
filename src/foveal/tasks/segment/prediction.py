"""The class of every pixel of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from foveal.palette import overlay, palette
from foveal.tasks.picture import captioned, figure_of, png_bytes

if TYPE_CHECKING:
    from foveal.figure import NotebookFigure


@dataclass(frozen=True)
class MaskPrediction:
    """What a segmentation network says of one image.

    Attributes:
        class_map: (H, W) class of each pixel, at the image's own size.
        classes: names of all classes.
        file: where the image came from, if from a file.
        image: the image itself, uint8 (3, H, W).
    """

    class_map: Shaped[Tensor, "H W"]
    classes: Sequence[str] = field(repr=False)
    file: str = ""
    image: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image's pixels that each class has."""
        counts = torch.bincount(self.class_map.flatten().long(), minlength=len(self.classes))
        return dict(zip(self.classes, (counts.double() / self.class_map.numel()).tolist(), strict=True))

    @property
    def labels(self) -> list[tuple[str, float]]:
        """(class, share of the image) of the classes that occur, the largest first."""
        return sorted(((n, s) for n, s in self.shares.items() if s > 0), key=lambda pair: -pair[1])

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {share:.1%}" for name, share in self.labels[:5])
        more = f" and {len(self.labels) - 5} more" if len(self.labels) > 5 else ""
        height, width = self.class_map.shape
        return f"<{self.file or 'image'}, {width}x{height}: {said}{more}>"

    def draw(self, image: Tensor) -> np.ndarray:
        """The image with the colours of the classes laid over it, and the largest classes named below."""
        picture = overlay(image.permute(1, 2, 0).cpu().numpy(), self.class_map.numpy(), palette(self.classes))
        return captioned(picture, [f"{name}  {share:.1%}" for name, share in self.labels[:3]])

    def plot(self) -> NotebookFigure:
        """The same picture that a notebook shows, as a figure, to be saved or put beside others."""
        return figure_of(None if self.image is None else self.draw(self.image))

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else png_bytes(self.draw(self.image))
