"""Damaged and hostile images and masks: each is read or named; none ends a reader, holds it up or fills the memory."""

import io
import json
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal.look

from .conftest import trials

READER = """
import json, resource, sys, time
from foveal.data import decode_image
from foveal.data.masks import decode_mask
from foveal.errors import FovealError

for name in open("files.txt").read().splitlines():
    for reader in (decode_image, decode_mask):
        print(json.dumps(["begin", name, reader.__name__]), flush=True)
        start = time.process_time()
        try:
            reader(name)
            said = None
        except (FovealError, OSError) as error:
            said = str(error) or type(error).__name__
        except BaseException as error:
            said = f"CRASH {type(error).__name__}: {error}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(["end", name, reader.__name__, said, time.process_time() - start, peak]), flush=True)
"""
SECONDS = 10.0
KILOBYTES = (
    1_000_000 + 900_000
)  # above the process itself: one image at the limit of size, as float32 and as bytes


def valid_images():
    """Small files of every common kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    colour, palette = Image.fromarray(pixels), Image.fromarray(pixels[..., 0] % 8)
    found = {}
    for suffix, image, options in (
        ("jpg", colour, {"quality": 80}),
        ("jpg", colour, {"progressive": True}),
        ("png", colour, {}),
        ("png", palette, {}),
        ("png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 250), {}),
        ("webp", colour, {}),
        ("gif", palette.convert("P"), {}),
        ("bmp", colour, {}),
        ("tif", colour, {"compression": "tiff_lzw"}),
        ("ppm", colour, {}),
    ):
        file = io.BytesIO()
        image.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **options)
        found[f"{len(found)}.{suffix}"] = file.getvalue()
    return found


def damaged(data, draw):
    """Cut off, with bytes changed, inserted, repeated, or joined with another beginning."""
    data = bytearray(data)
    match draw.randrange(6):
        case 0:
            del data[draw.randrange(len(data)) :]
        case 1:
            for _ in range(draw.choice((1, 4, 40))):
                data[draw.randrange(len(data))] = draw.randrange(256)
        case 2:
            # the header, where sizes and kinds are
            for _ in range(draw.choice((1, 3))):
                data[draw.randrange(min(40, len(data)))] = draw.choice((0, 1, 127, 128, 255))
        case 3:
            place = draw.randrange(len(data))
            data[place:place] = draw.randbytes(draw.choice((1, 100, 5000)))
        case 4:
            data += bytes(data)
        case 5:
            start = draw.randrange(len(data))
            data = bytearray(draw.randbytes(8)) + data[start:]
    return bytes(data)


def png_claiming(width, height):
    """A PNG file of a few bytes that says it is very large."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def hostile_files(folder):
    """Special files, bombs, links and files that start other programs."""
    names = []

    def add(name, data):
        (folder / name).write_bytes(data)
        names.append(name)

    largest = 2**31 - 1
    sizes = ((100_000, 100_000), (largest, largest), (1, largest), (0, 0), (20_000, 20_000))
    for number, size in enumerate(sizes):
        add(f"bomb{number}.png", png_claiming(*size))
    add("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile\n")
    add("empty.png", b"")
    add("text.png", b"hello")
    add("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>")
    os.mkfifo(folder / "fifo.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "random.png").symlink_to("/dev/urandom")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
    return [*names, "fifo.png", "zero.png", "random.png", "loop.png", "folder.png"]


@trials(60, 500)
def test_every_image_is_read_or_named(zygote, tmp_path, trials):
    draw = random.Random(500)
    valid = valid_images()
    names = []
    for number in range(trials):
        of = draw.choice(list(valid))
        name = f"damaged{number}{os.path.splitext(of)[1]}"
        (tmp_path / name).write_bytes(damaged(valid[of], draw))
        names.append(name)
    names += hostile_files(tmp_path)
    (tmp_path / "files.txt").write_text("\n".join(names))
    trial = zygote.run(tmp_path, code=READER)
    told = [json.loads(line) for line in trial.out.splitlines()]
    ends = [row[1:] for row in told if row[0] == "end"]
    assert len(ends) == 2 * len(names), f"ended in {told[-1]}: {trial.err[-300:]}"
    start = min(peak for *_, peak in ends)
    failures = [row for row in ends if row[2] and (row[2].startswith("CRASH") or row[0] not in row[2])]
    failures += [row for row in ends if row[3] > SECONDS or row[4] - start > KILOBYTES]
    assert not failures
    refused = {row[0] for row in ends if row[2]}
    assert len(refused) > len(names) / 3, "most of these files are broken"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("command", ["predict", "look"])
def test_a_folder_of_hostile_files_is_worked_through(zygote, tmp_path, command):
    folder = tmp_path / "images"
    folder.mkdir()
    hostile_files(folder)
    (folder / "good.png").write_bytes(valid_images()["2.png"])
    (folder / "caf\udce9 \x1b[2J.png").write_bytes(valid_images()["2.png"])
    bundled = Path(foveal.look.__file__).with_name("default.safetensors")
    words = [command, "images", "--weights", str(bundled)]
    words += ["--out", "labels.csv"] if command == "predict" else []
    trial = zygote.run(tmp_path, *words, "--device", "cpu")
    assert trial.status == 0, trial.err
    assert "Traceback" not in trial.err
    assert "\x1b[2J" not in trial.out + trial.err
    if command == "predict":
        assert "good.png" in (tmp_path / "labels.csv").read_bytes().decode(errors="surrogateescape")
        assert "empty.png" in trial.err
