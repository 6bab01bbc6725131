"""Parquet files in the layout of Hugging Face ``datasets``: encoded images inside, class names in the schema."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foveal.data.dataset import (
    StoredDataset,
    check_classes,
    empty_classes,
    few,
    looks_whole,
    refuse_repeated,
    renumbered,
)
from foveal.data.decode import check_decoding, decode_image
from foveal.data.opening import MAX_PIXELS, LabelError
from foveal.data.split import choose_part, hold_out, split_of, splits_in
from foveal.errors import FovealError
from foveal.files import utf8_path
from foveal.image_files import fingerprint, survey_images, walk_files

BOX_COLUMN = "box_xyxy"
MOST_CLASSES = 100_000  # without names: ids in place of classes would be a list of millions
MOST_FILES = 10_000  # of a numbered set that are looked for


class ParquetImages:
    """Source of rows held in memory, still encoded; a process that gets a copy reads the files again, when needed.

    Args:
        files: the Parquet files.
        titles: what each is called in names.
        columns: (image, label, further columns) of each file.
        labels: (rows,) of all files together.
        max_pixels, channels, grey_bits: as in `decode_image`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        titles: Sequence[str],
        columns: Sequence[Columns],
        labels: np.ndarray,
        table: Any,
        *,
        max_pixels: int,
        channels: int = 3,
        grey_bits: int = 16,
    ) -> None:
        self.files, self.titles, self.columns, self.labels = list(files), list(titles), list(columns), labels
        self.max_pixels, self.channels, self.grey_bits = max_pixels, channels, grey_bits
        self._state = fingerprint(self.files)
        self._table = table

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    @property
    def table(self) -> Any:
        """Columns bytes, path, row and where present box_xyxy of all rows."""
        if self._table is None:
            if fingerprint(self.files) != self._state:
                raise LabelError(
                    f"Parquet files must not change while they are read, got {self.files[0]} changed"
                )
            self._table = read_rows(self.files, self.titles, self.columns)
        return self._table

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        path = self.table.column("path")[index].as_py()
        return self.table.column("row")[index].as_py() + (f" {path}" if path else "")

    def content(self, index: int) -> bytes:
        return self.table.column("bytes")[index].as_py() or b""

    def sample(self, index: int) -> dict[str, Any]:
        image = decode_image(
            self.content(index),
            name=self.name(index),
            max_pixels=self.max_pixels,
            channels=self.channels,
            grey_bits=self.grey_bits,
        )
        sample: dict[str, Any] = {"image": image, "label": int(self.labels[index])}
        if BOX_COLUMN in self.table.column_names:
            box = self.table.column(BOX_COLUMN)[index].as_py()
            sample[BOX_COLUMN] = torch.tensor(box, dtype=torch.float32)
        return sample

    def looks_whole(self, index: int) -> bool:
        content = self.content(index)
        return looks_whole(content[:32], content[-32:], len(content))

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of the files as they were when the data set was opened, under the names they have in it."""
        stats = [(title, file.stat()) for title, file in zip(self.titles, self.files, strict=True)]
        text = "".join(f"{title!r} {s.st_size} {s.st_mtime_ns}\n" for title, s in stats) + repr(self.columns)
        rows = np.asarray(indices, dtype=np.int64)
        return hashlib.blake2b(
            text.encode(errors="backslashreplace") + rows.tobytes(), digest_size=16
        ).hexdigest()


class Columns(NamedTuple):
    """The columns of one file: of images, of labels where it has one, and those that come along as they are."""

    image: str
    label: str | None
    others: tuple[str, ...] = ()


def find_parquet(root: Path) -> list[Path]:
    """The Parquet files below a folder, hidden ones left out, or the file itself."""
    if root.is_file():
        return [root]
    return [Path(path) for path in walk_files(root) if path.lower().endswith(".parquet")]


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
    channels: int = 3,
    grey_bits: int = 16,
) -> StoredDataset:
    """Parquet files below a folder, or one file. See ``open_dataset``.

    The split of a file is a word of its name (``train-00000-of-00002.parquet``, ``pets_test.parquet``) or of a folder
    it lies in (``train/0000.parquet``). If no file names a split, all of them together are divided into train and
    val; otherwise files without one (``unsupervised-...``) are in ``left_out``. The image and label columns are those
    of type ``Image`` and ``ClassLabel`` in the schema's metadata, else those called image or img, label or labels. A
    column ``box_xyxy`` of four numbers comes along as it is stored. The encoded images are held in memory, once in
    every process that reads them.
    """
    check_decoding(channels, grey_bits)
    files = find_parquet(root)
    if root.is_dir():
        refuse_images_beside(root, files)
    parts, others = split_files(root, files)
    part, divide = choose_part(f"Parquet {root}", parts, split)
    chosen = parts[part] if part else files

    columns = [_columns(file, image_column, label_column) for file in chosen]
    if classes is None:
        classes = class_names(parts.get("train", chosen), label_column)
    refuse_repeated(classes)
    check_classes(classes)
    titles = file_titles(root, chosen)
    table = read_rows(chosen, titles, columns)
    labels: list[int] = []
    for file, column, rows in zip(chosen, columns, row_counts(chosen), strict=True):
        stored = table.column("label").slice(len(labels), rows)
        numbers = renumbered(own_names(file, column.label), classes)
        labels += label_numbers(stored, classes, root, numbers, len(labels))
    source = ParquetImages(
        chosen, titles, columns, np.asarray(labels, dtype=np.int64), table.drop_columns(["label"]),
        max_pixels=max_pixels, channels=channels, grey_bits=grey_bits,
    )  # fmt: skip
    indices: Sequence[int] = range(len(labels))
    if divide:
        refuse_parts_in_rows(chosen)
        names = [source.name(index) for index in indices]
        indices = hold_out(names, labels, split, val_share=val_share, split_seed=split_seed)
    left_out = dict.fromkeys(others, "a Parquet file that names no split, beside others that do")
    left_out |= absent_files(titles)
    notes = list(empty_classes([labels[index] for index in indices], classes, split))
    return StoredDataset(
        source, indices, classes, max_unreadable=max_unreadable, left_out=left_out, notes=notes
    )


def refuse_images_beside(root: Path, files: Sequence[Path]) -> None:
    """A folder with Parquet files and folders of images may mean either."""
    folders = {image.partition("/")[0] for image in survey_images(root).images if "/" in image}
    if folders:
        raise FovealError(
            f"data must be Parquet files or folders of images, got {len(files)} Parquet files (the first is "
            f"{files[0].relative_to(root).as_posix()}) and images in {few(sorted(folders))} of {root}; name the "
            "Parquet file, or move one of them away"
        )


def split_files(root: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Split -> files, by words of their names and folders, and the names of files without a split beside such."""
    parts: dict[str, list[Path]] = defaultdict(list)
    others = []
    if root.is_file():
        return parts, others
    for file in files:
        below = file.relative_to(root)
        # the innermost name that speaks of a split
        spoken = [found for name in (file.stem, *reversed(below.parts[:-1])) if (found := splits_in(name))]
        if len(set().union(*spoken)) > 1:
            raise FovealError(
                f"a Parquet file must be of one split, got {' and '.join(sorted(set().union(*spoken)))} in the name "
                f"{below.as_posix()}"
            )
        if spoken:
            parts[spoken[0].pop()].append(file)
        else:
            others.append(below.as_posix())
    return parts, others if parts else []


def refuse_parts_in_rows(files: Sequence[Path]) -> None:
    """Raise where a column says of each row which part it is of: rows of the test part would be trained on."""
    for file in files:
        if "split" not in read_schema(file).names:
            continue
        said = {str(value) for value in _table(file, ["split"]).column(0).unique().to_pylist()}
        if any(split_of(value) for value in said):
            raise FovealError(
                f"parts must be files of their own, such as train.parquet and test.parquet, got the column split with "
                f"{few(sorted(said))} in {file}"
            )


def absent_files(titles: Sequence[str]) -> dict[str, str]:
    """name -> why, for files of a numbered set that are not there: the second of train-00000-of-00002.parquet.

    Example:
        >>> list(absent_files(["train-00000-of-00002.parquet", "val.parquet"]))
        ['train-00001-of-00002.parquet']
    """
    absent = {}
    for title in titles:
        match = re.fullmatch(r"(.*-)(\d{5})(-of-(\d{5})\b.*)", title)
        for number in range(min(int(match[4]), MOST_FILES) if match else 0):
            name = f"{match[1]}{number:05}{match[3]}" if match else ""
            if name not in titles:
                absent[name] = "a file of a numbered set that is not there"
    return absent


def file_titles(root: Path, files: Sequence[Path]) -> list[str]:
    """The files' names, with their folders where two have one name."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    return [file.relative_to(root).as_posix() for file in files]


def _columns(file: Path, image_column: str | None, label_column: str | None) -> Columns:
    import pyarrow as pa

    schema = read_schema(file)
    image = find_column(schema, "Image", image_column, ("image", "img"), file)
    label = find_column(schema, "ClassLabel", label_column, ("label", "labels"), file)
    if pa.types.is_nested(schema.field(label).type):
        raise FovealError(
            f"an image must have one label, got {schema.field(label).type}, several an image, in {label} of {file}"
        )
    return Columns(image, label, (BOX_COLUMN,) if BOX_COLUMN in schema.names else ())


def read_rows(files: Sequence[Path], titles: Sequence[str], columns: Sequence[Columns]) -> Any:
    """Columns bytes, path, row, label where there is one, and the others by their names, of all rows."""
    import psutil
    import pyarrow as pa
    import pyarrow.compute as pc

    size, free = sum(file.stat().st_size for file in files), psutil.virtual_memory().available
    if size > 0.7 * free:
        raise FovealError(
            f"Parquet images are held in memory and may take 70 % of the {free / 2**30:.1f} GiB that "
            f"are free, got {size / 2**30:.1f} GiB"
        )
    tables = []
    for file, title, (image, label, others) in zip(files, titles, columns, strict=True):
        table = _table(file, [image, *([label] if label is not None else []), *others])
        stored = table.column(image)
        paths: Any = pa.nulls(len(stored), pa.string())
        if pa.types.is_struct(stored.type):
            if stored.type.get_field_index("path") >= 0:
                paths = pc.struct_field(stored, "path").cast(pa.string())  # pyright: ignore[reportAttributeAccessIssue]
            stored = pc.struct_field(stored, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
        if not (pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type)):
            raise FovealError(f"images must be stored as bytes, got {stored.type} in {image} of {file}")
        # Arrow's texts are UTF-8, which the name of a file need not be
        title = title.encode(errors="backslashreplace").decode()
        found = {"bytes": stored, "path": paths, "row": [f"{title}[{row}]" for row in range(len(stored))]}
        found |= {name: table.column(name) for name in others}
        if label is not None:
            found["label"] = table.column(label)
        tables.append(pa.table(found))
    return pa.concat_tables(tables)


def _table(file: Path, columns: list[str]) -> Any:
    import pyarrow.parquet as pq

    with utf8_path(file) as name:
        return pq.read_table(name, columns=columns)


def read_schema(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with utf8_path(file) as name:
            return pq.read_schema(name)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise FovealError(f"not a readable Parquet file, got {file}: {reason}") from None


def hf_features(schema: Any) -> dict[str, Any]:
    """Column -> description, from the metadata that ``datasets`` writes; empty without it."""
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        return json.loads(metadata)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}


def find_column(schema: Any, kind: str, asked: str | None, usual: Sequence[str], file: Path) -> str:
    """The column of a feature type: as asked, the only one of that type, or one with a usual name."""
    if asked is not None:
        if asked not in schema.names:
            raise FovealError(f"columns of {file} are {', '.join(schema.names)}, got {asked!r}")
        return asked
    described = hf_features(schema)
    typed = [name for name in schema.names if str(described.get(name, {}).get("_type", "")) == kind]
    named = [name for name in usual if name in schema.names]
    if len(typed) == 1:
        return typed[0]
    if len(named) == 1:
        return named[0]
    option = "image_column" if kind == "Image" else "label_column"
    among = typed or named or schema.names
    raise FovealError(f"{file} needs {option}, one of {', '.join(among)}, got none")


def class_names(files: Sequence[Path], label_column: str | None) -> list[str]:
    """From the metadata of the first file; without it, the values found in the label columns."""

    schema = read_schema(files[0])
    column = find_column(schema, "ClassLabel", label_column, ("label", "labels"), files[0])
    if names := own_names(files[0], column):
        return names
    values = set().union(*(_table(file, [column]).column(0).unique().to_pylist() for file in files))
    values.discard(None)
    if values and all(isinstance(value, bool) for value in values):
        return ["False", "True"]
    if values and all(isinstance(value, int) and value >= 0 for value in values):
        return numbered_classes(max(values))
    return sorted(str(value) for value in values)


def numbered_classes(largest: int) -> list[str]:
    """Numbers in place of names.

    Raises:
        FovealError: there would be more of them than anyone has classes.
    """
    if largest >= MOST_CLASSES:
        raise FovealError(f"labels without names must count from 0 to below {MOST_CLASSES:,}, got {largest}")
    return [str(value) for value in range(largest + 1)]


def own_names(file: Path, column: str | None) -> list[str]:
    """The names that a file's metadata has for the numbers of a column; empty without them."""
    described = hf_features(read_schema(file)).get(column or "", {})
    names = described.get("names") if isinstance(described, Mapping) else None
    return [str(name) for name in names or ()]


def row_counts(files: Sequence[Path]) -> list[int]:
    """How many rows each file has."""
    import pyarrow.parquet as pq

    counts = []
    for file in files:
        with utf8_path(file) as name:
            counts.append(pq.read_metadata(name).num_rows)
    return counts


def label_numbers(
    column: Any, classes: Sequence[str], root: Path, numbers: Mapping[int, int], first: int = 0
) -> list[int]:
    """Stored names by their place in ``classes``, stored numbers by ``numbers``, see `renumbered`.

    Args:
        first: which row of all files the column begins with.
    """
    place = {name: label for label, name in enumerate(classes)}
    labels = []
    for row, value in enumerate(column.to_pylist(), start=first):
        label = place.get(value) if isinstance(value, str) else numbers.get(value)
        if label is None or isinstance(value, float):
            hint = "; -1 usually marks images without a label, which must be taken out" if value == -1 else ""
            raise FovealError(
                f"labels must be 0 to {len(classes) - 1} or a class name, got {value!r} "
                f"in row {row} of {root}{hint}"
            )
        labels.append(label)
    return labels
