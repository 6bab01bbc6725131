"""What every stored data set shares: the split rules, and what happens to unreadable images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset

from foveal.errors import FovealError

SPLITS = ("train", "val", "test")
# Names that folders and Parquet files use for a split, in lower case.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@runtime_checkable
class Source(Protocol):
    """Stored images and their truth, before a split is chosen and unreadable ones are left out."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call it in messages: unique, and the same wherever the data set lies."""
        ...

    def sample(self, index: int) -> dict[str, Any]:
        """The decoded item. Raises ValueError or OSError where it cannot be read."""
        ...

    def looks_whole(self, index: int) -> bool:
        """A cheap look at both ends of the file; False means: decode it to find out."""
        ...


class LabelError(FovealError):
    """Truth that contradicts its image or the class list. Never skipped: such faults are rarely in one file only."""


class StoredDataset(Dataset):
    """Items of ``source`` at ``indices``; unreadable ones are named, counted and skipped.

    When it is opened, both ends of every file are looked at, and the files that do not look whole are decoded:
    those that fail are left out. Damage that only shows when an item is asked for later cannot change the length
    any more: that item is replaced by the next readable one, always the same one, and counted too, from all
    processes that read the data set. More than ``max_unreadable`` of the items is an error at either time.

    Attributes:
        classes: class names, in the order of the labels.
        mirror: whether a mirrored image still shows its class.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        classes: Sequence[str],
        *,
        max_unreadable: float = 0.05,
        mirror: bool = True,
        ignore_index: int | None = None,
    ) -> None:
        if not 0 <= max_unreadable < 1:
            raise FovealError(f"max_unreadable must be 0 or more and below 1, got {max_unreadable}")
        self.source, self.classes, self.mirror = source, list(classes), mirror
        self.ignore_index, self.max_unreadable = ignore_index, max_unreadable
        self._asked = len(indices)
        self._indices: list[int] = []
        self._left_out: dict[str, str] = {}
        for index in indices:
            reason = None if source.looks_whole(index) else self._reason(index)
            if reason is None:
                self._indices.append(index)
            else:
                self._left_out[source.name(index)] = reason
        # Shared with the reading processes of a DataLoader, so that their finds are counted here.
        self._broken = torch.zeros(len(self._indices), dtype=torch.bool).share_memory_()
        self._check_share()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"index must be below {length}, got {index}")
        for step in range(length):
            place = (index + step) % length
            if self._broken[place]:
                continue
            try:
                return self.source.sample(self._indices[place])
            except LabelError:
                raise
            except (ValueError, OSError):
                self._broken[place] = True
                self._check_share()
        raise FovealError(f"none of the {length} images can be read")

    @property
    def skipped(self) -> dict[str, str]:
        """Unreadable items found so far: name -> reason."""
        found = {}
        for place in self._broken.nonzero().flatten().tolist():
            index = self._indices[place]
            found[self.source.name(index)] = self._reason(index) or "could not be read for a while"
        return self._left_out | found

    @property
    def names(self) -> list[str]:
        """The items' names, in order."""
        return [self.source.name(index) for index in self._indices]

    def _reason(self, index: int) -> str | None:
        try:
            self.source.sample(index)
        except LabelError:
            raise
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def _check_share(self) -> None:
        count = len(self._left_out) + int(self._broken.sum())
        if count > self.max_unreadable * self._asked:
            first = next(iter(self.skipped.items()))
            raise FovealError(
                f"at most {self.max_unreadable:.3g} of the images may be unreadable "
                f"(max_unreadable), got {count} of {self._asked}, the first is {first[0]}: {first[1]}"
            )


def choose_part(what: str, available: Collection[str], split: str) -> tuple[str | None, bool]:
    """Which stored part serves ``split``, and whether it is to be divided: the rule is in ``open_dataset``.

    Returns:
        (part, False): the whole part. (part, True): train or val by ``hold_out`` of that part, where None
        stands for data without parts.
    """
    if split not in SPLITS:
        raise FovealError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not available and split != "test":
        return None, True
    if "train" in available and "val" not in available and split != "test":
        return "train", True
    if split in available:
        return split, False
    parts = ", ".join(sorted(available)) or "only train and val, which are split off at random"
    raise FovealError(f"{what} has no part for split {split!r}, got {parts}")


def hold_out(
    names: Sequence[str], labels: Sequence[int] | None, split: str, *, val_share: float, split_seed: int
) -> list[int]:
    """Places of the items that belong to ``split``, "train" or "val", in order.

    In each class, the items are ranked by a hash of the seed and their name, and the first ``val_share`` of them
    (rounded; at least one, and never all) are val. New files therefore hardly move old ones across the border.

    Example:
        >>> names = [f"{i}.png" for i in range(10)]
        >>> val = hold_out(names, None, "val", val_share=0.2, split_seed=0)
        >>> train = hold_out(names, None, "train", val_share=0.2, split_seed=0)
        >>> len(val), sorted(val + train) == list(range(10))
        (2, True)
    """
    if not 0 < val_share < 1:
        raise FovealError(f"val_share must be above 0 and below 1, got {val_share}")
    by_class: dict[int, list[int]] = defaultdict(list)
    for place in range(len(names)):
        by_class[labels[place] if labels is not None else 0].append(place)

    def rank(place: int) -> bytes:
        return hashlib.blake2b(f"{split_seed}/{names[place]}".encode(errors="surrogateescape")).digest()

    val: set[int] = set()
    for places in by_class.values():
        count = min(max(round(val_share * len(places)), 1), len(places) - 1)
        val.update(sorted(places, key=rank)[:count])
    return [place for place in range(len(names)) if (place in val) == (split == "val")]


def looks_whole(head: bytes, tail: bytes, length: int) -> bool:
    """Whether a JPEG, PNG, WebP or GIF file begins and ends as it should; False for every other format.

    Args:
        head: the first 16 bytes or more. tail: the last 16 bytes or more. length: of the whole file in bytes.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return tail.endswith(b"IEND\xaeB`\x82")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= length
    return head.startswith(b"GIF8") and tail.endswith(b";")


def file_looks_whole(path: str) -> bool:
    """``looks_whole`` of a file; False where it cannot be opened."""
    try:
        with open(path, "rb") as file:
            head = file.read(32)
            length = file.seek(0, 2)
            file.seek(max(0, length - 32))
            return looks_whole(head, file.read(32), length)
    except OSError:
        return False


def refuse_repeated(classes: Sequence[str]) -> None:
    """Names stand for classes wherever results are kept. Not asked of torchvision's sets: ImageNet has two cranes."""
    repeated = sorted({name for name in classes if list(classes).count(name) > 1})
    if repeated:
        raise FovealError(f"every class must have a name of its own, got {repeated} more than once")


def check_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise FovealError(f"a classifier needs at least 2 classes, got {list(classes)}")
