"""Where the chunks of a data set lie: in a folder, or on the network behind a bounded cache on this disk."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any, BinaryIO
from weakref import finalize, ref

from foveal.data.chunks import CHUNK_BYTES, Chunk
from foveal.data.opening import ChunkError, line_of
from foveal.errors import FovealError
from foveal.files import atomic_write, is_temporary
from foveal.image_files import open_regular

CACHE = "~/.cache/foveal/chunks"
CACHE_GIB = 20.0
MOST_SMALL = 2**30
"""Bytes of a file that is read as a whole: an index, or a table of names."""
OURS = re.compile(r"[0-9a-f]{32}\.bin")
"""Names of chunks in the cache."""
ATTEMPTS = 4
WAIT_S = 1.0
TIMEOUT_S = 60.0
LEFT_S = 3600.0
"""A temporary file that nobody has written to for so long is left over."""
READ_AHEAD_THREADS = 2
BLOCK = 2**20


class Unreachable(Exception):
    """A file on the network cannot be had now; perhaps it can later."""


class LocalStore:
    """Chunks below a folder."""

    def __init__(self, root: str) -> None:
        self.root, self.where = root, os.path.join(root, "")

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            FovealError: it is too large to be one.
        """
        try:
            with open_regular(os.path.join(self.root, name)) as file:
                if os.fstat(file.fileno()).st_size > MOST_SMALL:
                    raise FovealError(
                        f"a file of names must have at most {MOST_SMALL} bytes, got {self.where}{name}"
                    )
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def check(self, chunk: Chunk) -> None:
        """Whether a chunk is there and as long as its index says.

        Raises:
            ChunkError: it is not.
        """
        _check_size(os.path.join(self.root, chunk.name), chunk)

    def read_part(self, chunk: Chunk, start: int, length: int) -> bytes:
        """Some bytes of a chunk.

        Raises:
            ChunkError: it is missing, or not as long as its index says.
        """
        path = os.path.join(self.root, chunk.name)
        try:
            with open(path, "rb", buffering=0) as file:  # read once: a buffer is one more copy
                content = _read_at(file, start, length)
        except OSError as error:
            raise ChunkError(f"a chunk must be readable, got {error.strerror} of {path}") from None
        if len(content) < length:
            _check_size(path, chunk)
            raise ChunkError(f"a chunk must not change while it is read, got {path} changed")
        return content


class RemoteStore:
    """Chunks below a URL that fsspec knows (https://, s3://, gs://, ...), kept in a folder of bounded size.

    A chunk is fetched as a whole when its first item is asked for, by one process at a time, and compared with the size
    and the digest in its index. Where there is no room, the chunks that were used longest ago are removed.

    Args:
        url: of the data set.
        cache: the folder; several data sets and processes may share it.
        cache_bytes: what the chunks in it may take together.
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int) -> None:
        self.url, self.where = url.rstrip("/"), url.rstrip("/") + "/"
        self.cache, self.cache_bytes = cache, cache_bytes
        self._coming: Queue[Chunk | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_coming": None}

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            ConnectionError: the server does not answer.
            FovealError: the file is too large to be a small one.
        """
        content = bytearray()
        try:
            for block in self._blocks(name, MOST_SMALL):
                if block is None:
                    return None
                content += block
        except Unreachable as error:
            raise ConnectionError(str(error)) from error
        if len(content) > MOST_SMALL:
            raise FovealError(f"a file of names must have at most {MOST_SMALL} bytes, got {self.where}{name}")
        return bytes(content)

    def _blocks(self, name: str, most: int) -> Iterator[bytes | None]:
        """The content of a file in blocks, at most one more than ``most`` bytes hold; one None where there is none.

        Raises:
            Unreachable: it cannot be had now.
        """
        try:
            with self._opened(f"{self.where}{name}") as file:
                taken = 0
                while taken <= most and (block := file.read(BLOCK)):
                    taken += len(block)
                    yield block
        except FileNotFoundError:
            yield None
        except ImportError as error:
            raise FovealError(f"{self.url} needs a package that is missing: {line_of(error)}") from None
        except Exception as error:  # every file system has exceptions of its own
            raise Unreachable(f"{self.where}{name} could not be fetched: {line_of(error)[:300]}") from error

    def _opened(self, url: str) -> Any:
        """The file at a URL, to be read from its beginning."""
        if not url.startswith(("http://", "https://")):
            from fsspec.core import url_to_fs

            system, path = url_to_fs(url)
            return system.open(path, "rb", block_size=CHUNK_BYTES)
        from urllib.error import HTTPError
        from urllib.parse import quote
        from urllib.request import urlopen

        try:
            return urlopen(quote(url, safe="/:?&=%@+,~"), timeout=TIMEOUT_S)
        except HTTPError as error:
            error.close()  # it is an open answer too, which Python 3.14 warns of
            if error.code in (404, 410):
                raise FileNotFoundError(url) from None
            raise

    def place(self, chunk: Chunk) -> Path:
        """Where a chunk is, or will be, in the cache."""
        key = f"{self.where}{chunk.name} {chunk.size} {chunk.digest}".encode()
        return self.cache / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.bin"

    def read_part(self, chunk: Chunk, start: int, length: int) -> bytes:
        """Some bytes of a chunk, which is fetched if it is not here.

        Raises:
            ChunkError: it cannot be fetched, or is not what its index says.
        """
        path = self.place(chunk)
        while True:
            try:
                with open(path, "rb") as file:
                    os.utime(path)
                    return _read_at(file, start, length)
            except FileNotFoundError:  # not here yet, or removed by another process meanwhile
                self.fetch(chunk)

    def fetch(self, chunk: Chunk) -> None:
        """Bring a chunk into the cache; where several processes want it, one fetches and the others wait.

        Raises:
            ChunkError: it cannot be fetched, or is not what its index says.
        """
        from filelock import FileLock

        path = self.place(chunk)
        self.cache.mkdir(parents=True, exist_ok=True)
        # few locks for any number of chunks: files of locks are never removed
        with FileLock(self.cache / f"{path.name[:2]}.lock"):
            for attempt in range(ATTEMPTS):
                if path.exists():
                    return
                try:
                    self._make_room(chunk)
                    atomic_write(path, lambda temporary: self._download(chunk, temporary))
                except Unreachable as error:
                    if attempt == ATTEMPTS - 1:
                        raise ChunkError(f"{error}, {ATTEMPTS} times") from None
                    time.sleep(WAIT_S * 2**attempt)

    def prefetch(self, chunks: Iterable[Chunk]) -> None:
        """Begin to fetch those that are not here, in their order; whatever fails is told when it is read."""
        if self._coming is None:
            self._coming = Queue()
            # the threads do not keep the store, and end with it
            for _ in range(READ_AHEAD_THREADS):
                Thread(target=_fetch_all, args=(ref(self), self._coming), daemon=True).start()
                finalize(self, self._coming.put, None)
        for chunk in chunks:
            self._coming.put(chunk)

    def _download(self, chunk: Chunk, path: Path) -> None:
        digest, size = hashlib.blake2b(digest_size=16), 0
        with open(path, "wb") as file:
            for block in self._blocks(chunk.name, chunk.size):
                if block is None:
                    raise ChunkError(
                        f"a chunk must be where its index is, got none at {self.where}{chunk.name}"
                    )
                file.write(block)
                digest.update(block)
                size += len(block)
        if size < chunk.size:
            raise Unreachable(f"{self.where}{chunk.name} ended after {size} of {chunk.size} bytes")
        if size > chunk.size or chunk.digest not in (None, digest.hexdigest()):
            raise ChunkError(
                f"a chunk must be the one of its index, got another content at {self.where}{chunk.name}"
            )

    def _make_room(self, chunk: Chunk) -> None:
        for path in self.cache.glob(".*.part"):  # of processes that were killed meanwhile
            with suppress(OSError):
                if is_temporary(path) and time.time() - path.stat().st_mtime > LEFT_S:
                    path.unlink()
        kept = []
        for path in self.cache.glob("*.bin"):
            if OURS.fullmatch(path.name) is None:  # not from here: never removed
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                kept.append((status.st_mtime_ns, status.st_size, path))
        free = self.cache_bytes - chunk.size - sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if free >= 0:
                break
            with suppress(OSError):  # gone already, or open where open files cannot be removed
                path.unlink()
                free += size


def _fetch_all(store: ref[RemoteStore], coming: Queue[Chunk | None]) -> None:
    while (chunk := coming.get()) is not None:
        _try_to_fetch(store(), chunk)
        coming.task_done()


def _try_to_fetch(store: RemoteStore | None, chunk: Chunk) -> None:
    """In a function of its own, so that nothing keeps the store while the next chunk is waited for."""
    with suppress(Exception):
        if store is not None:
            store.fetch(chunk)


def _read_at(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    content = file.read(length)
    while len(content) < length and (
        more := file.read(length - len(content))
    ):  # the system gives 2 GiB at most
        content += more
    return content


def _check_size(path: str, chunk: Chunk) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ChunkError(f"a chunk must be beside its index, got {error.strerror}: {path}") from None
    if size != chunk.size:
        raise ChunkError(
            f"a chunk must have the {chunk.size} bytes that its index says, got {size} in {path}, which is truncated "
            "or of another data set"
        )
