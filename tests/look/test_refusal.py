"""A status and a sentence for everything that is not a question from the page."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from .conftest import PAGE, png, refusal


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Host": "evil.example"}, "host 'evil.example' are not answered"),
        ({"Host": "evil.example:8000"}, "host 'evil.example' are not answered"),
        ({"Origin": "http://evil.example"}, "from other sites"),
        ({"Origin": "null"}, "from other sites"),
        ({"Sec-Fetch-Site": "cross-site"}, "from other sites"),
        ({"Sec-Fetch-Site": "same-site"}, "from other sites"),
        ({"X-Foveal": None}, "header X-Foveal"),
    ],
)
def test_foreign_requests_are_refused(address: str, headers: dict[str, str | None], sentence: str) -> None:
    sent = {name: value for name, value in {**PAGE, **headers}.items() if value is not None}
    answer = httpx.post(f"{address}/api/images", headers=sent, content=png())
    assert refusal(answer)[0] == 403
    assert sentence in refusal(answer)[1]


def test_the_page_may_be_called_by_an_allowed_name(address: str) -> None:
    assert httpx.get(address, headers={"Host": "lab:1"}).status_code == 200
    assert httpx.get(address, headers={"Host": "localhost"}).status_code == 200
    assert httpx.get(address, headers={"Host": "[::1]:80"}).status_code == 200


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
        (bomb(9_000), 413, "at most 40000000 pixels, got 9000x9000"),
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
    assert refusal(answer) == (413, "an image file may have at most 20 MB, got more")


def test_the_content_decides_and_not_the_name(client: httpx.Client) -> None:
    assert client.post("/api/images", params={"name": "../../etc/passwd"}, content=png()).status_code == 200
    assert client.post("/api/images", params={"name": "x.jpg\0\n"}, content=png()).json()["name"] == "x.jpg??"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"y": "-1"}, 400),
        ({"y": "16"}, 400),
        ({"y": "1e3"}, 400),
        ({"x": "²"}, 400),
        ({"x": "9" * 5000}, 400),
        ({"network": "7"}, 400),
        ({"site": "../../../etc/passwd"}, 404),
        ({"site": ""}, 404),
    ],
)
def test_questions_outside_the_recording_are_refused(
    client: httpx.Client, change: dict[str, str], status: int
) -> None:
    seen = client.post("/api/images", content=png()).json()
    asked = {"network": "0", "site": seen["networks"][0]["sites"][1]["name"], "y": "0", "x": "0", **change}
    assert refusal(client.get(f"/api/images/{seen['id']}/row", params=asked))[0] == status


def test_a_site_without_rows_says_what_it_has(client: httpx.Client) -> None:
    seen = client.post("/api/images", content=png()).json()
    asked = {"network": 0, "site": seen["networks"][0]["sites"][0]["name"], "y": 0, "x": 0}
    status, sentence = refusal(client.get(f"/api/images/{seen['id']}/row", params=asked))
    assert status == 400
    assert "has none; it has channel_gate, spatial_mask" in sentence


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/unknown/row",
        "/api/images/unknown/export",
        "/docs",
        "/openapi.json",
        "/page.html",
        "/../x",
    ],
)
def test_there_is_nothing_else(client: httpx.Client, path: str) -> None:
    assert refusal(client.get(path))[0] == 404


def test_no_file_is_written(client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = open

    def watched(file: object, mode: str = "r", *args: object, **kwargs: object) -> object:
        if set(mode) & set("wax+"):
            opened.append(str(file))
        return real(file, mode, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", watched)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client.post("/api/images", content=png(width=900, height=900))
    assert opened == []
    assert list(tmp_path.iterdir()) == []
