"""Mask files: the numbers that were stored, whatever Pillow or a program made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from foveal.data.decode import guarded, read_orientation, size_and_orientation
from foveal.data.opening import MAX_PIXELS, LabelError, opened, png_depth

if TYPE_CHECKING:
    from PIL.Image import Image

LOSSY_FORMATS = {
    "JPEG": "JPEG",
    "MPO": "JPEG",
    "WEBP": "WebP",
    "JPEG2000": "JPEG 2000",
    "AVIF": "AVIF",
    "HEIF": "HEIF",
}
LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp", "lerc"}
ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
INVERSE = {6: 8, 8: 6}  # of EXIF orientations; the others undo themselves
Colour = tuple[int, int, int]
Palette = tuple[Colour, ...]


@dataclass(frozen=True)
class StoredMask:
    """What a mask file holds.

    Attributes:
        values: uint8 (h, w), the stored numbers; of a palette image the places in the palette.
        palette: the colours of those places, None where the file has no palette.
    """

    values: UInt8[Tensor, "h w"]
    palette: Palette | None = None


def decode_mask(
    source: str | PathLike[str] | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[Tensor, "h w"]:
    """Read a mask file: the stored numbers themselves, so of a palette image the indices, not the colours.

    Grey files of 1, 2 and 4 bits and PGM files of any maximum give the numbers in the file, where Pillow gives them
    scaled to 255. The EXIF orientation is applied, as it is to the image.

    Raises:
        ValueError: as ``decode_image``.
        LabelError: a ValueError too: the file is sound, but has several channels or pages, values below 0 or above
            255, was compressed with loss, or says that 0 is white, so that some programs store a number and others
            its opposite. Data sets skip damaged files, never these.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file, image = io.BytesIO(), Image.new("P", (3, 2), 7)
        >>> image.putpalette(list(range(256)) * 3)
        >>> image.save(file, "png")
        >>> decode_mask(file.getvalue()).tolist()
        [[7, 7, 7], [7, 7, 7]]
    """
    return read_mask(source, name=name, max_pixels=max_pixels).values


def read_mask(
    source: str | PathLike[str] | bytes,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    orientation: int | None = None,
    colours: Sequence[Colour] | None = None,
) -> StoredMask:
    """`decode_mask` with the palette.

    Args:
        source, name, max_pixels: as there.
        orientation: how to turn the stored pixels, 1 to 8 as in EXIF; default as the file itself says.
        colours: of the numbers 0, 1, ...: a mask that is stored in colours gives the number of each pixel's.
    """
    with opened(source, name, max_pixels) as (image, name, file):
        refuse_unfit(image, name, coloured=colours is not None)
        most, scaled = guarded(lambda: _scale(image, file), name)
        signed = guarded(lambda: _signed(image), name)
        own = read_orientation(image, file)
        palette = guarded(lambda: palette_of(image), name)
        values = guarded(lambda: np.asarray(image), name)
        if image.mode == "RGB" and colours is not None:
            if image.format == "PNG" and png_depth(file) != 8:
                raise LabelError(f"colours of a mask must have 8 bits, got {png_depth(file)} in {name}")
            values = numbers_of(values, colours, name)
        if image.format == "TIFF":  # Pillow has turned it as it says
            values = turned(values, INVERSE.get(own, own))
    if signed and values.max(initial=0) > 127:
        raise LabelError(f"mask values must be 0 to 255, got negative ones in {name}")
    if scaled:
        values = (values.astype(np.int64) * most + scaled // 2) // scaled
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise LabelError(f"mask values must be 0 to 255, got {values.min()} to {values.max()} in {name}")
    values = turned(values.astype(np.uint8), own if orientation is None else orientation)
    return StoredMask(torch.from_numpy(np.ascontiguousarray(values)), palette)


class MaskHeader(NamedTuple):
    """What a mask file says before its pixels: (height, width) as stored, EXIF orientation, palette."""

    size: tuple[int, int]
    orientation: int
    palette: Palette | None


def mask_header(path: str | PathLike[str], *, coloured: bool = False) -> MaskHeader:
    """The header of a mask file.

    Args:
        coloured: whether it may be stored in colours.

    Raises:
        LabelError: as `decode_mask`, as far as the header tells.
        FovealError: the header cannot be read.
    """
    with opened(path, None, 2**62) as (image, name, file):
        refuse_unfit(image, name, coloured=coloured)
        size, orientation = guarded(lambda: size_and_orientation(image, file), name)
        return MaskHeader(size, orientation, guarded(lambda: palette_of(image), name))


def numbers_of(pixels: np.ndarray, colours: Sequence[Colour], name: str) -> np.ndarray:
    """(h, w) uint8: the place of the colour of each pixel (h, w, 3) in a list.

    Raises:
        LabelError: a colour is not in the list, or stands there twice.

    Example:
        >>> numbers_of(np.array([[[255, 0, 0], [0, 0, 0]]]), [(0, 0, 0), (255, 0, 0)], "a.png").tolist()
        [[1, 0]]
    """
    weights = np.array([1 << 16, 1 << 8, 1])
    codes, listed = pixels.astype(np.int64) @ weights, np.array(colours) @ weights
    if len(set(listed.tolist())) < len(listed):
        raise LabelError(f"classes must differ in colour where masks are stored in colours, as {name} is")
    order = np.argsort(listed)
    places = order[np.searchsorted(listed[order], codes).clip(max=len(listed) - 1)]
    unknown = codes[listed[places] != codes]
    if unknown.size:
        colour = tuple(int(unknown[0]).to_bytes(3, "big"))
        raise LabelError(f"colours of a mask must be those of the class list, got {colour} in {name}")
    return places.astype(np.uint8)


def refuse_unfit(image: Image, name: str, *, coloured: bool = False) -> None:
    """Refuse files whose numbers are not what was stored, or may not be.

    Args:
        coloured: whether red, green and blue may stand for a number.

    Raises:
        LabelError: loss, several channels or pages, or white for 0.
    """
    lossy = LOSSY_FORMATS.get(image.format or "")
    if image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
        lossy = "JPEG in a TIFF"
    if lossy:
        raise LabelError(
            f"a mask must be stored without loss, such as PNG, got {lossy}, which changes the numbers, in {name}"
        )
    if image.mode == "F":
        raise LabelError(
            f"mask values must be whole numbers, 0 to 255, got floating-point ones in {name}; store them as such first"
        )
    if image.mode not in ONE_CHANNEL and not (coloured and image.mode == "RGB"):
        raise LabelError(
            f"a mask must have one channel of class indices, got mode {image.mode} in {name}; "
            "colours must be turned into indices first"
        )
    tags = _tags(image)
    # 262 is the photometric interpretation; PBM files store ink as 1 and Pillow gives it as 0
    if tags.get(262) == 0 or (image.format == "PPM" and image.mode == "1"):
        raise LabelError(
            f"a mask must say that 0 is black, got a file where 0 is white, {name}: some programs store the number "
            "of a class in it and others its opposite; save it as PNG"
        )
    pages = guarded(lambda: getattr(image, "n_frames", 1), name)
    if pages > 1:
        raise LabelError(f"a mask must have one page, got {pages} in {name}")


def _scale(image: Image, file: BinaryIO) -> tuple[int, int]:
    """(the largest number the file could hold, what Pillow makes of it), (0, 0) where Pillow leaves numbers alone."""
    if image.mode == "L" and image.format == "PNG" and (depth := png_depth(file)) < 8:
        return 2**depth - 1, 255
    if image.mode == "L" and image.format == "TIFF" and (depth := int(_tags(image).get(258, (8,))[0])) < 8:
        return 2**depth - 1, 255
    if image.format == "PPM":
        ((*_, arguments), *_) = image.tile  # pyright: ignore[reportAttributeAccessIssue]
        most, top = (
            (arguments[-1] if isinstance(arguments, tuple) else 0),
            65535 if image.mode == "I" else 255,
        )
        return (most, top) if isinstance(most, int) and 0 < most < top else (0, 0)
    return 0, 0


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (h, w) as they are to be seen under an EXIF orientation.

    Example:
        >>> turned(np.array([[1, 2]]), 6).tolist()  # stored lying on its left side
        [[1], [2]]
    """
    turns = {
        2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose,
        6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, 1),
    }  # fmt: skip
    return turns[orientation](values) if orientation in turns else values


def _tags(image: Image) -> Any:
    return getattr(image, "tag_v2", {})


def _signed(image: Image) -> bool:
    return image.mode == "L" and 2 in np.ravel(_tags(image).get(339, ()))


def palette_of(image: Image) -> Palette | None:
    """The colours of a palette image."""
    colours = image.getpalette("RGB") if image.mode == "P" else None
    if not colours:
        return None
    return tuple((r, g, b) for r, g, b in zip(colours[::3], colours[1::3], colours[2::3], strict=True))


def grey_levels(mask: StoredMask) -> list[int] | None:
    """The grey levels of the places in use where the palette is all grey and they differ from the places.

    A program that makes files smaller may replace grey levels by places in a palette of grey; no two of its places
    have one level.
    """
    if mask.palette is None or any(len(set(colour)) > 1 for colour in mask.palette):
        return None
    used = mask.values.unique().tolist()
    levels = [mask.palette[place][0] for place in used if place < len(mask.palette)]
    return None if levels == used or len(set(levels)) < len(levels) else levels


class PaletteUse:
    """The colours that masks of one data set use at each place of their palettes, and the file that showed it.

    Example:
        >>> black, red, green = (0, 0, 0), (255, 0, 0), (0, 255, 0)
        >>> use, values = PaletteUse(), torch.tensor([[0, 1]], dtype=torch.uint8)
        >>> use.add(StoredMask(values, (black, red)), "a.png")
        >>> use.add(StoredMask(values, (black, green, red)), "b.png")
        'a.png'
    """

    def __init__(self) -> None:
        self.colour_at: dict[int, tuple[tuple[int, int, int], str]] = {}

    def add(self, mask: StoredMask, name: str) -> str | None:
        """Note the colours of a mask; the name of a file that has another colour there, or that colour elsewhere."""
        if mask.palette is None:
            return None
        palette = mask.palette
        places = {colour: place for place, (colour, _) in self.colour_at.items()}
        for place in mask.values.unique().tolist():
            if place >= len(palette):
                continue
            colour = palette[place]
            known = self.colour_at.get(place)
            if known is None:
                elsewhere = places.get(colour)
                # a colour that stands twice in one palette is no contradiction
                twice = elsewhere is not None and elsewhere < len(palette) and palette[elsewhere] == colour
                if elsewhere is not None and not twice:
                    return self.colour_at[elsewhere][1]
                self.colour_at[place] = (colour, name)
            elif known[0] != colour:
                return known[1]
        return None
