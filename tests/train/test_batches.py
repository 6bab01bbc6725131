import torch

from foveal.data import Scenes, train_transform
from foveal.train.batches import Augmented, Decoded, InOrder, collate, make_loader, worker_count
from foveal.train.recipe import EpochBatches

TRANSFORM = train_transform(24, crop="pad", flip=0.5, jitter=0.5)


def scenes(length=16):
    return Scenes("train", length=length, size=24)


def test_an_image_is_augmented_by_seed_epoch_and_index_alone():
    data = Augmented(scenes(), TRANSFORM, seed=1)
    together = data.__getitems__([(0, 3), (0, 7), (1, 3)])
    assert torch.equal(together[0]["image"], data[0, 3]["image"])
    assert torch.equal(together[1]["image"], data[0, 7]["image"])
    assert not torch.equal(together[0]["image"], together[2]["image"]), "another epoch, another crop"
    assert not torch.equal(Augmented(scenes(), TRANSFORM, seed=2)[0, 3]["image"], data[0, 3]["image"])


def test_reading_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    batches = EpochBatches(16, 4, seed=0)
    for _ in make_loader(scenes(), TRANSFORM, batches, seed=0):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_reading_processes_change_nothing():
    def read(workers):
        loader = make_loader(scenes(), TRANSFORM, EpochBatches(16, 4, seed=0), seed=5, workers=workers)
        return [batch["image"] for batch in loader]

    assert all(torch.equal(a, b) for a, b in zip(read(0), read(2), strict=True))


def test_evaluation_takes_each_image_once_whatever_the_number_of_processes():
    parts = [InOrder(11, 4, rank=rank, world=3) for rank in range(3)]
    seen = [index for part in parts for batch in part for _, index in batch]
    assert sorted(seen) == list(range(11))
    assert [len(part) for part in parts] == [1, 1, 1]


def test_a_batch_has_what_its_samples_have():
    batch = collate([scenes()[0], scenes()[1]])
    assert batch["image"].shape == (2, 3, 24, 24)
    assert batch["mask"].shape == (2, 24, 24)
    assert batch["label"].dtype == torch.int64


def test_small_images_need_no_reading_processes():
    assert worker_count(None, 32) == 0
    assert 1 <= worker_count(None, 224) <= 8
    assert worker_count(3, 32) == 3


def test_small_data_is_decoded_once_and_memory_is_bounded():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return {"image": torch.full((3, 2, 2), index, dtype=torch.uint8), "label": index}

    stored = Counting(range(10))
    data = Decoded(stored, limit=5 * 12)
    for _ in range(2):
        assert [int(s["image"][0, 0, 0]) for s in data.__getitems__([3, 1, 3, 9])] == [3, 1, 3, 9]
    assert stored.reads == 3
    data.__getitems__(range(10))
    assert len(data.kept) == 5
    assert stored.reads == 3 + 7
    data.__getitems__(range(10))
    assert stored.reads == 3 + 7 + 5
