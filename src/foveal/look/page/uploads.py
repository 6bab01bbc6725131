"""Images and clips that a client sends, within bounds of size, time and memory, and of pixels once decoded."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Request
from starlette.requests import ClientDisconnect
from torch import Tensor

from foveal.data.decode import guarded, to_tensor
from foveal.data.opening import MAX_PIXELS, is_heif, opened
from foveal.data.video import Video, video_format
from foveal.errors import FovealError
from foveal.look.page.refusals import HTTPError, printable

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_UPLOAD = 20 * 2**20
"""Bytes of one upload."""
UPLOAD_SECONDS = 20.0
"""Time for the whole of one upload."""
MAX_UPLOADS = 32
"""Uploads under way at once; more are told to come back."""
MAX_WAITING_BYTES = 2**28
"""Bytes of all uploads that are under way or wait for the networks."""
FULL_PIXELS = 40_000_000
"""Images with more pixels are scaled down while they are decoded, to about as many."""
MOST_PIXELS = {"JPEG": 178_000_000, "MPO": 178_000_000, "WEBP": FULL_PIXELS, "AVIF": FULL_PIXELS}
"""Images with more pixels are refused by their header. A JPEG is decoded at a half, a quarter or an eighth, without its
full size ever being in memory, so the limit is Pillow's own. WebP and AVIF take more memory than others, which
are decoded whole, up to ``foveal.data.opening.MAX_PIXELS``."""
MAX_ASPECT = 8
"""How many times as long as wide an image may be: its shorter side is brought to the network's size."""

MAX_FRAME = 4096 * 2304
"""Pixels of one frame of a clip."""
MAX_DECODED = 2**31
"""Pixels of all frames of a clip together: those before the wanted ones are decoded as well."""

# What a file begins with, for the formats that are decoded at all.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")


class Uploads:
    """Reads the bodies of uploads and keeps count of those in memory."""

    def __init__(self) -> None:
        self._under_way = 0
        self._bytes = 0

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts as in memory until this is left.

        Raises:
            HTTPError: it is too long, too slow, empty or broken off, or too many others are under way.
        """
        if self._under_way >= MAX_UPLOADS:
            raise HTTPError(503, f"{self._under_way} uploads are under way; try again in a moment")
        parts: list[bytes] = []
        self._under_way += 1
        try:
            await self._read(request, parts)
        except BaseException:
            self._bytes -= sum(map(len, parts))
            raise
        finally:
            self._under_way -= 1
        body = b"".join(parts)
        parts.clear()
        try:
            yield body
        finally:
            self._bytes -= len(body)

    async def _read(self, request: Request, parts: list[bytes]) -> None:
        declared = request.headers.get("content-length", "0")
        limit = f"a file may have at most {MAX_UPLOAD // 2**20} MB"
        if not declared.isdecimal() or len(declared) > 15 or int(declared) > MAX_UPLOAD:
            raise HTTPError(413, f"{limit}, got {printable(declared)[:20]} bytes")
        size = 0
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    if size > MAX_UPLOAD:
                        raise HTTPError(413, f"{limit}, got more")
                    if self._bytes + len(part) > MAX_WAITING_BYTES:
                        raise HTTPError(503, "too many files wait to be looked at; try again in a moment")
                    self._bytes += len(part)
                    parts.append(part)
        except TimeoutError:
            raise HTTPError(408, f"the upload took longer than {UPLOAD_SECONDS:g} seconds") from None
        except ClientDisconnect:
            raise HTTPError(400, "the upload was broken off") from None
        if size == 0:
            raise HTTPError(400, "the upload is empty")


def decode_upload(body: bytes, name: str, grey_bits: int = 16) -> tuple[Tensor, str]:
    """The image, uint8 (3, h, w), and a word on what was done to it, or nothing.

    Args:
        grey_bits: as in `foveal.data.decode_image`.

    Raises:
        HTTPError: it is no image of a kind that is read, damaged, or too large.
    """
    if not _is_image(body) and not is_heif(body[:12]):
        raise HTTPError(
            415, f"{name} is no JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC image by its content"
        )
    try:
        # what Pillow thinks of damaged metadata would fill the terminal
        with (
            warnings.catch_warnings(action="ignore"),
            opened(body, name, max(MOST_PIXELS.values())) as (image, _, _),
        ):
            width, height = image.size
            most = MOST_PIXELS.get(str(image.format), MAX_PIXELS)
            if width * height > most:
                raise HTTPError(
                    413,
                    f"a {image.format} image may have at most {most} pixels, got {width}x{height} in {name}",
                )
            _check_aspect(height, width, name)
            note = ""
            if width * height > FULL_PIXELS:
                guarded(lambda: _scale_down(image), name)
                note = f"{width} × {height} pixels were scaled down to {image.width} × {image.height}"
            return guarded(lambda: to_tensor(image, grey_bits=grey_bits), name), note
    except FovealError as error:
        raise HTTPError(413 if "pixels" in str(error) else 422, str(error)) from error


def decode_clip(body: bytes, name: str, channels: int) -> tuple[Video, str]:
    """The video, whose frames are decoded when they are asked for, and nothing, as `decode_upload` has it.

    Raises:
        HTTPError: it is no animation or video of a kind that is read, damaged, or too large.
    """
    if not _is_image(body) and video_format(body) is None:
        raise HTTPError(
            415,
            f"{name} is no animated GIF, WebP or PNG, and no MP4, WebM, Matroska, AVI or MPEG by its content",
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            video = Video(Path(name), channels, content=body)
    except FovealError as error:
        raise HTTPError(422, str(error)) from error
    _, frames, height, width = video.shape
    if height * width > MAX_FRAME or frames * height * width > MAX_DECODED:
        raise HTTPError(
            413,
            f"a clip may have at most {MAX_FRAME} pixels in a frame and {MAX_DECODED} in all, got {frames} frames of "
            f"{width}x{height} in {name}",
        )
    _check_aspect(height, width, name)
    return video, ""


def _is_image(body: bytes) -> bool:
    return body.startswith(SIGNATURES) or (body[:4] == b"RIFF" and body[8:12] == b"WEBP")


def _scale_down(image: Image) -> None:
    """Bring a Pillow image to at most `FULL_PIXELS`, in place; a JPEG while it is decoded, others after."""
    from PIL import Image as pillow

    factor = (FULL_PIXELS / (image.width * image.height)) ** 0.5
    wanted = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    if image.format in ("JPEG", "MPO"):
        # draft keeps at least the wanted size, of the eighths that the format offers; the half of it is below
        image.draft(None, (max(1, wanted[0] // 2), max(1, wanted[1] // 2)))
    if image.width * image.height > FULL_PIXELS:
        # colours that stand for "transparent" or for an entry of a palette must not be mixed with others
        plain = image.mode in ("L", "RGB", "CMYK", "YCbCr") and "transparency" not in image.info
        image.thumbnail(wanted, pillow.Resampling.BOX if plain else pillow.Resampling.NEAREST)


def _check_aspect(height: int, width: int, name: str) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise HTTPError(
            422, f"an image may be {MAX_ASPECT} times as long as wide, got {name} of {height}x{width}"
        )
