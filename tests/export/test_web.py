"""One page for a browser: it answers as foveal predict, from the disk, without a network."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from tests.export.predictors import detector, segmenter

from foveal.errors import FovealError
from foveal.export import export, web
from foveal.inference import open_bundled
from foveal.palette import overlay, palette
from foveal.tasks.classify.shipping import ship
from foveal.tasks.shipping import resize

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


@pytest.fixture(scope="module")
def runtime():
    """ONNX Runtime Web is in the cache, or is brought there by npm."""
    try:
        return web.runtime_files()
    except FovealError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def page(runtime, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "digits"
    done = export(open_bundled(), "web", out=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["foveal.json", "index.html"]
    assert done.file == folder / "index.html"
    if shutil.which("node"):
        assert done.answer_difference < 1e-5
    return done.file


def test_the_page_answers_as_foveal_predict_and_asks_no_network(page, browser, tmp_path):
    opened, asked, problems = browser.new_page(), [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(page.as_uri())
    opened.wait_for_selector("body[data-done]", timeout=60_000)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    opened.evaluate("delete document.body.dataset.done")
    opened.set_input_files("#file", tmp_path / "own.png")
    opened.wait_for_selector("body[data-done]")
    said = json.loads(opened.evaluate("document.body.dataset.done"))["labels"]
    wanted = open_bundled()(tmp_path / "own.png").labels
    assert [label for label, _ in said] == [label for label, _ in wanted]
    assert [score for _, score in said] == pytest.approx([score for _, score in wanted], abs=1e-5)
    rows = opened.locator("#answer tr").all_inner_texts()
    assert len(rows) == 5
    assert rows[0].split()[0] == wanted[0][0]
    (tmp_path / "none.png").write_bytes(b"no image")
    opened.evaluate("delete document.body.dataset.done")
    opened.set_input_files("#file", tmp_path / "none.png")
    opened.wait_for_selector("body[data-done]")
    assert "This image has no answer: " in opened.inner_text("#error")
    opened.close()
    assert problems == []
    assert all(url.startswith(("file:", "blob:", "data:")) for url in asked)


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (segmenter, 0.9),
        (lambda: detector("detr_test_resnet"), 0.01),
        pytest.param(lambda: detector("sparse_rcnn_test_resnet"), 0.01, marks=pytest.mark.slow),
    ],
    ids=["segment", "detr", "sparse_rcnn"],
)
def test_masks_and_boxes_are_those_of_foveal_predict_and_drawn(make, changed, runtime, browser, tmp_path):
    ready = make()
    done = export(ready, "web", out=tmp_path / "out")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    opened, problems = browser.new_page(), []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(done.file.as_uri())
    opened.wait_for_selector("body[data-done]", timeout=60_000)
    opened.evaluate("delete document.body.dataset.done")
    opened.set_input_files("#file", tmp_path / "own.png")
    opened.wait_for_selector("body[data-done]")
    said, wanted = json.loads(opened.evaluate("document.body.dataset.done")), ready(tmp_path / "own.png")
    assert len(wanted.labels) > 1, "an answer without labels would prove nothing"
    assert [label for label, _ in said["labels"]] == [label for label, _ in wanted.labels]
    assert [score for _, score in said["labels"]] == pytest.approx([s for _, s in wanted.labels], abs=1e-3)
    if "boxes_xyxy" in said:
        np.testing.assert_allclose(said["boxes_xyxy"], wanted.boxes_xyxy, atol=0.02)
    shown = opened.evaluate(
        "Array.from(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 53, 70).data)"
    )
    shown = np.reshape(shown, (70, 53, 4))[..., :3]
    assert (shown != pixels).any(-1).mean() > changed
    if hasattr(wanted, "class_map"):
        drawn = overlay(pixels, wanted.class_map.numpy(), palette(wanted.classes))
        assert abs(shown.astype(int) - drawn).max() <= 1, "the picture that foveal predict draws"
    opened.close()
    assert problems == []


def run_node(program, given):
    """What a program prints as JSON, after the page's own functions."""
    script = web.page_script(ship(open_bundled().info)) + program
    done = subprocess.run(
        ["node", "--input-type=module", "-e", f"const given = {json.dumps(given)};\n{script}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "to"), [((37, 53), (16, 22)), ((5, 4), (9, 11)), ((40, 8), (40, 3)), ((1, 1), (3, 2))]
)
def test_images_are_resized_as_in_python_to_the_bit(interpolation, size, to):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    if interpolation == "bilinear":
        wanted = resize(pixels, *to)
    else:
        wanted = np.asarray(Image.fromarray(pixels).resize(to[::-1], Image.Resampling.BICUBIC))
    given = {"pixels": pixels.ravel().tolist(), "size": size, "to": to, "interpolation": interpolation}
    found = run_node(
        """
const image = { pixels: given.pixels, height: given.size[0], width: given.size[1] };
console.log(JSON.stringify(Array.from(resize(image, 3, given.to[1], given.to[0], given.interpolation).pixels)));
""",
        given,
    )
    assert np.array_equal(np.reshape(found, (*to, 3)), wanted)


@needs_node
def test_grey_is_pillows_and_the_centre_is_cut_as_in_python():
    pixels = np.random.default_rng(2).integers(0, 256, (30, 47, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    facts = {"resize_shorter": 20, "crop": 17, "interpolation": "bilinear", "normalised_in_graph": False}
    facts |= {"mean": [0.4], "std": [0.3]}
    given = {"rgba": pixels.ravel().tolist(), "facts": facts}
    found = run_node(
        "const x = prepare(given.rgba, 47, 30, given.facts);"
        "console.log(JSON.stringify([x.type, x.dims, Array.from(x.data)]));",
        given,
    )
    prepare = next(one for one in ship(open_bundled().info).script if one.__name__ == "prepare")
    image = Image.fromarray(pixels).convert("RGB").convert("L")
    assert found[:2] == ["float32", [1, 1, 17, 17]]
    np.testing.assert_allclose(np.reshape(found[2], (1, 1, 17, 17)), prepare(image, facts), atol=1e-6)


def test_what_is_missing_or_wrong_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FovealError, match="to web needs npm, which is not installed"):
        web.runtime_files()
    package = tmp_path / "foveal" / f"onnxruntime-web-{web.VERSION}.tgz"
    package.parent.mkdir()
    package.write_bytes(b"something else")
    with pytest.raises(
        FovealError, match=r"must be onnxruntime-web 1\.22\.0 as npm has it, got another file"
    ):
        web.runtime_files()


def test_a_task_without_a_page_is_refused():
    shipment = ship(open_bundled().info)
    object.__setattr__(shipment, "browser", ())
    with pytest.raises(FovealError, match="other tasks have no page"):
        web.require(shipment, half=False)
    with pytest.raises(FovealError, match="to web must be given without half"):
        export(open_bundled(), "web", half=True)
