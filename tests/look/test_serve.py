"""The server: right answers, and a status with a sentence for everything that is not a question from the page."""

import asyncio
import io
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from foveal.look import serve
from foveal.look.network import Network
from foveal.ops import reference

from .conftest import serving
from .test_html import unpacked

PAGE = {"X-Foveal": "1"}


@pytest.fixture(scope="module")
def address(networks: list[Network]) -> Iterator[str]:
    black = [("black", torch.zeros(3, 40, 40, dtype=torch.uint8))]
    with serving(serve.make_app(networks, black, allow_hosts=("lab",))) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers=PAGE, timeout=60) as opened:
        yield opened


def png(width: int = 40, height: int = 40, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


# ------------------------------------------------------------------------------------------------------- answers


def test_an_image_is_shown_to_every_network_and_its_rows_are_the_references(
    client: httpx.Client, networks: list[Network]
) -> None:
    seen = client.post("/api/images", params={"name": "a.png"}, content=png()).json()
    assert [one["weights"] for one in seen["networks"]] == ["one.safetensors", "two.safetensors"]
    site = seen["networks"][1]["sites"][1]["name"]
    answer = client.get(f"/api/images/{seen['id']}/row", params={"network": 1, "site": site, "y": 4, "x": 9})
    row = unpacked(answer.json())
    _, record = networks[1].look(networks[1].view({"image": decoded(png())})["image"])
    x = record[site].input
    block = networks[1].net.get_submodule(site)
    theta, phi = (block.get_submodule(name)(x).flatten(2).mT for name in ("theta", "phi"))
    full = reference.softmax_weights(reference.dot_scores(theta, phi))[0, 4 * 16 + 9].reshape(16, 16) * 256
    np.testing.assert_allclose(row, full, rtol=1e-5, atol=1e-5)


def decoded(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def test_several_clients_at_once_get_their_own_rows(address: str) -> None:
    def one_client(seed: int) -> tuple[bytes, list[dict]]:
        with httpx.Client(base_url=address, headers=PAGE, timeout=120) as client:
            seen = client.post("/api/images", content=png(seed=seed)).json()
            site = seen["networks"][0]["sites"][1]["name"]
            where = {"network": 0, "site": site, "x": 3}
            rows = [
                client.get(f"/api/images/{seen['id']}/row", params={**where, "y": y}).json() for y in range(4)
            ]
            return seen["networks"][0]["image"], rows

    alone = [one_client(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(one_client, range(6)))
    assert together == alone
    assert len({image for image, _ in alone}) == 6


def test_bundled_images_are_taken_by_number(client: httpx.Client) -> None:
    assert [one["name"] for one in client.get("/api/examples").json()] == ["black"]
    assert client.post("/api/examples/0").json()["name"] == "black"
    assert refusal(client.post("/api/examples/1")) == (404, "there are 1 bundled images, got number 1")
    assert client.post("/api/examples/..%2F..%2Fetc").status_code == 404


def test_the_export_is_the_page_with_the_rows_inside(client: httpx.Client) -> None:
    seen = client.post("/api/images", content=png()).json()
    answer = client.get(f"/api/images/{seen['id']}/export")
    assert "attachment" in answer.headers["content-disposition"]
    data = json.loads(answer.text.split('id="foveal-data">')[1].split("</script>")[0])
    assert data["images"][0]["networks"][0]["sites"][1]["rows"]["queries"] == [16, 16]


def test_the_page_allows_its_own_script_and_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_row_takes_less_than_100_ms_after_the_first_pass() -> None:
    """One Non-local block on 56 x 56 positions of a 224 x 224 image, without the way over HTTP."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 4, stride=4), torch.nn.Flatten(2), torch.nn.Unflatten(2, (56, 56))
    )
    import foveal

    net.append(foveal.nn.NonLocal(64))
    from foveal.look.payload import row_payload
    from foveal.look.record import watch

    with watch(net) as seen, torch.no_grad():
        net(torch.rand(1, 3, 224, 224))
    record = next(iter(seen.values()))
    row_payload(record, (0, 0))
    times = []
    for x in range(1, 6):
        start = time.perf_counter()
        row_payload(record, (30, x))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1


# ------------------------------------------------------------------------------------------------------ refusals


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
        (b"\xff\xd8\xff" + b"\0" * (20 * 2**20), 413, "at most 20 MB"),
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


# ------------------------------------------------------------------------------------------------- slow and many


def upload_header(host: str, port: str) -> bytes:
    lines = [
        "POST /api/images HTTP/1.1",
        f"Host: {host}:{port}",
        "X-Foveal: 1",
        "Content-Length: 999",
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


def test_slow_clients_do_not_block_others_and_are_let_go(
    address: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.look.refusal.UPLOAD_SECONDS", 1.0)
    host, port = address.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(20)]
    for one in slow:
        one.sendall(upload_header(host, port) + b"abc")
    assert client.post("/api/images", content=png()).status_code == 200
    answers = [one.recv(4096) for one in slow]
    assert all(b"408" in answer.split(b"\r\n")[0] for answer in answers)
    for one in slow:
        one.close()


def test_a_connection_that_never_finishes_its_header_is_dropped(
    address: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "HEADER_SECONDS", 0.3)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert client.get("/").status_code == 200
        assert silent.recv(100) == b""


def test_too_many_uploads_at_once_are_told_to_come_back(
    address: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_UPLOADS", 0)
    assert refusal(client.post("/api/images", content=png()))[0] == 503


def test_the_shelf_keeps_within_its_bounds(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    view = torch.zeros(3, 32, 32, dtype=torch.uint8)
    kept = serve.Kept("x", [view], [network.look(view)])
    shelf = serve.Shelf()
    monkeypatch.setattr(serve, "MAX_KEPT_BYTES", 3 * kept.bytes)
    names = [shelf.put(kept) for _ in range(5)]
    for name in names[:2]:
        with pytest.raises(serve.Refusal, match="choose it again"):
            shelf.get(name)
    for name in names[2:]:
        assert shelf.get(name) is kept
    assert len(set(names)) == 5
    monkeypatch.setattr(serve, "MAX_KEPT_IMAGES", 1)
    shelf.put(kept)
    with pytest.raises(serve.Refusal):
        shelf.get(names[-1])


def test_an_interrupted_upload_leaves_the_server_well(address: str, client: httpx.Client) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as broken:
        broken.sendall(upload_header(host, port))
    assert client.post("/api/images", content=png()).status_code == 200


def test_a_failure_inside_is_a_sentence_and_no_traceback(networks: list[Network]) -> None:
    def broken(_sample: object) -> None:
        raise RuntimeError("secret detail")

    app = serve.make_app(networks, [("black", torch.zeros(3, 4, 4, dtype=torch.uint8))])
    answer = in_process(app, lambda client: client.post("/api/examples/0", headers=PAGE), broken, networks)
    assert answer.status_code == 500
    assert "secret" not in answer.text


def in_process(
    app: object, ask: Callable[[httpx.AsyncClient], object], view: object, networks: list[Network]
) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await ask(client)  # type: ignore[misc]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "view", lambda _self, sample: view(sample))  # type: ignore[operator]
        return asyncio.run(run())
