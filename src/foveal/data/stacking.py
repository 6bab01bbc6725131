"""A whole small data set as tensors in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.data.joint import JointTransform
from foveal.errors import FovealError


def as_tensors(dataset: Any, size: int | None = None) -> dict[str, Tensor]:
    """A whole data set in memory: each entry of the items stacked, numbers as int64. For small data.

    Args:
        dataset: from ``open_dataset``; any items with entries of equal shapes.
        size: bring images, masks and boxes to (size, size) by the shorter side and the centre crop first; needed
            where sizes differ.

    Raises:
        ValueError: the items' shapes differ and no ``size`` is given.

    Example:
        >>> from foveal.data import open_dataset
        >>> batch = as_tensors(open_dataset("scenes", "val", length=20), size=16)
        >>> batch["image"].shape, batch["image"].dtype, batch["label"].dtype
        (torch.Size([20, 3, 16, 16]), torch.uint8, torch.int64)
    """
    if hasattr(dataset, "as_tensors") and size in (None, dataset.size):
        return dataset.as_tensors()
    resize = _resizer(size) if size is not None else None
    stacked: dict[str, Tensor] = {}
    for i in range(len(dataset)):
        sample = resize(dataset[i]) if resize else dataset[i]
        for name, value in sample.items():
            value = torch.as_tensor(value)
            if i == 0:  # one allocation instead of a list and its copy
                stacked[name] = value.new_empty((len(dataset), *value.shape))
            elif value.shape != stacked[name].shape[1:]:
                raise FovealError(
                    f"without size every {name} must have the same shape, "
                    f"got {tuple(stacked[name].shape[1:])} and {tuple(value.shape)}"
                )
            stacked[name][i] = value
    return stacked


def _resizer(size: int) -> JointTransform:
    from torchvision.transforms import v2

    return JointTransform([v2.Resize(size, antialias=True), v2.CenterCrop(size)], normalise=False)
