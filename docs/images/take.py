"""Take the screenshots of docs/looking.md: each step of looking, done in Chromium on a running page.

    python docs/images/take.py --other OTHER.safetensors --danet DANET.safetensors

``OTHER`` is a second classifier of the bundled scenes, ``DANET`` a network that segments them; docs/looking.md has the
commands that trained those shown. Needs playwright and Chromium at /usr/bin/chromium.
"""

import argparse
import io
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from foveal.inference import open_bundled, predictor
from foveal.look.images import bundled_images
from foveal.look.page.server import make_app, serving

HERE = Path(__file__).parent
GAP = 24
DESK, PHONE = {"width": 980, "height": 900}, {"width": 390, "height": 844}


def served(weights: list[str | None]) -> AbstractContextManager[str]:
    networks = [predictor(path, "cpu") if path else open_bundled() for path in weights]
    return serving(make_app(networks, bundled_images(networks[0])))


def opened(browser: Browser, address: str, viewport: dict, example: str | None = None) -> Page:
    page = browser.new_context(viewport=viewport).new_page()
    page.goto(address)
    page.wait_for_selector(".panel[data-drawn]")
    if example:
        page.click(f"#examples button[title^='{example}']")
        page.wait_for_function(f"() => document.querySelector('#status').textContent.startsWith('{example}')")
    return page


def show(page: Page, site: str, view: str | None = None, panel: int = 0) -> None:
    choices = page.locator(".panel").nth(panel)
    value = choices.locator(f"select.site option[value*='{site}']").first.get_attribute("value")
    choices.locator("select.site").select_option(value)
    if view:
        choices.locator("select.view").select_option(view)
    waited = [panel, f"|{value}|{view or ''}"]
    page.wait_for_function(
        "([n, s]) => document.querySelectorAll('.panel')[n].dataset.drawn?.includes(s)", arg=waited
    )


def point(page: Page, y: float, x: float, panel: int = 0) -> None:
    """Hold the point at this share of the picture's height and width."""
    page.keyboard.press("Escape")
    canvas = page.locator("canvas.map").nth(panel)
    box = canvas.bounding_box()
    canvas.click(position={"x": x * box["width"], "y": y * box["height"]})
    canvas.blur()
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)


def shot(what: Page | Locator) -> Image.Image:
    options = {"full_page": True} if isinstance(what, Page) else {}
    return Image.open(io.BytesIO(what.screenshot(**options))).convert("RGB")


def save(name: str, *pictures: Image.Image) -> None:
    """Side by side."""
    width = sum(picture.width + GAP for picture in pictures) - GAP
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    path = HERE / f"look-{name}.png"
    whole.save(path, optimize=True)
    print(f"{path.name}: {whole.width} x {whole.height}, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", required=True)
    parser.add_argument("--danet", required=True)
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--hide-scrollbars"]
        )
        with served([None]) as address:
            one_network(browser, address)
        with served([None, arguments.other]) as address:
            page = opened(browser, address, DESK, "scene 4")
            page.check("#two")
            point(page, 0.37, 0.72)
            save("side-by-side", shot(page))
        with served([arguments.danet]) as address:
            segmentation(browser, address)
        browser.close()


def one_network(browser: Browser, address: str) -> None:
    page = opened(browser, address, DESK, "scene 1")
    point(page, 0.2, 0.56)
    save("page", shot(page))
    figure = page.locator(".panel figure").first
    first = shot(figure)
    point(page, 0.86, 0.2)
    save("two-points", first, shot(figure))
    show(page, "layer2.0.bn2.cbam", "mask")
    save("gates", shot(page))
    page.click("#examples button[title='china.jpg']")
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('china.jpg')")
    show(page, "nonlocal")
    point(page, 0.3, 0.3)
    save("photo", shot(page))

    page.click("#examples button[title^='scene 1']")
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('scene 1')")
    point(page, 0.2, 0.56)
    with tempfile.TemporaryDirectory() as folder:
        with page.expect_download() as download:
            page.click("#export")
        download.value.save_as(f"{folder}/attention.html")
        alone = browser.new_context(viewport=DESK, offline=True).new_page()
        alone.goto(f"file://{folder}/attention.html")
        alone.wait_for_selector(".panel[data-drawn]")
        point(alone, 0.2, 0.56)
        save("export", shot(alone))

    phone = opened(browser, address, PHONE, "scene 1")
    point(phone, 0.2, 0.56)
    save("page-phone", shot(phone))


def segmentation(browser: Browser, address: str) -> None:
    page = opened(browser, address, DESK, "scene 2")
    page.check("#two")
    show(page, "position", "segmentation", panel=0)
    show(page, "position", "rows", panel=1)
    point(page, 0.72, 0.25, panel=1)
    save("danet", shot(page))
    show(page, "channel", "channels", panel=1)
    save("danet-channels", shot(page.locator(".panel figure").nth(1)))


if __name__ == "__main__":
    main()
