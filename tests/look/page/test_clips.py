"""Clips on the page: uploaded or chosen, played, and the row of a point of a frame over all frames."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.videos import flat_frames, known, write_animation, write_video

from foveal.errors import FovealError
from foveal.inference import Predictor
from foveal.look.images import bundled_images
from foveal.look.page import uploads
from foveal.look.page.server import make_app, serving
from foveal.look.page.uploads import decode_clip
from foveal.look.pictures import PageFile, see
from foveal.look.predict import predict_recorded
from foveal.model_info import ModelInfo
from foveal.tasks import TASKS

from .conftest import click, drawn, pixels, png, refusal
from .test_payload import unpacked

if TYPE_CHECKING:
    from playwright import sync_api

SITE = "net.layer2.nonlocal_"


def clip_network(name: str = "clips", frames: int = 4) -> Predictor:
    torch.manual_seed(0)
    net = TASKS["clips"].build("nonlocal_c2d_cifar_resnet8", 3, over="spacetime")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    extra = {"frames": frames, "stride": 1, "short": "loop"}
    return Predictor(net.eval(), ModelInfo("clips", ["a", "b", "c"], 20, extra=extra), name)


@pytest.fixture(scope="module")
def networks() -> list[Predictor]:
    return [clip_network("four"), clip_network("two", 2)]


@pytest.fixture(scope="module")
def address(networks: list[Predictor]) -> Iterator[str]:
    with serving(make_app(networks, bundled_images(networks[0], 2))) as address:
        yield address


def animation(frames: np.ndarray, tmp_path: Path, name: str = "a.webp") -> bytes:
    write_animation(tmp_path / name, frames)
    return (tmp_path / name).read_bytes()


def test_a_clip_is_shown_to_every_network_and_its_rows_are_the_recorded_ones(
    client: httpx.Client, networks: list[Predictor], tmp_path: Path
) -> None:
    frames = flat_frames(10, 24, 40)
    seen = client.post("/api/images", params={"name": "a.webp"}, content=animation(frames, tmp_path)).json()
    assert [len(network["frames"]) for network in seen["networks"]] == [4, 2]
    middle = [
        Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))).getpixel((9, 9))
        for one in seen["networks"][0]["frames"]
    ]
    assert [value[0] // 6 for value in middle] == [3, 4, 5, 6], "the clip in the middle of ten frames"
    site = seen["networks"][0]["sites"][0]
    assert (site["name"], site["spatial"]) == (SITE, [4, 10, 10])
    row = client.get(f"/api/images/{seen['id']}/row", params={"site": SITE, "t": 2, "y": 3, "x": 8}).json()
    view = networks[0].view({"image": torch.from_numpy(frames).permute(3, 0, 1, 2)})["image"]
    _, recorded = predict_recorded(networks[0], view)
    np.testing.assert_allclose(unpacked(row), recorded[SITE].rows((2, 3, 8))[0, 0].numpy() * 400, rtol=1e-4)
    answer = client.get(f"/api/images/{seen['id']}/row", params={"site": SITE, "t": 4, "y": 3, "x": 8})
    assert refusal(answer) == (400, "t must be a whole number from 0 to 3, got '4'")


def test_bundled_clips_are_offered_and_saved_with_their_rows(client: httpx.Client) -> None:
    assert [one["name"][:7] for one in client.get("/api/examples").json()] == ["scene 1", "scene 2"]
    seen = client.post("/api/examples/1").json()
    text = client.get(f"/api/images/{seen['id']}/export").text
    assert '"queries": [4, 10, 10]' in text


@pytest.mark.parametrize(("codec", "name"), [("libx264", "a.mp4"), ("mpeg4", "a.avi"), ("libvpx", "a.webm")])
def test_videos_are_known_by_their_content(tmp_path: Path, codec: str, name: str) -> None:
    pytest.importorskip("av")
    write_video(tmp_path / name, flat_frames(12, 32, 48), codec)
    video, _ = decode_clip((tmp_path / name).read_bytes(), "holiday", 3)
    assert known(video[:, [7, 2]]) == [7, 2]


def test_what_is_no_clip_is_refused(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(content: bytes) -> tuple[int, str]:
        return refusal(client.post("/api/images", params={"name": "v"}, content=content))

    assert said(b"%PDF-1.7")[0] == 415
    assert said(png()) == (422, "a video must have at least 2 frames, got 1 in v")
    assert said(b"\0\0\0\x18ftypisom" + b"\0" * 99)[0] == 422
    whole = animation(flat_frames(10, 24, 40), tmp_path)
    assert said(whole[: len(whole) // 2])[0] == 422
    assert said(animation(flat_frames(3, 10, 100), tmp_path))[0] == 422
    monkeypatch.setattr(uploads, "MAX_DECODED", 9000)
    assert said(whole)[0] == 413


def test_weights_of_clips_are_served_without_those_of_images(network: Predictor) -> None:
    with pytest.raises(
        FovealError, match=r"must all take images, or videos, or seeds, got c \(videos\), one"
    ):
        make_app([clip_network("c"), network], [])


def test_a_clip_plays_and_a_point_of_a_frame_shows_its_row_over_the_frames(
    browser: "sync_api.Browser",
    address: str,
    tmp_path: Path,
) -> None:
    opened = browser.new_page(viewport={"width": 1180, "height": 1000})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector(".panel[data-drawn]")
    shown = "document.querySelector('.panel').dataset.frame"
    frames = {opened.evaluate(shown)}
    for _ in range(2):
        opened.wait_for_function(f"before => {shown} !== before", arg=opened.evaluate(shown))
        frames.add(opened.evaluate(shown))
    assert len(frames) > 1, "it plays"
    opened.locator("#frame").fill("1")
    assert opened.locator("#play").inner_text() == "Play", "who chooses a frame stops at it"
    opened.wait_for_function(f"() => {shown} === '1'")
    click(opened, 0.35, 0.55, "1,3,5")
    assert "Query t 1, y 3, x 5 of 4 × 10 × 10 (held)" in opened.locator(".readout").first.inner_text()
    there = pixels(opened)
    opened.locator("#frame").fill("3")
    opened.wait_for_function(f"() => {shown} === '3'")
    assert drawn(opened).endswith("|1,3,5"), "the point stays in its frame"
    assert not np.array_equal(pixels(opened), there)
    assert "the point in frame t 1" in opened.locator("canvas.strip").first.get_attribute("aria-label")
    box = opened.locator("canvas.strip").first.bounding_box()
    opened.locator("canvas.strip").first.click(position={"x": 5, "y": box["height"] / 3})
    opened.wait_for_function(f"() => {shown} === '0'")
    opened.locator("select.weights").first.select_option("1")
    opened.wait_for_function("() => document.querySelector('.panel').dataset.drawn.startsWith('two|')")
    assert drawn(opened).endswith("|0,3,5"), "the same point of a clip of half as many frames"
    (tmp_path / "b.gif").write_bytes(animation(flat_frames(6, 24, 24), tmp_path, "b.gif"))
    opened.locator("#file").set_input_files(tmp_path / "b.gif")
    opened.locator("#status", has_text="b.gif: predicted").wait_for()
    opened.close()
    assert problems == []


def test_a_file_of_clips_opens_from_disk(
    browser: "sync_api.Browser",
    networks: list[Predictor],
    tmp_path: Path,
) -> None:
    page = PageFile(networks[0])
    page.add(see(networks[0], "clip", bundled_images(networks[0], 1)[0][1]))
    page.write(tmp_path / "page.html")
    opened = browser.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto((tmp_path / "page.html").as_uri())
    opened.wait_for_selector(".panel[data-drawn]")
    opened.locator("#frame").fill("2")
    click(opened, 0.35, 0.55, "2,3,5")
    assert "(held)" in opened.locator(".readout").first.inner_text()
    opened.close()
    assert problems == []
