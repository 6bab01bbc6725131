"""From a data set to batches, in an order and with random choices that depend on (seed, epoch, index) alone.

A run can therefore stop anywhere and continue with the same batches, and the number of reading processes changes
nothing.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from foveal.errors import FovealError
from foveal.machine import usable_cores

Sample = dict[str, Any]
Batch = dict[str, Any]
Collate = Callable[[Sequence[Sample]], list[Batch]]

CACHE_BYTES = 2**28
"""Decoded images that a process without reading processes keeps, so that a small data set is decoded once."""
SMALL_IMAGE = 64
"""Up to this many pixels a side, images are read by the training process itself."""
MAX_WORKERS = 8
LANES = 8
"""Chunks that the order of an epoch reads from at a time."""
CHUNKS_AHEAD = 3
"""About so many chunks are fetched before they are needed, for data on the network."""


def seed_for(*position: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part of ``position``, and on their order.

    Example:
        >>> seed_for(0, "order", 1) == seed_for(0, "order", 1), seed_for(0, 1) == seed_for(1, 0)
        (True, False)
    """
    text = "/".join(map(str, position)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def chunked_order(chunks: np.ndarray, generator: torch.Generator) -> list[int]:
    """A random order of items that reads from `LANES` of their chunks at a time, each chunk almost only once.

    Chunks come in random order, and their items one chunk after another, in random order within it. This sequence is
    cut into `LANES` equal lanes, and the order takes one item of each lane in turn: neighbours come from as many
    chunks, and no lane goes back to a chunk that it has left. With 2, 4 or 8 processes, each of which takes every
    second, fourth or eighth item, every process has lanes of its own.

    Args:
        chunks: (items,) the number of each item's chunk.

    Example:
        >>> order = chunked_order(np.repeat(np.arange(100), 10), torch.Generator().manual_seed(0))
        >>> sorted(order) == list(range(1000)), len({item // 10 for item in order[:80]})
        (True, 12)
    """
    numbers, place = np.unique(chunks, return_inverse=True)
    turn = torch.randperm(len(numbers), generator=generator).numpy()[place]
    sequence = np.lexsort((torch.randperm(len(chunks), generator=generator).numpy(), turn))
    length = len(sequence) // LANES
    lanes = sequence[: length * LANES].reshape(LANES, length)
    return [*lanes.T.ravel().tolist(), *sequence[length * LANES :].tolist()]


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order fixed by seed and epoch; each process takes every ``world``-th index.

    An incomplete last batch is left out, because batch statistics of a few images are noise; a data set smaller
    than one batch is one batch. The epoch goes along with each index so that a data set can seed its
    augmentation by both.

    Args:
        size: images in the data set.
        batch_size: images in a batch of one process.
        chunks: (size,) the number of the chunk that holds each item, for data that are read in chunks: the order is
            then that of `chunked_order`.

    Example:
        >>> batches = EpochBatchSampler(5, 2, seed=0)
        >>> len(batches), [len(batch) for batch in batches]
        (2, [2, 2])
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        chunks: np.ndarray | None = None,
    ) -> None:
        self.batch_size = min(batch_size, max(size // world, 1))
        self.size, self.seed, self.rank, self.world, self.chunks = size, seed, rank, world, chunks
        self.epoch = 0
        self.start_batch = 0

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Iterate ``epoch`` (from 0) next, and leave out its first ``batch`` batches."""
        self.epoch, self.start_batch = epoch, batch

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_for(self.seed, "order", self.epoch))
        if self.chunks is None:
            order = torch.randperm(self.size, generator=generator).tolist()
        else:
            order = chunked_order(self.chunks, generator)
        order = order[self.rank :: self.world]
        for i in range(self.start_batch, len(self)):
            yield [(self.epoch, j) for j in order[i * self.batch_size : (i + 1) * self.batch_size]]


class SequentialBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (0, index) from first to last, the last one incomplete; each process takes its share."""

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise FovealError(f"batch_size must be at least 1, got {batch_size}")
        self.indices, self.batch_size = range(rank, size, world), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for i in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[i : i + self.batch_size]]


class ReadAhead(Sampler[list[tuple[int, int]]]):
    """The same batches, each told to ``prefetch`` some ``items`` items before it is given out.

    Example:
        >>> told = []
        >>> batches = ReadAhead(SequentialBatchSampler(6, 2), told.append, items=2)
        >>> next(iter(batches)), told
        ([(0, 0), (0, 1)], [[0, 1], [2, 3]])
    """

    def __init__(
        self,
        batches: EpochBatchSampler | SequentialBatchSampler,
        prefetch: Callable[[Sequence[int]], None],
        items: int,
    ) -> None:
        self.batches, self.prefetch, self.items = batches, prefetch, items

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        waiting: deque[list[tuple[int, int]]] = deque()
        ahead = 0
        for batch in self.batches:
            self.prefetch([index for _, index in batch])
            waiting.append(batch)
            ahead += len(batch)
            while ahead > self.items:
                ahead -= len(waiting[0])
                yield waiting.popleft()
        yield from waiting


class CachedDataset(Dataset):
    """``data`` with the items asked for first kept in memory, up to ``cache_bytes`` bytes of tensors."""

    def __init__(self, data: Any, cache_bytes: int = CACHE_BYTES) -> None:
        self.data, self.room = data, cache_bytes
        self.cache: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        missing = [index for index in dict.fromkeys(indices) if index not in self.cache]
        if missing and hasattr(self.data, "__getitems__"):
            read = dict(zip(missing, self.data.__getitems__(missing), strict=True))
        else:
            read = {index: self.data[index] for index in missing}
        samples = [self.cache[index] if index in self.cache else read[index] for index in indices]
        for index, sample in read.items():
            size = sum(value.nbytes for value in sample.values() if isinstance(value, Tensor))
            if size <= self.room:
                self.cache[index] = sample
                self.room -= size
        return samples


class TransformedDataset(Dataset):
    """Items of ``data`` after ``transform``, addressed by (epoch, index).

    torch's random numbers are seeded by (seed, epoch, index) while the transform runs and put back afterwards:
    the same item comes out in whichever process and order it is asked for. ``index`` in it is its place in ``data``.
    """

    def __init__(
        self,
        data: Any,
        transform: Callable[[Sample], Sample],
        *,
        seed: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.data, self.transform, self.seed = CachedDataset(data, cache_bytes), transform, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        # what is read of a video is drawn too
        drawn = hasattr(self.data.data, "clip") and hasattr(self.transform, "from_data")
        samples = [None] * len(keys) if drawn else self.data.__getitems__([index for _, index in keys])
        state = torch.default_generator.get_state()
        try:
            return [self._transformed(key, sample) for key, sample in zip(keys, samples, strict=True)]
        finally:
            torch.default_generator.set_state(state)

    def _transformed(self, key: tuple[int, int], sample: Sample | None) -> Sample:
        torch.default_generator.manual_seed(seed_for(self.seed, "augment", *key))
        made = (
            self.transform(sample)
            if sample is not None
            else transformed_item(self.data.data, key[1], self.transform)
        )
        return {**made, "index": key[1]}


def transformed_item(data: Any, index: int, transform: Any) -> Sample:
    """An item after its transform, which may say by ``from_data(data, index)`` what of the item is read at all."""
    own = getattr(transform, "from_data", None)
    return transform(data[index]) if own is None else own(data, index)


def collate_by_size(samples: Sequence[Sample]) -> list[Batch]:
    """One batch for each size of image (and of every other tensor) among the samples, in the order of their first.

    Tensors are stacked, numbers become one tensor, and anything else a list.

    Example:
        >>> small, large = torch.zeros(3, 4, 4), torch.zeros(3, 8, 8)
        >>> [batch["label"].tolist() for batch in collate_by_size([
        ...     {"image": small, "label": 0}, {"image": large, "label": 1}, {"image": small, "label": 2}])]
        [[0, 2], [1]]
    """
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        sizes = tuple((name, value.shape) for name, value in sample.items() if isinstance(value, Tensor))
        groups.setdefault(sizes, []).append(sample)
    return [{name: _stacked([s[name] for s in group]) for name in group[0]} for group in groups.values()]


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], Tensor):
        # in a reading process this writes into the memory that the training process reads, where `torch.stack` would
        # have all pixels copied there once more
        return default_collate(values)
    return torch.tensor(values) if isinstance(values[0], int | float) else values


def worker_count(asked: int | None, image_size: int) -> int:
    """Reading processes: as asked, else none for images up to 64 pixels, else one for each usable core, 8 at most."""
    if asked is not None:
        return asked
    return 0 if image_size <= SMALL_IMAGE else min(usable_cores(), MAX_WORKERS)


def chunks_of(data: Any) -> np.ndarray | None:
    """The chunk of each item, for data that are read in chunks; else None."""
    return getattr(data, "chunks", None)


def make_loader(
    data: Any,
    transform: Callable[[Sample], Sample],
    batches: EpochBatchSampler | SequentialBatchSampler,
    collate: Collate,
    *,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader whose batches do not depend on the global random state or on the number of workers.

    It gives what ``collate`` makes of the samples of a batch: a list of batches, one for each size of image.
    """
    # an item that a worker keeps is asked for again from another one: only without workers does a cache help
    dataset = TransformedDataset(data, transform, seed=seed, cache_bytes=0 if workers else CACHE_BYTES)
    prefetch, chunks = getattr(data, "prefetch", None), chunks_of(data)
    sampler = batches
    if prefetch is not None and chunks is not None:
        # until so many items are read, one lane after another goes on to its next chunk
        sampler = ReadAhead(batches, prefetch, CHUNKS_AHEAD * len(chunks) // len(np.unique(chunks)))
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # its own generator: by default a loader draws a number from the global one, and so disturbs it
        generator=torch.Generator().manual_seed(seed),
    )


class MemoryLoader:
    """Batches of a whole data set that lies in memory as one tensor for each entry; for many short runs.

    Args:
        arrays: entry -> (n, ...), images as uint8.
        batches: which items make a batch.
        prepare: from a batch of stored items to what the network takes.
    """

    def __init__(
        self,
        arrays: dict[str, Tensor],
        batches: EpochBatchSampler | SequentialBatchSampler,
        prepare: Callable[[Batch], Batch],
    ) -> None:
        self.arrays, self.batches, self.prepare = arrays, batches, prepare

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Batch]]:
        for keys in self.batches:
            indices = torch.tensor([index for _, index in keys])
            yield [self.prepare({name: values[indices] for name, values in self.arrays.items()})]
