"""Images are found once, whatever links there are; what changed is noticed."""

import os
import sys

import pytest

from foveal.errors import FovealError
from foveal.image_files import find_images, fingerprint, open_regular, survey_images


def test_images_are_found_once_whatever_links_there_are(tmp_path):
    cats = tmp_path / "cats"
    (cats / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.PNG", "c.jfif", "notes.txt", ".hidden.jpg"):
        (cats / name).write_bytes(b"")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir" / "a.jpg").write_bytes(b"")
    (cats / "again").symlink_to(cats)
    (cats / "copy.jpg").symlink_to(cats / "a.jpg")
    (tmp_path / "latest").symlink_to(cats / "deep")
    found = [os.path.relpath(path, tmp_path) for path in find_images(tmp_path)]
    assert found == ["cats/a.jpg", "cats/c.jfif", "cats/deep/b.PNG"]


def test_the_fingerprint_follows_the_files(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = fingerprint([path])
    assert fingerprint([path]) == before
    os.utime(path, ns=(1, 1))
    assert fingerprint([path]) != before
    path.unlink()
    assert fingerprint([path]) != before


def test_what_looks_like_an_image_and_is_none_is_told(tmp_path):
    for name, content in (
        ("a.png", b""), ("b.heic", b""), ("c.jxl", b""), ("d.cr2", b"II*\0"), ("notes.txt", b"text"),
        ("e", b"\xff\xd8\xff"), ("f.dat", b"RIFF\0\0\0\0WEBPVP8 "),
        ("g.bin", b"\0\0\0\x18ftypheic"), (".h", b"\xff\xd8\xff"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    images, left_out = survey_images(tmp_path)
    assert images == ["a.png", "b.heic"]
    assert left_out == {
        "c.jxl": "images of this kind are not read",
        "d.cr2": "images of this kind are not read",
        "e": "a JPEG by its content, not by its suffix",
        "f.dat": "a WebP by its content, not by its suffix",
        "g.bin": "a HEIF or AVIF image by its content, not by its suffix",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in the file system")
def test_pipes_devices_and_links_to_nowhere_are_told_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    assert survey_images(tmp_path) == (
        [],
        {
            "gone.png": "a link that leads nowhere",
            "pipe.jpg": "no regular file",
            "zero.png": "no regular file",
        },
    )
    with pytest.raises(FovealError, match="must be a regular file"):
        open_regular(tmp_path / "pipe")


def test_what_is_really_there_keeps_its_own_name(tmp_path):
    """A link that comes first in the order of names does not take the images away from their folder."""
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "1.png").write_bytes(b"")
    (tmp_path / "a").symlink_to("z")
    assert survey_images(tmp_path) == (["z/1.png"], {"a": "a link to what is taken already"})
    outside = tmp_path.with_name(tmp_path.name + "-store")
    outside.mkdir()
    (outside / "2.png").write_bytes(b"")
    (tmp_path / "b").symlink_to(outside)
    assert survey_images(tmp_path).images == ["b/2.png", "z/1.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    assert survey_images(tmp_path).left_out == {"closed": "the folder cannot be read: Permission denied"}


def test_a_fingerprint_below_a_root_stays_when_the_root_moves(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "1.png").write_bytes(b"1")
    before = fingerprint(["b/1.png"], tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "c")
    assert fingerprint(["b/1.png"], tmp_path / "c") == before
    assert fingerprint(["b/1.png"], tmp_path / "a") != before
