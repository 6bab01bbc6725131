"""A folder of class folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal.data.decode import MAX_PIXELS, decode_image
from foveal.data.items import (
    SPLIT_NAMES,
    StoredDataset,
    check_classes,
    choose_part,
    file_looks_whole,
    hold_out,
    refuse_repeated,
)
from foveal.errors import FovealError
from foveal.files import find_images, folders_in


class FolderImages:
    """Source of (path below ``root``, label) pairs."""

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int], max_pixels: int) -> None:
        self.root, self.paths, self.labels, self.max_pixels = root, paths, labels, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def sample(self, index: int) -> dict[str, Any]:
        image = decode_image(self.root / self.paths[index], max_pixels=self.max_pixels)
        return {"image": image, "label": self.labels[index]}

    def looks_whole(self, index: int) -> bool:
        return file_looks_whole(os.path.join(self.root, self.paths[index]))


def open_folder(
    root: Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    max_pixels: int = MAX_PIXELS,
) -> StoredDataset:
    """Class folders below ``root``, or below its train, val and test folders. See ``open_dataset``.

    Images are found at any depth below their class folder; hidden files and folders and files that are no images
    by their name are ignored.
    """
    parts = find_parts(root)
    part, divide = choose_part(f"folder {root}", parts, split)
    where = parts[part] if part else root
    if classes is None:
        # Of train, so that the labels of all splits mean the same.
        classes = [folder.name for folder in folders_in(parts.get("train", where) if part else root)]
    if not classes:
        raise FovealError(f"a folder must hold one folder of images per class, got none in {where}")
    names = {name.lower() for name in classes}
    if "images" in names and names & {"labels", "masks", "annotations"}:
        raise FovealError(f"{root} holds images and masks, no class folders; open it with task='segment'")
    check_classes(classes)
    refuse_repeated(classes)

    label_of = {name: label for label, name in enumerate(classes)}
    paths: list[str] = []
    labels: list[int] = []
    for folder in folders_in(where):
        if folder.name not in label_of:
            raise FovealError(f"class folders must be among {_few(classes)}, got {folder}")
        found = find_images(folder)
        if not found:
            raise FovealError(f"every class folder must hold images, got none in {folder}")
        paths += [os.path.relpath(path, root) for path in found]
        labels += [label_of[folder.name]] * len(found)
    if not paths:
        raise FovealError(f"a folder must hold one folder of images per class, got none in {where}")
    indices: Sequence[int] = range(len(paths))
    if divide:
        indices = hold_out(paths, labels, split, val_share=val_share, split_seed=split_seed)
    return StoredDataset(
        FolderImages(root, paths, labels, max_pixels), indices, classes, max_unreadable=max_unreadable
    )


def find_parts(root: Path) -> dict[str, Path]:
    """The folders of splits: those with the name of a split and folders inside ("train" may also be a class)."""
    parts = {}
    for folder in folders_in(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split and folders_in(folder):
            if split in parts:
                raise FovealError(f"two folders for split {split}, got {parts[split]} and {folder}")
            parts[split] = folder
    return parts


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
