"""A data set as chunks: large files that hold many images each, to be read from a slow disk or over a network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import foveal
from foveal.data.chunks import CHUNK_BYTES, ChunkWriter
from foveal.data.dataset import NEVER_SKIPPED
from foveal.data.loader import seed_for
from foveal.data.packed_items import BOX, BOX_KIND, PACKED_TASKS, encode, png_file
from foveal.data.sources.packed import ITEMS, MANIFEST, Manifest
from foveal.data.split import SPLITS, NoPartError
from foveal.errors import FovealError
from foveal.files import atomic_write, utf8_path, write_json, write_text
from foveal.folders import locked, require_absent
from foveal.tasks import task_named

DATA = "data.json"
"""What is packed, as long as it is not all packed."""
PROGRESS = "progress.jsonl"
"""How far a part is packed."""


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    Attributes:
        folder: where it is.
        items, chunks: split -> how many.
        size: bytes of all chunks.
        left_out: images that are unreadable and not packed, name -> why.
    """

    folder: Path
    items: dict[str, int]
    chunks: dict[str, int]
    size: int
    left_out: dict[str, str]


def pack(
    data: str,
    out: str | os.PathLike[str],
    *,
    task: str = "classify",
    data_options: Mapping[str, Any] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Callable[[str, int, int], None] | None = None,
) -> Packed:
    """Write a data set as a folder of chunks, which `foveal.data.open_dataset` and litdata open.

    Image files go into the chunks byte for byte; data without files, such as the bundled scenes, as PNG. Images for
    training are shuffled once, so that a chunk holds images of every class; the others keep their order. Parts,
    classes, names and truth come along, and stay as they are packed. What was stopped goes on after its last whole
    chunk when the same data are packed to the same place again, to the same bytes.

    Args:
        data: as for ``open_dataset``.
        out: the folder, which must not exist: it appears whole, or not at all. Until then chunks are in the hidden
            folder ``.NAME.unfinished`` beside it.
        task: what the data are for: classify, segment or detect.
        data_options: of the data set.
        chunk_bytes: size of a chunk, about.
        progress: called with split, items done and items of the split.

    Raises:
        FovealError: ``out`` exists, the data cannot be opened, or more than ``max_unreadable`` of the images are
            unreadable, or another process packs to this place.
        KeyboardInterrupt: Ctrl-C; its text says how to go on.

    Example:
        >>> import tempfile
        >>> from foveal.data import open_dataset
        >>> packed = pack("scenes", tempfile.mkdtemp() + "/packed", data_options={"length": 8})
        >>> packed.items, len(open_dataset(str(packed.folder), "val"))
        ({'train': 8, 'val': 8, 'test': 8}, 8)
    """
    if task not in PACKED_TASKS:
        raise FovealError(f"task must be one of {', '.join(PACKED_TASKS)}, got {task!r}")
    if not 2**10 <= chunk_bytes < 2**32:
        raise FovealError(f"chunk_bytes must be {2**10} to {2**32 - 1}, got {chunk_bytes}")
    if "channels" in (data_options or {}):
        raise FovealError("channels must be said where packed images are read, got it where they are packed")
    place, source = Path(out), Path(data).expanduser()
    require_absent(place)
    if source.is_dir() and place.resolve().is_relative_to(source.resolve()):
        raise FovealError(f"out must lie outside the data, got {place} in {data}")
    opened = dict(_parts(data, task, dict(data_options or {})))
    first = next(iter(opened.values()))
    for split, part in opened.items():
        if list(part.classes) != list(first.classes):
            raise FovealError(
                f"parts must have the same classes, got {part.classes} for {split} and {first.classes}"
            )
    facts = {"task": task, "chunk_bytes": chunk_bytes, "data": data, "options": repr(data_options)}
    facts |= {split: [len(part), getattr(part, "fingerprint", None)] for split, part in opened.items()}
    with _unfinished(place, {"foveal": foveal.__version__, **facts}) as folder:
        writers, left_out = {}, {}
        for split, part in opened.items():
            (folder / split).mkdir(exist_ok=True)
            writers[split] = _write_part(part, split, task, folder / split, chunk_bytes, left_out, progress)
        manifest = Manifest(
            task=task,
            classes=list(first.classes),
            mirror=getattr(first, "mirror", True),
            ignore_index=getattr(first, "ignore_index", None),
            category_ids=getattr(first, "category_ids", None),
            parts=list(opened),
            grey_bits=getattr(first, "grey_bits", 16),
        )
        write_json(folder / MANIFEST, {"format": 1, **asdict(manifest)})
    size = sum(chunk["chunk_bytes"] for writer in writers.values() for chunk in writer.rows)
    items = {split: sum(row["chunk_size"] for row in writer.rows) for split, writer in writers.items()}
    return Packed(
        place, items, {split: len(writer.rows) for split, writer in writers.items()}, size, left_out
    )


@contextmanager
def _unfinished(place: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """The folder that is filled, with the chunks that were written before of the same data; it becomes ``place``."""
    folder = place.with_name(f".{place.name}.unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "foveal pack"):
        try:
            known = None
            with suppress(OSError, ValueError):
                known = json.loads((folder / DATA).read_text(encoding="utf-8"))
            if known != facts:
                _empty(folder)
                write_json(folder / DATA, facts)
            yield folder
            for left in (folder / DATA, *folder.glob(f"*/{PROGRESS}")):
                left.unlink()
            require_absent(place, why="which has appeared meanwhile")
        except BaseException as error:
            if isinstance(error, FovealError) or not any(folder.glob(f"*/{PROGRESS}")):
                shutil.rmtree(folder, ignore_errors=True)
            elif isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f"stopped; whole chunks are kept in {folder}, and the same command goes on"
                ) from None
            raise
    os.rename(folder, place)


def _empty(folder: Path) -> None:
    """Remove what another packing left, but for the lock that is held."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()


def _parts(data: str, task: str, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parts that the data have, all of which must hold something."""
    missing = []
    for split in SPLITS:
        try:
            part = task_named(task).open(data, split, options)
        except NoPartError as error:
            missing.append(str(error))
            continue
        if len(part) == 0:
            raise FovealError(f"a part must hold at least 1 image, got 0 for {split} in {data}")
        yield split, part
    if len(missing) == len(SPLITS):
        raise FovealError(missing[0])


def _write_part(
    part: Any,
    split: str,
    task: str,
    folder: Path,
    chunk_bytes: int,
    left_out: dict[str, str],
    progress: Callable[[str, int, int], None] | None,
) -> ChunkWriter:
    fields = dict(PACKED_TASKS[task])
    if "label" in fields and BOX in part[0]:
        fields[BOX] = BOX_KIND
    kept = _Progress(folder / PROGRESS)
    writer = ChunkWriter(folder, fields, chunk_bytes, kept.chunks)
    names, rows, unreadable = list(part.names), kept.rows, kept.unreadable
    # known without decoding an image, where a label is all there is
    labels = part.labels if "label" in fields and BOX not in fields and hasattr(part, "encoded") else None
    generator = torch.Generator().manual_seed(seed_for(0, "pack"))
    order = torch.randperm(len(part), generator=generator).tolist() if split == "train" else range(len(part))
    for done, place in enumerate(order, 1):
        if done <= kept.items:
            continue
        try:
            image, truth = _item(part, place, None if labels is None else labels[place])
        except NEVER_SKIPPED:
            raise
        except (ValueError, OSError) as error:
            unreadable[names[place]] = str(error)
            if len(unreadable) > part.max_unreadable * len(part):
                raise FovealError(
                    f"at most {part.max_unreadable:.3g} of the images may be unreadable (max_unreadable), got "
                    f"{len(unreadable)} of {len(part)} for {split}, the last is {names[place]}: {error}"
                ) from None
            continue
        if writer.add(encode(task, image, names[place], truth)):
            kept.add(done - 1, writer.rows)
        rows.append({"name": names[place], **_known(truth)})
        if progress is not None:
            progress(split, done, len(part))
    writer.close()
    _write_items(folder / ITEMS, rows)
    kept.add(len(part), writer.rows)
    left_out |= {**getattr(part, "skipped", {}), **unreadable}
    return writer


class _Progress:
    """How far a part is packed: a line of a file for each whole chunk, with what came since the one before it.

    Attributes:
        items: of the part that need not be looked at again.
        chunks: what the index says of their chunks.
        rows: of `ITEMS`; those that come later are added by the writer of the part.
        unreadable: name -> why; likewise.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.items = path, 0
        self.chunks: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.unreadable: dict[str, str] = {}
        whole = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # the last one, of a process that was killed
                break
            whole.append(f"{line}\n")
            self.items = entry["items"]
            self.chunks += entry["chunks"]
            self.rows += entry["rows"]
            self.unreadable |= entry["unreadable"]
        if whole:
            write_text(path, "".join(whole))
        self._told = len(self.chunks), len(self.rows), len(self.unreadable)

    def add(self, items: int, chunks: list[dict[str, Any]]) -> None:
        """So many items are in whole chunks on the disk, or unreadable."""
        c, r, u = self._told
        entry = {"items": items, "chunks": chunks[c:], "rows": self.rows[r:]}
        entry["unreadable"] = dict(list(self.unreadable.items())[u:])
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._told = len(chunks), len(self.rows), len(self.unreadable)


def _item(part: Any, place: int, label: int | None) -> tuple[bytes, Mapping[str, Any]]:
    """The image file of an item and its truth; with a label given, the image is not decoded."""
    file = part.encoded(place) if hasattr(part, "encoded") else None
    if file is not None and label is not None:
        return file, {"label": label}
    sample = part.sample(place) if hasattr(part, "sample") else part[place]
    return png_file(sample["image"]) if file is None else file, sample


def _known(truth: Mapping[str, Any]) -> dict[str, int]:
    """What `ITEMS` says of an item beside its name."""
    if "label" in truth:
        return {"label": int(truth["label"])}
    return {"objects": int((~truth["crowd"]).sum())} if "crowd" in truth else {}


def _write_items(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [row["name"].encode(errors="backslashreplace").decode() for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "name"}
    table = pa.table({"name": names, **columns})

    def write(temporary: Path) -> None:
        with utf8_path(temporary) as name:
            pq.write_table(table, name, compression="zstd")

    atomic_write(path, write)
