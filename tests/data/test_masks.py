"""A mask gives the numbers that were stored, whatever program wrote the file, or it is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.by_hand import chunk, packed, png, tiff

from foveal.data import LabelError, decode_mask
from foveal.data.masks import PaletteUse, StoredMask, grey_levels, mask_header, read_mask
from foveal.errors import FovealError

INDICES = np.arange(12, dtype=np.uint8).reshape(3, 4)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_mask_keeps_its_indices() -> None:
    indices = np.array([[0, 3, 255]], dtype=np.uint8)
    image = Image.fromarray(indices)
    assert decode_mask(encoded(image, "png")).tolist() == [[0, 3, 255]]
    image.putpalette(list(range(255, -1, -1)) * 3)
    assert decode_mask(encoded(image, "png")).tolist() == [[0, 3, 255]]
    assert decode_mask(encoded(Image.fromarray(indices.astype(np.uint16)), "png")).tolist() == [[0, 3, 255]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_of_any_depth_gives_the_stored_numbers(bits: int, kind: str) -> None:
    """Pillow multiplies grey of 2 and 4 bits by 85 and 17."""
    values = (INDICES.astype(int) % 2**bits).astype(np.uint8)
    stored = values.astype(np.uint16) if bits == 16 else values
    content = png(stored, bits) if kind == "png" else tiff(stored, bits)
    assert decode_mask(content).tolist() == values.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_any_depth_give_the_places(bits: int) -> None:
    values = (INDICES.astype(int) % 2**bits).astype(np.uint8)
    colours = bytes(range(0, 3 * 2**bits)) if bits < 8 else bytes(768)
    content = png(values, bits, 3, before=chunk(b"PLTE", colours))
    mask = read_mask(content)
    assert mask.values.tolist() == values.tolist()
    assert mask.palette is not None
    assert len(mask.palette) == 2**bits


@pytest.mark.parametrize("most", [1, 11, 255, 300, 65535])
@pytest.mark.parametrize("binary", [True, False])
def test_pgm_of_any_maximum_gives_the_stored_numbers(most: int, binary: bool) -> None:
    """Pillow scales values to the range of the type by the maximum in the header."""
    values = INDICES % (min(most, 11) + 1)
    if binary:
        pixels = values.astype(">u2").tobytes() if most > 255 else values.tobytes()
        content = f"P5 4 3 {most}\n".encode() + pixels
    else:
        content = f"P2 4 3 {most}\n".encode() + " ".join(map(str, values.flatten())).encode() + b"\n"
    assert decode_mask(content).tolist() == values.tolist()


def test_gif_and_bmp_give_the_places() -> None:
    image = Image.fromarray(INDICES)
    image.putpalette([7 * i % 256 for i in range(768)])
    assert decode_mask(encoded(image, "bmp")).tolist() == INDICES.tolist()
    assert decode_mask(encoded(image, "gif", optimize=False)).tolist() == INDICES.tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "png, behind the pixels"])
def test_exif_turns_a_mask_as_it_turns_an_image(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind.endswith("pixels"):
        content = png(INDICES, 8, after=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    else:
        content = encoded(Image.fromarray(INDICES), kind, exif=exif)
    shown = {
        1: INDICES, 2: INDICES[:, ::-1], 3: INDICES[::-1, ::-1], 4: INDICES[::-1], 5: INDICES.T,
        6: INDICES[::-1].T, 7: INDICES[::-1, ::-1].T, 8: INDICES.T[::-1],
    }  # fmt: skip
    path = tmp_path / "mask"
    path.write_bytes(content)
    assert decode_mask(content).tolist() == shown[orientation].tolist()
    assert read_mask(content, orientation=1).values.tolist() == INDICES.tolist()
    assert mask_header(path)[:2] == ((3, 4), orientation)


@pytest.mark.parametrize("kind", ["jpeg", "jpeg2000", "webp", "avif"])
def test_masks_stored_with_loss_are_refused(kind: str) -> None:
    with pytest.raises(LabelError, match=r"without loss.* in m\.x"):
        decode_mask(encoded(Image.fromarray(INDICES), kind), name="m.x")


def test_a_tiff_compressed_as_jpeg_is_refused() -> None:
    content = encoded(Image.fromarray(np.tile(INDICES, (8, 8))), "tiff", compression="jpeg")
    with pytest.raises(LabelError, match="got JPEG in a TIFF"):
        decode_mask(content)


@pytest.mark.parametrize("content", [tiff(INDICES, t262=0), tiff(INDICES % 2, 1, t262=0), b"P1 2 1\n0 1\n"])
def test_files_in_which_0_is_white_are_refused(content: bytes) -> None:
    with pytest.raises(LabelError, match="a file where 0 is white"):
        decode_mask(content)


def test_masks_of_several_pages_are_refused() -> None:
    pages = [Image.fromarray(INDICES), Image.fromarray(INDICES[::-1])]
    content = encoded(pages[0], "tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(LabelError, match="one page, got 2"):
        decode_mask(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(Image.new("RGB", (2, 2)), "png"), r"one channel of class indices, got mode RGB in m\.png"),
        (encoded(Image.new("LA", (2, 2)), "png"), r"got mode LA in m\.png"),
        (
            encoded(Image.fromarray(np.array([[0, 300]], np.uint16)), "png"),
            r"0 to 255, got 0 to 300 in m\.png",
        ),
        (tiff(np.array([[0, -1]], np.int8), t339=2), r"got negative ones in m\.png"),
        (tiff(np.array([[0, -1]], np.int16), t339=2), r"got -1 to 0 in m\.png"),
        (
            tiff(np.array([[0, 1]], np.float32), t339=3),
            r"must be whole numbers, .* floating-point ones in m\.png",
        ),
    ],
)
def test_colours_and_numbers_beyond_a_byte_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        decode_mask(content, name="m.png")


def test_a_palette_of_grey_may_hold_levels() -> None:
    """A program that makes files smaller replaces the levels 0, 3, 7 by places 0, 1, 2."""
    values = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
    grey = tuple((level, level, level) for level in (0, 3, 7))
    assert grey_levels(StoredMask(values, grey)) == [0, 3, 7]
    assert grey_levels(StoredMask(values, tuple((i, i, i) for i in range(256)))) is None
    assert grey_levels(StoredMask(values, (*grey[:2], (255, 0, 0)))) is None
    assert grey_levels(StoredMask(values)) is None
    # a colour map of TIFF in bytes, not in 16 bits: all its colours are black
    assert grey_levels(StoredMask(values, ((0, 0, 0),) * 256)) is None


def test_contradicting_palettes_are_told_by_the_colours_in_use() -> None:
    black, red, green = (0, 0, 0), (255, 0, 0), (0, 255, 0)

    def mask(values: list[int], *palette: tuple[int, int, int]) -> StoredMask:
        return StoredMask(torch.tensor([values], dtype=torch.uint8), palette)

    def conflict(*masks: StoredMask) -> str | None:
        use = PaletteUse()
        return [use.add(mask, f"{i}.png") for i, mask in enumerate(masks)][-1]

    assert conflict(mask([0, 1], black, red), mask([0, 1], black, green)) == "0.png"  # one place, two colours
    assert (
        conflict(mask([0, 1], black, red), mask([0, 2], black, green, red)) == "0.png"
    )  # one colour, two places
    assert conflict(mask([0, 1], black, red), mask([0], black, green)) is None  # green is not used
    assert conflict(mask([0, 1], black, red), mask([0, 1, 2], black, red, green)) is None
    assert conflict(mask([0, 1], black, red, red), mask([2], black, red, red)) is None  # red stands twice
    assert conflict(mask([0], black), mask([1], black, red), mask([1], black, green)) == "1.png"


def test_packing_by_hand_is_what_pillow_reads() -> None:
    """The files of these tests are real ones: 4 bits a sample, two in a byte."""
    assert packed(np.array([[1, 2, 3]]), 4) == [b"\x12\x30"]
    assert np.asarray(Image.open(io.BytesIO(png(np.array([[1, 15]]), 4)))).tolist() == [[17, 255]]


@pytest.mark.parametrize("kind", ["png", "gif", "tiff", "bmp", "ppm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_mask_is_refused_by_name(kind: str, share: float, tmp_path: Path) -> None:
    """Some formats show it when their pages are counted already."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "cut.x"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FovealError, match=r"cut\.x"):
        decode_mask(path)
