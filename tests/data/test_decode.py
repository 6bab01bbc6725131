import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.by_hand import chunk, tiff
from tests.data.by_hand import png as by_hand_png

from foveal.data import ImageKindError, decode_image, decode_mask
from foveal.data.decode import image_size, stored_size


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of big-endian 16-bit samples (h, w, c), which Pillow cannot write for colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    h, w = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", w, h, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def colour(image: torch.Tensor) -> list[int]:
    """The colour of an image that has one only."""
    assert (image == image[:, :1, :1]).all()
    return image[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "value", "kind", "rgb"),
    [
        ("L", 77, "png", [77, 77, 77]),
        ("1", 1, "png", [255, 255, 255]),
        ("LA", (10, 255), "png", [10, 10, 10]),
        ("LA", (10, 0), "png", [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), "png", [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), "webp", [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), "png", [204, 204, 204]),
        ("CMYK", (0, 255, 255, 0), "jpeg", [255, 0, 0]),
        ("CMYK", (0, 0, 0, 128), "tiff", [127, 127, 127]),
        ("YCbCr", (128, 128, 128), "jpeg", [128, 128, 128]),
        ("RGB", (1, 2, 3), "bmp", [1, 2, 3]),
    ],
)
def test_every_mode_becomes_rgb(mode: str, value: Any, kind: str, rgb: list[int]) -> None:
    image = decode_image(encoded(Image.new(mode, (5, 4), value), kind))
    assert image.shape == (3, 4, 5)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert (torch.tensor(colour(image)) - torch.tensor(rgb)).abs().max() <= 2  # JPEG


def test_palette_colours_and_their_transparency() -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([9, 9, 9, 200, 100, 50, *range(6)])
    assert colour(decode_image(encoded(image, "png"))) == [200, 100, 50]
    assert colour(decode_image(encoded(image, "png", transparency=1))) == [255, 255, 255]
    assert colour(decode_image(encoded(image, "gif"))) == [200, 100, 50]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled_by_the_type_and_not_clipped(kind: str) -> None:
    """Pillow's own conversion turns everything above 255 into white."""
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values), kind))
    assert image[0].tolist() == [[0, 1, 128, 255]]
    assert torch.equal(image[0], image[1])


def test_16_bit_colour_with_and_without_alpha() -> None:
    pixels = np.full((2, 3, 3), (65535, 32768, 256), dtype=np.uint16)
    assert colour(decode_image(png(pixels, 2))) == [255, 128, 1]
    alpha = np.concatenate([pixels, np.zeros((2, 3, 1), dtype=np.uint16)], axis=2)
    assert colour(decode_image(png(alpha, 6))) == [255, 255, 255]


def test_floating_point_must_lie_between_0_and_1() -> None:
    half = Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32))
    assert colour(decode_image(encoded(half, "tiff"))) == [128, 128, 128]
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1, got 7 to 7"):
        decode_image(encoded(Image.fromarray(np.full((2, 2), 7, dtype=np.float32)), "tiff"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :8] = 255  # light top left corner
    undo = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
        5: np.transpose, 6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(stored, "jpeg", exif=exif, quality=95))
    image = decode_image(path)
    assert image.shape == (3, 16, 32) == (3, *image_size(path))
    assert (image[0].int() - torch.from_numpy(upright).int()).abs().max() < 30


def test_damaged_exif_leaves_the_image_as_stored() -> None:
    content = encoded(Image.new("RGB", (4, 3)), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(content).shape == (3, 3, 4)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.") as error:
        decode_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"cat\.jpg"):
        decode_image(content, name="cat.jpg")


def test_the_size_limit_is_judged_by_the_header_before_decoding() -> None:
    bomb = png(np.zeros((1, 1, 1), dtype=np.uint16), 0)
    header = bytearray(bomb)
    header[16:24] = struct.pack(">II", 12_000, 10_000)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    with pytest.raises(ValueError, match=r"at most 89000000 pixels, got 12000x10000 in bomb\.png"):
        decode_image(bytes(header), name="bomb.png")
    with pytest.raises(ValueError, match=r"at most 19 pixels, got 5x4 in \d+ bytes"):
        decode_image(encoded(Image.new("L", (5, 4)), "png"), max_pixels=19)
    header[16:24] = struct.pack(">II", 60_000, 60_000)  # Pillow itself refuses this
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    with pytest.raises(ValueError, match=r"bomb\.png"):
        decode_image(bytes(header), name="bomb.png")


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "none.jpg")


@given(
    kind=st.sampled_from(["jpeg", "png", "webp", "gif", "tiff", "bmp"]),
    place=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_damage_anywhere_gives_an_image_or_a_value_error(kind: str, place: float, junk: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    content = bytearray(encoded(Image.fromarray(noise), kind))
    start = int(place * len(content))
    content[start : start + len(junk)] = junk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert decode_image(bytes(content)).shape[0] == 3
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore:a TIFF of")
@pytest.mark.parametrize("extra", [0, 2, None])
def test_a_fourth_band_of_a_tiff_is_no_alpha_unless_colours_are_multiplied_by_it(extra: int | None) -> None:
    """Near infrared is stored as a fourth band, marked as alpha or not at all."""
    pixels = np.full((4, 5, 4), (10, 20, 30, 40), dtype=np.uint8)
    tags = {} if extra is None else {"t338": extra}
    assert colour(decode_image(tiff(pixels, **tags))) == [10, 20, 30]
    assert colour(decode_image(tiff(pixels.astype(np.uint16) * 257, **tags))) == [10, 20, 30]
    transparent = np.zeros((4, 5, 4), dtype=np.uint8)
    assert colour(decode_image(tiff(transparent, t338=1))) == [255, 255, 255]


def test_a_band_that_is_left_out_is_told_and_so_are_pages() -> None:
    with pytest.warns(UserWarning, match="a TIFF of 4 bands is read without its last"):
        decode_image(tiff(np.zeros((4, 5, 4), dtype=np.uint8)))
    pages = [Image.new("L", (4, 3), value) for value in (10, 200)]
    with pytest.warns(UserWarning, match="of several pages the first"):
        image = decode_image(encoded(pages[0], "tiff", save_all=True, append_images=pages[1:]))
    assert colour(image) == [10, 10, 10]


@pytest.mark.filterwarnings("ignore:a TIFF of")
def test_a_second_band_of_a_grey_tiff_is_no_alpha() -> None:
    assert colour(decode_image(encoded(Image.new("LA", (4, 3), (10, 40)), "tiff"))) == [10, 10, 10]


@pytest.mark.filterwarnings("ignore:a 16-bit image")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_shows_white_at_every_depth(bits: int) -> None:
    """Pillow compares it with values it has scaled."""
    other, value = (0, 1) if bits == 1 else (2, 1)
    content = by_hand_png(np.array([[value, other]]), bits, before=chunk(b"tRNS", struct.pack(">H", value)))
    image = decode_image(content)
    assert image[0, 0, 0] == 255
    assert image[0, 0, 1] == (other * 255 + (2**bits - 1) // 2) // (2**bits - 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(np.array([[-5, 5]], np.int16), t339=2), "grey values must be 0 to 65535"),
        (tiff(np.array([[0.0, 1.5]], np.float32), t339=3), "must lie in 0..1, got 0 to 1.5"),
        (tiff(np.array([[0.0, np.nan]], np.float32), t339=3), "must lie in 0..1"),
        (tiff(np.zeros((4, 4, 8), np.uint8)), "got 8 of 8 bits in .*bands must be chosen first"),
        (tiff(np.zeros((4, 4), np.float64), t339=3), "got 1 of 64 floating-point bits in .*save it as PNG"),
        (tiff(np.zeros((4, 4), np.int64), t339=2), "got 1 of 64 signed bits in .*save it as PNG"),
    ],
)
def test_values_without_a_place_in_a_byte_are_a_kind_of_their_own(content: bytes, message: str) -> None:
    with pytest.raises(ImageKindError, match=message) as error:
        decode_image(content, name="scan.tif")
    assert "in scan.tif" in str(error.value)


def test_grey_bits_say_what_the_range_is_and_an_unused_range_is_told() -> None:
    content = tiff(np.array([[0, 2048, 4095]], np.uint16))
    assert decode_image(content, grey_bits=12)[0].tolist() == [[0, 128, 255]]
    with pytest.warns(UserWarning, match="grey_bits=12"):
        assert decode_image(content)[0].tolist() == [[0, 8, 16]]
    with pytest.raises(ImageKindError, match=r"0 to 1023 \(10 bits\), got 0 to 4095"):
        decode_image(content, grey_bits=10)


def test_one_channel_keeps_grey_to_the_last_bit_and_weighs_colours() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for content in (
        encoded(Image.fromarray(grey), "png"),
        encoded(Image.fromarray(grey).convert("RGB"), "png"),
    ):
        image = decode_image(content, channels=1)
        assert image.shape == (1, 16, 16)
        assert image[0].tolist() == grey.tolist()
    assert decode_image(encoded(Image.new("RGB", (1, 1), (200, 100, 50)), "png"), channels=1).item() == 124
    assert decode_image(encoded(Image.new("1", (1, 1), 1), "png"), channels=1).item() == 255
    assert decode_image(encoded(Image.new("LA", (1, 1), (0, 0)), "png"), channels=1).item() == 255
    assert (
        decode_image(encoded(Image.fromarray(np.array([[65535]], np.uint16)), "png"), channels=1).item()
        == 255
    )


@pytest.mark.parametrize("options", [{"channels": 4}, {"grey_bits": 7}])
def test_unknown_channels_and_bits_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        decode_image(b"", **options)


@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_known_before_decoding(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.new("RGB", (30, 20)), kind, exif=exif))
    assert image_size(path) == decode_image(path).shape[1:]
    assert stored_size(path) == ((20, 30), orientation)


def carrying(orientation: int, carrier: str, *, after: bool) -> bytes:
    """A PNG whose orientation stands in XMP or in the text that ImageMagick writes, before or after its pixels."""
    if carrier == "xmp":
        text = (
            f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        )
        turning = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text.encode())
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        lines = f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()
        turning = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(lines))
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    return by_hand_png(pixels, 8, **{"after" if after else "before": turning})


@pytest.mark.parametrize("carrier", ["xmp", "text"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_counts_wherever_a_png_carries_it(
    carrier: str, after: bool, orientation: int, tmp_path: Path
) -> None:
    """An image is turned by Pillow, its mask and its boxes by what the header says: they must agree."""
    path = tmp_path / "photo.png"
    path.write_bytes(carrying(orientation, carrier, after=after))
    shown = decode_image(path)[0]
    assert shown.tolist() == decode_mask(path).tolist()
    assert stored_size(path) == ((2, 3), orientation)
    assert image_size(path) == tuple(shown.shape)


@pytest.mark.filterwarnings("always")
def test_values_of_more_than_8_bits_are_never_narrowed_without_a_word(
    recwarn: pytest.WarningsRecorder,
) -> None:
    def told() -> list[str]:
        texts = [str(warning.message) for warning in recwarn]
        recwarn.clear()
        return texts

    decode_image(tiff(np.array([[0, 65535]], np.uint16)))
    assert told() == ["images of 16 bits are read with 8, of which 65535 is 255"]
    decode_image(tiff(np.array([[0, 4095]], np.uint16)), grey_bits=12)
    assert told() == ["images of 12 bits are read with 8, of which 4095 is 255"]
    decode_image(png(np.full((2, 2, 3), 513), 2))  # colours, of which Pillow gives 8 bits
    assert told() == ["images of 16 bits are read with 8, of which 65535 is 255"]
    decode_image(by_hand_png(np.array([[0, 255]]), 8))
    assert told() == []


def test_orientation_behind_the_pixels_is_found_without_decoding_them(tmp_path: Path) -> None:
    """Here there are none to decode: 144 million are claimed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turning = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12001, 8, 0, 0, 0, 0))
    path = tmp_path / "claims.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + turning + chunk(b"IEND", b""))
    assert stored_size(path) == ((12001, 12000), 6)
