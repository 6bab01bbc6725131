"""Images with a class for every pixel: folders of images and index masks, ADE20K, and two sets of torchvision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveal.data.dataset import StoredDataset, few, refuse_repeated
from foveal.data.decode import check_decoding
from foveal.data.masked_images import UNKNOWN, MaskedImages
from foveal.data.opening import MAX_PIXELS
from foveal.data.sources.class_names import ADE20K_CLASSES, ClassList, find_class_list, read_class_list
from foveal.data.sources.pairs import find_pairs, other_folders, pair
from foveal.data.sources.torchvision import TORCHVISION, more_arguments, torchvision_pairs
from foveal.data.split import choose_part, hold_out, unread_lists
from foveal.errors import FovealError
from foveal.image_files import survey_images

NO_CLASS_NAMES = frozenset(
    ("void", "ignore", "ignored", "unlabeled", "unlabelled", "unclassified", "dontcare")
)
PROBED = 16  # masks decoded at opening, so that a wrong class list is refused at once


def open_segmentation(
    spec: str,
    split: str = "train",
    *,
    classes: Sequence[str] | str | None = None,
    ignore_index: int | None = None,
    zero_ignored: bool | None = None,
    images: str | None = None,
    masks: str | None = None,
    image_suffix: str = "",
    mask_suffix: str = "",
    root: str = "data",
    download: bool = False,
    arguments: Mapping[str, Any] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    max_pixels: int = MAX_PIXELS,
    channels: int = 3,
    grey_bits: int = 16,
) -> StoredDataset:
    """Stored images with index masks; ``open_dataset(..., task="segment")`` calls this and documents the items.

    Args:
        spec: a folder, ``"torchvision:VOCSegmentation"`` or ``"torchvision:Cityscapes"``.
        split: as in ``open_dataset``.
        classes: the names in the order of the mask values, or the file that lists them. Default for a folder: its
            ``classes.txt`` or another list of `foveal.data.sources.class_names`.
        ignore_index: mask value of pixels without a class, stored and in the items; the data set's ``ignore_index``.
            No number of a class. Default 255.
        zero_ignored: mask value 0 has no class either, becomes ``ignore_index``, and value k is class k - 1, as in
            ADE20K (default there).
        images, masks: what the two folders are called, where not as usual; ``"."`` for files side by side.
        image_suffix, mask_suffix: what the names of images and masks end in, before the extension, beyond what they
            share.
        root, download, arguments: for torchvision, as in ``open_dataset``.
        val_share, split_seed, max_unreadable, max_pixels, channels, grey_bits: as in ``open_dataset``.

    Raises:
        FovealError: an image has no mask, two have one name, sizes differ, a mask holds values that are neither a
            class nor ignored or that cannot be known, palettes contradict each other, the masks looked at hold 0 and
            255 only and ``ignore_index`` is not given, two classes have one name, or as in ``open_dataset``.
    """
    check_decoding(channels, grey_bits)
    ignored = 255 if ignore_index is None else ignore_index
    if not 0 <= ignored <= 255 or ignored == UNKNOWN:
        raise FovealError(f"ignore_index must be 0 to 255 but not 254, got {ignored}")
    folder = not spec.startswith(TORCHVISION)
    if folder:
        found = _in_folder(
            spec, split, classes=classes, ignored=ignored, zero_ignored=zero_ignored, images=images, masks=masks,
            image_suffix=image_suffix, mask_suffix=mask_suffix,
        )  # fmt: skip
    else:
        where, pairs, names, class_of = torchvision_pairs(
            spec.removeprefix(TORCHVISION), split, root, download, more_arguments(arguments)
        )
        ignored = 255
        found = Found(where, pairs, ClassList(names), class_of, f"those of {spec}")
    names, pairs = found.listed.names, found.pairs
    if len(names) < 2:
        raise FovealError(f"segmentation needs at least 2 classes, got {names}")
    refuse_repeated(names)

    indices: Sequence[int] = range(len(pairs))
    if found.divide:
        stored_images = [image for image, _ in pairs]
        indices = hold_out(stored_images, None, split, val_share=val_share, split_seed=split_seed)
    source = MaskedImages(
        found.root, pairs, found.class_of, found.rule, ignores_any=folder, lone_255=ignore_index is not None,
        colours=found.listed.colours, max_pixels=max_pixels, channels=channels, grey_bits=grey_bits,
    )  # fmt: skip
    with_palette, without = source.check_headers(range(len(pairs)))
    dataset = StoredDataset(
        source, indices, names, max_unreadable=max_unreadable, ignore_index=ignored, left_out=found.left_out
    )
    if with_palette and without:
        dataset.notes.append(
            f"{with_palette} masks have a palette and {without} have none; in both the stored numbers are the classes"
        )
    source.check_other_palettes(found.other_masks)
    if classes is not None and folder:
        dataset.notes += _another_order(found, spec)
    if found.divide:
        dataset.notes += unread_lists(found.root, [path for pair in pairs for path in pair])
    _look_at_masks(dataset, spec, doubt_255=folder and ignore_index is None and found.first_class == 0)
    return dataset


class Found(NamedTuple):
    """Pairs of files and what their numbers mean.

    Attributes:
        root: what the paths of ``pairs`` lie below.
        pairs: (image, mask).
        listed: the classes.
        class_of: uint8 (256,), the class of every stored value, see `MaskedImages`.
        rule: those values in words.
        left_out: as in `StoredDataset`.
        divide: whether train and val are to be split off these pairs.
        first_class: the stored value of class 0.
        other_masks: some masks of the other parts, whose numbers must mean the same.
        parts: part -> (images, masks).
    """

    root: Path
    pairs: list[tuple[str, str]]
    listed: ClassList
    class_of: np.ndarray
    rule: str
    left_out: Mapping[str, str] = {}
    divide: bool = False
    first_class: int = 0
    other_masks: Sequence[str] = ()
    parts: Mapping[str, tuple[str, str]] = {}


def _in_folder(
    spec: str,
    split: str,
    *,
    classes: Sequence[str] | str | None,
    ignored: int,
    zero_ignored: bool | None,
    images: str | None,
    masks: str | None,
    image_suffix: str,
    mask_suffix: str,
) -> Found:
    where = Path(spec).expanduser()
    if not where.is_dir():
        raise FovealError(
            "segmentation data must be 'scenes', 'torchvision:VOCSegmentation', "
            f"'torchvision:Cityscapes' or a folder, got {spec!r}"
        )
    parts = find_pairs(where, images, masks)
    listed = _class_list(where, classes, parts)
    part, divide = choose_part(f"folder {spec}", [name for name in parts if name], split)
    _refuse_shared_parts(where, parts, part or "")
    pairs, left_out = pair(where, *parts[part or ""], mask_suffix, image_suffix)
    left_out |= other_folders(where, parts, part or "")
    if zero_ignored is None:
        zero_ignored = (where / ADE20K_CLASSES).exists()
    if zero_ignored:  # colours are told by stored values, which are one higher than the classes
        listed = ClassList(listed.names)
    class_of, rule = _value_table(len(listed.names), ignored, zero_ignored)
    elsewhere = [folders[1] for name, folders in parts.items() if name != (part or "")]
    other_masks = [mask for folder in elsewhere for mask in _spread(where, folder)]
    return Found(
        where, pairs, listed, class_of, rule, left_out, divide, int(zero_ignored), other_masks, parts
    )


def _spread(root: Path, folder: str) -> list[str]:
    """Some images of a folder below ``root``, spread over it."""
    names = survey_images(root / folder).images
    return [f"{folder}/{name}" for name in names[:: max(1, len(names) // PROBED)]]


def _look_at_masks(dataset: StoredDataset, spec: str, *, doubt_255: bool) -> None:
    """Decode some masks: refuse those that would lose a class, and note the classes that are in none.

    Args:
        doubt_255: nobody said that 255 is no class. It may be the second of two where it stands beside none.
    """
    source: MaskedImages = dataset.source  # pyright: ignore[reportAssignmentType]
    masks = {place: dataset[place]["mask"].unique().tolist() for place in _probed(dataset)}
    held = sorted({value for values in masks.values() for value in values})
    if doubt_255:
        if is_scaled(held):
            raise FovealError(
                f"masks must hold the numbers of classes, got only {_and(held)}, which is ignored, in "
                f"{len(masks)} masks of {spec}; store {_and(range(len(held)))} where these are the classes, or say "
                "that 255 is none by ignore_index=255 (--data_options.ignore_index 255)"
            )
        source.refuse_lone_255 = not any(255 in values and {*values} - {0, 255} for values in masks.values())
        for place, values in masks.items():
            source.check_255(values, f"the mask of {dataset.names[place]}")
    names = dataset.classes
    absent = [name for label, name in enumerate(names) if label not in held]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        from_one = source.ignores_any and source.class_of[0] == 0 and 0 not in held
        counting = "; if their numbers count from 1, pass zero_ignored=True" if from_one else ""
        dataset.notes.append(
            f"{len(absent)} of {len(names)} classes {verb} in none of the {len(masks)} masks looked at: {few(absent)}"
            f"{counting}"
        )
    dataset.notes += _called_no_class(names, held)


def _called_no_class(names: Sequence[str], held: Sequence[int]) -> Iterator[str]:
    """A note on each class whose name says that it is none: labelling tools list void like any other.

    Args:
        held: the values in the masks looked at.

    Example:
        >>> [note.partition("; ")[0] for note in _called_no_class(["road", "void"], [0, 1])]
        ['the class void is learned and scored as any other']
    """
    for label, name in enumerate(names):
        if "".join(filter(str.isalpha, name.casefold())) not in NO_CLASS_NAMES:
            continue
        remedy = "store 255 in its place"
        if label in (0, len(names) - 1):
            option = f"ignore_index={label}" if label else "zero_ignored=True"
            needed = f" and pass {option}" if label == 0 or label in held else ""
            remedy = f"take its name out of the list{needed}"
        yield f"the class {name} is learned and scored as any other; if it means pixels without a class, {remedy}"


def _probed(dataset: StoredDataset) -> range:
    """Some items, spread over the data set."""
    return range(0, len(dataset), max(1, len(dataset) // PROBED))


def is_scaled(values: Sequence[int]) -> bool:
    """Whether sorted values are the numbers 0 to n - 1 spread over 0 to 255, as programs do to show them.

    Example:
        >>> is_scaled([0, 255]), is_scaled([0, 127, 255]), is_scaled([0, 1, 255]), is_scaled([0, 14, 255])
        (True, True, False, False)
    """
    if len(values) < 2 or len(values) > 16:  # with more, the steps hardly differ from real numbers
        return False
    step = 255 / (len(values) - 1)
    return all(abs(value - number * step) < 1 for number, value in enumerate(values))


def _and(values: Iterable[int]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}"


def _class_list(
    root: Path, classes: Sequence[str] | str | None, parts: Mapping[str, tuple[str, str]]
) -> ClassList:
    """The names given, those of the file given, or those of a list in ``root`` or beside the images."""
    if isinstance(classes, str):
        return read_class_list(Path(classes).expanduser())
    if classes is not None:
        return ClassList(list(classes))
    inner = [root / images for images, _ in parts.values()]
    return find_class_list(list(dict.fromkeys([root, *(path.parent for path in inner), *inner])))


def _another_order(found: Found, spec: str) -> Iterator[str]:
    """A note where a list in the folder has the given names in another order."""
    try:
        listed = _class_list(Path(spec).expanduser(), None, found.parts).names
    except FovealError:
        return
    given = found.listed.names
    if listed != given and sorted(listed) == sorted(given):
        yield f"option classes gives the order {few(given)}, a list in {spec} has {few(listed)}: the option counts"


def _refuse_shared_parts(root: Path, parts: Mapping[str, tuple[str, str]], part: str) -> None:
    """A part that is a link to another holds the same images."""
    for other, (images, _) in parts.items():
        if other != part and (root / images).samefile(root / parts[part][0]):
            raise FovealError(
                f"parts must not share their images, got {images} and {parts[part][0]}, which are one folder"
            )


def _value_table(classes: int, ignore_index: int, zero_ignored: bool) -> tuple[np.ndarray, str]:
    """Stored value -> class, and the rule in words."""
    first = 1 if zero_ignored else 0
    last = first + classes - 1
    if ignore_index <= last:  # with zero_ignored 0 is refused too: the items' 0 is a class
        stored = f"stored as {first} to {last}, 0 to {classes - 1} in the items"
        raise FovealError(
            f"ignore_index must not be the number of a class ({stored}), got {ignore_index}; leave the "
            "name of what is ignored out of the class list"
        )
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    table[first : last + 1] = np.arange(classes)
    table[ignore_index] = ignore_index
    rule = f"{first} to {last} ({classes} classes) or {ignore_index} (ignored)"
    if zero_ignored:
        table[0] = ignore_index
        rule += " or 0 (ignored)"
    return table, rule
