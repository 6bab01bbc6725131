"""What a weights file says of its network beside the weights: the task, the classes and the preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from foveal.errors import FovealError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# the same of the images' grey values
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
REQUIRED = ("classes", "image_size", "mean", "std")
LARGEST_SIZE = 8192


@dataclass(frozen=True)
class ModelInfo:
    """All that is needed to use a network: `foveal train`, `compare` and `convert` write it, the predictor reads it.

    Attributes:
        task: a name in `foveal.tasks.TASKS`.
        classes: names in the order of the network's outputs.
        image_size: side of the images in pixels as the network sees them; what that means is the task's.
        mean, std: of each channel, for images in 0..1.
        interpolation: by which images are resized: "bilinear" or "bicubic".
        crop_share: share of the shorter side that is kept in evaluation; None is the task's own rule.
        data, data_options: what the network was trained on, as typed.
        model: the network's name, as `foveal list` prints it.
        extra: what the task adds, such as ``ignore_index``.
        figures: the epoch and the validation figures of these weights, such as ``val_accuracy``.

    Example:
        >>> info = ModelInfo("classify", ["cat", "dog"], 32, extra={"note": 1})
        >>> ModelInfo.from_dict(info.to_dict()) == info
        True
    """

    task: str
    classes: list[str]
    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_share: float | None = None
    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels of the images: 3, or 1 for grey ones."""
        return len(self.mean)

    @property
    def grey_bits(self) -> int:
        """How many bits the values of 16-bit grey files have, as in `foveal.data.decode_image`."""
        bits = self.data_options.get("grey_bits")
        return bits if isinstance(bits, int) and 8 <= bits <= 16 else 16

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `foveal.save` keeps with the weights; ``extra`` and ``figures`` lie flat in it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("extra", "figures")}
        return {**own, **self.extra, **self.figures}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], where: str = "the weights file") -> ModelInfo:
        """The info of a weights file. Its values are checked, since the file may come from anywhere.

        Args:
            stored: as `to_dict` gives it; names that are not known here belong to the task.
            where: what the file is called, for the message.

        Raises:
            FovealError: something is missing, or is not what it must be.
        """
        missing = [name for name in REQUIRED if name not in stored]
        if missing:
            raise FovealError(
                f"the weights must come with {', '.join(missing)}, as those of foveal train do, got {where} without"
            )
        info: dict[str, Any] = {"task": "classify", **stored}
        known = {f.name for f in fields(cls)} - {"extra", "figures"}
        figures = {k: v for k, v in info.items() if k == "epoch" or k.startswith("val_")}
        extra = {k: v for k, v in info.items() if k not in known and k not in figures}
        own = {name: value for name, value in info.items() if name in known}
        for name in ("mean", "std"):
            own[name] = tuple(own[name]) if isinstance(own[name], list | tuple) else own[name]
        _check(own, where)
        return cls(**own, extra=extra, figures=figures)


def _check(own: dict[str, Any], where: str) -> None:
    def numbers(value: Any, least: float) -> bool:
        return isinstance(value, tuple) and all(
            isinstance(v, int | float) and math.isfinite(v) and v > least for v in value
        )

    classes, size, share = own["classes"], own["image_size"], own.get("crop_share")
    rules = {
        "task": ("a name", isinstance(own["task"], str)),
        "classes": (
            "a list of names",
            isinstance(classes, list) and all(isinstance(c, str) for c in classes),
        ),
        "image_size": (f"1 to {LARGEST_SIZE}", isinstance(size, int) and 1 <= size <= LARGEST_SIZE),
        "mean": ("finite numbers", numbers(own["mean"], -math.inf)),
        "std": (
            "numbers above 0, as many as the mean",
            numbers(own["std"], 0) and isinstance(own["mean"], tuple) and len(own["std"]) == len(own["mean"]),
        ),
        "interpolation": (
            "bilinear or bicubic",
            own.get("interpolation", "bilinear") in ("bilinear", "bicubic"),
        ),
        "crop_share": (
            "above 0 and at most 1",
            share is None or (isinstance(share, int | float) and 0 < share <= 1),
        ),
        "data": ("a name", isinstance(own.get("data"), str | None)),
        "data_options": ("a mapping", isinstance(own.get("data_options", {}), dict)),
        "model": ("a name", isinstance(own.get("model"), str | None)),
    }
    for name, (rule, holds) in rules.items():
        if not holds:
            raise FovealError(f"{name} of the weights must be {rule}, got {own.get(name)!r} in {where}")
