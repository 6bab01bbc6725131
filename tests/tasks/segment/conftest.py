"""A folder of images with masks that a small network can learn to draw in seconds."""

import numpy as np
import pytest
import torch
from PIL import Image

CLASSES = ["background", "blue", "red"]
COLOURS = np.array([(120, 120, 120), (20, 30, 200), (200, 30, 20)])
IGNORED = 9


def write_pair(folder, name, mask, image=None):
    """An image of the classes' colours (or ``image``) and its mask below ``folder``."""
    mask = np.asarray(mask).astype(int)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    if image is None:
        noise = np.random.default_rng(len(name) + int(mask.sum())).integers(-12, 13, (*mask.shape, 3))
        image = COLOURS[np.where(mask == IGNORED, 0, mask)] + noise
    Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{name}.png")
    Image.fromarray(mask.astype(np.uint8)).save(folder / "labels" / f"{name}.png")


def halves(height, width, left, right, ignored=2):
    """A mask whose two halves hold two classes, with a border of ignored columns at the right."""
    mask = np.full((height, width), left)
    mask[:, width // 2 :] = right
    mask[:, width - ignored :] = IGNORED
    return mask


@pytest.fixture(scope="session")
def masks_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for part, number in (("train", 12), ("val", 5)):
        for i in range(number):
            size = ((32, 48), (40, 32))[i % 2]  # two shapes, so that validation meets both
            write_pair(folder / part, f"{i:02}", halves(*size, i % 3, (i + 1 + i % 2) % 3))
    return folder


@pytest.fixture(scope="session")
def write_mask_pair():
    return write_pair


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, 8, 10, generator=generator)
    mask = torch.randint(0, 3, (6, 8, 10), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.3] = IGNORED
    mask[5] = IGNORED
    return logits, mask
