"""The objects that a network finds in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.model_info import ModelInfo
from foveal.palette import palette
from foveal.tasks.detect import DEFAULT_THRESHOLD, DetectInference
from foveal.tasks.picture import figure_of, png_bytes

if TYPE_CHECKING:
    from foveal.figure import NotebookFigure

SMALLEST_PICTURE = 480
"""Pixels of the longer side to which small images are enlarged, so that labels can be read."""


@dataclass(frozen=True)
class BoxPrediction:
    """What a detection network says of one image.

    Attributes:
        boxes_xyxy: (n, 4) pixel edges of the image at its own size, the best first.
        scores: (n,) from 0 to 1.
        class_indices: (n,) the class of each box.
        queries: (n,) which of the network's queries said it; what `foveal look` shows the attention of.
        classes: names of all classes.
        size: (height, width) of the image.
        file: where the image came from, if from a file.
        image: the image itself, uint8 (3, H, W).
    """

    boxes_xyxy: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    class_indices: Int[Tensor, " n"]
    queries: Int[Tensor, " n"] = field(repr=False)
    classes: Sequence[str] = field(repr=False)
    size: tuple[int, int] = (0, 0)
    file: str = ""
    image: Tensor | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def labels(self) -> list[tuple[str, float]]:
        """(class, score) of each detection, the best first."""
        numbers: list[int] = self.class_indices.tolist()
        return [(self.classes[i], score) for i, score in zip(numbers, self.scores.tolist(), strict=True)]

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {score:.0%}" for name, score in self.labels[:5])
        more = f" and {len(self) - 5} more" if len(self) > 5 else ""
        return f"<{self.file or 'image'}, {self.size[1]}x{self.size[0]}: {said or 'no object'}{more}>"

    def draw(self, image: Tensor) -> np.ndarray:
        """The image with every box in the colour of its class, its name and score above it."""
        labels = [f"{name}: {score:.0%}" for name, score in self.labels]
        return draw_boxes(image, self.boxes_xyxy, self.class_indices, labels, palette(self.classes))

    def plot(self) -> NotebookFigure:
        """The same picture that a notebook shows, as a figure, to be saved or put beside others."""
        return figure_of(None if self.image is None else self.draw(self.image))

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else png_bytes(self.draw(self.image))


@torch.no_grad()
def predictions(
    net: nn.Module,
    images: Float[Tensor, "b c h w"],
    sizes: Sequence[tuple[int, int]],
    info: ModelInfo,
    inference: DetectInference,
) -> list[BoxPrediction]:
    """The detections of images of one size that are not padded, in pixels of the images as they came."""
    found = detect(net, images, inference)
    threshold = DEFAULT_THRESHOLD if inference.threshold is None else inference.threshold
    answers = []
    for one, size in zip(found, sizes, strict=True):
        boxes = scaled(one["boxes_xyxy"], (images.shape[-2], images.shape[-1]), size)
        height, width = size
        boxes = boxes.minimum(boxes.new_tensor([width, height, width, height])).clamp_min(0)
        kept = (one["scores"] >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        answers.append(
            BoxPrediction(
                boxes[kept],
                one["scores"][kept],
                one["labels"][kept],
                one["queries"][kept],
                info.classes,
                size,
            )
        )
    return answers


def detect(net: nn.Module, images: Tensor, inference: DetectInference) -> list[dict[str, Tensor]]:
    """The detections of images without padding, on the CPU, in pixels of the images as the network sees them."""
    sizes = torch.tensor([list(images.shape[-2:])], device=images.device).expand(len(images), 2)
    return chosen(net, net(images, sizes), sizes, inference)


def chosen(
    net: nn.Module, outputs: dict[str, Tensor], sizes: Tensor, inference: DetectInference
) -> list[dict[str, Tensor]]:
    """The detections that the options of inference let through, on the CPU."""
    from torchvision.ops import batched_nms

    kept = []
    for one in net.detections(outputs, sizes, limit=inference.limit):  # pyright: ignore[reportCallIssue]
        one = {name: value.detach().cpu() for name, value in one.items()}
        one |= {name: one[name].float() for name in ("boxes_xyxy", "scores")}
        if inference.threshold is not None:
            one = {name: value[one["scores"] >= inference.threshold] for name, value in one.items()}
        if inference.nms is not None:
            places = batched_nms(one["boxes_xyxy"], one["scores"], one["labels"], inference.nms)
            one = {name: value[places] for name, value in one.items()}
        kept.append(one)
    return kept


def scaled(boxes: Float[Tensor, "n 4"], seen: Sequence[int], original: Sequence[int]) -> Float[Tensor, "n 4"]:
    """Boxes of an image of one (height, width) as boxes of the same image at another."""
    (height, width), (to_height, to_width) = seen, original
    factor = torch.tensor([to_width / width, to_height / height] * 2, dtype=torch.float64)
    return (boxes.double() * factor).float()


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    class_indices: Tensor,
    labels: Sequence[str],
    colours: np.ndarray,
    *,
    dashed: Sequence[bool] | None = None,
) -> np.ndarray:
    """An image, uint8 (3, h, w), enlarged by a whole number if it is small, with boxes and their labels.

    Args:
        dashed: boxes to draw with a broken line, such as those that were missed.

    Example:
        >>> picture = draw_boxes(torch.zeros(3, 50, 60, dtype=torch.uint8), torch.tensor([[5.0, 5, 20, 30]]),
        ...                      torch.tensor([0]), ["cat 90%"], np.array([[255, 0, 0]]))
        >>> picture.shape, picture[100, 41].tolist()  # on the left edge of the box, enlarged by 8
        ((400, 480, 3), [255, 0, 0])
    """
    from PIL import Image, ImageDraw

    factor = max(1, SMALLEST_PICTURE // max(image.shape[-2:]))
    pixels = image.permute(1, 2, 0).cpu().numpy().repeat(factor, axis=0).repeat(factor, axis=1)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 320))
    size = max(11, round(max(picture.size) / 45))
    placed = list(
        zip(boxes.tolist(), class_indices.tolist(), labels, dashed or [False] * len(boxes), strict=True)
    )
    # the best last, on top of the others
    for box, index, label, broken in reversed(placed):
        colour = tuple(int(v) for v in colours[index % len(colours)])
        x1, y1, x2, y2 = (factor * value for value in box)
        x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
        if broken:
            _dashed(draw, (x1, y1, x2, y2), colour, line)
        else:
            draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        if label:
            _tag(draw, label, (x1, y1, x2, y2), colour, size, picture.size)
    return np.asarray(picture)


def _tag(
    draw: Any, label: str, box: tuple[float, ...], colour: tuple[int, ...], size: int, canvas: tuple[int, int]
) -> None:
    """The label on a patch above the box, or inside it where there is no room above."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], canvas[0] - width))
    y = box[1] - height if box[1] >= height else max(0, box[1])
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    red, green, blue = colour
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    draw.text((x + 2 - left, y + 2 - top), label, fill="white" if dark else "black", font=font)


def _dashed(draw: Any, box: tuple[float, ...], colour: tuple[int, ...], line: int) -> None:
    x1, y1, x2, y2 = box
    step = 4 * line
    for start, end, fixed, along_x in (
        (x1, x2, y1, True),
        (x1, x2, y2, True),
        (y1, y2, x1, False),
        (y1, y2, x2, False),
    ):
        at = start
        while at < end:
            to = min(at + step / 2, end)
            draw.line((at, fixed, to, fixed) if along_x else (fixed, at, fixed, to), fill=colour, width=line)
            at += step
