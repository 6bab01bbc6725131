"""A file is there whole or as it was before, whatever happens while it is written."""

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foveal.bench import attention, bench_ops, gate
from foveal.errors import FovealError
from foveal.files import (
    atomic_write,
    find_images,
    fingerprint,
    locked,
    new_folder,
    new_numbered_folder,
    open_regular,
    survey_images,
    write_bytes,
    write_json,
    write_text,
)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "metrics.csv"
    write_text(path, "old")

    def fail(part: Path):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITERS = [(write_text, "new" * 1000), (write_bytes, b"new" * 1000), (write_json, ["new"] * 1000)]


@pytest.mark.parametrize(("write", "content"), WRITERS)
def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path, full_disk, write, content):
    path = tmp_path / "metrics.csv"
    write_text(path, "old")
    full_disk(path.name)
    with pytest.raises(OSError, match="No space left") as caught:
        write(path, content)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_write_the_same_file_do_not_share_its_part(tmp_path):
    path = tmp_path / "net.safetensors"

    def write(part: Path):
        part.write_text("ours")
        write_text(path, "theirs")
        assert (path.read_text(), part.read_text()) == ("theirs", "ours")

    atomic_write(path, write)
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_the_figures_of_bench_are_written_whole_or_not_at_all(tmp_path, full_disk, monkeypatch):
    for module, name in ((attention, "CASES"), (attention, "GROWTHS"), (gate, "CASES")):
        monkeypatch.setattr(module, name, [])
    for module in (attention, gate):
        monkeypatch.setattr(module, "WHOLES", {})
    path = tmp_path / "ops.json"
    assert bench_ops(out=str(path))
    old = path.read_text()
    full_disk(path.name)
    with pytest.raises(OSError, match="No space left"):
        bench_ops(out=str(path))
    assert path.read_text() == old


def test_a_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    outside, path = tmp_path / "outside", tmp_path / "in" / "net.safetensors"
    path.parent.mkdir()
    outside.write_text("theirs")
    monkeypatch.setattr("foveal.files.temporary_path", lambda path: path.with_name("guessed.part"))
    path.with_name("guessed.part").symlink_to(outside)
    with pytest.raises(FileExistsError):
        write_text(path, "ours")
    assert outside.read_text() == "theirs"


def test_folders_asked_for_together_are_never_shared(tmp_path):
    """Many threads behind a barrier: making the folder decides, so no two get the same one."""
    barrier = threading.Barrier(16)

    def one(_):
        barrier.wait()
        return new_numbered_folder(tmp_path, "net")

    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(one, range(16)))
    assert len(set(folders)) == 16
    assert {f.name for f in folders} == {"net", *(f"net-{n}" for n in range(2, 17))}


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("theirs")
    with pytest.raises(FovealError, match="out must be a new or empty folder"):
        new_folder(tmp_path / "a")
    with pytest.raises(FovealError, match="where a file stands in the way"):
        new_folder(tmp_path / "a" / "b" / "c")
    assert new_folder(tmp_path / "c" / "d").is_dir()


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


def test_a_folder_is_locked_until_the_process_ends(tmp_path):
    """A second process is refused with the number of the first; once that one is killed, the folder is free."""
    code = (
        "import sys, time; from pathlib import Path; from foveal.files import locked\n"
        "with locked(Path(sys.argv[1]), 'a comparison'):\n    print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        refused = pytest.raises(FovealError, match=f"a comparison already works in .* process {process.pid}")
        with refused, locked(tmp_path, "a comparison"):
            pass
        process.kill()
    with locked(tmp_path, "a comparison"):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


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
