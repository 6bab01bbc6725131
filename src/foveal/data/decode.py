"""Image files of any common kind to one tensor format."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foveal.data.items import LabelError
from foveal.errors import FovealError

if TYPE_CHECKING:
    from PIL.Image import Image

# 89 million pixels are a 33,000 x 2,700 panorama: 268 MB once decoded. A small file can claim far more.
MAX_PIXELS = 89_000_000


def decode_image(
    source: str | PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[Tensor, "3 h w"]:
    """Read an image file as RGB, upright, whatever its own format.

    Grey and palette images become RGB; transparent pixels show white; CMYK and YCbCr are converted; 16 bits are
    scaled to 8 by the range of the type (65535 -> 255), never by the content; the EXIF orientation is applied; of
    an animation the first frame is taken. Floating-point images must lie in 0..1.

    Args:
        source: a path, or the bytes of a file.
        name: what to call it in error messages; default the path.
        max_pixels: refuse images with more pixels, judged by the header, before anything is decoded.

    Raises:
        ValueError: the content is no image, is truncated or damaged, or has too many pixels. The message names
            the file.
        FileNotFoundError, PermissionError, IsADirectoryError: the path cannot be opened.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("LA", (5, 4), (0, 0)).save(file, "png")  # black, but wholly transparent
        >>> decode_image(file.getvalue()).shape, decode_image(file.getvalue()).unique()
        (torch.Size([3, 4, 5]), tensor([255], dtype=torch.uint8))
    """
    with _opened(source, name, max_pixels) as (image, name):
        return _guarded(lambda: to_tensor(image), name)


def decode_mask(
    source: str | PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[Tensor, "h w"]:
    """Read a mask file: the stored numbers themselves, so of a palette image the indices, not the colours.

    Raises:
        ValueError: as ``decode_image``.
        LabelError: a ValueError too: the file is sound, but has several channels or values above 255. Data sets skip
            damaged files, never these.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file, image = io.BytesIO(), Image.new("P", (3, 2), 7)
        >>> image.putpalette(list(range(256)) * 3)
        >>> image.save(file, "png")
        >>> decode_mask(file.getvalue()).tolist()
        [[7, 7, 7], [7, 7, 7]]
    """
    with _opened(source, name, max_pixels) as (image, name):
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            raise LabelError(
                f"a mask must have one channel of class indices, got mode {image.mode} in {name}; "
                "colours must be turned into indices first"
            )
        values = _guarded(lambda: np.asarray(image), name)
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise LabelError(f"mask values must be 0 to 255, got {values.min()} to {values.max()} in {name}")
    return torch.from_numpy(values.astype(np.uint8))


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image file as ``decode_image`` gives it, from the header alone.

    Raises:
        ValueError: the header cannot be read.
    """
    with _opened(path, None, 2**62) as (image, _):
        try:
            sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception:  # damaged EXIF: shown as stored
            sideways = False
        return (image.width, image.height) if sideways else (image.height, image.width)


@contextmanager
def _opened(
    source: str | PathLike[str] | bytes, name: str | None, max_pixels: int
) -> Iterator[tuple[Image, str]]:
    """A Pillow image whose header is read and whose size is accepted, and its name."""
    from PIL import Image as pillow

    if name is None:
        name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        try:
            with warnings.catch_warnings():
                # Pillow only warns of huge images; the limit below refuses them.
                warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
                image = pillow.open(file)
        except pillow.UnidentifiedImageError:
            raise FovealError(f"not an image file that Pillow can read, got {name}") from None
        except Exception as error:  # damaged headers surface as many kinds of exceptions, by format
            raise FovealError(f"unreadable image header, got {name}: {_line(error)}") from None
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise FovealError(f"an image may have at most {max_pixels} pixels, got {size} in {name}")
        yield image, name


def _guarded(decode: Any, name: str) -> Any:
    """Damaged content surfaces as OSError, SyntaxError, struct.error and more: all of it is the file's fault."""
    try:
        return decode()
    except MemoryError:
        raise
    except Exception as error:
        raise FovealError(f"truncated or damaged image, got {name}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def to_tensor(image: Image) -> UInt8[Tensor, "3 h w"]:
    """A Pillow image of any mode as RGB, upright; see ``decode_image``.

    Raises:
        ValueError: the mode is not supported, or floating-point values are outside 0..1.
    """
    image.load()
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = torch.from_numpy(_eight_bits(image))
        return grey.expand(3, *grey.shape).contiguous()
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        from PIL import Image as pillow

        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(0x0112, 1) != 1 else image
    except Exception:  # damaged EXIF of an intact image: show it as stored
        return image


def _eight_bits(image: Image) -> np.ndarray:
    """Grey images of 16 and 32 bits, scaled by the range of the type. Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise FovealError(
                f"floating-point values must lie in 0..1, got {values.min():g} to {values.max():g}"
            )
        return (values * 255 + 0.5).astype(np.uint8)
    # Mode "I" has 32 bits and comes from 16-bit files too.
    if values.min() < 0 or values.max() > 65535:
        raise FovealError(f"grey values must fit 16 bits, got {values.min()} to {values.max()}")
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
