"""The page in a real browser: what a person does, from an image to a file that is opened from disk."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.inference import Predictor, predictor
from foveal.look import canvas
from foveal.look.images import bundled_images
from foveal.look.page.html import page_with
from foveal.look.page.payload import _packed
from foveal.look.page.server import make_app, serving
from foveal.model_info import ModelInfo
from foveal.tasks import TASKS

from ..test_generated import generator
from .conftest import click, drawn, pixels, png

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def address(networks: list[Predictor]) -> Iterator[str]:
    with serving(make_app(networks, bundled_images(networks[0], 2))) as address:
        yield address


@pytest.fixture
def page(browser: "sync_api.Browser", address: str) -> Iterator["sync_api.Page"]:
    """The page with its first bundled image shown; any error of its script fails the test."""
    opened = browser.new_page(viewport={"width": 1180, "height": 1000})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    refused = "Failed to load resource"  # Chromium's own note of an answer that is a refusal
    opened.on("console", lambda m: m.type == "error" and refused not in m.text and problems.append(m.text))
    opened.goto(address)
    opened.wait_for_selector(".panel[data-drawn]")
    yield opened
    opened.close()
    assert problems == []


def show(page: "sync_api.Page", site: str, panel: int = 0) -> None:
    page.locator("select.site").nth(panel).select_option(site)
    page.wait_for_function(
        "([n, s]) => document.querySelectorAll('.panel')[n].dataset.drawn?.includes(s)", arg=[panel, site]
    )


BLOCK1, BLOCK2, BLOCK3 = "layer1.0.bn2.cbam", "layer2.0.nonlocal_", "layer3.0.dual"


def test_two_points_show_two_rows_and_a_held_point_stays(page: "sync_api.Page") -> None:
    show(page, BLOCK2)
    click(page, 0.1, 0.1, "1,1")
    first = pixels(page)
    click(page, 0.8, 0.7, "12,11")
    second = pixels(page)
    assert not np.array_equal(first, second)
    box = page.locator("canvas.map").first.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.wait_for_timeout(200)
    assert drawn(page).endswith("|12,11")
    assert "Query y 12, x 11 of 16,16 (held)".replace("16,16", "16 × 16") in page.inner_text(".readout")


def test_the_row_follows_the_pointer_without_a_click(page: "sync_api.Page") -> None:
    show(page, BLOCK2)
    box = page.locator("canvas.map").first.bounding_box()
    for y, x in ((2, 3), (9, 14)):
        page.mouse.move(box["x"] + (x + 0.5) / 16 * box["width"], box["y"] + (y + 0.5) / 16 * box["height"])
        page.wait_for_function(
            "c => document.querySelector('.panel').dataset.drawn?.endsWith(c)", arg=f"|{y},{x}"
        )


def test_an_uploaded_photograph_is_shown_with_its_prediction(page: "sync_api.Page", photo: Path) -> None:
    page.set_input_files("#file", photo)
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('photo.jpg')")
    assert page.locator(".answer").first.locator("tr").count() == 5
    show(page, BLOCK2)


def test_every_site_and_view_can_be_shown(page: "sync_api.Page") -> None:
    shown = []
    for site, view in ((BLOCK1, "mask"), (BLOCK1, "image"), (BLOCK3, "rows"), (BLOCK3, "channels")):
        show(page, site)
        page.locator("select.view").first.select_option(view)
        page.wait_for_function(
            "v => document.querySelector('.panel').dataset.drawn?.includes(v)", arg=f"|{view}|"
        )
        shown.append(pixels(page).tobytes())
    assert len(set(shown)) == 4


def test_gates_are_bars_with_their_numbers_said(page: "sync_api.Page") -> None:
    show(page, BLOCK1)
    text = page.inner_text(".gates-text")
    assert text.startswith("16 channels, mean ")
    assert "Largest: channel" in text


def test_two_weights_are_compared_side_by_side_at_one_point(page: "sync_api.Page") -> None:
    page.check("#two")
    for panel in (0, 1):
        show(page, BLOCK2, panel)
    click(page, 0.3, 0.6, "4,9")
    page.wait_for_function("() => document.querySelectorAll('.panel')[1].dataset.drawn?.endsWith('|4,9')")
    assert drawn(page, 0).startswith("one.safetensors|")
    assert drawn(page, 1).startswith("two.safetensors|")
    assert not np.array_equal(pixels(page, 0), pixels(page, 1))


def test_the_keyboard_alone_moves_holds_and_lets_go(page: "sync_api.Page") -> None:
    show(page, BLOCK2)
    page.focus("canvas.map")
    start = [int(v) for v in drawn(page).rpartition("|")[2].split(",")]
    page.keyboard.press("ArrowUp" if start[0] else "ArrowDown")
    expected = f"|{start[0] - 1 if start[0] else 1},{start[1]}"
    page.wait_for_function("c => document.querySelector('.panel').dataset.drawn?.endsWith(c)", arg=expected)
    assert "(held)" in page.inner_text(".readout")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('.readout').textContent.includes('(held)')")


def test_controls_have_names_for_screen_readers(page: "sync_api.Page") -> None:
    tree = page.locator("body").aria_snapshot()
    for name in (
        'combobox "weights"',
        'combobox "site"',
        'combobox "show"',
        'checkbox "side by side"',
        "slider",
        "status",
    ):
        assert name in tree
    show(page, BLOCK2)
    label = page.locator("canvas.map").first.get_attribute("aria-label")
    assert label.startswith(f"attention row of a point at {BLOCK2}. Query y ")
    assert page.locator(".readout").first.get_attribute("aria-live") == "polite"


def test_it_fits_the_width_of_a_phone(page: "sync_api.Page") -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.check("#two")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_refused_file_says_why(page: "sync_api.Page", tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "notes.png")
    page.wait_for_function("() => document.querySelector('#status').classList.contains('bad')")
    assert "notes.png is no JPEG, PNG" in page.inner_text("#status")


def test_the_export_opens_from_disk_and_shows_the_same(
    page: "sync_api.Page", browser: "sync_api.Browser", tmp_path: Path
) -> None:
    show(page, BLOCK2)
    click(page, 0.3, 0.6, "4,9")
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / "export.html"
    download.value.save_as(file)
    context = browser.new_context(offline=True, viewport={"width": 1180, "height": 1000})
    alone = context.new_page()
    requests: list[str] = []
    alone.on("request", lambda request: requests.append(request.url))
    alone.goto(file.as_uri())
    alone.wait_for_selector(".panel[data-drawn]")
    show(alone, BLOCK2)
    click(alone, 0.3, 0.6, "4,9")
    difference = np.abs(pixels(page).astype(int) - pixels(alone).astype(int))
    assert difference.max() <= 6  # rows in the file are rounded to 255 steps
    click(alone, 0.9, 0.1, "14,1")
    assert not np.array_equal(pixels(page), pixels(alone))
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    context.close()


def test_a_danet_shows_its_classes_a_row_and_the_channel_matrix(
    browser: "sync_api.Browser", danet: Path
) -> None:
    network = predictor(danet, "cpu")
    with serving(make_app([network], bundled_images(network, 1))) as address:
        page = browser.new_page(viewport={"width": 1180, "height": 1000})
        page.goto(address)
        page.wait_for_selector(".panel[data-drawn]")
        click(page, 0.1, 0.9, "0,7")
        shown = [pixels(page).tobytes()]
        assert page.inner_text(".answer-title") == "Classes in the image"
        for site, view in (("position.1", "segmentation"), ("channel.1", "channels")):
            show(page, site)
            page.locator("select.view").first.select_option(view)
            page.wait_for_function(
                "v => document.querySelector('.panel').dataset.drawn?.includes(v)", arg=f"|{view}|"
            )
            shown.append(pixels(page).tobytes())
        assert len(set(shown)) == 3
        page.close()


def drop(page: "sync_api.Page", selector: str, name: str, content: bytes | None) -> bool:
    """Drop a file, or a piece of text, on an element; whether the browser would leave the page for it."""
    return page.evaluate(
        """([selector, name, content]) => {
            const transfer = new DataTransfer();
            if (content === null) transfer.setData("text/uri-list", "https://example.org");
            else transfer.items.add(new File([Uint8Array.from(content)], name));
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
            const target = document.querySelector(selector);
            return ["dragover", "drop"].some(kind => target.dispatchEvent(new DragEvent(kind, options)));
        }""",
        [selector, name, None if content is None else list(content)],
    )


@pytest.mark.parametrize("selector", ["canvas.map", "body", "html", "#choose", "select.site"])
def test_an_image_may_be_dropped_anywhere(page: "sync_api.Page", selector: str) -> None:
    assert not drop(page, selector, "dropped.png", png())
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('dropped.png')")


def test_what_is_dropped_and_is_no_file_is_said_to_be_none(page: "sync_api.Page") -> None:
    assert not drop(page, "canvas.map", "", None)
    assert "what was dropped is no file" in page.inner_text("#status")


def test_a_photograph_of_very_many_pixels_is_shown_with_a_word(
    page: "sync_api.Page", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.look.page.uploads.FULL_PIXELS", 1000)
    drop(page, "body", "large.png", png(60, 40))
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('large.png')")
    assert "60 × 40 pixels were scaled down to 37 × 25" in page.inner_text("#status")


@pytest.fixture
def carried(browser: "sync_api.Browser", tmp_path: Path) -> Callable[..., "sync_api.Page"]:
    """Open a file with one site whose maps the test gives."""

    def opened(site: dict, name: str = "a", label: str = "cat") -> "sync_api.Page":
        sites = [{"name": "site", "block": "CBAM", "options": "", "contribution": 0.0, **site}]
        view = np.zeros((8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(view).save(file, "png")
        network = {
            "name": name,
            "weights": "w",
            "image": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
            "size": [8, 8],
            "prediction": [[label, 1.0]],
            "segmentation": None,
            "sites": sites,
        }
        path = tmp_path / "page.html"
        path.write_text(page_with([{"name": name, "networks": [network]}]))
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector(".panel[data-drawn]")
        return page

    return opened


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("level", [1.0, 0.25, 3.0])
def test_rounding_noise_is_drawn_flat_as_in_the_pictures(
    carried: Callable[..., "sync_api.Page"], level: float, stretch: bool
) -> None:
    noise = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) * 1e-5 * level
    page = carried({"spatial": [8, 8], "mask": _packed(level + noise)})
    page.set_checked("#stretch", stretch)
    page.wait_for_function("() => true")
    assert len(np.unique(pixels(page).reshape(-1, 4), axis=0)) <= 2
    page.close()


@pytest.mark.parametrize("values", [(0.2, 0.9), (0.5, 2.5), (-1.0, 3.0)])
def test_colours_have_the_same_limits_as_in_the_pictures(
    carried: Callable[..., "sync_api.Page"], values: tuple[float, float]
) -> None:
    mask = torch.full((8, 8), values[0])
    mask[4:] = values[1]
    page = carried({"spatial": [8, 8], "mask": _packed(mask)})
    shown = [float(page.inner_text(f".{end}")) for end in ("low", "high")]
    norm = canvas.limits(mask, canvas.MASK_TOP)
    assert shown == pytest.approx([norm.vmin, norm.vmax], abs=0.005)
    page.close()


def test_marks_of_direction_in_names_are_shown_and_turn_nothing_around(
    carried: Callable[..., "sync_api.Page"],
) -> None:
    page = carried({"spatial": [8, 8], "mask": _packed(torch.rand(8, 8))}, "\u202egnp.exe", "c\u2067at\x1b")
    shown = page.inner_text("body")
    assert "c\\u2067at\\u001b" in shown
    assert not {"\u202e", "\u2067", "\x1b"} & set(page.content().partition("<script")[0] + shown)
    page.close()


def test_a_file_does_not_take_a_dropped_image_and_stays(carried: Callable[..., "sync_api.Page"]) -> None:
    page = carried({"spatial": [8, 8], "mask": _packed(torch.rand(8, 8))})
    assert not drop(page, "canvas.map", "dropped.png", png())
    assert "shows the images inside it" in page.inner_text("#status")
    page.close()


# ------------------------------------------------------------------------------------------------------- detectors


@pytest.fixture(scope="module")
def detector_address() -> Iterator[str]:
    torch.manual_seed(0)
    tiny = {"width": 16, "heads": 2, "ffn_width": 16, "num_queries": 6}
    nets = (
        TASKS["detect"].build("detr_test_resnet", 3, encoder_layers=1, decoder_layers=2, **tiny),
        TASKS["detect"].build("sparse_rcnn_test_resnet", 3, stages=2, dynamic_width=8, **tiny),
    )
    info = ModelInfo("detect", ["ant", "bee", "cat"], 64)
    networks = [Predictor(net.eval(), info, f"net{i}") for i, net in enumerate(nets)]
    with serving(make_app(networks, bundled_images(networks[0], 1))) as address:
        yield address


def test_pointing_at_a_box_shows_what_its_object_looked_at(
    browser: "sync_api.Browser", detector_address: str
) -> None:
    opened = browser.new_page(viewport={"width": 1180, "height": 1000})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(detector_address)
    opened.wait_for_selector(".panel[data-drawn]")
    assert drawn(opened) == "net0|decoder.1.multihead_attn|objects|0", (
        "the best object of the last layer first"
    )
    best = pixels(opened)
    left, top, right, bottom = opened.evaluate("panels[0].site.objects.boxes[0]")
    click(opened, (top + bottom) / 2, (left + right) / 2, "0")
    assert "(held)" in opened.locator(".readout").first.inner_text()
    assert not np.array_equal(pixels(opened), best), "a held box is red"
    show(opened, "encoder.0")
    assert "|rows|" in drawn(opened), "the same point among the places of the encoder"
    opened.locator("select.weights").first.select_option("1")
    opened.wait_for_function(
        "document.querySelector('.panel').dataset.drawn.startsWith('net1|stages|objects')"
    )
    assert "through 2 stages" in opened.locator("figcaption").first.inner_text()
    opened.close()
    assert problems == []


# --------------------------------------------------------------------------------------------- weights that generate


def test_a_seed_is_chosen_with_a_slider_and_a_point_of_its_image_shows_its_row(
    browser: "sync_api.Browser",
) -> None:
    opened = browser.new_page(viewport={"width": 1180, "height": 1000})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    with serving(make_app([generator()], [])) as address:
        opened.goto(address)
        opened.wait_for_selector(".panel[data-drawn]")
        assert opened.locator("#status").inner_text() == "seed 0, image 0: a"
        assert not opened.locator(".file").is_visible()
        assert opened.locator("#examples button").count() == 10
        before = pixels(opened)
        slider = opened.locator("#seed input")
        slider.fill("12")
        opened.locator("#status", has_text="seed 12, image 0: a").wait_for()
        for _ in range(600):  # the picture is decoded and drawn after its name is there
            if not np.array_equal(pixels(opened), before):
                break
            opened.wait_for_timeout(50)
        assert not np.array_equal(pixels(opened), before)
        opened.locator("#examples button").nth(2).click()
        opened.locator("#status", has_text="seed 12, image 2: c").wait_for()
        assert "|rows|" in drawn(opened)
        click(opened, 0.6, 0.3, "9,4")
        assert "(held)" in opened.locator(".readout").first.inner_text()
    opened.close()
    assert problems == []
