"""Chunks of items, in a folder or on the network: what `foveal pack` writes, and data sets of litdata with labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.chunks import INDEX, ChunkIndex, ChunkReader, parse_index
from foveal.data.dataset import StoredDataset, few, refuse_repeated
from foveal.data.decode import check_decoding
from foveal.data.opening import MAX_PIXELS
from foveal.data.packed_items import PACKED_TASKS, ItemReader
from foveal.data.split import SPLITS, choose_part, hold_out
from foveal.data.stores import CACHE, CACHE_GIB, LocalStore, RemoteStore
from foveal.errors import FovealError

MANIFEST = "foveal.json"
"""What the chunks cannot say: task, classes and parts."""
ITEMS = "items.parquet"
"""Names and labels of a part's items, which are read without its chunks."""
CHUNKS_AT_ONCE = 16
"""Of a data set on the network the cache must hold so many: training reads from eight at a time, and fetches the next
ones meanwhile."""


def is_packed(spec: str) -> bool:
    """Whether data are named by a URL, or lie in a folder of chunks."""
    if "://" in spec:
        return True
    root = Path(spec).expanduser()
    return any((root / name).is_file() for name in (MANIFEST, INDEX, *(f"{part}/{INDEX}" for part in SPLITS)))


@dataclass(frozen=True)
class Manifest:
    """What ``foveal.json`` says; without that file, what is known of any data set of litdata.

    Attributes:
        task: what it was packed for, None where nobody knows.
        classes, mirror, ignore_index, category_ids: as of `StoredDataset`.
        parts: train, val and test, as far as they are there; none for chunks beside the root's own index.
        grey_bits: of grey files, as of `decode_image`.
    """

    task: str | None = None
    classes: list[str] | None = None
    mirror: bool = True
    ignore_index: int | None = None
    category_ids: list[int] | None = None
    parts: list[str] = field(default_factory=list)
    grey_bits: int = 16


class PackedImages:
    """Source of the items of one part.

    Args:
        reader: the chunks.
        to_sample: the fields of an item, and what to call it -> the sample.
        folder: of the part below the store, "" or with ``/`` at its end.
        packed: whether `ITEMS` may lie there, as `foveal pack` writes it.
        grey_bits: with which images are decoded.
    """

    def __init__(
        self,
        reader: ChunkReader,
        to_sample: Callable[[list[bytes], str], dict[str, Any]],
        folder: str,
        packed: bool,
        grey_bits: int = 16,
    ) -> None:
        self.reader, self.to_sample, self.folder, self.packed = reader, to_sample, folder, packed
        self.grey_bits = grey_bits
        self._near: list[int] = []

    def __len__(self) -> int:
        return len(self.reader)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "table"}

    @cached_property
    def table(self) -> Any:
        """The columns of `ITEMS`, read when they are first asked for; None where there is no such file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        where = f"{self.reader.store.where}{self.folder}{ITEMS}"
        content = self.reader.store.read(f"{self.folder}{ITEMS}") if self.packed else None
        if content is None:
            return None
        try:
            table = pq.read_table(pa.BufferReader(content))
        except pa.ArrowException as error:
            raise FovealError(
                f"not a readable Parquet file, got {where}: {str(error).splitlines()[0]}"
            ) from None
        if len(table) != len(self) or "name" not in table.column_names:
            raise FovealError(
                f"{where} must name {len(self)} items, got {len(table)} rows of {table.column_names}"
            )
        return table

    @property
    def labels(self) -> np.ndarray | None:
        """(items,) where they are known without reading the chunks."""
        table = self.table
        return table["label"].to_numpy() if table is not None and "label" in table.column_names else None

    def object_count(self, index: int) -> int | None:
        """How many objects an image has, crowds left out; None where that is not stored."""
        table = self.table
        return (
            table["objects"][index].as_py() if table is not None and "objects" in table.column_names else None
        )

    def name(self, index: int) -> str:
        table = self.table
        if table is not None:
            return table["name"][index].as_py()
        place = self.reader.chunk_of(index)
        return f"{self.reader.index.chunks[place].name}[{index - int(self.reader.starts[place])}]"

    def content(self, index: int) -> bytes:
        return self.reader.item(index)[0]

    def sample(self, index: int) -> dict[str, Any]:
        place = self.reader.chunk_of(index)
        chunk = self.reader.index.chunks[place]
        where = f"{self.reader.store.where}{chunk.name}[{index - int(self.reader.starts[place])}]"
        return self.to_sample(self.reader.item(index), where)

    def looks_whole(self, index: int) -> bool:
        return True  # looked at when they were packed; files of other writers show it when they are read

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of the index, which changes whenever the chunks are written, and so the same wherever they lie."""
        rows = np.asarray(indices, dtype=np.int64).tobytes()
        return hashlib.blake2b(self.reader.index.digest.encode() + rows, digest_size=16).hexdigest()

    @property
    def prefetch(self) -> Callable[[Sequence[int]], None] | None:
        """Begin to fetch the chunks of some items; None where they are on this disk."""
        store = self.reader.store
        return self._prefetch if isinstance(store, RemoteStore) else None

    def _prefetch(self, indices: Sequence[int]) -> None:
        new = [place for place in dict.fromkeys(self.chunks_of(indices).tolist()) if place not in self._near]
        # those asked for last: the rest may have been removed from the cache meanwhile
        self._near = [*self._near, *new][-CHUNKS_AT_ONCE:]
        if isinstance(self.reader.store, RemoteStore) and new:
            self.reader.store.prefetch([self.reader.index.chunks[place] for place in new])

    def chunks_of(self, indices: Sequence[int]) -> np.ndarray:
        """(indices,) int64: the number of each item's chunk."""
        return np.searchsorted(self.reader.starts, np.asarray(indices, dtype=np.int64), side="right") - 1


def open_packed(
    spec: str,
    split: str = "train",
    *,
    task: str = "classify",
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache: str = CACHE,
    cache_gib: float = CACHE_GIB,
    val_share: float = 0.1,
    split_seed: int = 0,
    max_unreadable: float = 0.05,
    max_pixels: int = MAX_PIXELS,
    channels: int = 3,
    grey_bits: int | None = None,
) -> StoredDataset:
    """A folder of chunks, or the URL of one; ``open_dataset`` calls this and documents the items.

    Args:
        spec: a folder that `foveal pack` wrote, or one of litdata with its ``index.json`` there or in ``train``,
            ``val`` and ``test`` below it; or a URL of the same that fsspec knows, https:// or, with the package for it,
            s3://, gs:// and others.
        task: which the items must be for; those of litdata are images with one label each.
        classes: names that fix the order of the labels; needed where the data set does not say them.
        image_column, label_column: of litdata, which fields of an item are meant, by name or place.
        cache, cache_gib: of a URL, the folder where chunks are kept, and how many GiB they may take there.
        val_share, split_seed, max_unreadable, max_pixels, channels, grey_bits: as in ``open_dataset``. Parts stay as
            they were packed, and grey values have as many bits as was said then.

    Raises:
        FovealError: the files are of another format or task, a chunk is missing, or as in ``open_dataset``.
        ConnectionError: the server does not answer.
    """
    if task not in PACKED_TASKS:
        raise FovealError(f"chunks hold items for {', '.join(PACKED_TASKS)}, got task {task}")
    store = _store(spec, cache, cache_gib)
    manifest = _manifest(store, task)
    grey_bits = manifest.grey_bits if grey_bits is None else grey_bits
    check_decoding(channels, grey_bits)
    part, divide = choose_part(f"{spec}", manifest.parts, split)
    folder = f"{part}/" if part else ""
    content = store.read(f"{folder}{INDEX}")
    if content is None:
        raise FovealError(f"a data set of chunks must have {INDEX}, got none at {store.where}{folder}")
    index = parse_index(content, folder, f"{store.where}{folder}{INDEX}")
    _check_chunks(store, index)
    names = list(classes or manifest.classes or ())
    if len(names) < 2:
        raise FovealError(
            f"chunks of litdata do not say their classes: give at least 2 by --data_options.classes [...], got {names}"
        )
    refuse_repeated(names)
    decode = {"max_pixels": max_pixels, "channels": channels, "grey_bits": grey_bits}
    places = _places(manifest.classes, names)
    to_sample = ItemReader(
        task, index, decode, classes=len(names), places=places, ignore_index=manifest.ignore_index,
        image_column=image_column, label_column=label_column,
    )  # fmt: skip
    source = PackedImages(ChunkReader(store, index), to_sample, folder, manifest.task is not None, grey_bits)
    indices: Sequence[int] = range(len(source))
    if divide:
        stored = [source.name(i) for i in indices]
        indices = hold_out(stored, None, split, val_share=val_share, split_seed=split_seed)
    return StoredDataset(
        source, indices, names, max_unreadable=max_unreadable, mirror=manifest.mirror,
        ignore_index=manifest.ignore_index, category_ids=manifest.category_ids,
    )  # fmt: skip


def _store(spec: str, cache: str, cache_gib: float) -> LocalStore | RemoteStore:
    if "://" in spec:
        return RemoteStore(spec, Path(cache).expanduser(), int(cache_gib * 2**30))
    return LocalStore(str(Path(spec).expanduser()))


def _manifest(store: LocalStore | RemoteStore, task: str) -> Manifest:
    """What the root says; where it says nothing, the parts are found by asking for the index of each."""
    content = store.read(MANIFEST)
    where = f"{store.where}{MANIFEST}"
    if content is None:
        if task != "classify":
            raise FovealError(
                f"chunks for task {task} must come from foveal pack --task {task}, got none of its {MANIFEST} at "
                f"{store.where}"
            )
        alone = store.read(INDEX) is not None
        return Manifest(parts=[] if alone else [p for p in SPLITS if store.read(f"{p}/{INDEX}") is not None])
    try:
        data = json.loads(content)
        if data.pop("format") != 1:
            raise FovealError(f"{where} must have format 1, got one of another version of foveal")
        manifest = Manifest(**data)
        sound = (
            all(isinstance(name, str) for name in manifest.classes or ()) and type(manifest.grey_bits) is int
        )
        sound = sound and set(manifest.parts) <= set(SPLITS)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, FovealError):
            raise
        raise FovealError(
            f"{where} must be what foveal pack wrote, got {type(error).__name__}: {error}"
        ) from None
    if not sound:
        raise FovealError(f"{where} must name classes, parts and grey_bits, got {manifest}")
    if manifest.task != task:
        raise FovealError(f"{store.where} is packed for task {manifest.task}, got task {task}")
    return manifest


def _check_chunks(store: LocalStore | RemoteStore, index: ChunkIndex) -> None:
    """A chunk that is missing or truncated is named at once; on the network, when it is fetched."""
    if isinstance(store, LocalStore):
        for chunk in index.chunks:
            store.check(chunk)
    elif index.chunks:
        needed = min(CHUNKS_AT_ONCE, len(index.chunks)) * max(chunk.size for chunk in index.chunks)
        if store.cache_bytes < needed:
            raise FovealError(
                f"cache_gib must hold {CHUNKS_AT_ONCE} chunks, at least {needed / 2**30:.3g}, got "
                f"{store.cache_bytes / 2**30:.3g}"
            )


def _places(stored: Sequence[str] | None, names: Sequence[str]) -> np.ndarray | None:
    """Stored number of a class -> its place in ``names``; None where they are the same."""
    if stored is None or list(stored) == list(names):
        return None
    missing = [name for name in stored if name not in names]
    if missing:
        raise FovealError(f"classes must be among {few(list(names))}, got {few(missing)} in the data")
    return np.array([list(names).index(name) for name in stored], dtype=np.int64)
