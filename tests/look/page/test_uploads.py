"""Uploads: bounded in size, time, memory and pixels, judged by their content, and each with a sentence."""

import io
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from foveal.look.page import uploads
from foveal.look.page.refusals import HTTPError
from foveal.look.page.uploads import decode_upload

from .conftest import connected, png, refusal, upload_header


def bomb(side: int) -> bytes:
    """A PNG of 200 bytes that says it is ``side`` pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "empty"),
        (b"GIF is what I say", 415, "no JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", 415, "by its content"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "by its content"),
        (b"\x89PNG\r\n\x1a\n" + b"rest", 422, "unreadable image header|not an image"),
        (png()[:200], 422, "damaged"),
        (bomb(9_600), 413, "a PNG image may have at most 89000000 pixels, got 9600x9600 in photo.jpg"),
        (bomb(30_000), 413, "900000000 pixels"),
        (b"\xff\xd8\xff" + b"\0" * (20 * 2**20), 413, "at most 20 MB, got 20971523 bytes"),
        (png(width=1000, height=10), 422, "8 times as long as wide, got photo.jpg of 10x1000"),
    ],
    ids=[
        "empty",
        "text",
        "postscript",
        "svg",
        "broken-header",
        "truncated",
        "bomb",
        "large-bomb",
        "too-long",
        "too-narrow",
    ],
)
def test_files_that_are_no_fit_image_are_refused(
    client: httpx.Client, body: bytes, status: int, sentence: str
) -> None:
    answer = client.post("/api/images", params={"name": "photo.jpg"}, content=body)
    assert refusal(answer)[0] == status
    assert re.search(sentence, refusal(answer)[1])


def test_a_length_that_is_not_declared_is_limited_too(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(21 * 16):
            yield b"\0" * 2**16

    answer = client.post("/api/images", content=endless())
    assert refusal(answer) == (413, "a file may have at most 20 MB, got more")


def test_the_content_decides_and_not_the_name(client: httpx.Client) -> None:
    assert client.post("/api/images", params={"name": "../../etc/passwd"}, content=png()).status_code == 200
    assert client.post("/api/images", params={"name": "x.jpg\0\n"}, content=png()).json()["name"] == "x.jpg??"


def test_slow_clients_do_not_block_others_and_are_let_go(
    address: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.look.page.uploads.UPLOAD_SECONDS", 1.0)
    slow = [connected(address) for _ in range(20)]
    for one in slow:
        one.sendall(upload_header(address) + b"abc")
    assert client.post("/api/images", content=png()).status_code == 200
    answers = [one.recv(4096) for one in slow]
    assert all(b"408" in answer.split(b"\r\n")[0] for answer in answers)
    for one in slow:
        one.close()


def test_too_many_uploads_at_once_are_told_to_come_back(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 0)
    assert refusal(client.post("/api/images", content=png()))[0] == 503


def test_an_interrupted_upload_leaves_the_server_well(address: str, client: httpx.Client) -> None:
    with connected(address) as broken:
        broken.sendall(upload_header(address))
    assert client.post("/api/images", content=png()).status_code == 200


OPENED: list[str] | None = None


def note_writing(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: every way to open a file comes by here, and it cannot be taken away again."""
    if OPENED is None or event != "open" or not isinstance(arguments[2], int):
        return
    if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        OPENED.append(str(arguments[0]))


def test_no_file_is_written(client: httpx.Client, tmp_path: Path) -> None:
    global OPENED
    sys.addaudithook(note_writing)
    OPENED = []
    try:
        (tmp_path / "shows that the hook sees").write_bytes(b"")
        seen = client.post("/api/images", content=png(width=900, height=900)).json()
        client.get(f"/api/images/{seen['id']}/export")
    finally:
        opened, OPENED = OPENED, None
    assert opened == [str(tmp_path / "shows that the hook sees")]


# --------------------------------------------------------------------------------------------- more pixels than usual


def photograph(width: int, height: int, kind: str = "jpeg", mode: str = "RGB", **options: object) -> bytes:
    """Four plain quarters, in which a turn or a wrong colour shows."""
    quarters = np.array([[[200, 20, 20], [20, 200, 20]], [[20, 20, 200], [220, 220, 20]]], dtype=np.uint8)
    image = Image.fromarray(quarters).resize((width, height), Image.Resampling.NEAREST)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners(image: torch.Tensor) -> list[list[int]]:
    height, width = image.shape[1:]
    places = [(height // 4, width // 4), (height // 4, 3 * width // 4), (3 * height // 4, width // 4)]
    return [image[:, y, x].tolist() for y, x in places]


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("jpeg", "RGB", {}),
        ("jpeg", "CMYK", {}),
        ("jpeg", "RGB", {"progressive": True}),
        ("png", "RGB", {}),
        ("png", "P", {}),
        ("png", "RGBA", {}),
        ("tiff", "RGB", {}),
    ],
)
def test_a_photograph_of_too_many_pixels_is_scaled_down_with_a_word(
    monkeypatch: pytest.MonkeyPatch, kind: str, mode: str, options: dict
) -> None:
    body = photograph(400, 300, kind, mode, **options)
    whole, nothing = decode_upload(body, "photo")
    assert (whole.shape, nothing) == ((3, 300, 400), "")
    monkeypatch.setattr(uploads, "FULL_PIXELS", 60_000)
    image, note = decode_upload(body, "photo")
    height, width = image.shape[1:]
    assert 60_000 / 4 <= height * width <= 60_000
    assert width / height == pytest.approx(4 / 3, rel=0.02)
    assert note == f"400 × 300 pixels were scaled down to {width} × {height}"
    np.testing.assert_allclose(corners(image), corners(whole), atol=4)


def test_a_turned_photograph_is_upright_after_scaling_down(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    monkeypatch.setattr(uploads, "FULL_PIXELS", 60_000)
    image, _ = decode_upload(photograph(400, 300, exif=turned), "photo")
    assert image.shape[1] > image.shape[2]
    assert (
        image[2, image.shape[1] // 4, image.shape[2] // 4] > 150
    )  # the lower left quarter, blue, is now the upper left


def test_a_jpeg_above_the_limit_is_never_in_memory_at_its_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "FULL_PIXELS", 60_000)
    decoded = []
    real = uploads.to_tensor

    def noted(image: Image.Image, grey_bits: int) -> torch.Tensor:
        decoded.append(image.size)
        return real(image, grey_bits=grey_bits)

    thumbnail = Image.Image.thumbnail
    monkeypatch.setattr(uploads, "to_tensor", noted)
    monkeypatch.setattr(Image.Image, "thumbnail", lambda *_a, **_k: pytest.fail("decoded whole"))
    decode_upload(photograph(400, 300), "photo")
    assert decoded == [(200, 150)]
    assert thumbnail is not Image.Image.thumbnail


@pytest.mark.parametrize(("kind", "most"), [("jpeg", 178_000_000), ("webp", 40_000_000), ("png", 89_000_000)])
def test_above_the_last_limit_an_image_is_refused_by_its_header(
    monkeypatch: pytest.MonkeyPatch, kind: str, most: int
) -> None:
    """WebP has the lowest: it would take four times the memory of the others."""
    kept = uploads.MOST_PIXELS.get(kind.upper(), uploads.MAX_PIXELS)
    assert kept == most
    monkeypatch.setitem(uploads.MOST_PIXELS, kind.upper(), 100_000)
    monkeypatch.setattr(uploads, "to_tensor", lambda _: pytest.fail("decoded"))
    message = f"a {kind.upper()} image may have at most 100000 pixels, got 400x300 in photo"
    with pytest.raises(HTTPError, match=message) as refused:
        decode_upload(photograph(400, 300, kind), "photo")
    assert refused.value.status == 413


def test_damaged_metadata_do_not_fill_the_terminal(recwarn: pytest.WarningsRecorder) -> None:
    five_tags_and_none_there = b"Exif\0\0II*\0\x08\0\0\0\x05\0"
    decode_upload(photograph(40, 30, exif=five_tags_and_none_there), "photo")
    assert [str(warning.message) for warning in recwarn] == []


def test_the_page_is_told_that_an_image_was_scaled_down(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "FULL_PIXELS", 60_000)
    assert (
        client.post("/api/images", content=photograph(400, 300)).json()["note"].startswith("400 × 300 pixels")
    )
    assert client.post("/api/images", content=png()).json()["note"] == ""


def test_bodies_that_wait_for_the_networks_are_bounded(
    address: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One upload is under way with most of the bytes there are; a second has no room, and has it afterwards."""
    monkeypatch.setattr(uploads, "MAX_WAITING_BYTES", 10_000)
    with connected(address) as first:
        first.sendall(upload_header(address, 9_000, expect=True))
        assert first.recv(4096).startswith(b"HTTP/1.1 100")
        first.sendall(b"\xff\xd8\xff" + b"a" * 8_000)
        asked = (client.post("/api/images", content=png()).status_code for _ in range(100))
        assert 503 in asked  # as soon as those bytes have arrived
        assert "wait to be looked at" in refusal(client.post("/api/images", content=png()))[1]
        first.sendall(b"a" * 997)
        assert b" 422 " in first.recv(4096).split(b"\r\n")[0]
    assert client.post("/api/images", content=png()).status_code == 200
