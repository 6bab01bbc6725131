"""The page of an evaluation: one file that shows what is wrong, and in which nothing from the world is read as HTML."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

import foveal
from foveal.cli import main
from foveal.evaluate import evaluate
from foveal.evaluation_page import write_page
from foveal.inference import predictor
from foveal.model_info import ModelInfo

HOSTILE = "<script>alert(1)</script>\u202e\u2067"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Twelve red and twelve green images, whose names and classes are hostile, and an untrained network."""
    folder = tmp_path_factory.mktemp("page")
    import torch

    for name, colour in ((HOSTILE.replace("/", "∕"), (200, 30, 20)), ("green", (20, 200, 30))):
        (folder / "data" / "val" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (30, 26), colour).save(folder / "data" / "val" / name / f"<b>{i}.png")
    torch.manual_seed(0)
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    classes = [HOSTILE.replace("/", "∕"), "green"]
    foveal.save(net, folder / "net.safetensors", **ModelInfo("classify", classes, 24).to_dict())
    ready = predictor(folder / "net.safetensors", "cpu")
    found = evaluate(ready, str(folder / "data"), device="cpu")
    write_page(folder / "page.html", found, ready)
    return (folder / "page.html").read_text(), found, folder


def test_names_of_classes_and_files_are_shown_and_never_read_as_html(page):
    text, found, _ = page
    tags = Tags()
    tags.feed(text)
    assert not {"script", "b", "iframe"} & {tag for tag, _ in tags.seen}
    assert "".join(tags.text).count("<script>") >= 2
    # shown, and turning nothing around
    assert "".join(tags.text).count("\\u202e\\u2067") >= 2
    assert not {"\u202e", "\u2067"} & set(text)
    assert found.figures["accuracy"] < 1, (
        "the untrained network is wrong somewhere, or the page shows nothing"
    )


def test_the_page_asks_no_network_and_holds_its_pictures(page):
    text, found, _ = page
    tags = Tags()
    tags.feed(text)
    sources = [
        attrs.get("src") or attrs.get("href") for tag, attrs in tags.seen if tag in ("img", "link", "a")
    ]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    wrong = sum(one["images"] for one in found.details["confusions"])
    assert len(sources) == min(wrong, 24)
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert picture.size == (24, 24)


def test_the_matrix_has_every_image_once(page):
    text, found, _ = page
    matrix = re.search(r'<table class="matrix">(.*?)</table>', text)[1]
    cells = [int(cell) for cell in re.findall(r"<td[^>]*>(\d+)</td>", matrix)]
    assert sum(cells) == found.images == 24


def test_eval_writes_page_and_figures_and_never_over_a_file(page, capsys):
    _, found, folder = page
    words = [
        "eval",
        "--weights",
        str(folder / "net.safetensors"),
        "--data",
        str(folder / "data"),
        "--device",
        "cpu",
    ]
    out, html = folder / "figures.json", folder / "again.html"
    assert main([*words, "--out", str(out), "--html", str(html), "--flip"]) == 0
    printed = capsys.readouterr().out
    assert "mirror image" in printed
    assert str(html) in printed
    kept = json.loads(out.read_text())
    assert kept["details"]["macro"].keys() == found.details["macro"].keys()
    assert kept["inference"]["flip"] is True
    assert main([*words, "--html", str(html)]) == 2
    assert "html must not exist yet" in capsys.readouterr().err
