"""A trained network as the page and the pictures need it: how it takes an image, and what its answers are called."""

from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.look.record import Seen, watch

DEFAULT_WEIGHTS = "default.safetensors"


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image.

    Attributes:
        labels: (class, probability) of at most five classes, likeliest first; for segmentation the classes that
            occur, with their share of the image.
        class_map: (H, W) class of each pixel, for segmentation; else None.
    """

    labels: list[tuple[str, float]]
    class_map: UInt8[Tensor, "H W"] | None = None


@dataclass(frozen=True)
class Network:
    """A network in eval mode with the facts that training stored beside its weights.

    Attributes:
        weights: name of the file, shown in every picture.
        image_size: side of the square that a classifier sees, shorter side of the whole image for segmentation.
        task: "classify" or "segment".
        data, data_options: what it was trained on, as typed.
    """

    net: nn.Module
    weights: str
    classes: list[str]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: str = "classify"
    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _resize(self) -> Any:
        from foveal.data import JointTransform, eval_transform, segmentation_eval_transform

        whole: Any = (
            segmentation_eval_transform(shorter=self.image_size)
            if self.task == "segment"
            else eval_transform(self.image_size)
        )
        return JointTransform(whole.steps, normalise=False)

    @cached_property
    def _normalise(self) -> Any:
        from foveal.data import JointTransform

        return JointTransform([], self.mean, self.std)

    def view(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What the network sees of an image, at its size and still uint8; masks and boxes with it.

        The central square for a classifier, the whole image for segmentation, as in evaluation.
        """
        return self._resize(sample)

    def point(self, image_size: tuple[int, int], pixel: tuple[int, int]) -> tuple[int, int]:
        """Where a pixel (y, x) of an image of (height, width) comes to lie in the view.

        Raises:
            ValueError: if the pixel is outside the image, or cut off by the view.
        """
        (height, width), (y, x) = image_size, pixel
        if not (0 <= y < height and 0 <= x < width):
            raise FovealError(f"must lie inside the image of {height}x{width}, got {y},{x}")
        box = torch.tensor([x, y, x + 1.0, y + 1.0])
        image = torch.empty(3, height, width, dtype=torch.uint8)
        view = self.view({"image": image, "box_xyxy": box})
        x1, y1, x2, y2 = view["box_xyxy"].tolist()
        if x2 <= x1 or y2 <= y1:
            raise FovealError(f"must lie in the central square that the network sees, got {y},{x}")
        rows, columns = view["image"].shape[1:]
        return min(int((y1 + y2) / 2), rows - 1), min(int((x1 + x2) / 2), columns - 1)

    def prepare(self, view: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        """A view, normalised as in training."""
        return self._normalise({"image": view})["image"]

    def look(self, view: UInt8[Tensor, "3 h w"], max_bytes: int = 2**28) -> tuple[Prediction, Seen]:
        """Run the network on one view, recording every attention site.

        Raises:
            ValueError: if the network has no attention site.
        """
        with watch(self.net, weights=self.weights, max_bytes=max_bytes) as seen, torch.no_grad():
            output = self.net(self.prepare(view)[None])
        return self._read(output), seen

    def _read(self, output: Tensor | dict[str, Tensor]) -> Prediction:
        if isinstance(output, dict):
            output = output["fused"]
        if output.ndim == 4:
            class_map = output[0].argmax(0)
            shares = torch.bincount(class_map.flatten(), minlength=output.shape[1]) / class_map.numel()
            occurring = [int(c) for c in shares.argsort(descending=True) if shares[c] > 0]
            return Prediction(
                [(self._name(c), float(shares[c])) for c in occurring], class_map.to(torch.uint8)
            )
        probabilities = output[0].float().softmax(0)
        best = probabilities.topk(min(5, len(probabilities)))
        return Prediction(
            [(self._name(c), p) for p, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        )

    def _name(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def open_network(weights: str | Path | None = None) -> Network:
    """Load a weights file of ``foveal train``; without one, the small network that comes with the package.

    Raises:
        ValueError: not one of our files, or one without the facts that training stores.
        FileNotFoundError: no such file.
    """
    from foveal.checkpoint import load

    if weights is None:
        with resources.as_file(resources.files("foveal.look") / DEFAULT_WEIGHTS) as path:
            net, name = load(path), f"{DEFAULT_WEIGHTS} (bundled, trained on scenes)"
    else:
        net, name = load(weights), _short_name(Path(weights))
    info: dict[str, Any] = net.foveal_info  # pyright: ignore[reportAssignmentType]
    missing = [key for key in ("classes", "image_size", "mean", "std") if key not in info]
    if missing:
        raise FovealError(
            f"weights must hold {', '.join(missing)}, as those of foveal train do, got {weights}"
        )
    net.eval().requires_grad_(False)
    return Network(
        net=net,
        weights=name,
        classes=list(info["classes"]),
        image_size=info["image_size"],
        mean=tuple(info["mean"]),
        std=tuple(info["std"]),
        task=info.get("task", "classify"),
        data=info.get("data"),
        data_options=dict(info.get("data_options") or {}),
    )


def _short_name(path: Path) -> str:
    """Enough of the path to tell two runs apart: ``run-1/weights/best.safetensors`` is shown from the run on."""
    parts = path.parts[-3:] if path.parent.name == "weights" else path.parts[-1:]
    return "/".join(parts)
