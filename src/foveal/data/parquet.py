"""Parquet files in the layout of Hugging Face ``datasets``: encoded images inside, class names in the schema."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foveal.data.decode import MAX_PIXELS, decode_image
from foveal.data.items import (
    SPLIT_NAMES,
    StoredDataset,
    check_classes,
    choose_part,
    hold_out,
    looks_whole,
    refuse_repeated,
)
from foveal.errors import FovealError

BOX_COLUMN = "box_xyxy"


class ParquetImages:
    """Source of rows held in memory, still encoded."""

    def __init__(
        self, content: Any, names: Sequence[str], labels: Sequence[int], boxes: Any, max_pixels: int
    ) -> None:
        self.content, self.names, self.labels, self.boxes = content, names, labels, boxes
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def _bytes(self, index: int) -> bytes:
        return self.content[index].as_py() or b""

    def sample(self, index: int) -> dict[str, Any]:
        image = decode_image(self._bytes(index), name=self.names[index], max_pixels=self.max_pixels)
        sample: dict[str, Any] = {"image": image, "label": self.labels[index]}
        if self.boxes is not None:
            sample[BOX_COLUMN] = torch.tensor(self.boxes[index].as_py(), dtype=torch.float32)
        return sample

    def looks_whole(self, index: int) -> bool:
        content = self._bytes(index)
        return looks_whole(content[:32], content[-32:], len(content))


def find_parquet(root: Path) -> list[Path]:
    """The Parquet files below a folder, hidden ones left out, or the file itself."""
    if root.is_file():
        return [root]
    return sorted(
        path
        for path in root.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def open_parquet(
    root: Path,
    split: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    max_pixels: int = MAX_PIXELS,
) -> StoredDataset:
    """Parquet files below a folder, or one file. See ``open_dataset``.

    The split of a file is the first part of its name (``train-00000-of-00002.parquet``) or its folder
    (``train/0000.parquet``). If no file names a split, all of them together are divided into train and val;
    otherwise files without one (``unsupervised-...``) are ignored. The image and label columns are those of type
    ``Image`` and ``ClassLabel`` in the schema's metadata, else those called image or img, label or labels. A
    column ``box_xyxy`` of four numbers comes along as it is stored. The encoded images are held in memory.
    """
    files = find_parquet(root)
    parts: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        words = (file.stem.split("-")[0].lower(), file.parent.name.lower() if root.is_dir() else "")
        part = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        if part and root.is_dir():
            parts[part].append(file)
    part, divide = choose_part(f"Parquet {root}", parts, split)
    chosen = parts[part] if part else files

    table, row_names = _read(chosen, image_column, label_column)
    if classes is None:
        classes = _class_names(parts.get("train", chosen), label_column)
    check_classes(classes)
    refuse_repeated(classes)
    labels = _labels(table.column("label"), classes, root)
    boxes = table.column(BOX_COLUMN) if BOX_COLUMN in table.column_names else None
    indices: Sequence[int] = range(len(labels))
    if divide:
        indices = hold_out(row_names, labels, split, val_share=val_share, split_seed=split_seed)
    source = ParquetImages(table.column("bytes"), row_names, labels, boxes, max_pixels)
    return StoredDataset(source, indices, classes, max_unreadable=max_unreadable)


def _read(files: Sequence[Path], image_column: str | None, label_column: str | None) -> tuple[Any, list[str]]:
    """Columns bytes, label and where present box_xyxy of all rows, and the rows' names."""
    import psutil
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    size, free = sum(file.stat().st_size for file in files), psutil.virtual_memory().available
    if size > 0.7 * free:
        raise FovealError(
            f"Parquet images are held in memory and may take 70 % of the {free / 2**30:.1f} GiB that "
            f"are free, got {size / 2**30:.1f} GiB"
        )
    tables, names = [], []
    for file in files:
        schema = _schema(file)
        image = _column(schema, "Image", image_column, ("image", "img"), file)
        label = _column(schema, "ClassLabel", label_column, ("label", "labels"), file)
        box = [BOX_COLUMN] if BOX_COLUMN in schema.names else []
        table = pq.read_table(file, columns=[image, label, *box])
        stored = table.column(image)
        paths: list[str | None] = [None] * len(stored)
        if pa.types.is_struct(stored.type):
            if stored.type.get_field_index("path") >= 0:
                paths = pc.struct_field(stored, "path").to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
            stored = pc.struct_field(stored, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
        if not (pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type)):
            raise FovealError(f"images must be stored as bytes, got {stored.type} in {image} of {file}")
        columns = {"bytes": stored, "label": table.column(label)}
        tables.append(pa.table(columns | {name: table.column(name) for name in box}))
        names += [f"{file.name}[{row}]" + (f" {path}" if path else "") for row, path in enumerate(paths)]
    return pa.concat_tables(tables), names


def _schema(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise FovealError(f"not a readable Parquet file, got {file}: {reason}") from None


def _features(schema: Any) -> dict[str, Any]:
    """Column -> description, from the metadata that ``datasets`` writes; empty without it."""
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        return json.loads(metadata)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}


def _column(schema: Any, kind: str, asked: str | None, usual: Sequence[str], file: Path) -> str:
    """The column of a feature type: as asked, the only one of that type, or one with a usual name."""
    if asked is not None:
        if asked not in schema.names:
            raise FovealError(f"columns of {file} are {', '.join(schema.names)}, got {asked!r}")
        return asked
    described = _features(schema)
    typed = [name for name in schema.names if str(described.get(name, {}).get("_type", "")) == kind]
    named = [name for name in usual if name in schema.names]
    if len(typed) == 1:
        return typed[0]
    if named:
        return named[0]
    option = "image_column" if kind == "Image" else "label_column"
    among = typed or schema.names
    raise FovealError(f"{file} needs {option}, one of {', '.join(among)}, got none")


def _class_names(files: Sequence[Path], label_column: str | None) -> list[str]:
    """From the metadata of the first file; without it, the values found in the label columns."""
    import pyarrow.parquet as pq

    schema = _schema(files[0])
    column = _column(schema, "ClassLabel", label_column, ("label", "labels"), files[0])
    names = _features(schema).get(column, {}).get("names")
    if names:
        return [str(name) for name in names]
    values = set().union(
        *(pq.read_table(file, columns=[column]).column(0).unique().to_pylist() for file in files)
    )
    values.discard(None)
    if values and all(isinstance(value, int) and value >= 0 for value in values):
        return [str(value) for value in range(max(values) + 1)]
    return sorted(str(value) for value in values)


def _labels(column: Any, classes: Sequence[str], root: Path) -> list[int]:
    """Stored numbers, or stored names by their place in ``classes``."""
    place = {name: label for label, name in enumerate(classes)}
    labels = []
    for row, value in enumerate(column.to_pylist()):
        label = place.get(value, -1) if isinstance(value, str) else value
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise FovealError(
                f"labels must be 0 to {len(classes) - 1} or a class name, got {value!r} "
                f"in row {row} of {root}"
            )
        labels.append(label)
    return labels
