"""Opening image files safely: which formats are read, and what is refused before any pixel is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from foveal.errors import FovealError
from foveal.image_files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

# 89 million pixels are a 33,000 x 2,700 panorama: 268 MB once decoded. A small file can claim far more.
MAX_PIXELS = 89_000_000
# Every scan of a progressive JPEG goes over the whole image again; cameras and programs write about ten.
MAX_SCANS = 100
# Pillow's other readers are never asked: that for EPS would start another program on the file.
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF",
)  # fmt: skip


class LabelError(FovealError):
    """Truth that contradicts its image or the class list. Never skipped: such faults are rarely in one file only."""


class ImageKindError(FovealError):
    """A sound image of a kind that cannot become bytes without a decision, such as signed values. Never skipped."""


class ChunkError(FovealError):
    """A file that holds many items is missing, damaged or out of reach. Never skipped as one unreadable image is."""


@contextmanager
def opened(
    source: str | PathLike[str] | bytes, name: str | None, max_pixels: int
) -> Iterator[tuple[Image, str, BinaryIO]]:
    """A Pillow image whose header is read and whose size is accepted, its name, and the file it reads from."""
    from PIL import Image as pillow

    if name is None:
        name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
        try:
            with warnings.catch_warnings():
                # Pillow only warns of huge images; the limit below refuses them.
                warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
                if is_heif(file.read(12)):
                    _take_plugin()
                file.seek(0)
                image = pillow.open(file, formats=readable_formats(name))
        except pillow.UnidentifiedImageError:
            raise _unidentified(file, name) from None
        except Exception as error:  # damaged headers surface as many kinds of exceptions, by format
            raise FovealError(f"unreadable image header, got {name}: {line_of(error)}") from None
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise FovealError(f"an image may have at most {max_pixels} pixels, got {size} in {name}")
        if image.info.get("progressive"):
            _check_scans(file, name)
        _mend_transparency(image, file)
        yield image, name, file


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is HEIC or AVIF, as phones write them.

    Example:
        >>> is_heif(b"\\0\\0\\0\\x18ftypheic"), is_heif(b"\\0\\0\\0\\x18ftypisom")
        (True, False)
    """
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis")


def _take_plugin() -> None:
    """Let Pillow read HEIC where its plug-in is installed: a person cannot ask for that on the command line."""
    from PIL import Image as pillow

    if "HEIF" not in pillow.OPEN:
        with suppress(ImportError):
            from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

            register_heif_opener()


def readable_formats(name: str) -> list[str]:
    """Those of `FORMATS` that this Pillow reads; TGA files have no signature and are known by their name alone."""
    from PIL import Image as pillow

    pillow.init()
    wanted = (*FORMATS, "TGA") if name.lower().endswith(".tga") else FORMATS
    return [kind for kind in wanted if kind in pillow.OPEN]


def _check_scans(file: BinaryIO, name: str) -> None:
    before = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(before)
    if scans > MAX_SCANS:
        raise FovealError(f"a JPEG may have at most {MAX_SCANS} scans, got {scans} in {name}")


def _unidentified(file: BinaryIO, name: str) -> FovealError:
    """Why Pillow does not know a file, as far as its first bytes tell."""
    from PIL import TiffImagePlugin

    file.seek(0)
    head = file.read(12)
    if head[:4] in (b"II*\0", b"MM\0*"):
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(head[:8])
            file.seek(tags.next)
            tags.load(file)
            bands, bits = int(tags.get(277, 1)), int(np.ravel(tags.get(258, 1))[0])
            kind = {2: "signed ", 3: "floating-point "}.get(int(np.ravel(tags.get(339, 1))[0]), "")
        except Exception:  # damaged beyond its first bytes
            return FovealError(f"unreadable image header, got {name}")
        return ImageKindError(
            f"a TIFF must have 1, 3 or 4 bands of 8 bits or 1 of 16 or 32, got {bands} of {bits} {kind}bits"
            f"{', big-endian,' if head[:2] == b'MM' else ''} in {name}; "
            + ("bands must be chosen first" if bands > 1 else "save it as PNG, or as a TIFF of 8 or 16 bits")
        )
    if head[4:8] == b"ftyp":
        kind = (
            "AVIF, which needs a Pillow built with it"
            if head[8:11] == b"avi"
            else "HEIC, which needs pillow-heif: pip install 'foveal[heic]'"
        )
        return FovealError(f"not an image file that this Pillow can read, got {name}, perhaps {kind}")
    return FovealError(f"not an image file that Pillow can read, got {name}")


def _mend_transparency(image: Image, file: BinaryIO) -> None:
    """Bring the transparent value of a PNG from the depth of the file to that of Pillow's pixels."""
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None or isinstance(transparent, bytes):
        return
    depth = png_depth(file)
    if isinstance(transparent, int) and image.mode in ("1", "L") and depth < 8:
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    elif isinstance(transparent, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def png_depth(file: BinaryIO) -> int:
    """Bits a sample in a PNG file."""
    before = file.tell()
    file.seek(24)
    depth = file.read(1)[0]
    file.seek(before)
    return depth


def line_of(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
