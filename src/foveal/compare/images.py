"""The images of a comparison as plain arrays in a folder: decoded once, shared by all workers."""

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data import JointTransform, eval_transform
from foveal.data.transforms import SMALL

KEPT_SHARE = 0.875
"""Above 64 pixels, images for random crops are kept larger by 1 / 0.875, as evaluation resizes them."""


def save_images(data: Any, folder: Path, split: str, image_size: int, *, for_crops: bool = False) -> None:
    """Write every entry of the items of ``data`` as one array, ``split-NAME.npy``; images stay bytes.

    Args:
        data: from `foveal.data.open_dataset`.
        image_size: side of the square images the network will see.
        for_crops: keep images above 64 pixels larger, for random crops.

    Raises:
        OSError: the disk has no room for it.
    """
    if hasattr(data, "as_tensors") and data.size == image_size:
        for name, values in data.as_tensors().items():
            np.save(folder / f"{split}-{name}.npy", values.numpy())
        return
    resize = to_bytes(image_size)
    if for_crops and image_size > SMALL:
        resize = to_bytes(round(image_size / KEPT_SHARE), crop_share=1.0)
    arrays: dict[str, np.ndarray] = {}
    for i in range(len(data)):
        sample = {name: torch.as_tensor(value) for name, value in resize(data[i]).items()}
        if i == 0:
            _check_room(
                folder, len(data) * sum(value.numel() * value.element_size() for value in sample.values())
            )
        for name, value in sample.items():
            if i == 0:
                shape = (len(data), *value.shape)
                path = folder / f"{split}-{name}.npy"
                arrays[name] = np.lib.format.open_memmap(path, "w+", value.numpy().dtype, shape)
            arrays[name][i] = value.numpy()


def load_images(folder: Path, split: str) -> dict[str, Tensor]:
    """What `save_images` wrote: name -> (n, ...), mapped into memory and read when used."""
    return {
        path.stem.removeprefix(f"{split}-"): torch.from_numpy(np.load(path, mmap_mode="c"))
        for path in sorted(folder.glob(f"{split}-*.npy"))
    }


def to_bytes(size: int, crop_share: float | None = None) -> JointTransform:
    """`foveal.data.eval_transform` without its last step: images stay bytes."""
    transform = eval_transform(size, crop_share=crop_share)
    assert isinstance(transform, JointTransform)
    transform.normalise = False
    return transform


def _check_room(folder: Path, needed: int) -> None:
    # writing to a mapped file on a full disk would end the process
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"the images need {needed:,} bytes, {free:,} are free", str(folder))
