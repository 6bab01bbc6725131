"""What every task looks at when data are checked: each image, decoded once, and how often each class occurs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveal.data.dataset import left_out_note
from foveal.data.findings import Finding
from foveal.data.sources.packed import PackedImages
from foveal.data.stores import LocalStore
from foveal.errors import FovealError
from foveal.tasks import Checked, Task, items_of

FEW = 10
"""Fewer images or objects of a class are hard to learn from."""
ANY_SHARE = 1 - 1e-9
"""Of unreadable images: all of them are to be told."""


def check_stored(
    task: Task,
    data: str,
    split: str,
    options: dict[str, Any],
    labels_of: Callable[[dict[str, Any]], Sequence[int]],
) -> Checked:
    """Every image of a split that the task opens.

    Args:
        labels_of: the classes that a sample shows.
    """
    stored = hasattr(task, "open")
    given = {**options}
    if stored and not data.startswith("scenes"):
        given.setdefault("max_unreadable", ANY_SHARE)
    opened = task.open(data, split, given)
    findings = of_the_whole(opened, data)
    findings += damaged_chunks(opened)
    counts: Counter[int] = Counter()
    names = list(getattr(opened, "names", range(len(opened))))
    for index, name in enumerate(names):
        try:
            counts.update(labels_of(opened[index]))
        except FovealError as error:
            findings.append(Finding("labels that do not fit", "error", str(name), str(error), str(name)))
    unreadable = opened.skipped
    findings += [
        Finding("images that cannot be read", "warning", name, why, name) for name, why in unreadable.items()
    ]
    classes = {name: counts[number] for number, name in enumerate(opened.classes)}
    findings += few_of(classes, split, items_of(task))
    return Checked(len(opened), classes, findings, {}, f"{len(classes)} classes")


def of_the_whole(opened: Any, data: str) -> list[Finding]:
    """What an opened data set says of itself: the files that it leaves out, and its notes."""
    left_out = opened.left_out
    findings = [Finding("files that are not used", "warning", name, why) for name, why in left_out.items()]
    notes = [note for note in getattr(opened, "notes", ()) if note != left_out_note(left_out)]
    return findings + [Finding("what to know of these data", "note", data, note) for note in notes]


def damaged_chunks(opened: Any) -> list[Finding]:
    """Chunks on this disk that are not those of their index; each is read whole. Others are compared when fetched."""
    source = getattr(opened, "source", None)
    if not isinstance(source, PackedImages) or not isinstance(source.reader.store, LocalStore):
        return []
    findings = []
    for chunk in source.reader.index.chunks:
        digest = hashlib.blake2b(digest_size=16)
        with open(Path(source.reader.store.root) / chunk.name, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if chunk.digest not in (None, digest.hexdigest()):
            why = "its content is not the one of its index: pack or copy it again"
            findings.append(Finding("chunks that are damaged", "error", chunk.name, why))
    return findings


def few_of(classes: dict[str, int], split: str, what: str) -> list[Finding]:
    """A note for each class that hardly occurs."""
    kind = f"classes with fewer than {FEW} {what}"
    return [
        Finding(kind, "note", f"{split}, class {name}", f"{count} {what}")
        for name, count in classes.items()
        if count < FEW
    ]
