"""Which items are for training, for validation and for the final test."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from foveal.data.dataset import few
from foveal.errors import FovealError
from foveal.image_files import folders_in


class NoPartError(FovealError):
    """The data have no such part."""


SPLITS = ("train", "val", "test")
# Words that folders and files use for a split, in lower case.
SPLIT_NAMES = {
    "train": "train", "training": "train", "trainset": "train", "trainlist": "train",
    "val": "val", "valid": "val", "validation": "val", "valset": "val", "vallist": "val",
    "test": "test", "testing": "test", "testset": "test", "testlist": "test",
}  # fmt: skip
COPY = re.compile(r"\.rf\.[0-9A-Za-z]{16,}(?=\.\w+$)")
LIST_SUFFIXES = frozenset((".txt", ".csv", ".lst", ".json"))


def splits_in(name: str) -> set[str]:
    """The splits that a file or folder name speaks of, by words of their own anywhere in it.

    Example:
        >>> splits_in("training_set"), splits_in("seg_train"), splits_in("train2017")
        ({'train'}, {'train'}, {'train'})
        >>> splits_in("trainer"), splits_in("contest")
        (set(), set())
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {SPLIT_NAMES[word.lower()] for word in words if word.lower() in SPLIT_NAMES}


def split_of(name: str) -> str | None:
    """The one split that a name speaks of; None where it speaks of none, or of several."""
    found = splits_in(name)
    return found.pop() if len(found) == 1 else None


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
    raise NoPartError(f"{what} has no part for split {split!r}, got {parts}")


def hold_out(
    names: Sequence[str], labels: Sequence[int] | None, split: str, *, val_share: float, split_seed: int
) -> list[int]:
    """Places of the items that belong to ``split``, "train" or "val", in order.

    In each class, the items are ranked by a hash of the seed and their name, and the first ``val_share`` of them
    (rounded; at least one, and never all) are val. New files therefore hardly move old ones across the border. Names
    have ``/`` between their parts, and letters with accents count the same in both of Unicode's spellings, so every
    system holds out the same items. Copies that Roboflow made of one image, ``x_jpg.rf.HASH.jpg``, stay together.

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
        name = COPY.sub("", unicodedata.normalize("NFC", names[place]))
        return hashlib.blake2b(f"{split_seed}/{name}".encode(errors="surrogateescape")).digest()

    val: set[int] = set()
    for places in by_class.values():
        count = min(max(round(val_share * len(places)), 1), len(places) - 1)
        ranked = sorted((rank(place), place) for place in places)
        # the copies of the last image come along, unless they are all there is
        last = ranked[count - 1][0] if count else b""
        together = [place for found, place in ranked if found <= last]
        val.update(together if len(together) < len(places) else [place for _, place in ranked[:count]])
    return [place for place in range(len(names)) if (place in val) == (split == "val")]


def unread_lists(root: Path, images: Iterable[str]) -> Iterator[str]:
    """A note on lists of parts that lie beside images which are divided by their names: train.txt, splits/val.csv.

    Args:
        root: the data set.
        images: paths of its images below it, with ``/``: folders that hold some are not looked into.
    """
    full = {image.partition("/")[0] for image in images}
    folders = [root, *(folder for folder in folders_in(root) if folder.name not in full)]
    folders += [inner for folder in folders[1:] for inner in folders_in(folder)]
    lists = [
        path.relative_to(root).as_posix()
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in LIST_SUFFIXES and splits_in(path.stem) and path.is_file()
    ]
    if lists:
        verb = "is" if len(lists) == 1 else "are"
        yield (
            f"{few(lists)} {verb} not read: train and val are divided by the names of the images; to keep a division "
            "of your own, make folders train and val of it"
        )
