"""What is refused before any pixel of a file is decoded."""

import io
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from foveal.data import decode_image
from foveal.data.dataset import file_looks_whole
from foveal.errors import FovealError
from foveal.look.page.refusals import HTTPError
from foveal.look.page.uploads import decode_upload

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def test_an_eps_under_another_name_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's reader of EPS would run `gs` from the path on the file."""
    started = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    with pytest.raises(FovealError, match=r"not an image file .* photo\.jpg|not an image file .*photo\.jpg"):
        decode_image(path)
    assert not started.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in the file system")
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("p.jpg", "zero.jpg"):
        with pytest.raises(FovealError, match=f"must be a regular file, got .*{name}"):
            decode_image(tmp_path / name)
        assert not file_looks_whole(str(tmp_path / name))
    with pytest.raises(IsADirectoryError):
        decode_image(tmp_path)


def progressive(scans: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(file, "jpeg", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    return content[:last] + scan * (scans - content[:last].count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    """Every scan goes over the whole image: a small file of thousands takes minutes."""
    assert decode_image(progressive(20)).shape == (3, 16, 16)
    with pytest.raises(FovealError, match=r"at most 100 scans, got 101 in bomb\.jpg"):
        decode_image(progressive(101), name="bomb.jpg")


def test_a_tga_is_known_by_its_name_alone(tmp_path: Path) -> None:
    """It has no signature, so any bytes may look like one."""
    path = tmp_path / "x.tga"
    Image.new("RGB", (5, 4), (1, 2, 3)).save(path)
    assert decode_image(path)[:, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(FovealError, match=r"not an image file .*x\.jpg"):
        decode_image(path.read_bytes(), name="x.jpg")


@pytest.mark.parametrize("suffix", ["jpe", "jp2", "avif", "dib", "webp", "mpo"])
def test_less_usual_kinds_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (32, 24), (10, 200, 30)).save(path)
    assert decode_image(path).shape == (3, 24, 32)


HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 100


def test_heic_is_read_where_its_plugin_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a call of it that nobody can make on the command line."""

    def register() -> None:
        green = io.BytesIO()
        Image.new("RGB", (32, 24), (10, 200, 30)).save(green, "png")
        reader = lambda *_: PngImageFile(io.BytesIO(green.getvalue()))  # noqa: E731
        monkeypatch.setitem(Image.OPEN, "HEIF", (reader, lambda prefix: prefix[4:12] == b"ftypheic"))

    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert decode_image(tmp_path / "a.heic").shape == (3, 24, 32)
    assert decode_upload(HEIC, "a.heic")[0][:, 0, 0].tolist() == [10, 200, 30]


def test_a_photograph_of_a_phone_is_read_and_turned_once(tmp_path: Path) -> None:
    plugin = pytest.importorskip("pillow_heif")
    plugin.register_heif_opener()
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.new("RGB", (64, 48), (10, 200, 30))
    # as phones do, also in the container's own words
    image.info["exif"] = turned.tobytes()
    image.save(tmp_path / "a.heic")
    assert b"irot" in (tmp_path / "a.heic").read_bytes()
    assert decode_image(tmp_path / "a.heic").shape == (3, 64, 48)


def test_the_page_takes_avif_and_refuses_other_films() -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (10, 200, 30)).save(file, "avif", quality=100)
    assert decode_upload(file.getvalue(), "a.avif")[0].shape == (3, 24, 32)
    with pytest.raises(HTTPError, match=r"a\.mp4 is no JPEG, .* AVIF or HEIC image by its content"):
        decode_upload(HEIC.replace(b"heic", b"isom"), "a.mp4")


def test_a_heic_file_is_named_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(FovealError, match=r"IMG\.HEIC, perhaps HEIC, which needs pillow-heif"):
        decode_image(HEIC, name="IMG.HEIC")
