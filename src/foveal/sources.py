"""What to predict, as it comes: files, frames of videos, a camera, a folder that is watched."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from foveal.data.video import FORMATS, Video, frame_pixels, require_pyav
from foveal.errors import FovealError

VIDEO_SUFFIXES = frozenset(FORMATS)
CAMERA = "camera:"
# FFmpeg's name of a camera and of its reader
CAMERAS = {
    "linux": ("/dev/video{number}", "v4l2"),
    "darwin": ("{number}", "avfoundation"),
}
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Frame:
    """An image that is no file of its own: frame 12 of clip.mp4 is called clip#000012.mp4."""

    name: Path
    image: UInt8[Tensor, "c h w"]


def is_camera(path: str | os.PathLike[str]) -> bool:
    """Whether a path means a camera, ``camera:0``, and no file.

    Example:
        >>> is_camera("camera:0"), is_camera("photo.jpg")
        (True, False)
    """
    return str(path).startswith(CAMERA)


def with_frames(
    files: Iterable[Path | None],
    channels: int,
    every: int,
    unreadable: dict[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Path | Frame | None]:
    """The files in order, of each video its frames.

    Args:
        files: None among them is passed on, see `watched`.
        every: take the first frame and each so-many-th after it.
        unreadable: is filled with the videos that cannot be read, or not to their end, and the reason.
        stopped: asked before each frame whether to end here.
    """
    for file in files:
        if file is None or file.suffix.lower() not in VIDEO_SUFFIXES:
            yield file
            continue
        try:
            for number, image in Video(file, channels).frames(every):
                if stopped():
                    return
                yield Frame(_frame_name(file, number), image)
        except (FovealError, OSError) as error:
            unreadable[str(file)] = str(error)


def _frame_name(path: Path, number: int) -> Path:
    """The name of one frame.

    Example:
        >>> str(_frame_name(Path("a/clip.mp4"), 12))
        'a/clip#000012.mp4'
    """
    return path.with_name(f"{path.stem}#{number:06d}{path.suffix}")


def camera_frames(path: str, channels: int, every: int, stopped: Callable[[], bool]) -> Iterator[Frame]:
    """Frames of a camera, called camera-0#000012 and so on, until it is stopped or gives no more.

    Args:
        path: ``"camera:0"``, or another number.

    Raises:
        FovealError: no such camera, no PyAV, or a system whose cameras it cannot read.
    """
    number = path.removeprefix(CAMERA)
    if not number.isdecimal() or sys.platform not in CAMERAS:
        raise FovealError(
            f"a camera is given by its number, {CAMERA}0, on {' or '.join(CAMERAS)}, got {path} on {sys.platform}"
        )
    require_pyav()
    import av
    from av.error import FFmpegError

    device, reader = CAMERAS[sys.platform]
    try:
        with av.open(device.format(number=number), format=reader) as container:
            for passed, frame in enumerate(container.decode(video=0)):
                if stopped():
                    return
                if passed % every == 0:
                    yield Frame(Path(f"camera-{number}#{passed:06d}"), frame_pixels(frame, channels))
    except (FFmpegError, OSError, IndexError) as error:
        raise FovealError(f"{path} must be a camera that can be read, got: {error}") from error


def watched(
    folder: Path,
    find: Callable[[Path], Sequence[Any]],
    stopped: Callable[[], bool],
    unreadable: dict[str, str],
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Path | None]:
    """The files of a folder, and those that come into it, each once, when it no longer grows, until stopped.

    Args:
        find: gives the files below the folder.
        unreadable: those that could not be read; one that changes afterwards, as where copying it paused, is taken out
            of them and given again.
        wait: sleeps so many seconds.

    Yields:
        A file; None where there is none for now, and what was given should be answered.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    given: dict[Path, tuple[int, int]] = {}
    while not stopped():
        for file in sorted(set(map(Path, find(folder)))):
            if file in given and str(file) not in unreadable:
                continue
            try:
                status = file.stat()
            except OSError:
                # taken away again, or not to be read
                continue
            now = status.st_size, status.st_mtime_ns
            if sizes.get(file) == now and given.get(file) != now:
                given[file] = now
                unreadable.pop(str(file), None)
                yield file
            sizes[file] = now
            if stopped():
                return
        yield None
        wait(POLL_SECONDS)
