"""Which mask belongs to which image, in the usual layouts of folders."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from foveal.data.dataset import few
from foveal.data.split import split_of, splits_in
from foveal.errors import FovealError
from foveal.image_files import folders_in, survey_images, walk_files

IMAGE_FOLDERS = ("images", "image", "img", "imgs", "jpegimages")
MASK_FOLDERS = ("labels", "masks", "annotations", "label", "mask", "gt", "segmentationclass")


class Pairs(NamedTuple):
    """Images and their masks below one folder, as paths with ``/``.

    Attributes:
        pairs: (image, mask), sorted by image.
        left_out: name -> why, for masks without an image and folders of images that are neither.
    """

    pairs: list[tuple[str, str]]
    left_out: dict[str, str]


def find_pairs(root: Path, images: str | None = None, masks: str | None = None) -> dict[str, tuple[str, str]]:
    """Part -> (image folder, mask folder) below ``root``, with ``/`` between their parts.

    The layouts are root/train/images, root/images/train and root/images (part ""). A folder called like masks counts
    only if images lie below it.

    Args:
        root: the data set.
        images, masks: what the folders are called; ``"."`` for images and masks side by side.

    Raises:
        FovealError: no such folders, several that fit, or two for one part.
    """
    found: dict[str, tuple[str, str]] = {}
    for folder in folders_in(root):
        part = split_of(folder.name)
        if part is None:
            continue
        inner = _nested(folder)
        pair = _both(inner, images, masks)
        if pair:
            _refuse_second(found, part, folder.name)
            found[part] = (_below(root, pair[0]), _below(root, pair[1]))
    pair = _both(root, images, masks) if not found or images == "." else None
    if not found and pair:
        for folder in folders_in(pair[0]):
            part = split_of(folder.name)
            if part and (pair[1] / folder.name).is_dir():
                _refuse_second(found, part, folder.name)
                found[part] = (_below(root, folder), _below(root, pair[1] / folder.name))
        found = found or {"": (_below(root, pair[0]), _below(root, pair[1]))}
    if not found:
        raise FovealError(
            "segmentation folders must be images and labels (or masks, annotations), inside or around "
            f"train, val and test, got {few([f.name for f in folders_in(root)]) or 'no folders'} in {root}; "
            "options images and masks take other names, '.' for images and masks side by side"
        )
    return found


def pair(
    root: Path,
    images: str,
    masks: str,
    mask_suffix: str = "",
    image_suffix: str = "",
) -> Pairs:
    """Images and masks of the same path below their folders but for suffixes and extension.

    Names in both spellings of Unicode (composed and not) are the same.

    Raises:
        FovealError: an image has no mask, or two of either have one name.
    """
    mask_names = survey_images(root / masks).images
    image_survey = survey_images(root / images)
    image_names = image_survey.images
    if images == masks:
        if not mask_suffix:
            raise FovealError(
                "images and masks in one folder need mask_suffix, which a mask's name has at its end, "
                f"got none for {root}"
            )
        mask_names = [name for name in mask_names if _stem(name).endswith(mask_suffix)]
        image_names = [name for name in image_names if not _stem(name).endswith(mask_suffix)]
    left_out = {_join(images, name): reason for name, reason in image_survey.left_out.items()}
    mask_of = _by_key(root / masks, mask_names, mask_suffix, left_out, masks)
    image_of = _by_key(root / images, image_names, image_suffix, left_out, images)
    missing = [name for key, name in image_of.items() if key not in mask_of]
    if missing:
        raise FovealError(
            f"every image must have a mask of the same name in {root / masks}, got {len(missing)} of "
            f"{len(image_of)} without, the first is {_join(images, missing[0])}"
            + (
                _other_case(missing[0], image_suffix, mask_of)
                or _other_masks(root, images, masks)
                or _nearest_name(missing[0], image_suffix, mask_of)
                or _unread(root / masks, mask_of)
            )
        )
    if not image_of:
        raise FovealError(f"a folder of images must hold some, got none in {root / images}")
    for key, name in mask_of.items():
        if key not in image_of:
            left_out[_join(masks, name)] = "a mask without an image"
    pairs = [(_join(images, name), _join(masks, mask_of[key])) for key, name in image_of.items()]
    return Pairs(pairs, left_out)


def other_folders(root: Path, parts: Mapping[str, tuple[str, str]], part: str) -> dict[str, str]:
    """Folders of images beside those of a part that are neither images nor masks of any: path -> how many."""
    used = [path for folders in parts.values() for path in folders]
    found = {}
    for parent in {root, (root / parts[part][0]).parent}:
        for folder in folders_in(parent):
            name = _below(root, folder)
            if any(path == "." or f"{path}/".startswith(f"{name}/") for path in used):
                continue
            if count := len(survey_images(folder).images):
                found[name] = f"{count} images that are neither the images nor the masks"
    return dict(sorted(found.items()))


def _by_key(
    folder: Path, names: Sequence[str], suffix: str, left_out: dict[str, str], prefix: str
) -> dict[str, str]:
    """Path without suffix and extension -> path."""
    found: dict[str, str] = {}
    for name in names:
        stem = _stem(name)
        if suffix and not stem.endswith(suffix):
            left_out[_join(prefix, name)] = f"its name does not end in {suffix}"
            continue
        key = stem[: len(stem) - len(suffix)]
        if key in found:
            raise FovealError(
                f"two files must not have one name, got {found[key]} and {name} in {folder}: which of them belongs to "
                "the other half of its pair?"
            )
        found[key] = name
    return found


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def _other_case(name: str, suffix: str, mask_of: dict[str, str]) -> str:
    key = _stem(name).removesuffix(suffix).casefold()
    near = next((mask for other, mask in mask_of.items() if other.casefold() == key), None)
    return f"; {near} differs by capital letters only" if near else ""


def _nearest_name(name: str, suffix: str, mask_of: dict[str, str]) -> str:
    """A hint at the mask that shares most of an image's name: x_mask.png, x.jpg.png, or x_gt.png of x_camera.jpg."""
    stem = _stem(name)
    key = stem.removesuffix(suffix)
    mask = max(mask_of, key=lambda one: _shared(key, one), default="")
    count = _shared(key, mask)
    if count < len(key):  # what tells the two apart begins with its separator
        count = len(key[:count].rstrip("_-. "))
    shared, own, rest = key[:count], key[count:], mask[count:]
    if not shared or not rest or any(text[:1].isalnum() or "/" in text for text in (own, rest)):
        return ""
    options = {"image_suffix": own + stem[len(key) :], "mask_suffix": rest}
    shown = " ".join(f"--data_options.{option}={text}" for option, text in options.items() if text)
    return f"; {mask_of[mask]} may be its mask: {shown}"


def _shared(one: str, other: str) -> int:
    """How many characters two names have in common before they differ."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _unread(folder: Path, mask_of: dict[str, str]) -> str:
    """A hint at files that are read as no mask."""
    kinds = sorted({Path(name).suffix for name in walk_files(folder)}) if not mask_of else []
    return f"; it holds files of {few(kinds)}, which are not read as masks: store PNG" if kinds else ""


def _other_masks(root: Path, images: str, masks: str) -> str:
    """A hint at the folders of images beside the masks, which may be the masks."""
    used = {root / images, root / masks}
    beside = [f for f in folders_in((root / masks).parent) if f not in used and survey_images(f).images]
    if not beside:
        return ""
    return f"; there are images in {few([f.name for f in beside])} too, which option masks may name"


def _both(folder: Path, images: str | None, masks: str | None) -> tuple[Path, Path] | None:
    """The image and the mask folder inside ``folder``, None unless both are there."""
    first = _named(folder, IMAGE_FOLDERS, images, "images")
    second = _named(folder, MASK_FOLDERS, masks, "masks")
    return (first, second) if first and second else None


def _named(root: Path, usual: Sequence[str], asked: str | None, option: str) -> Path | None:
    """The folder of an option's name, or the only one of the usual names that holds images."""
    if asked is not None:
        path = root if asked == "." else root / asked
        return path if path.is_dir() and (asked != "." or _has_images_inside(root)) else None
    by_name = {folder.name.lower(): folder for folder in folders_in(root)}
    there = [by_name[name] for name in usual if name in by_name]
    full = [folder for folder in there if survey_images(folder).images] if len(there) > 1 else there
    if len(full) > 1:
        raise FovealError(
            f"one folder of {option} must be there, got {' and '.join(f.name for f in full)} in {root}, both with "
            f"images; choose by option {option} (--data_options.{option} {full[0].name})"
        )
    return (full or there or [None])[0]


def _has_images_inside(folder: Path) -> bool:
    return any("/" not in name for name in survey_images(folder).images)


def _nested(folder: Path) -> Path:
    """``folder``, or the folder of its own name that is all it holds, as some archives unpack."""
    inside = folders_in(folder)
    if len(inside) == 1 and splits_in(inside[0].name) == splits_in(folder.name):
        return inside[0]
    return folder


def _refuse_second(found: dict[str, tuple[str, str]], part: str, name: str) -> None:
    if part in found:
        raise FovealError(f"two folders for split {part}, got {found[part][0]} and {name}")


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"
