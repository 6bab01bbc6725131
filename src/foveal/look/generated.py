"""What a generator attends to while it makes an image from noise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.inference import Predictor
from foveal.look.pictures import SeenImage
from foveal.look.recording import Recordings
from foveal.look.watching import watch

PART = "generator"


class GeneratedImages:
    """The images of one seed, made and recorded one after the other as they are iterated over.

    Args:
        predictor: weights that generate.
        source: ``"seed:3"``.
        limit: how many images.

    Attributes:
        unreadable: nothing; as `foveal.look.images.NamedImages` has it.

    Raises:
        FovealError: the source is no seed; from the iteration, that the generator has no attention.
    """

    def __init__(self, predictor: Predictor, source: str, limit: int) -> None:
        found = re.fullmatch(r"seed:(\d{1,18})", source)
        if found is None:
            raise FovealError(f"weights that generate are looked at by a seed, such as seed:0, got {source}")
        self.predictor, self.source, self.seed, self.limit = predictor, source, int(found[1]), limit
        self.unreadable: dict[str, str] = {}

    def __iter__(self) -> Iterator[SeenImage]:
        return (see_generated(self.predictor, self.seed, number) for number in range(self.limit))


@torch.no_grad()
def see_generated(
    predictor: Predictor, seed: int, number: int = 0, *, label: str | None = None, max_bytes: int = 2**28
) -> SeenImage:
    """Make one image of a seed, and record what each attention site of the generator received.

    Args:
        seed, number: which image; as `foveal predict --seed SEED` numbers them.
        label: its class; by default the one that the number has.
        max_bytes: most that the recording may hold.
    """
    task: Any = predictor.task
    inference = task.InferenceOptions(count=1, seed=seed, first=number, label=label)
    with watch(task.generator(predictor.net), weights=predictor.name, max_bytes=max_bytes) as seen:
        ((answer, image),) = task.sample(predictor.net, predictor.info, inference)
    return SeenImage(answer.file, _size(image), image, answer, _of_images(seen, _size(image)))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _of_images(seen: Recordings, size: tuple[int, int]) -> Recordings:
    """By the paths in the whole network; points are those of the image, for the input was noise."""
    for recording in seen.values():
        recording.name, recording.image_size = f"{PART}.{recording.name}", size
    return Recordings({one.name: one for one in seen.values()}, seen.skipped, seen.max_bytes)
