"""Which mask belongs to which image, in the usual layouts of folders."""

import os
from collections.abc import Sequence
from pathlib import Path

from foveal.data.items import SPLIT_NAMES
from foveal.errors import FovealError
from foveal.files import find_images, folders_in

IMAGE_FOLDERS = ("images", "image", "img")
MASK_FOLDERS = ("labels", "masks", "annotations", "label", "mask")


def find_pairs(root: Path) -> dict[str, tuple[Path, Path]]:
    """Part -> (image folder, mask folder): root/train/images, root/images/train, or root/images (part "")."""
    found: dict[str, tuple[Path, Path]] = {}
    for folder in folders_in(root):
        part = SPLIT_NAMES.get(folder.name.lower())
        images, masks = _named(folder, IMAGE_FOLDERS), _named(folder, MASK_FOLDERS)
        if part and images and masks:
            found[part] = (images, masks)
    images, masks = _named(root, IMAGE_FOLDERS), _named(root, MASK_FOLDERS)
    if not found and images and masks:
        for folder in folders_in(images):
            part = SPLIT_NAMES.get(folder.name.lower())
            if part and (masks / folder.name).is_dir():
                found[part] = (folder, masks / folder.name)
        found = found or {"": (images, masks)}
    if not found:
        raise FovealError(
            "segmentation folders must be images and labels (or masks, annotations), inside or around "
            f"train, val and test, got {', '.join(f.name for f in folders_in(root)) or 'no folders'} in {root}"
        )
    return found


def _named(root: Path, names: Sequence[str]) -> Path | None:
    by_name = {folder.name.lower(): folder for folder in folders_in(root)}
    return next((by_name[name] for name in names if name in by_name), None)


def pair(root: Path, images: Path, masks: Path, mask_suffix: str) -> list[tuple[str, str]]:
    """(image, mask) paths below ``root``: same path below their folders but for suffix and extension."""
    mask_of = {os.path.splitext(os.path.relpath(path, masks))[0]: path for path in find_images(masks)}
    pairs, missing = [], []
    for path in find_images(images):
        mask = mask_of.get(os.path.splitext(os.path.relpath(path, images))[0] + mask_suffix)
        if mask is None:
            missing.append(os.path.relpath(path, root))
        else:
            pairs.append((os.path.relpath(path, root), os.path.relpath(mask, root)))
    if missing:
        raise FovealError(
            f"every image must have a mask of the same name in {masks}, got {len(missing)} of "
            f"{len(missing) + len(pairs)} without, the first is {missing[0]}"
        )
    if not pairs:
        raise FovealError(f"a folder of images must hold some, got none in {images}")
    return pairs
