"""Videos: files that PyAV reads, animated images and folders of frames that Pillow reads.

The frames of a video are counted in the order in which they are shown, whatever their times. Only the frames that are
asked for are kept, and only those between the key frame before them and the last of them are decoded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foveal.data.decode import decode_image, guarded, image_size, to_tensor
from foveal.data.joint import grey
from foveal.data.opening import MAX_PIXELS, line_of, opened
from foveal.errors import FovealError
from foveal.image_files import IMAGE_SUFFIXES, folders_in, is_hidden, open_regular

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.Image import Image

# a suffix -> FFmpeg's name of the format; its other readers, some of which open further files, are never asked
FORMATS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm", ".mkv": "matroska", ".avi": "avi",
    ".mpg": "mpeg", ".mpeg": "mpeg",
}  # fmt: skip
COUNTED = ("avi", "mpeg")
"""Not all of their frames have a time of their own: they are read from the beginning and counted."""
SIGNATURES = (
    (0, b"\x1a\x45\xdf\xa3", "matroska"), (0, b"\x00\x00\x01\xba", "mpeg"), (8, b"AVI ", "avi"),
    *((4, name, "mp4") for name in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
)  # fmt: skip
"""What the content of a video file has at a place, and FFmpeg's name of the format."""
ANIMATED = frozenset((".gif", ".webp", ".apng"))
FRAME_SUFFIXES = IMAGE_SUFFIXES - ANIMATED
MICROSECONDS = 1e6
MAX_BYTES = 2**30
"""Of frames that are read together."""
LEAST_SHARE = 0.9
"""Of the time that a file says it has; with less it is truncated."""
UNEVEN = 1.5
"""A frame that is shown so many times as long as another one makes the rate variable."""


class Video:
    """The frames of one video, read when they are asked for: ``video[:, [0, 8, 16]]`` is a tensor (3, 3, h, w).

    Args:
        path: a file, or a folder of frames.
        channels: 3, or 1 for grey.
        content: of a file that is in memory: its first bytes tell what it is, and ``path`` is only its name.

    Attributes:
        shape: (channels, frames, height, width), from what the file says of itself and the number of its packets.

    Raises:
        FovealError: it cannot be read, has no video or one frame only, or frames of too many pixels. Reading frames
            raises it too where they are damaged, or too many to be in memory together.
    """

    def __init__(self, path: Path, channels: int = 3, content: bytes | None = None) -> None:
        self.path, self.channels, self.content = path, channels, content
        if content is not None:
            self._format = video_format(content)
        else:
            self._format = FORMATS.get(path.suffix.lower()) if path.is_file() else None
        count, height, width = self._measured()
        if count < 2:
            raise FovealError(f"a video must have at least 2 frames, got {count} in {path}")
        if height * width > MAX_PIXELS:
            raise FovealError(f"a frame may have at most {MAX_PIXELS} pixels, got {width}x{height} in {path}")
        self.shape = torch.Size((channels, count, height, width))

    def __repr__(self) -> str:
        _, frames, height, width = self.shape
        return f"<Video {self.path}: {frames} frames of {width}x{height}>"

    def numel(self) -> int:
        """Values of one frame: those of all of them are never in memory unasked."""
        return self.shape[0] * self.shape[2] * self.shape[3]

    def __getitem__(self, key: Any) -> UInt8[Tensor, "c *t h w"]:
        """Frames by ``[:, numbers]``, one by ``[:, number]``, all by ``[:]``."""
        which = key[1] if isinstance(key, tuple) else slice(None)
        count = self.shape[1]
        if isinstance(which, slice):
            return self._read(list(range(count))[which])
        if isinstance(which, int):
            return self._read([which % count])[:, 0]
        return self._read([int(number) % count for number in which])

    def frames(self, every: int = 1) -> Iterator[tuple[int, UInt8[Tensor, "c h w"]]]:
        """Number and image of the first frame and of each ``every``-th after it, one in memory at a time."""
        if every < 1:
            raise FovealError(f"every must be at least 1, got {every}")
        wanted = range(0, self.shape[1], every)
        passed = 0
        for number, frame in self._reader(wanted):
            yield number, frame
            passed += 1
        if passed < len(wanted):
            raise FovealError(
                f"truncated or damaged video, got {passed} of {len(wanted)} frames in {self.path}"
            )

    @cached_property
    def variable_rate(self) -> bool:
        """Whether frames are shown for different times, as far as their file says when."""
        told = self._format and self._format not in COUNTED
        gaps = np.diff(self._file[0]) if told else np.zeros(0)
        return bool(len(gaps) and gaps.max() > UNEVEN * max(gaps.min(), 1))

    @property
    def _is_folder(self) -> bool:
        return self.content is None and self.path.is_dir()

    def _stream(self) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
        assert self._format is not None
        return _stream(self.path, self._format, self.content)

    def _image(self) -> AbstractContextManager[tuple[Image, str, BinaryIO]]:
        """An animated image, opened."""
        source = self.path if self.content is None else self.content
        return opened(source, str(self.path), MAX_PIXELS)

    @cached_property
    def _frame_files(self) -> list[Path]:
        return frame_files(self.path)

    @cached_property
    def _file(self) -> tuple[list[int], int, int]:
        """Of a video file: when each frame is shown, height and width."""
        with self._stream() as (container, stream):
            times = _times(container, stream, self.path)
            height, width = stream.codec_context.height, stream.codec_context.width
            if height * width > MAX_PIXELS:
                return times, height, width
            container.seek(times[0], stream=stream)
            for frame in container.decode(stream):
                return times, *((width, height) if _quarter_turns(frame) % 2 else (height, width))
        raise FovealError(f"truncated or damaged video, got no frame in {self.path}")

    def _measured(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        if self._format:
            times, height, width = self._file
            return len(times), height, width
        if self._is_folder:
            if not self._frame_files:
                raise FovealError(f"a folder of frames must hold images, got none in {self.path}")
            return len(self._frame_files), *image_size(self._frame_files[0])
        with self._image() as (image, name, _):
            count = guarded(lambda: getattr(image, "n_frames", 1), name)
            return count, image.height, image.width

    def _read(self, numbers: Sequence[int]) -> UInt8[Tensor, "c t h w"]:
        wanted = sorted(set(numbers))
        needed = len(numbers) * self.numel()
        if needed > MAX_BYTES:
            raise FovealError(
                f"frames may take at most {MAX_BYTES:,} bytes together, got {len(numbers)} of "
                f"{self.shape[3]}x{self.shape[2]} in {self.path}; take fewer, or make them smaller"
            )
        clip = torch.empty(self.channels, len(numbers), *self.shape[2:], dtype=torch.uint8)
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            places.setdefault(number, []).append(place)
        for number, frame in self._reader(wanted):
            if frame.shape[1:] != self.shape[2:]:
                raise FovealError(
                    f"frames must have one size, got {self.shape[3]}x{self.shape[2]} and "
                    f"{frame.shape[2]}x{frame.shape[1]} (frame {number}) in {self.path}"
                )
            for place in places.pop(number):
                clip[:, place] = frame
        if places:
            raise FovealError(f"truncated or damaged video, got no frame {min(places)} in {self.path}")
        return clip

    @property
    def _reader(self) -> Callable[[Sequence[int]], Iterator[tuple[int, Tensor]]]:
        """Gives number and image of the wanted frames, in order."""
        return self._decoded if self._format else self._listed if self._is_folder else self._animated

    def _listed(self, wanted: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        for number in wanted:
            yield number, decode_image(self._frame_files[number], channels=self.channels)

    def _animated(self, wanted: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        with self._image() as (image, name, _):
            for number in wanted:

                def frame(number: int = number) -> Tensor:
                    image.seek(number)
                    return to_tensor(image.copy(), channels=self.channels)

                yield number, guarded(frame, name)

    def _decoded(self, wanted: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        with self._stream() as (container, stream):
            left, counted = set(wanted), self._format in COUNTED
            number_of = {time: number for number, time in enumerate(self._file[0])}
            for passed, frame in enumerate(self._from(container, stream, 0 if counted else wanted[0])):
                number = passed if counted else number_of.get(frame.pts or 0)
                if number in left:
                    left.remove(number)
                    yield number, frame_pixels(frame, self.channels)
                if not left:
                    return

    def _from(self, container: InputContainer, stream: VideoStream, number: int) -> Iterator[VideoFrame]:
        """Decoded frames from the key frame before one on."""
        times = self._file[0]
        if number:
            container.seek(times[number], stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
            # without an index the place that was found may lie behind the frame
            if first is not None and first.pts is not None and first.pts <= times[number]:
                yield first
                yield from frames
                return
            container.seek(times[0], stream=stream)
        yield from container.decode(stream)


def read_clip(path: Path, choose: Callable[[int], list[int]], channels: int = 3) -> UInt8[Tensor, "c t h w"]:
    """The frames of a video that a function chooses of how many there are."""
    video = Video(path, channels)
    return video[:, choose(video.shape[1])]


def video_format(content: bytes) -> str | None:
    """FFmpeg's name of the format of a video file, by its first bytes; None where it is none that is read.

    Example:
        >>> video_format(b"\\0\\0\\0 ftypisom"), video_format(b"GIF89a")
        ('mp4', None)
    """
    return next((kind for at, mark, kind in SIGNATURES if content[at : at + len(mark)] == mark), None)


def require_pyav() -> None:
    """Refuse to go on without PyAV.

    Raises:
        FovealError: it is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError:
        raise FovealError(
            f"reading {', '.join(FORMATS)} needs PyAV, which is not installed: pip install 'foveal[video]'"
        ) from None


@contextmanager
def _stream(path: Path, format: str, content: bytes | None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """An opened file and its first video stream, at its beginning; whatever FFmpeg says becomes one line."""
    require_pyav()
    import av
    from av.error import FFmpegError

    with open_regular(path) if content is None else io.BytesIO(content) as file:
        try:
            with av.open(file, "r", format=format) as container:
                if not container.streams.video:
                    raise FovealError(f"a video must have a video stream, got none in {path}")
                stream = container.streams.video[0]
                # reading processes share the cores by videos
                stream.codec_context.thread_count = 1
                yield container, stream
        except FovealError:
            raise
        except (FFmpegError, OSError, ValueError, EOFError) as error:
            # FFmpeg's errors add their number and the function
            reason = getattr(error, "strerror", None) or line_of(error)
            raise FovealError(f"truncated or damaged video, got {path}: {reason}") from None


def _times(container: InputContainer, stream: VideoStream, path: Path) -> list[int]:
    """When each frame is shown, in the stream's unit, in order."""
    times = sorted(
        packet.pts
        for packet in container.demux(stream)
        if packet.pts is not None and packet.size and not packet.is_discard
    )
    if not times:
        raise FovealError(f"a video must have frames with times, got none in {path}")
    unit = float(stream.time_base or 0)
    said = (stream.duration or 0) * unit
    if not said and len(container.streams) == 1:
        said = (container.duration or 0) / MICROSECONDS
    shown = (times[-1] - times[0]) * unit * len(times) / max(1, len(times) - 1)
    if len(times) > 1 and shown < LEAST_SHARE * said:
        raise FovealError(f"truncated video, got {shown:.3g} of {said:.3g} seconds in {path}")
    return times


def _quarter_turns(frame: VideoFrame) -> int:
    """By how many quarter turns, against the clock, a frame is to be shown."""
    return round(frame.rotation / 90) % 4


def frame_pixels(frame: VideoFrame, channels: int) -> Tensor:
    """A decoded frame, upright, (channels, h, w)."""
    # by itself FFmpeg starts a thread a core for the colours of each frame, which takes longer than they do
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    turned = np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)).transpose(2, 0, 1))
    image = torch.from_numpy(turned)
    return grey(image) if channels == 1 else image


# ---------------------------------------------------------------------------------------------------------- finding


def frame_files(folder: Path) -> list[Path]:
    """The images directly inside a folder, by the numbers in their names: frame 2 comes before frame 10.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("f10.png", "f2.png", "notes.txt"):
        ...     _ = (root / name).write_bytes(b"")
        >>> [path.name for path in frame_files(root)]
        ['f2.png', 'f10.png']
    """
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in FRAME_SUFFIXES and not is_hidden(path.name)
    ]
    return sorted(
        found, key=lambda path: [int(part) if part.isdigit() else part for part in _parts(path.name)]
    )


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def is_video_name(name: str) -> bool:
    """Whether a file's suffix says that it is a video or an animated image."""
    return Path(name).suffix.lower() in FORMATS.keys() | ANIMATED


def find_videos(folder: Path) -> list[str]:
    """Names below a folder, with ``/``, of video files, and of folders that hold frames, sorted.

    A folder is one video if it holds images that are not animated, and no folder.
    """
    found: list[str] = []
    waiting, taken = [folder], set()
    while waiting:
        where = waiting.pop()
        status = where.stat()
        if (status.st_dev, status.st_ino) in taken:
            # links may lead in a circle
            continue
        taken.add((status.st_dev, status.st_ino))
        inside = folders_in(where)
        waiting += inside
        found += [
            path.relative_to(folder).as_posix()
            for path in where.iterdir()
            if path.is_file() and is_video_name(path.name) and not is_hidden(path.name)
        ]
        if where != folder and not inside and frame_files(where):
            found.append(where.relative_to(folder).as_posix())
    return sorted(found)
