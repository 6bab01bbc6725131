import os

import numpy as np
import pytest
import torch

from foveal.data import JointTransform, Scenes, train_transform
from foveal.data.loader import (
    LANES,
    CachedDataset,
    EpochBatchSampler,
    MemoryLoader,
    ReadAhead,
    SequentialBatchSampler,
    TransformedDataset,
    chunked_order,
    collate_by_size,
    make_loader,
    seed_for,
    worker_count,
)

TRANSFORM = train_transform(24, crop="pad", flip=0.5, jitter=0.5)


def scenes(length=16):
    return Scenes("train", length=length, size=24)


def test_an_image_is_augmented_by_seed_epoch_and_index_alone():
    data = TransformedDataset(scenes(), TRANSFORM, seed=1)
    together = data.__getitems__([(0, 3), (0, 7), (1, 3)])
    assert torch.equal(together[0]["image"], data[0, 3]["image"])
    assert torch.equal(together[1]["image"], data[0, 7]["image"])
    assert not torch.equal(together[0]["image"], together[2]["image"]), "another epoch, another crop"
    assert not torch.equal(
        TransformedDataset(scenes(), TRANSFORM, seed=2)[0, 3]["image"], data[0, 3]["image"]
    )


def test_reading_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    batches = EpochBatchSampler(16, 4, seed=0)
    for _ in make_loader(scenes(), TRANSFORM, batches, collate_by_size, seed=0):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_reading_processes_change_nothing():
    def read(workers):
        loader = make_loader(
            scenes(), TRANSFORM, EpochBatchSampler(16, 4, seed=0), collate_by_size, seed=5, workers=workers
        )
        return [batch["image"] for (batch,) in loader]

    assert all(torch.equal(a, b) for a, b in zip(read(0), read(2), strict=True))


def whether_shared(samples):
    return [batch["image"].is_shared() for batch in collate_by_size(samples)]


def test_a_reading_process_stacks_where_the_training_process_reads():
    batches = EpochBatchSampler(16, 4, seed=0)
    assert list(make_loader(scenes(), TRANSFORM, batches, whether_shared, workers=1)) == [[True]] * 4
    assert list(make_loader(scenes(), TRANSFORM, batches, whether_shared)) == [[False]] * 4


def test_evaluation_takes_each_image_once_whatever_the_number_of_processes():
    parts = [SequentialBatchSampler(11, 4, rank=rank, world=3) for rank in range(3)]
    seen = [index for part in parts for batch in part for _, index in batch]
    assert sorted(seen) == list(range(11))
    assert [len(part) for part in parts] == [1, 1, 1]


def test_a_batch_has_what_its_samples_have():
    (batch,) = collate_by_size([scenes()[0], scenes()[1]])
    assert batch["image"].shape == (2, 3, 24, 24)
    assert batch["mask"].shape == (2, 24, 24)
    assert batch["label"].dtype == torch.int64


def test_small_images_need_no_reading_processes():
    assert worker_count(None, 32) == 0
    assert 1 <= worker_count(None, 224) <= 8
    assert worker_count(3, 32) == 3


def test_reading_processes_are_as_many_as_the_cores_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_count(None, 224) == 3


def test_small_data_is_decoded_once_and_memory_is_bounded():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return {"image": torch.full((3, 2, 2), index, dtype=torch.uint8), "label": index}

    stored = Counting(range(10))
    data = CachedDataset(stored, cache_bytes=5 * 12)
    for _ in range(2):
        assert [int(s["image"][0, 0, 0]) for s in data.__getitems__([3, 1, 3, 9])] == [3, 1, 3, 9]
    assert stored.reads == 3
    data.__getitems__(range(10))
    assert len(data.cache) == 5
    assert stored.reads == 3 + 7
    data.__getitems__(range(10))
    assert stored.reads == 3 + 7 + 5


def flat(batches):
    return [index for batch in batches for _, index in batch]


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own():
    batches = EpochBatchSampler(12, 4, seed=3)
    first = flat(batches)
    batches.epoch = 1
    second = flat(batches)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert flat(EpochBatchSampler(12, 4, seed=3)) == first
    assert flat(EpochBatchSampler(12, 4, seed=4)) != first


def test_batches_say_their_epoch():
    batches = EpochBatchSampler(4, 2, seed=0)
    batches.epoch = 5
    assert {epoch for batch in batches for epoch, _ in batch} == {5}


def test_processes_share_the_images_without_overlap():
    parts = [flat(EpochBatchSampler(13, 3, seed=0, rank=rank, world=2)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 6
    assert not set(parts[0]) & set(parts[1])


def test_a_continued_epoch_gives_the_batches_that_were_left_and_the_next_one_all():
    whole = EpochBatchSampler(12, 4, seed=0)
    whole.epoch = 2
    rest = EpochBatchSampler(12, 4, seed=0)
    rest.start_at(2, 1)
    assert list(rest) == list(whole)[1:]
    assert list(rest) == list(whole)[1:], "iterating twice must not lose the place"
    rest.start_at(3)
    assert len(list(rest)) == 3


def test_fewer_images_than_a_batch_are_one_batch():
    assert [len(batch) for batch in EpochBatchSampler(3, 64, seed=0)] == [3]


def test_seeds_differ_by_every_part_of_the_position():
    seeds = {seed_for(a, word, b) for a in range(3) for word in ("order", "step") for b in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_batches_from_memory_are_those_of_the_loader():
    """The same order and the same values, without a transform an item."""
    data = scenes()
    normalize = JointTransform([])
    batches = EpochBatchSampler(16, 4, seed=3)
    batches.start_at(1)
    arrays = data.as_tensors()
    memory = MemoryLoader(arrays, batches, lambda b: {**b, "image": normalize.normalize(b["image"])})
    stored = make_loader(data, normalize, batches, collate_by_size)
    for (a,), (b,) in zip(memory, stored, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])


def in_chunks(chunks=40, items=50):
    return np.repeat(np.arange(chunks), items)


def order_of(epoch, *, seed=0, batch_size=64, start=0, chunks=None, **share):
    chunks = in_chunks() if chunks is None else chunks
    batches = EpochBatchSampler(len(chunks), batch_size, seed=seed, chunks=chunks, **share)
    batches.start_at(epoch, start)
    return [[index for _, index in batch] for batch in batches]


def test_chunks_are_read_a_few_at_a_time_and_each_almost_once():
    chunks = in_chunks()
    last_use, first_use = {}, {}
    for place, batch in enumerate(order_of(0)):
        touched = set(chunks[batch].tolist())
        assert len(touched) <= 2 * LANES
        for chunk in touched:
            first_use.setdefault(chunk, place)
            last_use[chunk] = place
    assert len(first_use) == 40
    held = [sum(first_use[c] <= place <= last_use[c] for c in first_use) for place in range(31)]
    # a chunk that the cut between two lanes divides is read by both, at different times
    assert max(held) <= 2 * LANES + LANES
    assert np.mean(held) < 2 * LANES


def test_neighbours_in_an_epoch_are_from_as_many_chunks_as_lanes():
    chunks = in_chunks()
    assert all(len(set(chunks[batch].tolist())) >= LANES - 1 for batch in order_of(0))


def test_the_order_of_chunked_data_depends_on_seed_and_epoch_alone():
    assert order_of(1) == order_of(1)
    assert order_of(1)[5:] == order_of(1, start=5)
    assert len({str(order_of(e, seed=s)) for e in (0, 1) for s in (0, 1)}) == 4
    whole = chunked_order(in_chunks(7, 3), torch.Generator().manual_seed(0))
    assert sorted(whole) == list(range(21)), "sizes that lanes do not divide"
    assert sorted(chunked_order(in_chunks(2, 2), torch.Generator().manual_seed(0))) == list(range(4))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_processes_read_different_chunks_and_together_what_one_reads(world):
    chunks = in_chunks(96, 50)
    alone = order_of(0, batch_size=64, chunks=chunks)
    parts = [
        order_of(0, batch_size=64 // world, chunks=chunks, rank=rank, world=world) for rank in range(world)
    ]
    for batch, *shares in zip(alone, *parts, strict=True):
        assert sorted(batch) == sorted(index for share in shares for index in share)
    used = [{int(chunks[i]) for batch in part for i in batch} for part in parts]
    assert sum(map(len, used)) <= 96 + LANES, "only a chunk on the border of two lanes is read by two"


def test_reading_ahead_changes_no_batch_and_tells_of_each_in_time():
    told, plain = [], EpochBatchSampler(40, 4, seed=0)
    ahead = ReadAhead(plain, lambda indices: told.append(list(indices)), items=10)
    plain.start_at(2, 3)
    wanted = [[index for _, index in batch] for batch in plain]
    for place, batch in enumerate(ahead):
        assert [index for _, index in batch] == wanted[place]
        assert told == wanted[: place + 3], "the batch that is given, and two more"
    assert told == wanted
    assert len(ahead) == len(plain)
