"""Image files of any common kind to one tensor format."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foveal.data.opening import MAX_PIXELS, ImageKindError, line_of, opened, png_depth
from foveal.errors import FovealError

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
LONGEST_CHUNK = 2**20
EMPTY_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0:~\x9bU"
NO_PIXELS = b"\0\0\0\0IDAT5\xaf\x06\x1e"
TURNING_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # Pillow reads the orientation of both
ASSOCIATED_ALPHA = 1
NARROW = 4096  # grey values of 16-bit files that stay below use a sixteenth of the range


def decode_image(
    source: str | PathLike[str] | bytes,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    channels: int = 3,
    grey_bits: int = 16,
) -> UInt8[Tensor, "c h w"]:
    """Read an image file as RGB or grey, upright, whatever its own format.

    Palette images are taken by their colours; transparent pixels show white; CMYK and YCbCr are converted; the EXIF
    orientation is applied; of an animation the first frame is taken. A fourth band of a TIFF, or the second of a grey
    one, is left out unless the file says that colours are multiplied by it: it may as well be near infrared. A warning
    tells of such bands, and of TIFFs of several pages, once.

    The result always has 8 bits. 16-bit values are scaled by the range of the type (65535 -> 255), never by the
    content; a warning says so, and where a file uses at most a sixteenth of its range. Floating-point images must lie
    in 0..1.

    Args:
        source: a path, or the bytes of a file.
        name: what to call it in error messages; default the path.
        max_pixels: refuse images with more pixels, judged by the header, before anything is decoded.
        channels: 3: red, green, blue, where grey images have three equal ones; 1: grey images as they are, to the
            last of their 8 bits, and colours by their luma, 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601).
        grey_bits: how many bits the values of 16-bit grey files really have, 8 to 16; 12 for many X-rays.

    Raises:
        FovealError: the content is no image, is truncated or damaged, or has too many pixels; the path is a pipe or
            a device. The message names the file.
        ImageKindError: a FovealError too: the file is sound, but has negative values, floating-point values outside
            0..1, values above ``grey_bits`` or a number of bands that cannot be read. Data sets skip damaged files,
            never these.
        FileNotFoundError, PermissionError, IsADirectoryError: the path cannot be opened.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("LA", (5, 4), (0, 0)).save(file, "png")  # black, but wholly transparent
        >>> decode_image(file.getvalue()).shape, decode_image(file.getvalue(), channels=1).unique()
        (torch.Size([3, 4, 5]), tensor([255], dtype=torch.uint8))
    """
    check_decoding(channels, grey_bits)
    with opened(source, name, max_pixels) as (image, name, file):
        if image.format == "TIFF" and guarded(lambda: getattr(image, "n_frames", 1), name) > 1:
            warnings.warn("of a TIFF of several pages the first is read", stacklevel=1)
        if image.mode.startswith("RGB") and guarded(lambda: _stored_bits(image, file), name) == 16:
            warnings.warn(_eight_of(16), stacklevel=1)
        return guarded(lambda: to_tensor(image, channels=channels, grey_bits=grey_bits), name)


def check_decoding(channels: int, grey_bits: int) -> None:
    """Refuse values that `decode_image` does not know."""
    if channels not in (1, 3):
        raise FovealError(f"channels must be 1 or 3, got {channels}")
    if not 8 <= grey_bits <= 16:
        raise FovealError(f"grey_bits must be 8 to 16, got {grey_bits}")


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image file as ``decode_image`` gives it, from the header alone.

    Raises:
        FovealError: the header cannot be read.
    """
    (height, width), orientation = stored_size(path)
    return (width, height) if orientation >= 5 else (height, width)


def stored_size(path: str | PathLike[str]) -> tuple[tuple[int, int], int]:
    """(height, width) of the pixels as stored, and the EXIF orientation 1 to 8, from the header alone.

    Raises:
        FovealError: the header cannot be read.
    """
    with opened(path, None, 2**62) as (image, name, file):
        return guarded(lambda: size_and_orientation(image, file), name)


def size_and_orientation(image: Image, file: BinaryIO) -> tuple[tuple[int, int], int]:
    """`stored_size` of an opened image whose pixels are not decoded yet."""
    orientation = read_orientation(image, file)
    tags = getattr(image, "tag_v2", None)
    # Pillow gives the size of a TIFF after turning it
    return (image.height, image.width) if tags is None else (int(tags[257]), int(tags[256])), orientation


def read_orientation(image: Image, file: BinaryIO) -> int:
    """The EXIF orientation of an image whose pixels are not decoded yet; 1 where it is missing or damaged."""
    try:
        exif = _png_exif(file) if image.format == "PNG" else image.getexif()
        value = exif.get(ORIENTATION, 1)
    except Exception:  # damaged EXIF of an intact image: shown as stored
        return 1
    return value if value in range(1, 9) else 1


def _stored_bits(image: Image, file: BinaryIO) -> int:
    """Bits a sample of a PNG or TIFF, of which Pillow gives 8 where there are several channels."""
    if image.format == "PNG":
        return png_depth(file)
    tags = getattr(image, "tag_v2", None)
    return 8 if tags is None else int(np.max(tags.get(258, 8)))


def _eight_of(bits: int) -> str:
    return f"images of {bits} bits are read with 8, of which {2**bits - 1} is 255"


def _png_exif(file: BinaryIO) -> Any:
    """What turns a PNG: its EXIF, as a chunk or as ImageMagick's text, or its XMP, before or behind the pixels.

    Pillow would decode all pixels to find a chunk behind them, so it gets a file that has these chunks and no pixels.
    """
    from PIL import Image as pillow

    before = file.tell()
    found = b""
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            after = file.tell() + length + 4
            if (kind == b"eXIf" or kind in TEXT_CHUNKS) and length <= LONGEST_CHUNK:
                content = file.read(length + 4)
                found += head + content if kind == b"eXIf" or content.startswith(TURNING_TEXTS) else b""
            file.seek(after)
    finally:
        file.seek(before)
    if not found:
        return {}
    with pillow.open(io.BytesIO(EMPTY_PNG + found + NO_PIXELS), formats=["PNG"]) as image:
        return pillow.Image.getexif(image)


def guarded(decode: Callable[[], Any], name: str) -> Any:
    """Damaged content surfaces as OSError, SyntaxError, struct.error and more: all of it is the file's fault."""
    try:
        return decode()
    except MemoryError:
        raise
    except ImageKindError as error:
        raise ImageKindError(f"{error} in {name}") from None
    except Exception as error:
        raise FovealError(f"truncated or damaged image, got {name}: {line_of(error)}") from None


def to_tensor(image: Image, *, channels: int = 3, grey_bits: int = 16) -> UInt8[Tensor, "c h w"]:
    """A Pillow image of any mode as RGB or grey, upright; see ``decode_image``.

    Raises:
        ImageKindError: values have no place in 0..255.
        ValueError: the mode is not supported.
    """
    image.load()
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = torch.from_numpy(_eight_bits(image, grey_bits))
        return grey.expand(channels, *grey.shape).contiguous()
    image = _without_unknown_band(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        from PIL import Image as pillow

        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    if channels == 1 and image.mode in ("1", "L"):
        image = image.convert("L")
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if channels == 1:
        image = image.convert("L")
    values = torch.from_numpy(np.array(image))
    return values[None].contiguous() if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def upright(image: Image) -> Image:
    """The image turned as its EXIF says, as stored where that is damaged."""
    try:
        if image.getexif().get(ORIENTATION, 1) == 1:
            return image
        from PIL import ImageOps

        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF of an intact image: show it as stored
        return image


def _without_unknown_band(image: Image) -> Image:
    """A TIFF without the band that is alpha or something else, as the file does not tell; alpha if it does.

    Programs that write near infrared as a fourth band mark it as alpha, or not at all. Only alpha that colours are
    multiplied by already (ExtraSamples 1) is nothing else.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.mode not in ("RGBA", "LA"):
        return image
    if ASSOCIATED_ALPHA in np.ravel(tags.get(338, ())):
        return image
    warnings.warn(
        f"a TIFF of {len(image.getbands())} bands is read without its last, which may be alpha or something else",
        stacklevel=1,
    )
    bands = image.split()
    if image.mode == "LA":
        return bands[0]
    from PIL import Image as pillow

    return pillow.merge("RGB", bands[:3])


def _eight_bits(image: Image, grey_bits: int) -> np.ndarray:
    """Grey images of 16 and 32 bits, scaled by the range of the type. Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise ImageKindError(
                f"floating-point values must lie in 0..1, got {values.min():g} to {values.max():g}"
            )
        return (values * 255 + 0.5).astype(np.uint8)
    # Mode "I" has 32 bits and comes from 16-bit files too.
    top = 2**grey_bits - 1
    if values.min() < 0 or values.max() > top:
        raise ImageKindError(
            f"grey values must be 0 to {top} ({grey_bits} bits), got {values.min()} to {values.max()}"
        )
    if grey_bits == 16 and 0 < values.max() < NARROW:
        warnings.warn(
            "a 16-bit image uses at most a sixteenth of its range and gets dark; if its values have 12 bits, "
            "say grey_bits=12 (--data_options.grey_bits 12)",
            stacklevel=1,
        )
    elif grey_bits > 8:
        warnings.warn(_eight_of(grey_bits), stacklevel=1)
    grey = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey
