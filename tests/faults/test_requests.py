"""Hostile requests to the page: it stays alive, opens no file for anybody, keeps nothing, and answers as before."""

import random
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from tests.forked import LONG

from foveal.inference import open_bundled
from foveal.look.images import bundled_images
from foveal.look.page import server

from .conftest import trials

SECRET = b"kept-from-everybody-7f3a"
TARGETS = (
    "/",
    "/api/examples",
    "/api/images",
    "/api/examples/0",
    "/api/images/1/row",
    "/api/networks",
    "/docs",
)


@pytest.fixture(scope="module")
def address():
    ready = open_bundled()
    with server.serving(server.make_app([ready], bundled_images(ready)[:2])) as address:
        yield address


def one_request(draw: random.Random, host: str, secret: Path) -> bytes:
    """Bytes that no browser would send."""
    method = draw.choice(
        ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "\0", "PATCH")
    )
    target = draw.choice(
        (
            draw.choice(TARGETS),
            "/" + "../" * draw.randrange(1, 20) + str(secret).lstrip("/"),
            "/" + "%2e%2e%2f" * 12 + str(secret).lstrip("/"),
            "/api/examples/" + str(secret),
            "/api/examples/" + "9" * draw.choice((1, 30, 5000)),
            f"/api/images?name={secret}",
            f"file://{secret}",
            f"http://{host}{secret}",
            "/" + "a" * draw.choice((10, 9000, 70_000)),
            "/" + "".join(chr(draw.randrange(33, 0x3000)) for _ in range(20)),
        )
    )
    version = draw.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/9.9", "", "HTTP/1.1 x"))
    lines = [f"{method} {target} {version}"]
    lines += [f"Host: {draw.choice((host, host, host, 'evil.example', '', host + chr(9) + 'x'))}"]
    for name, values in (
        ("X-Foveal", ("1", "1", "0", "")),
        ("Origin", (f"http://{host}", "http://evil.example", "null")),
        ("Sec-Fetch-Site", ("same-origin", "cross-site")),
        ("Content-Length", ("0", "5", "-1", "99999999999999", "1e3", "٣")),
        ("Transfer-Encoding", ("chunked", "chunked, chunked", "gzip", "identity")),
        ("Content-Type", ("image/png", "multipart/form-data; boundary=x", "text/html")),
        ("Cookie", ("a" * 20_000,)),
        ("Upgrade", ("websocket", "h2c")),
    ):
        if draw.random() < 0.4:
            lines.append(f"{name}: {draw.choice(values)}")
    if draw.random() < 0.1:
        lines += [f"X-{k}: y" for k in range(draw.choice((50, 2000)))]
    body = draw.choice((b"", b"hello", draw.randbytes(3000), b"5\r\nhello\r\n0\r\n\r\n", b"--x\r\n\r\n--x--"))
    request = "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body
    match draw.randrange(8):
        case 0:
            return draw.randbytes(draw.randrange(1, 4000))
        case 1:
            return request[: draw.randrange(len(request))]
        case 2:
            return request * draw.randrange(2, 6)
    return request


def sent(address: str, data: bytes) -> bytes:
    """What comes back within a second; the connection is closed then."""
    host, _, port = address.removeprefix("http://").partition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=LONG) as connection:
        connection.settimeout(0.5)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except OSError:
            pass
    return received


@trials(150, 5000)
def test_the_page_outlives_hostile_requests_and_tells_nobody_anything(address, tmp_path, trials):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(SECRET)
    draw = random.Random(5000)
    process = psutil.Process()
    requests = [one_request(draw, address.removeprefix("http://"), secret) for _ in range(trials)]
    with httpx.Client(base_url=address, headers={"X-Foveal": "1"}, timeout=LONG) as client:
        before = client.post("/api/examples/0").json()["networks"]
        start = process.memory_info().rss
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda data: sent(address, data), requests))
        after = client.post("/api/examples/0").json()["networks"]
    statuses = [
        int(code)
        for answer in answers
        for code in re.findall(rb"^HTTP/1\.[01] (\d{3})", answer, re.MULTILINE)
    ]
    assert statuses, "something was answered"
    assert not [status for status in statuses if status >= 500]
    assert not [answer for answer in answers if SECRET in answer]
    assert [one["image"] for one in after] == [one["image"] for one in before]
    assert process.memory_info().rss - start < 400_000_000
