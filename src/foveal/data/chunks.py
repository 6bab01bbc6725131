"""The files of litdata: an index of chunks, and chunks of items, each item a row of fields as bytes.

A chunk is ``uint32 n``, ``uint32 offsets[n + 1]`` from its first byte, and the items one after another; an item is
the ``uint32`` size of each of its fields and then the fields. ``index.json`` names the chunks, how many items and bytes
each has, and the kind of each field. Every number is compared with the size of its file before anything is read, and
nothing is ever unpickled: fields are given as bytes, whatever they hold.

Source:
    litdata 0.2.76, ``streaming/writer.py`` (``BinaryWriter``) and ``streaming/item_loader.py`` (``PyTreeLoader``).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from foveal.data.opening import ChunkError
from foveal.errors import FovealError
from foveal.files import write_bytes, write_text

INDEX = "index.json"
CHUNK_BYTES = 2**26
"""Size of a chunk: litdata's own."""
MOST_BYTES = 2**32 - 1
"""Of a chunk, whose offsets have 32 bits."""


class Store(Protocol):
    """Where the files of a data set are: a folder, or a place on the network."""

    where: str

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""
        ...

    def read_part(self, chunk: Chunk, start: int, length: int) -> bytes:
        """Some bytes of a chunk."""
        ...


class Chunk(NamedTuple):
    """A file of items.

    Attributes:
        name: of the file, below the store.
        items, size: how many items and bytes it has.
        digest: BLAKE2b of 16 bytes in hexadecimal, where the index has it.
    """

    name: str
    items: int
    size: int
    digest: str | None = None


class ChunkIndex(NamedTuple):
    """What ``index.json`` says.

    Attributes:
        chunks: the files.
        kinds: litdata's word for the kind of each field, such as "bytes", "int" or "jpeg".
        names: of the fields, where items are dictionaries; else their places, "0", "1", ...
        digest: a hash of the index, which changes when the data set is written again.
    """

    chunks: list[Chunk]
    kinds: list[str]
    names: list[str]
    digest: str

    @property
    def starts(self) -> np.ndarray:
        """(chunks + 1,) int64: the number of the first item of each chunk, and of all items."""
        return np.concatenate([[0], np.cumsum([chunk.items for chunk in self.chunks], dtype=np.int64)])


def parse_index(content: bytes, folder: str, where: str) -> ChunkIndex:
    """Read ``index.json``.

    Args:
        folder: of the chunks below the store, "" or with ``/`` at its end.
        where: what to call the file in messages.

    Raises:
        FovealError: it is no such index, or one of chunks that are compressed, encrypted or of another layout.
    """
    try:
        data = json.loads(content)
        config, rows = data["config"], data["chunks"]
        kinds = [str(kind) for kind in config["data_format"]]
        chunks = [_chunk(row, folder) for row in rows]
        names = _field_names(config.get("data_spec"), len(kinds))
    except FovealError as error:
        raise FovealError(f"{error} in {where}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise FovealError(
            f"{where} must be an index of litdata, got {type(error).__name__}: {error}"
        ) from None
    for word in ("compression", "encryption"):
        if config.get(word) is not None:
            raise FovealError(
                f"chunks must have no {word}, got {str(config[word])[:40]!r} in {where}; write them without it: images "
                "are compressed already"
            )
    loader = config.get("item_loader", "PyTreeLoader")
    if loader != "PyTreeLoader":
        raise FovealError(f"items must be those of litdata's PyTreeLoader, got {loader!r} in {where}")
    return ChunkIndex(chunks, kinds, names, hashlib.blake2b(content, digest_size=16).hexdigest())


def _chunk(row: dict[str, Any], folder: str) -> Chunk:
    name, items, size, digest = row["filename"], row["chunk_size"], row["chunk_bytes"], row.get("blake2b")
    if not isinstance(name, str) or re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII) is None:
        raise FovealError(f"a chunk must be a file beside its index, got {name!r}")
    if not all(type(number) is int for number in (items, size)) or items < 1:
        raise FovealError(f"a chunk must say how many items and bytes it has, got {items!r} and {size!r}")
    if not 4 * (items + 2) <= size <= MOST_BYTES:
        raise FovealError(
            f"a chunk of {items} items must have {4 * (items + 2)} to {MOST_BYTES} bytes, got {size}"
        )
    if digest is not None and not isinstance(digest, str):
        raise FovealError(f"a digest must be a text, got {digest!r}")
    return Chunk(f"{folder}{name}", items, size, digest)


def _field_names(spec: Any, count: int) -> list[str]:
    """The names of an item's fields from litdata's description of its tree, of which only one level is read."""
    tree: Any = json.loads(spec)[1] if isinstance(spec, str) else {"type": None}
    names: Any = [str(place) for place in range(count)]
    if tree["type"] == "builtins.dict":
        names = json.loads(tree["context"])
    nested = any(child["type"] is not None for child in tree.get("children_spec", ()))
    plain = tree["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
    if nested or not plain or len(names) != count:
        raise FovealError(f"an item must be a dictionary or a tuple of plain fields, got {tree['type']}")
    return [str(name) for name in names]


class ChunkReader:
    """Any item of a data set, by its number.

    No file stays open, so that it can be copied to other processes.

    Example:
        >>> import tempfile
        >>> from foveal.data.stores import LocalStore
        >>> writer = ChunkWriter(Path(tempfile.mkdtemp()), {"text": "bytes"})
        >>> writer.add([b"a"]), writer.add([b"bc"]), writer.close()
        (False, False, None)
        >>> store = LocalStore(str(writer.folder))
        >>> ChunkReader(store, parse_index(store.read("index.json"), "", "it")).item(1)
        [b'bc']
    """

    def __init__(self, store: Store, index: ChunkIndex) -> None:
        self.store, self.index, self.starts = store, index, index.starts
        self._starts: list[int] = self.starts.tolist()  # quicker to search for one number
        self._offsets: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def chunk_of(self, item: int) -> int:
        """The number of the chunk that holds an item."""
        return bisect_right(self._starts, item) - 1

    def item(self, number: int) -> list[bytes]:
        """The fields of an item.

        Raises:
            ChunkError: the chunk is missing, truncated or damaged.
        """
        place = self.chunk_of(number)
        chunk, row = self.index.chunks[place], number - self._starts[place]
        offsets = self._offsets.get(place)
        if offsets is None:
            offsets = self._offsets[place] = self._read_offsets(chunk)
        start, end = int(offsets[row]), int(offsets[row + 1])
        content = self.store.read_part(chunk, start, end - start)
        fields = len(self.index.kinds)
        sizes = struct.unpack_from(f"<{fields}I", content) if len(content) >= 4 * fields else ()
        if not sizes or 4 * fields + sum(sizes) != len(content):
            raise ChunkError(
                f"an item must have the {fields} fields that its header says, got {len(content)} bytes in item {row} "
                f"of {self.store.where}{chunk.name}"
            )
        ends = list(accumulate(sizes, initial=4 * fields))
        return [content[a:b] for a, b in pairwise(ends)]

    def _read_offsets(self, chunk: Chunk) -> np.ndarray:
        head = np.frombuffer(self.store.read_part(chunk, 0, 4 * (chunk.items + 2)), dtype="<u4")
        count, offsets = int(head[0]), head[1:].astype(np.int64)
        ordered = offsets[0] == 4 * len(head) and (np.diff(offsets) >= 0).all() and offsets[-1] <= chunk.size
        if count != chunk.items or not ordered:
            raise ChunkError(
                f"a chunk must begin with its number of items, {chunk.items}, and where each lies, got another "
                f"beginning in {self.store.where}{chunk.name}"
            )
        if chunk.items and offsets[0] == offsets[-1]:
            raise ChunkError(
                "items must be stored one by one, got a chunk of Arrow rows, which newer litdata writes for "
                f"dictionaries of plain bytes and numbers, {self.store.where}{chunk.name}; give litdata a tuple, or "
                "the image as litdata.types.Image(path=...)"
            )
        return offsets.astype(np.uint32)


class ChunkWriter:
    """Writes items into chunks of about ``chunk_bytes`` bytes, and at the end their index.

    Args:
        folder: exists, and is empty but for the chunks of ``rows``.
        fields: name -> litdata's word for its kind.
        rows: of a writer that was stopped, to go on after its chunks.

    Attributes:
        rows: what the index says of each chunk so far.
    """

    def __init__(
        self,
        folder: Path,
        fields: dict[str, str],
        chunk_bytes: int = CHUNK_BYTES,
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.folder, self.fields, self.chunk_bytes = folder, fields, chunk_bytes
        self._waiting: list[bytes] = []
        self._size = 0
        self.rows = list(rows)

    def add(self, values: Sequence[bytes]) -> bool:
        """One item: the bytes of each field; whether all items before it are on the disk, in whole chunks."""
        item = b"".join([struct.pack(f"<{len(values)}I", *map(len, values)), *values])
        full = bool(self._waiting) and self._size + len(item) + 4 > self.chunk_bytes
        if full:
            self._write()
        if len(item) + 12 > MOST_BYTES:
            raise FovealError(f"an item may have at most {MOST_BYTES - 12} bytes, got {len(item)}")
        self._waiting.append(item)
        self._size += len(item) + 4
        return full

    def _write(self) -> None:
        offsets = np.cumsum([4 * (len(self._waiting) + 2), *map(len, self._waiting)], dtype=np.uint64)
        head = np.array([len(self._waiting), *offsets.tolist()], dtype="<u4")
        content = b"".join([head.tobytes(), *self._waiting])
        name = f"chunk-0-{len(self.rows)}.bin"
        write_bytes(self.folder / name, content)
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        row = {"chunk_bytes": len(content), "chunk_size": len(self._waiting), "dim": None, "filename": name}
        self.rows.append({**row, "blake2b": digest})
        self._waiting, self._size = [], 0

    def close(self) -> None:
        """Write what waits, and the index."""
        if self._waiting:
            self._write()
        leaf = {"type": None, "context": None, "children_spec": []}
        context = json.dumps(list(self.fields))
        tree = {"type": "builtins.dict", "context": context, "children_spec": [leaf] * len(self.fields)}
        config = {
            "chunk_bytes": self.chunk_bytes,
            "chunk_size": None,
            "compression": None,
            "data_format": list(self.fields.values()),
            "data_spec": json.dumps([1, tree]),
            "encryption": None,
            "item_loader": "PyTreeLoader",
        }
        write_text(self.folder / INDEX, json.dumps({"chunks": self.rows, "config": config}))
