"""One page for a browser: the network, ONNX Runtime Web and an example in a single file that asks no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from foveal.errors import FovealError
from foveal.export import onnx
from foveal.export.onnx import load, values
from foveal.files import write_text
from foveal.palette import OVERLAY_OPACITY, palette
from foveal.tasks.shipping import Shipment, in_bytes
from foveal.terminal import escape

__all__ = ["FILE", "NEEDS", "load", "run_page", "values", "write", "write_page"]

FILE = "model.onnx"
PAGE = "index.html"
NEEDS = onnx.NEEDS
VERSION = "1.22.0"
SHA512 = "Ud/+EBo6mhuaQWt/OjaOk0iNWjXqJoeeMFr6xQEERZdIZH2OWpGzuujz7lfuOBjUa6TEE/sc4nb7Da5dNL34fg=="
"""Of the npm package onnxruntime-web of that version, in base64."""
RUNTIME = {
    "runtime": "ort.wasm.min.js",
    "loader": "ort-wasm-simd-threaded.mjs",
    "wasm": "ort-wasm-simd-threaded.wasm",
}
EXAMPLE_SIDE = 512
write = onnx.write

NODE = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const ort = createRequire(import.meta.url)("./runtime.cjs");
ort.env.wasm.wasmBinary = readFileSync(new URL("runtime.wasm", import.meta.url)).buffer;
ort.env.wasm.wasmPaths = { mjs: new URL("loader.mjs", import.meta.url).href };
ort.env.wasm.numThreads = 1;
const given = JSON.parse(readFileSync(0, "utf8")), about = given.about;
const session = await ort.InferenceSession.create(readFileSync(new URL("model.onnx", import.meta.url)));
const rgba = Uint8ClampedArray.from(Buffer.from(given.rgba, "base64"));
const input = prepare(rgba, given.width, given.height, about.preprocessing);
const outputs = await session.run({ [about.input.name]: new ort.Tensor(input.type, input.data, input.dims) });
const found = answer(about.outputs.map((name) => outputs[name]), about, given.width, given.height);
console.log(JSON.stringify({ labels: found.labels, boxes_xyxy: found.boxes_xyxy }));
"""


def require(shipment: Shipment, *, half: bool) -> None:
    """Refuse at once what would only be found at the end.

    Raises:
        FovealError: a task without a page, float16, or no runtime.
    """
    page_script(shipment)
    if half:
        raise FovealError("to web must be given without half: browsers compute in float32")
    runtime_files()


def page_script(shipment: Shipment) -> str:
    """The JavaScript that prepares images and answers.

    Raises:
        FovealError: the task has none.
    """
    if not shipment.browser:
        raise FovealError(
            "to web must be for weights that classify, segment or detect; other tasks have no page"
        )
    return "\n".join(
        resources.files("foveal.tasks").joinpath(name).read_text(encoding="utf-8")
        for name in shipment.browser
    )


def runtime_files() -> dict[str, bytes]:
    """ONNX Runtime Web from the npm package, kept in the user's cache, checked by its hash.

    Raises:
        FovealError: there is no npm, it cannot get the package, or the package is another one.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveal"
    package = cache / f"onnxruntime-web-{VERSION}.tgz"
    if not package.exists():
        _download(package)
    content = package.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise FovealError(
            f"{package} must be onnxruntime-web {VERSION} as npm has it, got another file; delete it"
        )
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = {key: archive.extractfile(f"package/dist/{name}") for key, name in RUNTIME.items()}
        return {key: file.read() for key, file in found.items() if file is not None}


def _download(package: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FovealError(
            f"to web needs npm, which is not installed, or the npm package onnxruntime-web {VERSION} at {package}"
        )
    package.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        made = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(made) != 1:
            reason = (done.stderr.strip().splitlines() or ["no package"])[-1]
            raise FovealError(f"npm must be able to get onnxruntime-web {VERSION}, got: {reason}")
        made[0].replace(package)


def write_page(folder: Path, about: Mapping[str, Any], shipment: Shipment, title: str, example: Path) -> None:
    """Put ``model.onnx`` of a folder, the runtime and an example into ``index.html``.

    Args:
        about: what ``foveal.json`` holds.
        example: an image that the page shows first, made smaller.
    """
    template = resources.files("foveal.export").joinpath("web.html").read_text(encoding="utf-8")
    parts = {key: base64.b64encode(value).decode() for key, value in runtime_files().items()}
    parts["model"] = base64.b64encode((folder / FILE).read_bytes()).decode()
    parts["example"] = base64.b64encode(example_png(example)).decode()
    # nothing in it may end the element it stands in
    colours = palette(about["classes"]).tolist()
    told = {**about, "colours": colours, "overlay_opacity": OVERLAY_OPACITY}
    parts["about"] = json.dumps(told).replace("<", "\\u003c")
    page = Template(template).substitute(parts, title=escape(title), script=page_script(shipment))
    write_text(folder / PAGE, page)


def example_png(path: Path) -> bytes:
    """An image, upright and at most 512 pixels wide and high."""
    image = in_bytes(Image.open(path), "RGB")
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def run_page(folder: Path, about: Mapping[str, Any], shipment: Shipment, png: bytes) -> dict[str, Any] | None:
    """What the page's script answers for an image, run by Node.js; None where that is not installed.

    Raises:
        FovealError: it fails.
    """
    node = shutil.which("node")
    if node is None:
        return None
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    rgba = base64.b64encode(image.tobytes()).decode()
    given = {"about": about, "rgba": rgba, "width": image.width, "height": image.height}
    files = runtime_files()
    with tempfile.TemporaryDirectory() as elsewhere:
        place = Path(elsewhere)
        (place / "runtime.cjs").write_bytes(files["runtime"])
        (place / "loader.mjs").write_bytes(files["loader"])
        (place / "runtime.wasm").write_bytes(files["wasm"])
        shutil.copy(folder / FILE, place / FILE)
        (place / "page.mjs").write_text(page_script(shipment) + NODE, encoding="utf-8")
        done = subprocess.run(
            [node, str(place / "page.mjs")], input=json.dumps(given), capture_output=True, text=True
        )
    if done.returncode:
        # Node.js prints the line of the source, which may be long, then the error
        errors = [line for line in done.stderr.splitlines() if re.match(r"\w*(Error|Exception)\b", line)]
        reason = (errors or ["no message"])[0][:300]
        raise FovealError(f"the page's script must run in Node.js, got: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
