"""Fuzzers of others on what reads foreign bytes: schemathesis on the page's description, atheris on the readers."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from tests.forked import LONG

import foveal
from foveal.inference import open_bundled
from foveal.look.images import bundled_images
from foveal.look.page import server

pytestmark = pytest.mark.faults
SECONDS = int(os.environ.get("FOVEAL_FUZZ_SECONDS", "600"))

FUZZER = """
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["foveal.data", "foveal.checkpoint.header", "foveal.image_files"]):
    from foveal.checkpoint.header import read_header
    from foveal.data.decode import decode_image
    from foveal.data.masks import decode_mask
from foveal.errors import FovealError

place = Path(tempfile.mkdtemp()) / "x.bin"


def on_file(read):
    def call(data):
        place.write_bytes(data)
        read(place)

    return call


READERS = (decode_image, decode_mask, on_file(read_header))


def one(data):
    if not data:
        return
    start = time.process_time()
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except (FovealError, OSError):
        pass
    seconds = time.process_time() - start
    assert seconds < PROCESSOR_SECONDS, f"{seconds:g} s"


atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""


PROCESSOR_SECONDS = 60


def seeds(folder):
    """Small valid files of each reader, with the byte before them that chooses it."""
    folder.mkdir()
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    for suffix in ("png", "jpg", "gif", "webp", "tiff", "bmp", "ppm"):
        for kind, image in (("rgb", Image.fromarray(pixels)), ("grey", Image.fromarray(pixels[..., 0]))):
            image.save(folder / f"{kind}.{suffix}")
            content = (folder / f"{kind}.{suffix}").read_bytes()
            for reader in (0, 1):
                (folder / f"{kind}-{reader}.{suffix}").write_bytes(bytes([reader]) + content)
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    foveal.save(net, folder / "w.safetensors", classes=["a", "b"])
    content = (folder / "w.safetensors").read_bytes()
    # the header with the first values
    (folder / "header").write_bytes(bytes([2]) + content[: 8 + int.from_bytes(content[:8], "little") + 64])


def test_readers_under_atheris(tmp_path):
    """No byte string ends them with anything but the one-line error, takes a minute of a processor or 2 GB."""
    pytest.importorskip("atheris", reason="needs atheris")
    seeds(tmp_path / "seeds")
    script = tmp_path / "fuzz.py"
    script.write_text(f"PROCESSOR_SECONDS = {PROCESSOR_SECONDS}\n{FUZZER}")
    limits = [
        f"-timeout={LONG:g}",
        "-rss_limit_mb=2048",
        "-max_len=65536",
        "-seed=1",
        f"-max_total_time={SECONDS}",
    ]
    done = subprocess.run(
        [sys.executable, script, tmp_path / "seeds", *limits], cwd=tmp_path, capture_output=True, text=True
    )
    found = [path.name for path in tmp_path.glob("*-*") if path.name.startswith(("crash", "timeout", "oom"))]
    assert done.returncode == 0, done.stderr[-3000:]
    assert found == []
    assert "Done " in done.stderr


def test_the_page_under_schemathesis():
    """Every answer to a generated request is one that the description names, and never an error of the server."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    ready = open_bundled()
    app = server.make_app([ready], bundled_images(ready)[:2])
    schema = schemathesis.openapi.from_dict(app.openapi())
    asked = []
    with server.serving(app) as address:
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 5
        for operation in operations:

            @settings(
                max_examples=max(20, SECONDS * 2),
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def ask(case):
                answer = case.call(base_url=address)
                assert answer.status_code < 500, (case.formatted_path, answer.text[:200])
                asked.append(answer.status_code)

            ask()
    assert len(asked) >= 20 * len(operations)
