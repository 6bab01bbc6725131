"""Which frames of a video make a clip, and what a network takes of it.

The choice is made of pure functions: the frames of a video are numbered in their order, and what is drawn is a number
in [0, 1), so that a clip is a function of (seed, epoch, index) like every random choice here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveal.data.joint import JointTransform
from foveal.errors import FovealError

Sample = dict[str, Any]
Chooser = Callable[[int], list[list[int]]]
"""From the number of a video's frames to those of each clip."""
SHORT = ("loop", "repeat")
"""What a video shorter than a clip does: begin again, or stay on its last frame."""
MOST_FRAMES = 1024
"""In one clip."""


def clip_frames(start: int, frames: int, stride: int, count: int, short: str = "loop") -> list[int]:
    """The numbers of a clip's frames.

    Args:
        start: the first one, from 0.
        frames: how many.
        stride: from one to the next; 1 takes every frame.
        count: frames of the video, at least 1.
        short: behind the last frame "loop" begins again and "repeat" stays on it.

    Example:
        >>> clip_frames(1, 4, 2, 10), clip_frames(0, 4, 1, 3), clip_frames(0, 4, 1, 3, "repeat")
        ([1, 3, 5, 7], [0, 1, 2, 0], [0, 1, 2, 2])
    """
    wanted = range(start, start + frames * stride, stride)
    return [n % count if short == "loop" else min(n, count - 1) for n in wanted]


def random_start(count: int, frames: int, stride: int, draw: float) -> int:
    """The first frame of a clip at a random place, all places being as likely; 0 where the video is too short.

    Args:
        draw: from [0, 1).

    Example:
        >>> random_start(10, 3, 2, 0.0), random_start(10, 3, 2, 0.999), random_start(4, 3, 2, 0.999)
        (0, 5, 0)
    """
    return int(draw * (_last_start(count, frames, stride) + 1))


def even_starts(count: int, frames: int, stride: int, clips: int, to_the_end: bool = True) -> list[int]:
    """First frames of clips spread evenly over a video; of one clip it lies in the middle.

    Args:
        to_the_end: the last clip ends with the video, as in mmaction2; else the way is divided by the number of
            clips rather than of gaps, as in PySlowFast, and what would be one clip more ends with it.

    Example:
        >>> even_starts(100, 8, 4, 3), even_starts(100, 8, 4, 3, to_the_end=False), even_starts(100, 8, 4, 1)
        ([0, 35, 71], [0, 23, 47], [35])
    """
    last = _last_start(count, frames, stride)
    if clips == 1:
        return [last // 2]
    return [last * n // (clips - 1 if to_the_end else clips) for n in range(clips)]


def _last_start(count: int, frames: int, stride: int) -> int:
    return max(0, count - (frames - 1) * stride - 1)


def crop_corners(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """(top, left) of square crops: one at the centre, or several along the longer side from one end to the other.

    Example:
        >>> crop_corners(256, 340, 256, 3), crop_corners(256, 340, 224, 1)
        ([(0, 0), (0, 42), (0, 84)], [(16, 58)])
    """
    room = (height - size, width - size)
    middle = (room[0] // 2, room[1] // 2)
    if crops == 1:
        return [middle]
    along = [room[height < width] * n // (crops - 1) for n in range(crops)]
    return [(middle[0], one) if height < width else (one, middle[1]) for one in along]


def check_clip(frames: int, stride: int, short: str) -> None:
    """Refuse numbers that make no clip.

    Raises:
        FovealError: a value is out of its range.
    """
    for name, value in (("frames", frames), ("stride", stride)):
        if not isinstance(value, int) or not 1 <= value <= MOST_FRAMES:
            raise FovealError(f"{name} must be a whole number from 1 to {MOST_FRAMES}, got {value!r}")
    if short not in SHORT:
        raise FovealError(f"short must be one of {', '.join(SHORT)}, got {short!r}")


class ClipTransform:
    """From a video to what the network takes: frames chosen, then all of them changed alike and normalised.

    Args:
        frame: what is done to every frame, with one draw for all of them.
        choose: which frames of how many there are make up each clip.
        crops: how many squares are cut out of each clip afterwards; None cuts none, as ``frame`` has done it.
        size: their side in pixels.
        random: whether ``choose`` draws random numbers.

    ``image`` of a sample is a video (c, frames, h, w) of uint8 and comes out as a clip (c, t, h, w) of float32; where
    there are several views of it, as (views, c, t, h, w), all crops of the first clip first.

    Example:
        >>> import torch
        >>> choose = evaluation_clips(4, 2, "loop")
        >>> video = torch.zeros(3, 20, 8, 8, dtype=torch.uint8)
        >>> ClipTransform(JointTransform([]), choose)({"image": video})["image"].shape
        torch.Size([3, 4, 8, 8])
    """

    def __init__(
        self,
        frame: JointTransform,
        choose: Chooser,
        *,
        crops: int | None = None,
        size: int = 0,
        random: bool = False,
    ) -> None:
        self.frame, self.choose, self.crops, self.size, self.choice_is_random = (
            frame, choose, crops, size, random,
        )  # fmt: skip

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return self.frame.random or self.choice_is_random

    @property
    def steps(self) -> list[Any]:
        """What it does before the normalisation; an empty list is nothing."""
        return [self.choose, *self.frame.steps]

    def without_normalization(self) -> ClipTransform:
        """The same, giving the clip as uint8."""
        return self._with(self.frame.without_normalization())

    def normalization_alone(self) -> Normalization:
        """The normalisation of clips whose frames are chosen already."""
        return Normalization(self.frame)

    def normalize(self, clips: Tensor) -> Tensor:
        """Clips (..., c, t, h, w) of the bytes 0..255 as float32, normalised."""
        return Normalization(self.frame).normalize(clips)

    def __call__(self, sample: Sample) -> Sample:
        clips = self.choose(sample["image"].shape[1])
        frames = [number for clip in clips for number in clip]
        return self._changed({**sample, "image": sample["image"][:, frames]}, len(clips))

    def from_data(self, data: Any, index: int) -> Sample:
        """An item of a data set, of whose video the chosen frames alone are read where it can do that.

        Args:
            data: has ``clip(index, choose)``, which gives a sample with the frames of all clips one after the other,
                or gives whole videos.
        """
        if not hasattr(data, "clip"):
            return self(data[index])
        counts: list[int] = []

        state = torch.default_generator.get_state()

        def choose(count: int) -> list[int]:
            # where an item cannot be read and the next one is, that one is drawn alike
            torch.default_generator.set_state(state)
            clips = self.choose(count)
            counts.append(len(clips))
            return [number for clip in clips for number in clip]

        sample = data.clip(index, choose)
        return self._changed(sample, counts[-1])

    def _with(self, frame: JointTransform) -> ClipTransform:
        return ClipTransform(
            frame, self.choose, crops=self.crops, size=self.size, random=self.choice_is_random
        )

    def _changed(self, sample: Sample, clips: int) -> Sample:
        """A sample with the frames of all clips, each changed, as one clip or as views."""
        changed = self.frame({"image": sample["image"].movedim(1, 0)})["image"].movedim(0, 1)
        views = [
            view for clip in changed.unflatten(1, (clips, -1)).unbind(1) for view in self._cut(clip)
        ]  # fmt: skip
        return {**sample, "image": views[0].contiguous() if len(views) == 1 else torch.stack(views)}

    def _cut(self, clip: Tensor) -> list[Tensor]:
        if self.crops is None:
            return [clip]
        corners = crop_corners(clip.shape[-2], clip.shape[-1], self.size, self.crops)
        return [clip[..., top : top + self.size, left : left + self.size] for top, left in corners]


class Normalization:
    """The normalisation of a `JointTransform` on clips (..., c, t, h, w); a transform without any step.

    Example:
        >>> clip = torch.full((3, 2, 4, 4), 255, dtype=torch.uint8)
        >>> round(Normalization(JointTransform([]))({"image": clip})["image"].max().item(), 2)
        2.64
    """

    steps = ()
    random = False

    def __init__(self, frame: JointTransform) -> None:
        self.frame = frame

    def normalize(self, clips: Tensor) -> Tensor:
        """Clips of the bytes 0..255 as float32, normalised."""
        return self.frame.normalize(clips.movedim(-3, -4)).movedim(-4, -3).contiguous()

    def __call__(self, sample: Sample) -> Sample:
        return {**sample, "image": self.normalize(sample["image"])}


def training_clip(frames: int, stride: int, short: str) -> Chooser:
    """One clip at a random place, drawn from torch's global generator."""
    return partial(_random_clip, frames, stride, short)


def evaluation_clips(frames: int, stride: int, short: str, clips: int = 1) -> Chooser:
    """Clips spread evenly over the video, without randomness."""
    return partial(_even_clips, frames, stride, short, clips)


def _random_clip(frames: int, stride: int, short: str, count: int) -> list[list[int]]:
    start = random_start(count, frames, stride, torch.rand((), dtype=torch.float64).item())
    return [clip_frames(start, frames, stride, count, short)]


def _even_clips(frames: int, stride: int, short: str, clips: int, count: int) -> list[list[int]]:
    starts: Sequence[int] = even_starts(count, frames, stride, clips)
    return [clip_frames(start, frames, stride, count, short) for start in starts]
