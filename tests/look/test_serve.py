"""The server: right answers, to several clients at once, whatever slow or broken ones do."""

import asyncio
import io
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from foveal.inference import Predictor
from foveal.look import serve
from foveal.look.recorded import predict_recorded
from foveal.ops import reference

from .conftest import PAGE, png, refusal
from .test_html import unpacked

# ------------------------------------------------------------------------------------------------------- answers


def test_an_image_is_shown_to_every_network_and_its_rows_are_the_references(
    client: httpx.Client, networks: list[Predictor]
) -> None:
    seen = client.post("/api/images", params={"name": "a.png"}, content=png()).json()
    assert [one["weights"] for one in seen["networks"]] == ["one.safetensors", "two.safetensors"]
    site = seen["networks"][1]["sites"][1]["name"]
    answer = client.get(f"/api/images/{seen['id']}/row", params={"network": 1, "site": site, "y": 4, "x": 9})
    row = unpacked(answer.json())
    _, record = predict_recorded(networks[1], networks[1].view({"image": decoded(png())})["image"])
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


def test_an_answer_is_sent_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the body waits 40 ms for the acknowledgement of the header, longer than a row takes."""
    no_delay = []
    real = serve.ImpatientProtocol.connection_made

    def noted(self: serve.ImpatientProtocol, transport: asyncio.Transport) -> None:
        real(self, transport)
        accepted = transport.get_extra_info("socket")
        no_delay.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(serve.ImpatientProtocol, "connection_made", noted)
    assert httpx.get(address).status_code == 200
    assert no_delay == [1]


def test_the_shelf_keeps_within_its_bounds(network: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    view = torch.zeros(3, 32, 32, dtype=torch.uint8)
    kept = serve.Kept("x", [view], [predict_recorded(network, view)])
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


def test_an_upload_that_never_ends_does_not_keep_the_server_from_ending(network: Predictor) -> None:
    with serve.serving(serve.make_app([network], [])) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        held = socket.create_connection((host, int(port)), timeout=30)
        headers = (
            f"Host: {host}:{port}\r\nX-Foveal: 1\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
        )
        held.sendall(b"POST /api/images HTTP/1.1\r\n" + headers.encode())
        assert held.recv(4096).startswith(b"HTTP/1.1 100")  # the body is being waited for
        start = time.perf_counter()
    assert time.perf_counter() - start < serve.CLOSE_SECONDS + 10
    held.close()


def test_a_failure_inside_is_a_sentence_and_no_traceback(networks: list[Predictor]) -> None:
    def broken(_sample: object) -> None:
        raise RuntimeError("secret detail")

    app = serve.make_app(networks, [("black", torch.zeros(3, 4, 4, dtype=torch.uint8))])
    answer = in_process(app, lambda client: client.post("/api/examples/0", headers=PAGE), broken, networks)
    assert answer.status_code == 500
    assert "secret" not in answer.text


def in_process(
    app: object, ask: Callable[[httpx.AsyncClient], object], view: object, networks: list[Predictor]
) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await ask(client)  # type: ignore[misc]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "view", lambda _self, sample: view(sample))  # type: ignore[operator]
        return asyncio.run(run())
