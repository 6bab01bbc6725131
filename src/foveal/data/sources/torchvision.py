"""Data sets of torchvision, by their class names: any for classification, and two for segmentation."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foveal.data.dataset import StoredDataset, check_classes, empty_classes
from foveal.data.decode import check_decoding, to_tensor
from foveal.data.masked_images import UNKNOWN
from foveal.data.opening import MAX_PIXELS, line_of, opened
from foveal.data.split import choose_part, hold_out
from foveal.errors import FovealError
from foveal.image_files import fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image

TORCHVISION = "torchvision:"

# Sets of characters and signs, where a mirrored image shows something else.
NOT_MIRRORED = frozenset(
    ("MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SEMEION", "SVHN", "Omniglot", "GTSRB")
)
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# What torchvision's sets call the parts, by preference.
PART_NAMES = {
    "train": ("train", "trainval", "train-standard"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
OWN_ARGUMENTS = {"root", "download", "loader", "is_valid_file", "transform", "target_transform", "transforms"}


class TorchvisionImages:
    """Source of (Pillow image, label) pairs."""

    def __init__(self, stored: Any, name: str, *, channels: int = 3, grey_bits: int = 16) -> None:
        self.stored, self._name = stored, name
        self.channels, self.grey_bits = channels, grey_bits

    def __len__(self) -> int:
        return len(self.stored)

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def sample(self, index: int) -> dict[str, Any]:
        image, label = self.stored[index]
        return {
            "image": to_tensor(image, channels=self.channels, grey_bits=self.grey_bits),
            "label": int(label),
        }

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of the files where the class keeps a list of them, else of its arrays and labels."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.asarray(indices, dtype=np.int64).tobytes())
        for attribute in ("data", "targets", "labels"):
            values = getattr(self.stored, attribute, None)
            if isinstance(values, np.ndarray | torch.Tensor | list) and len(values) == len(self):
                digest.update(np.ascontiguousarray(np.asarray(values)[list(indices)]).tobytes())
        for attribute in ("samples", "_samples", "imgs", "_image_files", "_images", "images"):
            files = getattr(self.stored, attribute, None)
            if isinstance(files, list) and len(files) == len(self):
                paths = [files[i][0] if isinstance(files[i], tuple) else files[i] for i in indices]
                if all(isinstance(path, str | Path) for path in paths):
                    root = str(getattr(self.stored, "root", ""))
                    digest.update(fingerprint([os.path.relpath(path, root) for path in paths], root).encode())
                    break
        return digest.hexdigest()

    def looks_whole(self, index: int) -> bool:
        return True  # torchvision checks its downloads; what it opens itself shows when it is read


def open_torchvision(
    name: str,
    split: str,
    *,
    root: str = "data",
    download: bool = False,
    arguments: Mapping[str, Any] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    channels: int = 3,
    grey_bits: int = 16,
) -> StoredDataset:
    """``torchvision.datasets.NAME``; downloads only if told to. See ``open_dataset``.

    Args:
        root: folder that holds the data, as that class wants it.
        arguments: more arguments for that class, such as ``{"split": "letters"}`` of EMNIST; none of `OWN_ARGUMENTS`.
    """
    check_decoding(channels, grey_bits)
    kind = _dataset_class(name)
    name, accepted = kind.__name__, _parameters(kind)
    given = more_arguments(arguments)
    base: dict[str, Any] = {
        key: value for key, value in (("root", root), ("download", download)) if key in accepted
    }
    if "loader" in accepted:
        base["loader"] = _load

    parts = _parts(accepted, given, kind)
    part, divide = choose_part(f"torchvision:{name}", parts, split)
    stored = construct(kind, root, base | given | (parts[part] if part else {}))

    if len(stored) == 0:
        raise FovealError(f"torchvision:{name} holds no images in {root!r}")
    image, target = stored[0]
    if not hasattr(image, "convert") or not _is_label(target):
        got = f"{type(image).__name__} with {type(target).__name__}"
        raise FovealError(f"torchvision:{name} must give (image, class number), got {got}")
    labels = _labels(stored)
    classes = _class_names(stored, labels)
    check_classes(classes)
    source = TorchvisionImages(stored, name, channels=channels, grey_bits=grey_bits)
    indices: Sequence[int] = range(len(stored))
    if divide:
        names = [str(index) for index in indices]
        indices = hold_out(names, labels, split, val_share=val_share, split_seed=split_seed)
    mirror = kind.__name__ not in NOT_MIRRORED
    chosen = [labels[index] for index in indices] if labels is not None else None
    notes = list(empty_classes(chosen, classes, split)) if chosen is not None else []
    return StoredDataset(source, indices, classes, max_unreadable=max_unreadable, mirror=mirror, notes=notes)


def _load(path: str) -> Image:
    """Open an image file with the readers that `decode_image` uses; torchvision's own would take any."""
    with opened(path, None, MAX_PIXELS) as (image, _, _):
        image.load()
        return image


def more_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments for a class of torchvision, none of which fetches, reads elsewhere or runs something.

    They may come from a weights file, as the data that a network was trained on.
    """
    wrong = sorted({*(given or {})} & OWN_ARGUMENTS)
    if wrong:
        raise FovealError(
            f"arguments must not hold {', '.join(wrong)}; root and download are options of their own"
        )
    return dict(given or {})


def construct(kind: Any, root: str, arguments: dict[str, Any]) -> Any:
    """``kind(**arguments)`` with errors for people.

    Raises:
        ValueError: the files are not under ``root``, or the class wants other arguments.
    """
    where = f"torchvision:{kind.__name__}"
    try:
        return kind(**arguments)
    except (RuntimeError, FileNotFoundError) as error:
        hint = "; download=True fetches it" if arguments.get("download") is False else ""
        raise FovealError(f"{where} not found in {root!r}{hint}: {line_of(error)}") from None
    except TypeError as error:
        raise FovealError(f"{where} needs other arguments: {line_of(error)}") from None


def _dataset_class(name: str) -> Any:
    from torchvision import datasets

    known = {
        key: kind
        for key, kind in vars(datasets).items()
        if inspect.isclass(kind)
        and issubclass(kind, datasets.VisionDataset)
        and kind is not datasets.VisionDataset
    }
    by_lower = {key.lower(): key for key in known}
    if name.lower() in by_lower:
        return known[by_lower[name.lower()]]
    near = [by_lower[key] for key in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = f"; near: {', '.join(near)}" if near else ""
    raise FovealError(f"torchvision has no data set of that name{hint}, got {name!r}")


def _parameters(kind: Any) -> set[str]:
    """Names of the arguments, with those that the class hands on to its parents as **kwargs."""
    names: set[str] = set()
    for parent in kind.__mro__:
        parameters = inspect.signature(parent.__init__).parameters
        names |= parameters.keys()
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def _parts(accepted: Collection[str], given: Mapping[str, Any], kind: Any) -> dict[str, dict[str, Any]]:
    """Split -> the argument that selects it, for the splits this class knows."""
    if "train" in accepted:
        return {"train": {"train": True}, "test": {"train": False}} if "train" not in given else {}
    if "split" not in accepted or "split" in given:
        return {}
    # torchvision's classes refuse a wrong split before they look for files, and list the right ones.
    try:
        kind(root="", split="?")
        refusal = ""
    except Exception as error:
        refusal = str(error)
    parts = {}
    for split, names in PART_NAMES.items():
        known = [name for name in names if f"'{name}'" in refusal]
        if known:
            parts[split] = {"split": known[0]}
    return parts


def _is_label(target: Any) -> bool:
    try:
        return bool(int(target) == target)
    except (TypeError, ValueError):
        return False


def _labels(stored: Any) -> list[int] | None:
    """All labels where the class keeps them as a list, else None: reading them would mean to decode everything."""
    for attribute in ("targets", "labels", "_labels", "_targets", "y"):
        values = getattr(stored, attribute, None)
        if values is not None and len(values) == len(stored) and _is_label(values[0]):
            return [int(value) for value in values]
    samples = getattr(stored, "_samples", None)
    return [int(sample[1]) for sample in samples] if samples else None


def _class_names(stored: Any, labels: list[int] | None) -> list[str]:
    for attribute in ("classes", "categories", "all_categories"):
        names = getattr(stored, attribute, None)
        if not names:
            continue
        # ImageNet gives a tuple of synonyms for each class.
        return [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    known = getattr(stored, "class_to_idx", None)
    if known:
        return [str(name) for name, _ in sorted(known.items(), key=lambda pair: pair[1])]
    if labels is None:
        labels = [int(stored[index][1]) for index in range(len(stored))]
    return [str(label) for label in range(max(labels) + 1)]


def torchvision_pairs(
    name: str, split: str, root: str, download: bool, arguments: dict[str, Any]
) -> tuple[Path, list[tuple[str, str]], list[str], np.ndarray]:
    """Root, pairs of paths, class names and value table of a torchvision set."""
    from torchvision import datasets

    table = np.full(256, UNKNOWN, dtype=np.uint8)
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
