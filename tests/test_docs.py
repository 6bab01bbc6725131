"""The Python of the docs runs as written, given what a reader has at that point."""

import re
import shlex
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.tasks import TASKS

DOCS = Path(__file__).parents[1] / "docs"
# a Chinese page has the code of the English one that it follows, which test_site.py holds: it need not run twice
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if "```python" in (text := path.read_text(encoding="utf-8")) and not text.startswith("<!-- follows docs/")
)
# these train for minutes, or need data that a reader has and a test has not
NOT_RUN = {"comparing.md": "compares on the reader's own photographs, with processes of its own"}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def write_masks(folder: Path) -> None:
    """Two parts of two images with index masks, one value of which is ignored."""
    (folder).mkdir()
    (folder / "classes.txt").write_text("sky\nroad\n")
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        for name in ("a", "b"):
            Image.new("RGB", (16, 12), "grey").save(folder / part / "images" / f"{name}.png")
            mask = np.zeros((12, 16), dtype=np.uint8)
            mask[6:], mask[:, 15] = 1, 11
            Image.fromarray(mask).save(folder / part / "labels" / f"{name}.png")


@pytest.fixture
def given(tmp_path, monkeypatch, photo):
    """A network with a block of each kind, images, and files of the names that the pages use."""
    import torch

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (tmp_path / "photo.jpg").write_bytes(photo.read_bytes())
    write_masks(tmp_path / "camvid")
    (tmp_path / "mine.py").write_text(blocks(DOCS / "own-blocks.md")[0])
    published = foveal.create_model("cbam_resnet18", num_classes=5, variant="official")
    torch.save(foveal.published.export(published, "cbam-official"), "in.pth")
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    foveal.insert(net, "cbam", stages=(1,), reduction=4)
    foveal.insert(net, "nonlocal", at="block", stages=(2,))
    foveal.insert(net, "dual", at="block", stages=(3,))
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    query, key, value = torch.randn(3, 2, 64, 16).unbind(0)
    return {
        "foveal": foveal,
        "torch": torch,
        "net": net.eval(),
        "images": torch.randn(2, 3, 32, 32),
        "x": x,
        "y": 3,
        "spatial_gate": torch.rand(2, 1, 8, 8),
        "block": foveal.nn.CBAM(16, reduction=4),
        "query": query,
        "key": key,
        "value": value,
    }


@contextmanager
def undone(dictionary):
    """What the page puts into it is taken out again."""
    before = dict(dictionary)
    try:
        yield
    finally:
        dictionary.clear()
        dictionary.update(before)


# Lightning's own use of a class that torch 2.11 deprecates, and its advice
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::UserWarning:pytorch_lightning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_examples_run(page, given):
    name = page.relative_to(DOCS).as_posix()
    if NOT_RUN.get(name):
        pytest.skip(NOT_RUN[name])
    with undone(TASKS):
        for code in blocks(page):
            exec(compile(code, name, "exec"), given)


LISTINGS = (
    "Self_Attn(in_dim, activation)",
    "SELayer(channel, reduction=16)",
    "conv3x3(in_planes, out_planes, stride=1)",
    "ChannelAttention(in_planes, ratio=16)",
    "SpatialAttention(kernel_size=7)",
    "BasicBlock(inplanes, planes, stride=1, downsample=None)",
    "Bottleneck(inplanes, planes, stride=1, downsample=None)",
)
"""All definitions of the Chinese article, in its order."""


def test_every_listing_of_the_article_has_a_line_that_runs():
    import torch

    tables = re.findall(
        r"^\|.*", (DOCS / "zh" / "from-the-article.md").read_text("utf-8"), flags=re.MULTILINE
    )
    assert [one for line in tables for one in LISTINGS if f"`{one}`" in line] == list(LISTINGS)
    lines = [one for line in tables for one in re.findall(r"`((?:foveal|torch)\.[^`]+\))`", line)]
    assert len(lines) >= len(LISTINGS) + 8
    names = dict.fromkeys(("in_dim", "channel", "in_planes", "out_planes"), 64)
    net = foveal.create_model("cifar_resnet8")
    for line in lines:
        with torch.device("meta" if "create_model" in line else "cpu"):
            made = eval(line, {"foveal": foveal, "torch": torch, "net": net, **names})
        assert isinstance(made, torch.nn.Module), line


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command line of the docs and the README."""
    found = []
    for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ *foveal ([a-z]+ .*|[a-z]+)$", text, flags=re.MULTILINE):
            found.append((page.stem, shlex.split(line, comments=True)))
    return found


# pages whose weights are of another task than to classify
TASK_OF = {"segmentation": "segment", "detection": "detect", "generating": "generate", "clips": "clips"}


def test_every_command_shown_has_these_options(monkeypatch):
    """Names and types of options; what the files hold is another matter."""
    from foveal.cli import COMMANDS, options

    shown = commands()
    assert len(shown) > 70
    for page, (name, *words) in shown:
        monkeypatch.setattr(options, "_task_of", lambda weights, page=page: TASK_OF.get(page, "classify"))
        options.parse(name, COMMANDS[name], words)
