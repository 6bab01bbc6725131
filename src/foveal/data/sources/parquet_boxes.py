"""Boxes in Parquet files: a column ``objects`` in the layout of Hugging Face ``datasets``, or one box an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveal.data.boxes import Annotations, boxed_image
from foveal.data.dataset import few, renumbered
from foveal.data.findings import Finding
from foveal.data.sources.parquet import (
    BOX_COLUMN,
    Columns,
    ParquetImages,
    absent_files,
    class_names,
    file_titles,
    find_column,
    find_parquet,
    hf_features,
    numbered_classes,
    own_names,
    read_rows,
    read_schema,
    refuse_images_beside,
    refuse_parts_in_rows,
    row_counts,
    split_files,
)
from foveal.data.split import choose_part
from foveal.errors import FovealError

OBJECTS = "objects"
# what data sets call the parts of an object
BOX_NAMES = ("bbox", "box", "boxes", "bboxes")
CLASS_NAMES = ("category", "label", "category_id", "categories", "labels", "class")
ID_NAMES = ("id", "bbox_id", "annotation_id")
CROWD_NAMES = ("iscrowd", "is_crowd")
OTHERS = ("image_id", "width", "height")


def read_parquet_boxes(
    root: Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    box_format: str | None = None,
    image_column: str | None = None,
) -> Annotations:
    """The images and boxes of one part. See `foveal.data.sources.detection.open_detection`.

    Args:
        box_format: of ``objects``: "xywh", as in COCO, or "xyxy"; the schema does not say which.

    Raises:
        FovealError: there are neither objects nor boxes, or no class names.
    """
    files = find_parquet(root)
    if root.is_dir():
        refuse_images_beside(root, files)
    parts, others = split_files(root, files)
    part, divide = choose_part(f"Parquet {root}", parts, split)
    chosen = parts[part] if part else files
    if divide:
        refuse_parts_in_rows(chosen)
    schema = read_schema(chosen[0])
    objects = OBJECTS in schema.names
    if not objects and BOX_COLUMN not in schema.names:
        raise FovealError(
            f"Parquet files with boxes must have a column {OBJECTS} or {BOX_COLUMN}, got {', '.join(schema.names)} in "
            f"{chosen[0]}"
        )
    images = [
        find_column(read_schema(file), "Image", image_column, ("image", "img"), file) for file in chosen
    ]
    label = None if objects else find_column(schema, "ClassLabel", None, ("label", "labels"), chosen[0])
    kept = tuple(name for name in (OBJECTS if objects else BOX_COLUMN, *OTHERS) if name in schema.names)
    columns = [Columns(image, label, kept) for image in images]
    titles = file_titles(root, chosen)
    table = read_rows(chosen, titles, columns)
    if classes is None:
        named = parts.get("train", chosen)
        classes = _object_classes(named[0], table) if objects else class_names(named, None)
    place_of = {name: label for label, name in enumerate(classes)}
    known_of: list[Known] = []
    for file, rows in zip(chosen, row_counts(chosen), strict=True):
        own = _object_names(file) if objects else own_names(file, label)
        known_of += [Known(place_of, renumbered(own, classes))] * rows
    findings: list[Finding] = []
    boxed, notes = [], []
    if objects and box_format is None:
        notes.append("boxes are taken as x, y, width, height; for corners: --data_options.box_format xyxy")
    identity = 1
    names = _names(table)
    columns_of = {name: table.column(name).to_pylist() for name in (*kept, *(["label"] if label else []))}
    for row, name in enumerate(names):
        if objects:
            found = _objects(columns_of[OBJECTS][row], name, box_format or "xywh", known_of[row], findings)
        else:
            found = _single(
                columns_of[BOX_COLUMN][row], columns_of["label"][row], name, known_of[row], findings
            )
        for number, one in enumerate(found):
            one["id"] = one["id"] if one.get("id") is not None else identity + number
        identity += len(found)
        width, height = (columns_of.get(side, {row: None})[row] for side in ("width", "height"))
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        image_id = columns_of.get("image_id", {row: None})[row]
        boxed.append(boxed_image(name, row + 1 if image_id is None else image_id, found, size=size))
    source = ParquetImages(chosen, titles, columns, np.zeros(len(names)), table, max_pixels=0)
    left_out = dict.fromkeys(others, "a Parquet file that names no split, beside others that do")
    left_out |= absent_files(titles)
    base = root if root.is_dir() else root.parent
    ids = list(range(len(classes)))
    return Annotations(base, boxed, list(classes), ids, findings, left_out, divide, notes, source)


class Known(NamedTuple):
    """The label of every class name, and of every number that a file may hold."""

    place_of: dict[str, int]
    numbers: dict[int, int]

    def refusal(self, value: Any) -> str:
        """What to say of a value that is neither."""
        return f"a class must be 0 to {len(self.place_of) - 1} or one of {few(list(self.place_of))}, got {value!r}"


def _names(table: Any) -> list[str]:
    rows, paths = table.column("row").to_pylist(), table.column("path").to_pylist()
    return [f"{row} {path}" if path else row for row, path in zip(rows, paths, strict=True)]


def _object_names(file: Path) -> list[str]:
    """The names that the metadata has for the objects' class; empty without them."""
    described: Any = hf_features(read_schema(file)).get(OBJECTS, {})
    described = described.get("feature", described) if isinstance(described, dict) else described
    described = described[0] if isinstance(described, list) and described else described
    for name in CLASS_NAMES:
        one: Any = described.get(name) if isinstance(described, Mapping) else None
        one = one.get("feature", one) if isinstance(one, Mapping) else one
        one = one[0] if isinstance(one, list) and one else one
        if isinstance(one, Mapping) and one.get("names"):
            return [str(name) for name in one["names"]]
    return []


def _object_classes(file: Path, table: Any) -> list[str]:
    """The names that the metadata has for the objects' class, else the values found."""
    if names := _object_names(file):
        return names
    found = {value for entry in table.column(OBJECTS).to_pylist() for value in _lists(entry)[1]}
    if found and all(isinstance(value, int) and value >= 0 for value in found):
        return numbered_classes(max(found))
    return sorted(str(value) for value in found)


def _lists(entry: Any) -> tuple[list[Any], list[Any], list[Any], list[Any], list[Any]]:
    """Boxes, classes, ids, areas and crowd flags of an image: stored as a struct of lists or as a list of structs."""
    if entry is None:
        return [], [], [], [], []
    if isinstance(entry, list):
        names = {name for one in entry for name in one}
        entry = {name: [one.get(name) for one in entry] for name in names}

    def first(names: Sequence[str]) -> list[Any]:
        return next((entry[name] for name in names if entry.get(name) is not None), [])

    return first(BOX_NAMES), first(CLASS_NAMES), first(ID_NAMES), first(("area",)), first(CROWD_NAMES)


def _objects(
    entry: Any, name: str, box_format: str, known: Known, findings: list[Finding]
) -> list[dict[str, Any]]:
    boxes, labels, ids, areas, crowds = _lists(entry)
    if len(boxes) != len(labels):
        text = f"an image must have one class a box, got {len(boxes)} boxes and {len(labels)} classes"
        findings.append(Finding("boxes of unknown classes", "error", name, text, name))
        return []
    rows = []
    for number, (box, value) in enumerate(zip(boxes, labels, strict=True)):
        where = f"{name}, object {number + 1}"
        label = _label(value, known)
        if label is None:
            text = known.refusal(value)
            findings.append(Finding("boxes of unknown classes", "error", where, text, name))
            continue
        if box is None or len(box) != 4 or None in box:
            findings.append(
                Finding("annotations without a box", "warning", where, f"left out, got {box}", name)
            )
            continue
        x1, y1, x2, y2 = box if box_format == "xyxy" else (box[0], box[1], box[0] + box[2], box[1] + box[3])
        row = {"box": (x1, y1, x2, y2), "label": label, "place": where}
        row["id"] = ids[number] if number < len(ids) and isinstance(ids[number], int) else None
        row["area"] = areas[number] if number < len(areas) and areas[number] is not None else float("nan")
        row["crowd"] = bool(crowds[number]) if number < len(crowds) else False
        rows.append(row)
    return rows


def _single(box: Any, value: Any, name: str, known: Known, findings: list[Finding]) -> list[dict[str, Any]]:
    """One box an image, corners; null is an image without objects."""
    if box is None:
        return []
    label = _label(value, known)
    if label is None:
        text = known.refusal(value)
        findings.append(Finding("boxes of unknown classes", "error", name, text, name))
        return []
    return [{"box": tuple(box), "label": label, "place": name}]


def _label(value: Any, known: Known) -> int | None:
    if isinstance(value, str):
        return known.place_of.get(value)
    return known.numbers.get(value) if isinstance(value, int) else None
