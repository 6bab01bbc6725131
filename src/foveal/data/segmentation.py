"""Images with a class for every pixel: scenes, folders of images and index masks, Cityscapes, VOC, ADE20K."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveal.data.decode import MAX_PIXELS, decode_image, decode_mask, image_size
from foveal.data.items import (
    LabelError,
    StoredDataset,
    choose_part,
    file_looks_whole,
    hold_out,
    refuse_repeated,
)
from foveal.data.mask_files import find_pairs, pair
from foveal.data.scenes import Scenes, class_mask
from foveal.data.torchvision_sets import construct
from foveal.errors import FovealError

ADE20K_CLASSES = "objectInfo150.txt"
# Scenes for segmentation: digits large enough that networks of stride 8 can draw their strokes.
SCENE_DEFAULTS = {"size": 64, "objects": 2, "digit_size": (24.0, 30.0)}
SCENE_LENGTHS = {"train": 1800, "val": 250, "test": 500}  # each four times the pixels of a scene to classify
PROBED = 16  # masks decoded at opening, so that a wrong class list is refused at once
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class SceneMasks(Dataset):
    """``Scenes`` with class masks: 0 = background, 1 + digit. Options as ``Scenes``, other defaults.

    Example:
        >>> item = SceneMasks("train", length=4)[0]
        >>> item["image"].shape, item["mask"].shape, item["mask"].dtype
        (torch.Size([3, 64, 64]), torch.Size([64, 64]), torch.uint8)
    """

    mirror = False
    ignore_index = 255  # no pixel of a scene has it; padding has

    def __init__(self, split: str = "train", **options: Any) -> None:
        chosen: dict[str, Any] = {**SCENE_DEFAULTS, "length": SCENE_LENGTHS.get(split), **options}
        self.scenes = Scenes(split, **chosen)
        self.size, self.skipped = self.scenes.size, self.scenes.skipped
        self.classes = ["background", *self.scenes.classes]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Tensor]]:
        batch = _with_class_mask(self.scenes.render(indices))
        return [{name: values[row] for name, values in batch.items()} for row in range(len(batch["image"]))]

    def as_tensors(self) -> dict[str, Tensor]:
        """The whole split: ``image`` (n, 3, h, w) and ``mask`` (n, h, w), both uint8."""
        return _with_class_mask(self.scenes.as_tensors())


def _with_class_mask(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"image": batch["image"], "mask": class_mask(batch)}


class MaskedImages:
    """Source of (image, mask) pairs of paths below ``root``.

    Args:
        class_of: uint8 (256,): the class of every stored mask value; ``UNKNOWN`` for values that have none.
        rule: those values in words, for error messages.
        ignores_any: option ``ignore_index`` chooses which value has no class.
    """

    UNKNOWN = 254

    def __init__(
        self,
        root: Path,
        pairs: Sequence[tuple[str, str]],
        class_of: np.ndarray,
        rule: str,
        max_pixels: int,
        ignores_any: bool,
    ) -> None:
        self.root, self.pairs, self.rule, self.max_pixels = root, pairs, rule, max_pixels
        self.class_of, self.ignores_any = torch.from_numpy(class_of), ignores_any

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return self.pairs[index][0]

    def sample(self, index: int) -> dict[str, Any]:
        image_path, mask_path = (self.root / path for path in self.pairs[index])
        image = decode_image(image_path, max_pixels=self.max_pixels)
        stored = decode_mask(mask_path, max_pixels=self.max_pixels)
        if image.shape[1:] != stored.shape:
            raise LabelError(_different_sizes(image_path, image.shape[1:], mask_path, stored.shape))
        mask = self.class_of[stored.long()]
        if (unknown := mask == self.UNKNOWN).any():
            values = stored[unknown].unique().tolist()
            remedy = ""
            if self.ignores_any and len(values) == 1:
                option = f"ignore_index={values[0]} (--data_options.ignore_index {values[0]})"
                remedy = f"; if {values[0]} is no class, pass {option}"
            raise LabelError(f"mask values must be {self.rule}, got {values[:8]} in {mask_path}{remedy}")
        return {"image": image, "mask": mask}

    def looks_whole(self, index: int) -> bool:
        return all(file_looks_whole(os.path.join(self.root, path)) for path in self.pairs[index])

    def check_size(self, index: int) -> None:
        """Compare the sizes in the two headers."""
        sizes = []
        for path in self.pairs[index]:
            try:
                sizes.append(image_size(self.root / path))
            except (ValueError, OSError):
                return  # unreadable: not a contradiction
        if sizes[0] != sizes[1]:
            image_path, mask_path = self.pairs[index]
            raise LabelError(_different_sizes(image_path, sizes[0], mask_path, sizes[1]))


def _different_sizes(image: object, image_hw: Sequence[int], mask: object, mask_hw: Sequence[int]) -> str:
    (h, w), (mask_h, mask_w) = image_hw, mask_hw
    return f"image and mask must have the same size, got {w}x{h} in {image}, {mask_w}x{mask_h} in {mask}"


def open_segmentation(
    spec: str,
    split: str = "train",
    *,
    classes: Sequence[str] | str | None = None,
    ignore_index: int | None = None,
    zero_ignored: bool | None = None,
    mask_suffix: str = "",
    root: str = "data",
    download: bool = False,
    arguments: Mapping[str, Any] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    max_pixels: int = MAX_PIXELS,
) -> StoredDataset:
    """Stored images with index masks; ``open_dataset(..., task="segment")`` calls this and documents the items.

    Args:
        spec: a folder, ``"torchvision:VOCSegmentation"`` or ``"torchvision:Cityscapes"``.
        split: as in ``open_dataset``.
        classes: the names in the order of the mask values, or the file that lists them, one a line. Default for
            a folder: its ``classes.txt``, or ``objectInfo150.txt`` of ADE20K.
        ignore_index: mask value of pixels without a class, stored and in the items; the data set's ``ignore_index``.
            No number of a class. Default 255.
        zero_ignored: mask value 0 has no class either, becomes ``ignore_index``, and value k is class k - 1, as in
            ADE20K (default there).
        mask_suffix: what a mask's name has after the image's, before the extension.
        root, download, arguments: for torchvision, as in ``open_dataset``.
        val_share, split_seed, max_unreadable, max_pixels: as in ``open_dataset``.

    Raises:
        ValueError: an image has no mask, sizes differ, a mask holds values that are neither a class nor ignored,
            the masks looked at hold 0 and 255 only and ``ignore_index`` is not given, two classes have one name, or
            as in ``open_dataset``.
    """
    ignored = 255 if ignore_index is None else ignore_index
    if not 0 <= ignored <= 255 or ignored == MaskedImages.UNKNOWN:
        raise FovealError(f"ignore_index must be 0 to 255 but not 254, got {ignored}")
    folder = not spec.startswith("torchvision:")
    if not folder:
        where, pairs, names, class_of = _torchvision_pairs(
            spec.removeprefix("torchvision:"), split, root, download, dict(arguments or {})
        )
        rule, ignored, divide = f"those of {spec}", 255, False
    else:
        where = Path(spec).expanduser()
        if not where.is_dir():
            raise FovealError(
                "segmentation data must be 'scenes', 'torchvision:VOCSegmentation', "
                f"'torchvision:Cityscapes' or a folder, got {spec!r}"
            )
        names = _class_list(where, classes)
        parts = find_pairs(where)
        part, divide = choose_part(f"folder {spec}", [name for name in parts if name], split)
        pairs = pair(where, *parts[part or ""], mask_suffix)
        if zero_ignored is None:
            zero_ignored = (where / ADE20K_CLASSES).exists()
        class_of, rule = _table(len(names), ignored, zero_ignored)
    if len(names) < 2:
        raise FovealError(f"segmentation needs at least 2 classes, got {names}")
    refuse_repeated(names)

    indices: Sequence[int] = range(len(pairs))
    if divide:
        images = [image for image, _ in pairs]
        indices = hold_out(images, None, split, val_share=val_share, split_seed=split_seed)
    source = MaskedImages(where, pairs, class_of, rule, max_pixels, ignores_any=folder)
    for index in indices:
        source.check_size(index)
    dataset = StoredDataset(source, indices, names, max_unreadable=max_unreadable, ignore_index=ignored)
    probed = range(0, len(dataset), max(1, len(dataset) // PROBED))
    counts = torch.zeros(256, dtype=torch.long)
    for place in probed:
        counts += torch.bincount(dataset[place]["mask"].flatten(), minlength=256)
    only = counts.nonzero().flatten().tolist()
    if folder and ignore_index is None and not zero_ignored and only == [0, 255]:
        raise FovealError(
            "masks must hold the numbers of classes, got only 0 and 255, which is ignored, in "
            f"{len(probed)} masks of {spec}; store 1 where 255 is a class, or say that it is none by ignore_index=255 "
            "(--data_options.ignore_index 255)"
        )
    return dataset


def _class_list(root: Path, classes: Sequence[str] | str | None) -> list[str]:
    if classes is None:
        if (root / ADE20K_CLASSES).exists():
            rows = (root / ADE20K_CLASSES).read_text().splitlines()[1:]  # Idx, Ratio, Train, Val, Stuff, Name
            return [row.split("\t")[-1].strip() for row in rows if row.strip()]
        classes = str(root / "classes.txt")
        if not Path(classes).exists():
            raise FovealError(f"segmentation needs classes.txt or option classes, got neither in {root}")
    if isinstance(classes, str):
        lines = Path(classes).read_text().splitlines()
        return [line.strip() for line in lines if line.strip()]
    return list(classes)


def _table(classes: int, ignore_index: int, zero_ignored: bool) -> tuple[np.ndarray, str]:
    """Stored value -> class, and the rule in words."""
    first = 1 if zero_ignored else 0
    last = first + classes - 1
    if ignore_index <= last:  # with zero_ignored 0 is refused too: the items' 0 is a class
        stored = f"stored as {first} to {last}, 0 to {classes - 1} in the items"
        raise FovealError(
            f"ignore_index must not be the number of a class ({stored}), got {ignore_index}; leave the "
            "name of what is ignored out of the class list"
        )
    table = np.full(256, MaskedImages.UNKNOWN, dtype=np.uint8)
    table[first : last + 1] = np.arange(classes)
    table[ignore_index] = ignore_index
    rule = f"{first} to {last} ({classes} classes) or {ignore_index} (ignored)"
    if zero_ignored:
        table[0] = ignore_index
        rule += " or 0 (ignored)"
    return table, rule


def _torchvision_pairs(
    name: str, split: str, root: str, download: bool, arguments: dict[str, Any]
) -> tuple[Path, list[tuple[str, str]], list[str], np.ndarray]:
    """Root, pairs of paths, class names and value table of a torchvision set."""
    from torchvision import datasets

    table = np.full(256, MaskedImages.UNKNOWN, dtype=np.uint8)
    table[255] = 255
    if name == "VOCSegmentation":
        choose_part(name, ("train", "val"), split)
        stored = construct(
            datasets.VOCSegmentation,
            root,
            {"root": root, "image_set": split, "download": download} | arguments,
        )
        names, masks = VOC_CLASSES, stored.masks
        table[: len(names)] = np.arange(len(names))
    elif name == "Cityscapes":
        choose_part(name, ("train", "val", "test"), split)
        part = {"root": root, "split": split, "mode": "fine", "target_type": "semantic"}
        stored = construct(datasets.Cityscapes, root, part | arguments)
        names, masks = [], [target[0] for target in stored.targets]
        for kind in datasets.Cityscapes.classes:
            used = 0 <= kind.train_id < 255
            # The files hold ids of 34 kinds; 19 of them are evaluated, under their own numbers.
            table[kind.id % 256] = kind.train_id if used else 255
            names += [kind.name] if used else []
    else:
        raise FovealError(
            f"torchvision sets for segmentation are VOCSegmentation and Cityscapes, got {name!r}"
        )
    where = Path(root).expanduser()
    pairs = [
        (os.path.relpath(image, where), os.path.relpath(mask, where))
        for image, mask in zip(stored.images, masks, strict=True)
    ]
    return where, pairs, list(names), table
