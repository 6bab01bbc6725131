"""A folder of class folders, in parts or not."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foveal.data.dataset import (
    StoredDataset,
    empty_classes,
    few,
    file_looks_whole,
    refuse_repeated,
)
from foveal.data.decode import check_decoding, decode_image
from foveal.data.opening import MAX_PIXELS
from foveal.data.split import SPLIT_NAMES, choose_part, hold_out, split_of, unread_lists
from foveal.errors import FovealError
from foveal.image_files import fingerprint, folders_in, survey_images


class FolderImages:
    """Source of (path below ``root``, label) pairs."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int],
        *,
        max_pixels: int = MAX_PIXELS,
        channels: int = 3,
        grey_bits: int = 16,
    ) -> None:
        self.root, self.paths, self.labels, self.max_pixels = root, paths, labels, max_pixels
        self.channels, self.grey_bits = channels, grey_bits

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def content(self, index: int) -> Path:
        return self.root / self.paths[index]

    def sample(self, index: int) -> dict[str, Any]:
        image = decode_image(
            self.content(index),
            max_pixels=self.max_pixels,
            channels=self.channels,
            grey_bits=self.grey_bits,
        )
        return {"image": image, "label": self.labels[index]}

    def looks_whole(self, index: int) -> bool:
        return file_looks_whole(os.path.join(self.root, self.paths[index]))

    def fingerprint(self, indices: Sequence[int]) -> str:
        return fingerprint([self.paths[index] for index in indices], self.root)


class Layout(NamedTuple):
    """Where the class folders of a data set lie.

    Attributes:
        parts: split -> the folder below the root that holds its class folders, with ``/``; empty for data without
            parts, whose class folders lie in the root.
        others: folders beside the parts that are none, with images.
    """

    parts: dict[str, str]
    others: list[str]


def open_folder(
    root: Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    max_pixels: int = MAX_PIXELS,
    channels: int = 3,
    grey_bits: int = 16,
) -> StoredDataset:
    """Class folders below ``root``, or below its train, val and test folders. See ``open_dataset``.

    Images are found at any depth below their class folder, each real file once. Hidden files and folders do not
    count; whatever else looks like an image and is none of the items is in ``left_out``.
    """
    check_decoding(channels, grey_bits)
    images, left_out = survey_images(root)
    layout = find_layout(root, images)
    part, divide = choose_part(f"folder {root}", layout.parts, split)
    where = layout.parts[part] if part else ""
    if not part:
        refuse_parts_inside(root, images)
    if classes is None:
        refuse_same_inside(root, where, images)
        # Of train, so that the labels of all splits mean the same.
        classes = [spelled(name) for name in _class_folders(root, layout.parts.get("train", where))]
    if not classes:
        raise FovealError(
            f"a folder must hold one folder of images per class, got none in {root / where}, "
            f"and {len(images)} images without one"
        )
    of_pixels = [name for name in classes if name.lower() in ("labels", "masks", "annotations")]
    if "images" in (name.lower() for name in classes) and _hold_images(images, of_pixels):
        raise FovealError(f"{root} holds images and masks, no class folders; open it with task='segment'")
    refuse_repeated(classes)
    if len(classes) == 1:
        raise FovealError(
            f"a classifier needs at least 2 classes, got {list(classes)}{_hint(root, where, classes[0])}"
        )

    folders = _folders_of(root, where, classes)
    paths, labels, stray = _items(root, where, images, folders, classes, left_out)
    left_out = _of_part(left_out, where, layout) | stray
    for folder in layout.others:
        count = sum(image.startswith(f"{folder}/") for image in images)
        left_out[folder] = f"{count} images in a folder beside the parts that is none of them"
    indices: Sequence[int] = range(len(paths))
    unread: list[str] = []
    if divide:
        indices = hold_out(paths, labels, split, val_share=val_share, split_seed=split_seed)
        unread = list(unread_lists(root, images))
    source = FolderImages(root, paths, labels, max_pixels=max_pixels, channels=channels, grey_bits=grey_bits)
    notes = [*empty_classes([labels[index] for index in indices], classes, split), *unread]
    notes += [
        f"{name} is taken for a class here, not for a part" for name in classes if name.lower() in SPLIT_NAMES
    ]
    tops = list(dict.fromkeys(folder.partition("/")[0] for folder in folders if "/" in folder))
    notes += [f"the classes are the folders in {few(tops)}, whose own names tell nothing"] if tops else []
    return StoredDataset(
        source, indices, classes, max_unreadable=max_unreadable, left_out=left_out, notes=notes
    )


def _hold_images(images: Sequence[str], folders: Sequence[str]) -> bool:
    """Whether a folder of one of these names, at any depth, holds images."""
    return any(set(folders) & set(image.split("/")[:-1]) for image in images)


def _hint(root: Path, where: str, only: str) -> str:
    """What a folder with a single folder inside may be instead of a data set with one class."""
    inner = root / where / only
    if inner.is_dir() and len(folders_in(inner)) > 1:
        return f"; perhaps {inner} is the data set"
    if any(path.suffix.lower() in (".csv", ".json", ".xml") for path in root.iterdir()):
        return "; labels in a file are not read: there must be one folder of images per class"
    return "; there must be one folder of images per class"


def _items(
    root: Path,
    where: str,
    images: Sequence[str],
    folders: Sequence[str],
    classes: Sequence[str],
    left_out: Mapping[str, str],
) -> tuple[list[str], list[int], dict[str, str]]:
    """Paths below ``root`` and labels of the images in the class folders of ``where``, and what lies in none."""
    label_of = {spelled(name): label for label, name in enumerate(classes)}
    depth = 1 + any("/" in folder for folder in folders)
    found: dict[str, list[str]] = {folder: [] for folder in folders}
    stray: dict[str, str] = {}
    start = f"{where}/" if where else ""
    for image in images:
        if "/" not in image:
            stray[image] = "an image in no class folder"
        elif image.startswith(start):
            *outer, _ = image[len(start) :].split("/")
            folder = "/".join(outer[:depth])
            if folder in found:
                found[folder].append(image)
            else:
                stray[image] = "an image in no class folder"
    paths: list[str] = []
    labels: list[int] = []
    for folder, inside in found.items():
        if _class_of(folder) not in label_of:
            raise FovealError(f"class folders must be among {few(classes)}, got {root / where / folder}")
        if not inside:
            reason = next(
                (f"; {name}: {why}" for name, why in left_out.items() if _inside(name, start + folder)), ""
            )
            raise FovealError(
                f"every class folder must hold images, got none in {root / where / folder}{reason}"
            )
        paths += inside
        labels += [label_of[_class_of(folder)]] * len(inside)
    if not paths:
        raise FovealError(
            f"a folder must hold one folder of images per class, got none in {root / where}"
            + (f", but {len(stray)} images without one" if stray else "")
        )
    return paths, labels, stray


def _folders_of(root: Path, where: str, classes: Sequence[str]) -> list[str]:
    """The class folders, or the folders in all of these where their names are the classes that were asked for."""
    folders, asked = _class_folders(root, where), {spelled(name) for name in classes}
    if any(spelled(folder) in asked for folder in folders):
        return folders
    deeper = [f"{top}/{name}" for top in folders for name in _class_folders(root / where, top)]
    return deeper if any(_class_of(folder) in asked for folder in deeper) else folders


def _class_of(folder: str) -> str:
    return spelled(folder.rpartition("/")[2])


def find_layout(root: Path, images: Sequence[str]) -> Layout:
    """The folders of splits below ``root``: those whose name speaks of a split and that hold folders of images.

    Args:
        root: the data set.
        images: all images below it, with ``/``.

    Raises:
        FovealError: two folders for one split; a folder that is either a split or a class; folders of splits without
            class folders.
    """
    inside: dict[str, set[str]] = defaultdict(
        set
    )  # top folder -> folders of images in it, "" for images themselves
    for image in images:
        top, slash, rest = image.partition("/")
        if slash:
            inside[top].add(rest.rpartition("/")[0].partition("/")[0])
    parts: dict[str, str] = {}
    others, flat = [], []
    for top in sorted(inside):
        split = split_of(top)
        if split is None:
            others.append(top)
        elif inside[top] == {""}:
            flat.append(top)
        elif split in parts:
            raise FovealError(f"two folders for split {split}, got {root / parts[split]} and {root / top}")
        else:
            parts[split] = _nested(top, images)
    _refuse_two_readings(root, parts, others, flat)
    return Layout(parts, [*others, *flat] if parts else [])


def _refuse_two_readings(root: Path, parts: Mapping[str, str], others: list[str], flat: list[str]) -> None:
    """A folder called train may be a part or a class; what lies beside it tells, or nothing does."""
    if len(parts) == 1 and others:
        (part,) = parts.values()
        raise FovealError(
            f"folders must be parts or classes, got two readings of {root}: {part.partition('/')[0]} is a part and its "
            f"folders are the classes, or it is a class beside {few(others)}; rename it, or move one of them away"
        )
    exact = [name for name in flat if name.lower() in SPLIT_NAMES]
    if not parts and ((flat and not others and len(flat) > 1) or len(exact) > 1):
        raise FovealError(
            f"parts must hold one folder of images per class, got images without one in {few(flat)} of {root}"
        )


def refuse_parts_inside(root: Path, images: Sequence[str]) -> None:
    """Class folders that hold parts: cats/train, cats/test, ..."""
    inner = sorted({"/".join(image.split("/")[:2]) for image in images if image.count("/") > 1})
    names = [folder.partition("/")[2] for folder in inner]
    wrong = [
        folder
        for folder, name in zip(inner, names, strict=True)
        if name.lower() in SPLIT_NAMES or (split_of(name) and names.count(name) > 1)
    ]
    if wrong:
        tops = {image.partition("/")[0] for image in images}
        remedy = "move them, or rename them where they are no parts"
        if len(tops) == 1:
            remedy = f"perhaps {root / tops.pop()} is the data set"
        raise FovealError(
            f"parts must lie around the class folders, got {few(wrong)} inside them in {root}; {remedy}"
        )


def refuse_same_inside(root: Path, where: str, images: Iterable[str]) -> None:
    """Folders that all hold the same folders: learn/cat, learn/dog, exam/cat, ... or photo/cat, photo/dog, sketch/cat.

    Names with digits are batches, days or cameras, and no classes, but for plain numbers where all folders hold the
    same: 0 to 9 may be the digits that are to be told apart.
    """
    start = f"{where}/" if where else ""
    inside: dict[str, set[str]] = defaultdict(set)
    for image in images:
        folder, slash, rest = image[len(start) :].partition("/") if image.startswith(start) else ("", "", "")
        if slash:
            inside[folder].add(rest.rpartition("/")[0].partition("/")[0])
    if len(inside) < 2 or any("" in names for names in inside.values()):
        return
    same = len(set(map(frozenset, inside.values()))) == 1
    shared = sorted(
        name
        for name in set.intersection(*inside.values())
        if not re.search(r"\d", name) or (same and name.isdecimal())
    )
    if len(shared) > 1:
        outer = sorted(inside)
        readings = (json.dumps(names, ensure_ascii=False) for names in (outer, shared))
        raise FovealError(
            f"class folders must be told from other folders, got two readings of {root / where}: the classes are "
            f"{few(outer)}, or they are {few(shared)}, which each of these holds; move the folders, or name the "
            f"classes by option classes (--data_options.classes {' or '.join(map(repr, readings))})"
        )


def _nested(top: str, images: Sequence[str]) -> str:
    """``top``, or the folder of the same split that is all it holds, as some archives unpack: seg_train/seg_train."""
    inside = {image.split("/")[1] for image in images if image.startswith(f"{top}/") and image.count("/") > 1}
    if len(inside) == 1 and split_of(*inside) == split_of(top):
        (only,) = inside
        if any(image.startswith(f"{top}/{only}/") and image.count("/") > 2 for image in images):
            return f"{top}/{only}"
    return top


def _class_folders(root: Path, where: str) -> list[str]:
    return [folder.name for folder in folders_in(root / where)]


def _of_part(left_out: Mapping[str, str], where: str, layout: Layout) -> dict[str, str]:
    """What was left out of the folder that is opened, and of no other part."""
    others = [folder for folder in layout.parts.values() if folder != where]
    return {name: why for name, why in left_out.items() if not any(_inside(name, other) for other in others)}


def _inside(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")


def spelled(name: str) -> str:
    """A folder's name in the one of Unicode's spellings that is compared: macOS writes the other."""
    return unicodedata.normalize("NFC", name)
