"""What every stored data set shares: unreadable images are named and skipped, and what was left out is told."""

from __future__ import annotations

import hashlib
import os
import statistics
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset

from foveal.data.opening import ChunkError, ImageKindError, LabelError
from foveal.errors import FovealError
from foveal.image_files import open_regular

NEVER_SKIPPED = (LabelError, ImageKindError, ChunkError)
LOOKED_AT = 16  # items whose sizes `median_size` takes


@runtime_checkable
class Source(Protocol):
    """Stored images and their truth, before a split is chosen and unreadable ones are left out."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call it in messages: unique, and the same wherever the data set lies, on every system."""
        ...

    def sample(self, index: int) -> dict[str, Any]:
        """The decoded item. Raises ValueError or OSError where it cannot be read."""
        ...

    def looks_whole(self, index: int) -> bool:
        """A cheap look at both ends of the file; False means: decode it to find out."""
        ...

    def fingerprint(self, indices: Sequence[int]) -> str:
        """A hash that changes when the stored form of one of these items does."""
        ...


class StoredDataset(Dataset):
    """Items of ``source`` at ``indices``; unreadable ones are named, counted and skipped.

    When it is opened, both ends of every file are looked at, and the files that do not look whole are decoded:
    those that fail are left out. Damage that only shows when an item is asked for later cannot change the length
    any more: that item is replaced by the next readable one, always the same one, and counted too, from all
    processes that read the data set. More than ``max_unreadable`` of the items is an error at either time.

    Attributes:
        classes: class names, in the order of the labels.
        mirror: whether a mirrored image still shows its class.
        ignore_index: the mask value of pixels without a class, None where masks have none.
        category_ids: the numbers that the files themselves have for the classes, None where these are the labels.
        left_out: name -> why, for files that look like images and are not among the items at all.
        notes: what a person should be told once, in whole sentences, such as classes without an image.
        called: what its items are, in the plural.
    """

    called = "images"

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        classes: Sequence[str],
        *,
        max_unreadable: float = 0.05,
        mirror: bool = True,
        ignore_index: int | None = None,
        category_ids: Sequence[int] | None = None,
        left_out: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if not 0 <= max_unreadable < 1:
            raise FovealError(f"max_unreadable must be 0 or more and below 1, got {max_unreadable}")
        self.source, self.classes, self.mirror = source, list(classes), mirror
        self.ignore_index, self.max_unreadable = ignore_index, max_unreadable
        self.category_ids = None if category_ids is None else list(category_ids)
        self.left_out, self.notes = dict(left_out or {}), list(notes)
        self.notes += _near_names(self.classes)
        if self.left_out:
            self.notes.append(left_out_note(self.left_out))
        self._asked = len(indices)
        doubtful = [index for index in indices if not source.looks_whole(index)]
        reasons = {index: why for index in doubtful if (why := self._reason(index)) is not None}
        self._unreadable = {source.name(index): why for index, why in reasons.items()}
        # as they came where all are readable: a range needs no memory
        self._indices = [index for index in indices if index not in reasons] if reasons else indices
        # Shared with the reading processes of a DataLoader, so that their finds are counted here.
        self._broken = torch.zeros(len(self._indices), dtype=torch.bool).share_memory_()
        self._check_share()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.readable(index, self.source.sample)

    def readable(self, index: int, read: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """What ``read`` makes of an item of the source, or of the next one that can be read."""
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"index must be below {length}, got {index}")
        for step in range(length):
            place = (index + step) % length
            if self._broken[place]:
                continue
            try:
                return read(self._indices[place])
            except NEVER_SKIPPED:
                raise
            except (ValueError, OSError):
                self._broken[place] = True
                self._check_share()
        raise FovealError(f"none of the {length} {self.called} can be read")

    def sample(self, index: int) -> dict[str, Any]:
        """An item, and no other in its place.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        return self.source.sample(self._indices[index])

    def encoded(self, index: int) -> bytes | None:
        """The image file of an item as it is stored; None where the source has no such files.

        Raises:
            OSError: it cannot be read.
        """
        content = getattr(self.source, "content", None)
        if content is None:
            return None
        found = content(self._indices[index])
        if isinstance(found, bytes):
            return found
        with open_regular(found) as file:
            return file.read()

    @property
    def skipped(self) -> dict[str, str]:
        """Unreadable items found so far: name -> reason."""
        found = {}
        for place in self._broken.nonzero().flatten().tolist():
            index = self._indices[place]
            found[self.source.name(index)] = self._reason(index) or "could not be read for a while"
        return self._unreadable | found

    @property
    def names(self) -> list[str]:
        """The items' names, in order."""
        return [self.source.name(index) for index in self._indices]

    @property
    def files(self) -> list[str]:
        """The paths of the items that are files of their own, in order."""
        content = getattr(self.source, "content", None)
        # those of Parquet and of chunks are not looked at: they would be read
        if content is None or not len(self) or isinstance(content(self._indices[0]), bytes):
            return []
        return [os.fspath(content(index)) for index in self._indices]

    @property
    def object_counts(self) -> list[int] | None:
        """How many objects each item has, where the source knows without decoding it."""
        count = getattr(self.source, "object_count", None)
        counts = [] if count is None else [count(index) for index in self._indices]
        return None if count is None or None in counts else counts

    @property
    def labels(self) -> list[int] | None:
        """The items' labels, in order, where the source knows them without decoding an image; else None."""
        labels = getattr(self.source, "labels", None)
        return None if labels is None else [int(labels[index]) for index in self._indices]

    @property
    def grey_bits(self) -> int:
        """How many bits the values of 16-bit grey files have, as of ``decode_image``."""
        return getattr(self.source, "grey_bits", 16)

    @property
    def chunks(self) -> np.ndarray | None:
        """(items,) The number of the chunk that holds each item, where items are stored in chunks; else None.

        An order for training that goes through the chunks reads each of them once.
        """
        chunks_of = getattr(self.source, "chunks_of", None)
        return None if chunks_of is None else chunks_of(self._indices)

    @property
    def prefetch(self) -> Callable[[Sequence[int]], None] | None:
        """A function that begins to bring items near that are read soon, for data on the network; else None."""
        begin = getattr(self.source, "prefetch", None)
        return None if begin is None else lambda places: begin([self._indices[place] for place in places])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the classes and of the names, sizes and times of the items' files, as when it is first asked for.

        It stays when the folder is moved, and changes when a file, a label or the list of items does.
        """
        digest = hashlib.blake2b(digest_size=16)
        for text in (*self.classes, "", str(self.ignore_index), self.source.fingerprint(self._indices)):
            digest.update(text.encode(errors="backslashreplace") + b"\n")
        return digest.hexdigest()

    def _reason(self, index: int) -> str | None:
        try:
            self.source.sample(index)
        except NEVER_SKIPPED:
            raise
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def _check_share(self) -> None:
        count = len(self._unreadable) + int(self._broken.sum())
        if count > self.max_unreadable * self._asked:
            first = next(iter(self.skipped.items()))
            raise FovealError(
                f"at most {self.max_unreadable:.3g} of the {self.called} may be unreadable "
                f"(max_unreadable), got {count} of {self._asked}, the first is {first[0]}: {first[1]}"
            )


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
        with open_regular(path) as file:
            head = file.read(32)
            length = file.seek(0, 2)
            file.seek(max(0, length - 32))
            return looks_whole(head, file.read(32), length)
    except (OSError, FovealError):
        return False


def refuse_repeated(classes: Sequence[str]) -> None:
    """Names stand for classes wherever results are kept. Not asked of torchvision's sets: ImageNet has two cranes."""
    repeated = sorted({name for name in classes if list(classes).count(name) > 1})
    if repeated:
        raise FovealError(f"every class must have a name of its own, got {repeated} more than once")


def _near_names(classes: Sequence[str]) -> Iterator[str]:
    """A note on names that a person, and most systems' folders, take for one."""
    by_name: dict[str, list[str]] = {}
    for name in classes:
        by_name.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    near = [few(names) for names in by_name.values() if len(set(names)) > 1]
    if near:
        shown = "; ".join(near[:5])
        yield f"classes whose names differ by capital letters, spaces or the form of letters only: {shown}"


def check_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise FovealError(f"a classifier needs at least 2 classes, got {list(classes)}")


def empty_classes(labels: Sequence[int], classes: Sequence[str], split: str) -> Iterator[str]:
    """A note on the classes that have no image."""
    present = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        verb = "has" if len(empty) == 1 else "have"
        yield f"{len(empty)} of {len(classes)} classes {verb} no image for {split}: {few(empty)}"


def renumbered(own: Sequence[str], classes: Sequence[str]) -> dict[int, int]:
    """Stored number -> label, by the names that the file itself has for its numbers.

    Where none of these names is a class, the classes are other names for the same numbers.

    Example:
        >>> renumbered(["cat", "dog"], ["dog", "cat"]), renumbered(["0", "1"], ["dog", "cat"])
        ({0: 1, 1: 0}, {0: 0, 1: 1})
    """
    place = {name: label for label, name in enumerate(classes)}
    if not place.keys() & set(own):
        return {label: label for label in range(len(classes))}
    return {number: place[name] for number, name in enumerate(own) if name in place}


def few(names: Sequence[str]) -> str:
    """The first of some names and how many more there are.

    Example:
        >>> few(["a", "b"]), few(list("abcdefgh"))
        ('a, b', 'a, b, c, d, e and 3 more')
    """
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def left_out_note(left_out: Mapping[str, str]) -> str:
    """A note on files that are left out, the first of them with its reason; "" where there are none."""
    if not left_out:
        return ""
    name, reason = next(iter(left_out.items()))
    if len(left_out) == 1:
        return f"1 file or folder is left out, {name}: {reason}"
    return f"{len(left_out)} files or folders are left out, the first is {name}: {reason}"


def median_size(dataset: Any, looked_at: int = LOOKED_AT) -> tuple[int, int]:
    """The usual (height, width) of a data set's images in pixels: the medians over some, spread over the whole.

    One thumbnail among photographs changes nothing.

    Example:
        >>> from foveal.data import Scenes
        >>> median_size(Scenes("val", length=20, size=48))
        (48, 48)
    """
    step = max(1, len(dataset) // looked_at)
    shapes = [tuple(dataset[i]["image"].shape[-2:]) for i in range(0, len(dataset), step)]
    return int(statistics.median_low([h for h, _ in shapes])), int(
        statistics.median_low([w for _, w in shapes])
    )
