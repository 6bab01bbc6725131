"""Lists of class names as labelling tools write them."""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foveal.data.sources.lines import read_text
from foveal.errors import FovealError

ADE20K_CLASSES = "objectInfo150.txt"
# What the list is called by Label Studio, LabelMe, CVAT, YOLO, Roboflow, Supervisely and Hugging Face.
LIST_NAMES = (
    "classes.txt", "labels.txt", "class_names.txt", "obj.names", "labelmap.txt", "_classes.csv",
    "obj_class_to_machine_color.json", "meta.json", "classes.json", "id2label.json", ADE20K_CLASSES,
)  # fmt: skip
ADVICE = "give the names in the order of the mask values by option classes"
NO_NAME = re.compile(r"(#|//)\s*\S.*|.*[{}:]|\[|\]|\[\".*")  # a comment, or a line of YAML, JSON or protobuf
NUMBER_AND_NAME = re.compile(r"(?P<number>\d+)\s*(?:[:;,=\t]|\.\s|\)\s|\s)\s*(?P<name>\S.*)")
NAME_AND_NUMBER = re.compile(r"(?P<name>.*\S)\s*[:;,=\t\s]\s*(?P<number>\d+)")


class ClassList(NamedTuple):
    """Class names in the order of the stored numbers, and the colour of each where the list has them."""

    names: list[str]
    colours: list[tuple[int, int, int]] | None = None


def find_class_list(folders: Sequence[Path]) -> ClassList:
    """The class list that lies in one of some folders, or in several the same.

    Raises:
        FovealError: none has one; two files disagree; a list cannot be read.
    """
    present = [folder / name for folder in folders for name in LIST_NAMES if (folder / name).is_file()]
    # JSON files say more than names, and less certainly: they count where nothing else does
    plain = [path for path in present if path.suffix != ".json"]
    found = {path: read_class_list(path) for path in plain or present}
    if not found:
        raise FovealError(
            f"segmentation needs classes.txt or option classes, got neither in {folders[0]} "
            f"(nor {', '.join(LIST_NAMES[1:])})"
        )
    (first, chosen), *others = found.items()
    for path, other in others:
        if other.names != chosen.names:
            raise FovealError(
                f"one list of classes must hold, got {len(chosen.names)} in {os.path.relpath(first, folders[0])} and "
                f"{len(other.names)} others in {os.path.relpath(path, folders[0])} of {folders[0]}; {ADVICE}"
            )
    return next((other for other in found.values() if other.colours), chosen)


def read_class_list(path: Path) -> ClassList:
    """Read one file of class names.

    A line a class; ``labelmap.txt`` of CVAT with its colours; ``_classes.csv`` of Roboflow; ``meta.json`` and
    ``obj_class_to_machine_color.json`` of Supervisely; ``objectInfo150.txt`` of ADE20K; any other JSON file as a list
    of names, or an object of numbers and names. Numbers before or behind the names must count from 0. LabelMe's
    ``__ignore__`` at the top is no class, what follows counts from 0, and its ``_background_`` is class 0.

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
        rows = [tuple(row) for row in csv.reader(lines[1:], skipinitialspace=True)]
        return ClassList(
            _in_order(path, [row if len(row) <= 2 else (row[0], ",".join(row[1:])) for row in rows])
        )
    entries = [line for line in lines if not line.startswith("#")] if path.name == "labelmap.txt" else lines
    mapped = [re.fullmatch(r"(.+?):(\d+),(\d+),(\d+):[^:]*:[^:]*", line) for line in entries]
    if entries and all(mapped):
        matches = [match for match in mapped if match]
        return ClassList(
            [match[1] for match in matches], [(int(m[2]), int(m[3]), int(m[4])) for m in matches]
        )
    _refuse_other_lines(path, entries)
    return ClassList(_numbered(path, entries) or _without_ignored(path, entries))


def _refuse_other_lines(path: Path, lines: Sequence[str]) -> None:
    """Lines that would be taken for names and are none, or may be none, would move every class behind them."""
    other = next((line for line in lines if NO_NAME.fullmatch(line)), None)
    if other is not None:
        raise FovealError(
            f"a list of classes must hold a name a line and nothing else, got {other!r} in {path}; take it out, or "
            f"{ADVICE}"
        )
    table = [re.split(r"[,;\t]", line) for line in lines]
    columns = {len(row) for row in table}
    if (
        len(lines) > 1
        and len(columns) == 1
        and max(columns) > 2
        and all(any(map(_whole, row)) for row in table[1:])
    ):
        raise FovealError(
            f"a list of classes must hold names only, got a table with the rows {lines[0]!r} and {lines[1]!r} in "
            f"{path}; {ADVICE}"
        )
    numbers = [str(number) for number in range(len(lines))]
    if len(lines) > 1 and all(map(_whole, lines)) and lines != numbers:
        raise FovealError(
            f"a list of classes must hold names, got numbers only, {', '.join(lines[:8])}, in {path}, which may be "
            f"names or mask values; {ADVICE}"
        )


def _whole(text: str) -> bool:
    return text.strip().isdigit()


def _numbered(path: Path, lines: Sequence[str]) -> list[str] | None:
    """The names without their numbers, where every line has one; None where the lines are names."""
    header, *rows = lines or [""]
    if rows and re.search(r"[,;\t]", header) and not re.search(r"\d", header):
        forms = [form for form in (NUMBER_AND_NAME, NAME_AND_NUMBER) if all(map(form.fullmatch, rows))]
        lines = rows if forms and all(re.search(r"[,;\t]", line) for line in rows) else lines
    for form in (NUMBER_AND_NAME, NAME_AND_NUMBER):
        matches = [match for line in lines if (match := form.fullmatch(line))]
        if not matches or len(matches) < len(lines):
            continue
        names = [match["name"].strip("\"' ") for match in matches]
        marked = all(re.search(r"[:;,=\t]|^\d+[.)]", line) for line in lines)
        if not marked and len(set(names)) < len(names):
            continue  # 1 euro, 2 euro: the numbers are all that tells the names from each other
        in_order = [match["number"] for match in matches] == [str(number) for number in range(len(matches))]
        if not marked and in_order and form is NAME_AND_NUMBER:
            continue  # zone 0, room 1: the same classes either way
        return _in_order(path, [(match["number"], name) for match, name in zip(matches, names, strict=True)])
    return None


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
    """The names without LabelMe's entry for pixels that have no class."""
    if "__ignore__" in names[1:]:
        raise FovealError(
            f"__ignore__ must stand first in a list of classes, got it as number {names.index('__ignore__', 1)} in "
            f"{path}"
        )
    names = names[names[:1] == ["__ignore__"] :]
    if "_background_" in names[1:]:
        raise FovealError(
            f"_background_ must be the first class of a list, as LabelMe stores it as 0, got it as number "
            f"{names.index('_background_')} in {path}; {ADVICE}"
        )
    return names


def _from_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
        if path.name == "meta.json":
            titles = [str(entry["title"]) for entry in content["classes"]]
        elif path.name == "obj_class_to_machine_color.json":
            return _of_colours(path, {str(name): colour[0] for name, colour in content.items()})
        else:
            return _of_json_names(path, content)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, FovealError):
            raise
        form = "with a title each" if path.name == "meta.json" else "by name"
        raise FovealError(f"{path} must list classes {form}, got something else; {ADVICE}") from None
    if not titles or titles[0].lower().strip("_") not in ("background", "bg"):
        raise FovealError(
            f"the first class of {path} must be the background, as it gives no numbers and masks have 0 there, "
            f"got {titles[:5]}; {ADVICE}"
        )
    return titles


def _of_colours(path: Path, values: dict[str, int]) -> list[str]:
    """Supervisely's names, by the grey value that each has in the masks; 0 is what has no object."""
    names = sorted(values, key=lambda name: values[name])
    first = 1 if values and min(values.values()) == 1 else 0
    if sorted(values.values()) != list(range(first, first + len(values))):
        raise FovealError(f"values of classes must be consecutive, got {values} in {path}; {ADVICE}")
    return ["background"] * first + names


def _of_json_names(path: Path, content: Any) -> list[str]:
    """A list of names, or an object of numbers and names, in either order."""
    if isinstance(content, list):
        pairs = [(str(number), name) for number, name in enumerate(content)]
    elif all(isinstance(value, int) and not isinstance(value, bool) for value in content.values()):
        pairs = [(str(value), name) for name, value in sorted(content.items(), key=lambda item: item[1])]
    else:
        pairs = sorted(content.items(), key=lambda item: int(item[0]))
    if not pairs or not all(isinstance(name, str) for _, name in pairs):
        raise TypeError
    return _in_order(path, pairs)
