"""The recordings of the last images, kept for the questions that a page will ask of them."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveal.look.page.refusals import HTTPError
from foveal.look.recording import Recordings

MAX_CACHED_BYTES = 2**29
"""Bytes of all recordings together; those that nobody asked of for longest go first."""
MAX_CACHED_IMAGES = 64


@dataclass(frozen=True)
class CachedImage:
    """One image as every network saw it: the views, the answers, the recordings, in the networks' order."""

    name: str
    views: list[Tensor]
    answers: list[tuple[Any, Recordings]]

    @property
    def bytes(self) -> int:
        """What it holds now: reading a recording may add to it."""
        return sum(seen.held_bytes for _, seen in self.answers) + sum(view.numel() for view in self.views)


class RecordingCache:
    """Images by unguessable names, within `MAX_CACHED_BYTES` and `MAX_CACHED_IMAGES`; the least recently used go."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, CachedImage] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, image: CachedImage) -> str:
        """Keep an image; the name by which `get` finds it."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._images[name] = image
            while len(self._images) > 1 and (
                len(self._images) > MAX_CACHED_IMAGES
                or sum(one.bytes for one in self._images.values()) > MAX_CACHED_BYTES
            ):
                self._images.popitem(last=False)
        return name

    def get(self, name: str) -> CachedImage:
        """The image of that name.

        Raises:
            HTTPError: it is not kept any more, or never was.
        """
        with self._lock:
            if name not in self._images:
                raise HTTPError(404, "this image is not kept any more; choose it again")
            self._images.move_to_end(name)
            return self._images[name]
