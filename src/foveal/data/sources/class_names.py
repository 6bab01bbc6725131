"""Lists of class names as labelling tools write them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from foveal.data.sources.lines import read_text
from foveal.errors import FovealError

ADE20K_CLASSES = "objectInfo150.txt"
# What the list is called by Label Studio, LabelMe, CVAT, YOLO, Roboflow and Supervisely.
LIST_NAMES = (
    "classes.txt", "labels.txt", "class_names.txt", "obj.names", "labelmap.txt", "_classes.csv",
    "obj_class_to_machine_color.json", "meta.json", ADE20K_CLASSES,
)  # fmt: skip
ADVICE = "give the names in the order of the mask values by option classes"


class ClassList(NamedTuple):
    """Class names in the order of the stored numbers, and the colour of each where the list has them."""

    names: list[str]
    colours: list[tuple[int, int, int]] | None = None


def find_class_list(folders: Sequence[Path]) -> ClassList:
    """The class list in the first of some folders that has one.

    Raises:
        FovealError: none has one; two files in one folder disagree; a list cannot be read.
    """
    for folder in folders:
        present = [name for name in LIST_NAMES if (folder / name).is_file()]
        # JSON files say more than names, and less certainly: they count where nothing else does
        plain = [name for name in present if not name.endswith(".json")]
        found = {name: read_class_list(folder / name) for name in plain or present}
        if not found:
            continue
        (first, chosen), *others = found.items()
        for name, other in others:
            if other.names != chosen.names:
                raise FovealError(
                    f"one list of classes must hold, got {len(chosen.names)} in {first} and "
                    f"{len(other.names)} others in {name} of {folder}; {ADVICE}"
                )
        return next((other for other in found.values() if other.colours), chosen)
    raise FovealError(
        f"segmentation needs classes.txt or option classes, got neither in {folders[0]} "
        f"(nor {', '.join(LIST_NAMES[1:])})"
    )


def read_class_list(path: Path) -> ClassList:
    """Read one file of class names.

    A line a class; ``labelmap.txt`` of CVAT with its colours; ``_classes.csv`` of Roboflow; ``meta.json`` and
    ``obj_class_to_machine_color.json`` of Supervisely; ``objectInfo150.txt`` of ADE20K. Numbers before the names must
    count from 0. LabelMe's ``__ignore__`` at the top is no class, and what follows counts from 0.

    Raises:
        FovealError: the file is not UTF-8 (or UTF-16 with its mark), has control characters, or does not say which
            number is which class.
    """
    text = _text(path)
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lines = [unicodedata.normalize("NFC", line) for line in lines if line]
    if path.name == ADE20K_CLASSES:  # Idx, Ratio, Train, Val, Stuff, Name
        return ClassList([line.split("\t")[-1].strip() for line in lines[1:]])
    if path.suffix == ".json":
        return ClassList(_from_json(path, text))
    if path.name == "_classes.csv":
        return ClassList(_in_order(path, [tuple(line.split(",", 1)) for line in lines[1:]]))
    entries = [line for line in lines if not line.startswith("#")] if path.name == "labelmap.txt" else lines
    mapped = [re.fullmatch(r"(.+?):(\d+),(\d+),(\d+):[^:]*:[^:]*", line) for line in entries]
    if entries and all(mapped):
        matches = [match for match in mapped if match]
        return ClassList(
            [match[1] for match in matches], [(int(m[2]), int(m[3]), int(m[4])) for m in matches]
        )
    numbered = [re.fullmatch(r"(\d+)\s*[:;,\t]\s*(.+)", line) for line in entries]
    if entries and all(numbered):
        return ClassList(_in_order(path, [(match[1], match[2]) for match in numbered if match]))
    return ClassList(_without_ignored(path, entries))


def _text(path: Path) -> str:
    text = read_text(path, "a list of classes")
    strange = next((c for c in text if unicodedata.category(c) == "Cc" and c not in "\t\r\n"), None)
    if strange is not None:
        raise FovealError(f"names of classes must be plain text, got the character {strange!r} in {path}")
    return text


def _in_order(path: Path, pairs: Sequence[tuple[str, ...]]) -> list[str]:
    """Names from (number, name) pairs whose numbers are 0, 1, 2, ..."""
    numbers = [pair[0].strip() for pair in pairs]
    if any(len(pair) != 2 for pair in pairs) or numbers != [str(number) for number in range(len(pairs))]:
        raise FovealError(
            f"numbers of classes must count from 0 in order, got {', '.join(numbers[:8])} in {path}; {ADVICE}"
        )
    return [pair[1].strip() for pair in pairs]


def _without_ignored(path: Path, names: list[str]) -> list[str]:
    if "__ignore__" not in names:
        return names
    if names[0] != "__ignore__":
        raise FovealError(
            f"__ignore__ must stand first in a list of classes, got it as number {names.index('__ignore__')} in {path}"
        )
    return names[1:]


def _from_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
        if path.name == "meta.json":
            titles = [str(entry["title"]) for entry in content["classes"]]
        else:
            values = {str(name): colour[0] for name, colour in content.items()}
            titles = sorted(values, key=lambda name: values[name])
            first = 1 if values and min(values.values()) == 1 else 0
            if sorted(values.values()) != list(range(first, first + len(values))):
                raise FovealError(f"values of classes must be consecutive, got {values} in {path}; {ADVICE}")
            return ["background"] * first + titles
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, FovealError):
            raise
        raise FovealError(
            f"{path} must list classes with a title each, got something else; {ADVICE}"
        ) from None
    if not titles or titles[0].lower().strip("_") not in ("background", "bg"):
        raise FovealError(
            f"the first class of {path} must be the background, as it gives no numbers and masks have 0 there, "
            f"got {titles[:5]}; {ADVICE}"
        )
    return titles
