"""What a task says of a network that leaves Python: its outputs, and how a script without foveal uses them.

The functions without types here and in the tasks' own ``shipping.py`` are copied as they stand into the script that
`foveal export` writes beside a file. They may use numpy as ``np``, Pillow's ``Image`` and ``ImageOps``, ``Path``, and
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path  # noqa: F401 - for the functions that are copied
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor, nn


@dataclass(frozen=True)
class Shipment:
    """What `Task.ship` returns.

    Attributes:
        outputs: names of the tensors in the file.
        call: runs a network on prepared images (b, c, h, w), or clips (b, c, t, h, w), and gives these tensors.
        rebuild: from these tensors what the network itself would have returned.
        agreement: how far two sets of them, of the same images, lead to the same answers, from 0 to 1.
        agreement_of: what that share is of, such as "top-1".
        preprocessing: facts for the script's ``prepare``, beside mean, std and interpolation.
        script: functions that are copied into the script, ``read``, ``prepare`` and ``answer`` among them:
            ``read(name, mode, top)`` opens a file in a mode of Pillow's, ``top`` being white in greys of 16 bits;
            ``prepare(image, facts)`` makes of what it returned
            the input of the file, and
            ``answer(outputs, image, name, about)`` returns a dictionary for JSON with ``labels`` as the task's
            predictions have them.
        browser: JavaScript files beside this one that define ``prepare(rgba, width, height, facts)`` and
            ``answer(outputs, about, width, height)`` with the same results, and ``draw(context, found, about)``, which
            puts them on the image; none where the task has no page.
        free: axes of the input whose sizes one file leaves free: those of batch, height and width, or some of them.
    """

    outputs: tuple[str, ...]
    call: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]
    rebuild: Callable[[Sequence[Tensor]], Any]
    agreement: Callable[[Sequence[Tensor], Sequence[Tensor]], float]
    agreement_of: str
    script: Sequence[Callable[..., Any]]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    browser: Sequence[str] = ()
    free: tuple[int, ...] = (0, 2, 3)


def read(name, mode, top=65535):
    """An upright image of 8 bits."""
    return in_bytes(Image.open(name), mode, top)


def in_bytes(image, mode, top=65535):
    """An image upright in a mode of 8 bits: what is transparent white, greys of 16 bits as shares of ``top``."""
    # the last band of a TIFF may be anything, unless the file says that colours are multiplied by it
    tags = getattr(image, "tag_v2", {})
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") and (
        not tags or 1 in np.ravel(tags.get(338, ()))
    )
    image = ImageOps.exif_transpose(image)
    clear = image.info.get("transparency")
    if image.mode[0] in "IF":
        values = np.asarray(image)
        grey = values * 255 + 0.5 if image.mode == "F" else (values.astype(int) * 255 + top // 2) // top
        if grey.min() < 0 or grey.max() >= 256:
            raise ValueError(f"grey values must be 0 to {1 if image.mode == 'F' else top}")
        image = Image.fromarray(np.where(values == clear, 255, grey).astype(np.uint8))
    elif alpha or clear is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return (image if image.mode in ("1", "L") else image.convert("RGB")).convert(mode)


def resize(pixels, height, width):
    """Bytes (h, w, c) resized as PyTorch's antialiased bilinear does it, to the bit: whole weights, widths first."""
    for axis, size in ((1, width), (0, height)):
        length = pixels.shape[axis]
        if length == size:
            continue
        distance = np.arange(length) + 0.5 - (np.arange(size)[:, None] + 0.5) * (length / size)
        weights = np.maximum(0, 1 - abs(distance) / max(length / size, 1))
        weights /= weights.sum(1, keepdims=True)
        bits = max(b for b in range(23) if int(0.5 + weights.max() * 2**b) < 2**15)
        sums = np.tensordot(np.floor(weights * 2**bits + 0.5), pixels.astype(np.float64), (1, axis))
        pixels = np.moveaxis(np.clip(np.floor(sums / 2**bits + 0.5), 0, 255), 0, axis).astype(np.uint8)
    return pixels


def network_input(pixels, facts):
    """The input (1, c, h, w) from bytes (h, w) or (h, w, c): normalised, or as they are where the file does that."""
    planes = np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))[None]
    if facts["normalised_in_graph"]:
        return planes
    mean, std = (np.array(facts[name], np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    return (planes.astype(np.float32) / 255 - mean) / std
