"""What every task looks at when data are checked: each image, decoded once, and how often each class occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from foveal.data.findings import Finding
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
    findings = [
        Finding("files that are not used", "warning", name, why) for name, why in opened.left_out.items()
    ]
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


def few_of(classes: dict[str, int], split: str, what: str) -> list[Finding]:
    """A note for each class that hardly occurs."""
    kind = f"classes with fewer than {FEW} {what}"
    return [
        Finding(kind, "note", f"{split}, class {name}", f"{count} {what}")
        for name, count in classes.items()
        if count < FEW
    ]
