"""The server: right answers, to several clients at once, whatever slow or broken ones do."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from foveal.errors import FovealError
from foveal.inference import Predictor, predictor
from foveal.look.page import server
from foveal.look.predict import predict_recorded
from foveal.ops import reference

from ..test_generated import generator
from .conftest import PAGE, connected, png, refusal, upload_header
from .test_payload import unpacked

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
        with httpx.Client(base_url=address, headers=PAGE, timeout=120, verify=False) as client:
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
    assert refusal(client.post("/api/examples/1")) == (
        404,
        "number must be a whole number from 0 to 0, got '1'",
    )
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


# ------------------------------------------------------------------------------------------------- slow and many


def test_an_upload_that_never_ends_does_not_keep_the_server_from_ending(network: Predictor) -> None:
    with server.serving(server.make_app([network], [])) as address:
        held = connected(address)
        held.sendall(upload_header(address, expect=True))
        assert held.recv(4096).startswith(b"HTTP/1.1 100")  # the body is being waited for
        start = time.perf_counter()
    assert time.perf_counter() - start < server.CLOSE_SECONDS + 10
    held.close()


def test_a_failure_inside_is_a_sentence_and_no_traceback(networks: list[Predictor]) -> None:
    def broken(_sample: object) -> None:
        raise RuntimeError("secret detail")

    app = server.make_app(networks, [("black", torch.zeros(3, 4, 4, dtype=torch.uint8))])
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


def test_weights_that_are_not_finite_get_a_sentence_and_no_traceback(
    weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = predictor(weights, "cpu")
    with torch.no_grad():
        broken.net.get_submodule("layer2.0.nonlocal_").theta.weight.fill_(float("nan"))
    with server.serving(server.make_app([broken], [])) as address:
        answer = httpx.post(f"{address}/api/images", content=png(), headers=PAGE)
        assert refusal(answer)[0] == 422
        assert "nan" in refusal(answer)[1]
        assert "one.safetensors" in refusal(answer)[1]
    assert capfd.readouterr().err == ""


def test_an_export_waits_for_its_turn(networks: list[Predictor]) -> None:
    """It computes every row of an image: with the networks, one at a time."""
    app = server.make_app(networks, [("black", torch.zeros(3, 40, 40, dtype=torch.uint8))])
    at_work = []

    def noted(self: server.PageServer, cached: object) -> str:
        at_work.append(self.turn.locked())
        return "page"

    async def ask() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=PAGE
        ) as client:
            seen = (await client.post("/api/examples/0")).json()
            assert (await client.get(f"/api/images/{seen['id']}/export")).text == "page"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.PageServer, "_exported", noted)
        asyncio.run(ask())
    assert at_work == [True]


def test_fifty_clients_at_once_see_their_own_image_only(address: str) -> None:
    def one_client(number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        colour = (number * 5, 255 - number * 5, number)
        file = io.BytesIO()
        Image.new("RGB", (40, 40), colour).save(file, "png")
        with httpx.Client(base_url=address, headers=PAGE, timeout=120, verify=False) as client:
            answer = client.post("/api/images", content=file.getvalue(), params={"name": f"c{number}"})
            while answer.status_code == 503:
                time.sleep(0.05)
                answer = client.post("/api/images", content=file.getvalue(), params={"name": f"c{number}"})
            seen = answer.json()
        assert seen["name"] == f"c{number}"
        shown = Image.open(io.BytesIO(base64.b64decode(seen["networks"][0]["image"].partition(",")[2])))
        return colour, tuple(np.asarray(shown)[0, 0].tolist())

    with ThreadPoolExecutor(50) as pool:
        for sent, shown in pool.map(one_client, range(50)):
            assert shown == sent


# ------------------------------------------------------------------------------------------------ its description


ODD_TEXT = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.sampled_from(
        ["", "0", "²", "9" * 5000, "-1", "NaN", "../..", "%00", "\0", "<script>", "layer1.0.bn2.cbam"]
    ),
)


@pytest.fixture
def seen(client: httpx.Client) -> Iterator[str]:
    """An image that the server holds from the first question to the last."""
    found = client.post("/api/examples/0").json()["id"]
    yield found
    assert client.get(f"/api/images/{found}/export").status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_question_is_answered_with_a_status_that_the_description_names(
    client: httpx.Client, networks: list[Predictor], seen: str, data: st.DataObject
) -> None:
    described = server.make_app(networks, []).openapi()
    path, method = data.draw(
        st.sampled_from(
            [(path, method) for path, methods in described["paths"].items() for method in methods]
        )
    )
    question = described["paths"][path][method]
    asked, url = {}, path
    for parameter in question.get("parameters", []):
        value = data.draw(ODD_TEXT)
        if parameter["in"] == "path":
            value = seen if parameter["name"] == "image" and data.draw(st.booleans()) else value
            url = url.replace("{" + parameter["name"] + "}", quote(value, safe=""))
        elif parameter["required"] or data.draw(st.booleans()):
            asked[parameter["name"]] = value
    body = data.draw(st.binary(max_size=200)) if "requestBody" in question else None
    answer = client.request(method.upper(), url, params=asked, content=body)
    assert str(answer.status_code) in {*question["responses"], "404"}
    if answer.status_code != 200:
        assert set(answer.json()) == {"error"}


def test_the_description_is_not_served(client: httpx.Client) -> None:
    assert client.get("/openapi.json").status_code == 404


# --------------------------------------------------------------------------------------------- weights that generate


def test_seeds_give_images_and_their_rows_and_no_image_is_taken() -> None:
    with (
        server.serving(server.make_app([generator()], [])) as address,
        httpx.Client(base_url=address, headers=PAGE, timeout=60) as client,
    ):
        made = client.get("/api/seeds/3").json()
        assert [one["name"] for one in made[:3]] == ["0000-a.png", "0001-b.png", "0002-c.png"]
        seen = client.post("/api/seeds/3/1").json()
        assert seen["name"] == "seed 3, image 1"
        (network,) = seen["networks"]
        assert network["prediction"] == [["b", 1.0]]
        site = network["sites"][0]["name"]
        row = client.get(f"/api/images/{seen['id']}/row", params={"site": site, "y": 3, "x": 3})
        assert unpacked(row.json()).mean() == pytest.approx(1.0, abs=1e-4)
        for path in ("/api/seeds/-1", "/api/seeds/1000000000", "/api/seeds/x"):
            assert refusal(client.get(path))[0] == 404
        assert refusal(client.post("/api/seeds/0/10"))[0] == 404
        assert client.post("/api/images", content=png()).status_code == 404
        assert client.get("/api/examples").status_code == 404


def test_weights_that_generate_are_served_alone(networks: list[Predictor]) -> None:
    with pytest.raises(
        FovealError, match=r"must all take images, or videos, or seeds, got g.*seeds\), one.*images"
    ):
        server.make_app([generator(), networks[0]], [])
