"""Which frames make a clip, as pure functions; what a network takes of them."""

import pytest
import torch
from torchvision.transforms import v2

from foveal.data import JointTransform
from foveal.data.clips import (
    ClipTransform,
    Normalization,
    check_clip,
    clip_frames,
    crop_corners,
    evaluation_clips,
    even_starts,
    random_start,
    training_clip,
)
from foveal.data.loader import TransformedDataset
from foveal.errors import FovealError


def numbered(count, size=4):
    """A video whose frame n has the value n everywhere."""
    return torch.arange(count, dtype=torch.uint8)[None, :, None, None].expand(3, -1, size, size).contiguous()


@pytest.mark.parametrize(
    ("count", "short", "frames"),
    [
        (100, "loop", [5, 13, 21, 29]),
        (20, "loop", [5, 13, 1, 9]),
        (20, "repeat", [5, 13, 19, 19]),
        (1, "loop", [0] * 4),
    ],
)
def test_frames_of_a_clip(count, short, frames):
    assert clip_frames(5 if count > 1 else 0, 4, 8, count, short) == frames


@pytest.mark.parametrize("count", [1, 5, 57, 58, 300])
def test_a_random_start_leaves_room_for_the_clip(count):
    starts = {random_start(count, 8, 8, draw / 1000) for draw in range(1000)}
    last = max(0, count - 57)
    assert starts <= set(range(last + 1))
    assert {0, last} <= starts


def test_ten_starts_go_to_the_end_or_to_a_tenth_before_it():
    """300 frames and a clip of 32 x 2, which spans 63: the last possible start is 237."""
    assert even_starts(300, 32, 2, 10)[::9] == [0, 237]
    assert even_starts(300, 32, 2, 10, to_the_end=False)[::9] == [0, 237 * 9 // 10]
    assert even_starts(300, 32, 2, 1) == [118]
    assert even_starts(10, 32, 2, 3) == [0, 0, 0]


def test_crops_lie_along_the_longer_side():
    assert crop_corners(256, 340, 256, 3) == [(0, 0), (0, 42), (0, 84)]
    assert crop_corners(340, 256, 256, 3) == [(0, 0), (42, 0), (84, 0)]
    assert crop_corners(256, 256, 224, 1) == [(16, 16)]


@pytest.mark.parametrize(
    ("frames", "stride", "short"),
    [(0, 1, "loop"), (8, 0, "loop"), (8, 1, "stop"), (10**9, 1, "loop"), (None, 1, "loop")],
)
def test_numbers_that_make_no_clip_are_refused(frames, stride, short):
    with pytest.raises(FovealError, match="got"):
        check_clip(frames, stride, short)


def test_the_clip_in_the_middle_is_evaluated():
    transform = ClipTransform(JointTransform([], normalise=False), evaluation_clips(3, 2, "loop"))
    assert transform({"image": numbered(11), "label": 4})["image"][0, :, 0, 0].tolist() == [3, 5, 7]
    assert not transform.random


def test_views_come_clip_by_clip_and_crop_by_crop():
    video = numbered(10, 6).clone()[..., :4, :]
    video[0] = torch.arange(6, dtype=torch.uint8)
    transform = ClipTransform(
        JointTransform([], normalise=False), evaluation_clips(2, 1, "loop", clips=2), crops=3, size=4
    )
    views = transform({"image": video})["image"]
    assert views.shape == (6, 3, 2, 4, 4)
    assert views[:, 1, 0, 0, 0].tolist() == [0, 0, 0, 8, 8, 8]
    assert views[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]


def test_all_frames_are_changed_alike():
    steps = [v2.RandomCrop(3), v2.RandomHorizontalFlip(0.5), v2.ColorJitter(brightness=0.4)]
    picture = torch.randint(256, (3, 1, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = ClipTransform(JointTransform(steps), training_clip(4, 1, "loop"), random=True)
    for seed in range(5):
        torch.manual_seed(seed)
        clip = transform({"image": picture.expand(-1, 7, -1, -1)})["image"]
        assert clip.shape == (3, 4, 3, 3)
        assert all(torch.equal(clip[:, 0], clip[:, t]) for t in range(4))


def test_a_clip_is_a_function_of_seed_epoch_and_index():
    data = [{"image": numbered(200, 2)} for _ in range(3)]
    transform = ClipTransform(JointTransform([], normalise=False), training_clip(2, 3, "loop"), random=True)

    def starts(seed, epochs, indices):
        items = TransformedDataset(data, transform, seed=seed)
        return [int(items[epoch, index]["image"][0, 0, 0, 0]) for epoch in epochs for index in indices]

    first = starts(0, range(4), range(3))
    assert first == [*starts(0, [0], [0]), *starts(0, range(4), range(3))[1:]]
    assert len(set(first)) > 8
    assert starts(1, range(4), range(3)) != first


def test_clips_are_normalised_as_their_frames_are():
    frame = JointTransform([])
    clips = torch.randint(256, (2, 3, 5, 4, 4), dtype=torch.uint8)
    found = Normalization(frame).normalize(clips)
    for t in range(5):
        assert torch.equal(found[:, :, t], frame.normalize(clips[:, :, t]))
    assert torch.equal(ClipTransform(frame, evaluation_clips(5, 1, "loop")).normalize(clips), found)


def test_of_a_data_set_that_reads_frames_only_the_chosen_ones_are_read():
    asked = []

    class Videos:
        def clip(self, index, choose):
            # the first one could not be read
            asked.extend([choose(100), choose(100)])
            return {"image": numbered(100)[:, asked[-1]], "label": index}

    transform = ClipTransform(JointTransform([], normalise=False), training_clip(2, 8, "loop"), random=True)
    torch.manual_seed(0)
    sample = transform.from_data(Videos(), 1)
    assert asked[0] == asked[1] == sample["image"][0, :, 0, 0].tolist()
    assert sample["label"] == 1
