"""A file is there whole or as it was before, whatever happens while it is written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from foveal.bench import attention, bench_ops, gate
from foveal.files import atomic_write, utf8_path, write_bytes, write_json, write_text


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


def test_a_file_is_on_the_disk_before_it_is_in_its_place_and_its_folder_after(tmp_path, monkeypatch):
    done, replace = [], os.replace

    def fsync(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("folder" if folder else os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    write_text(tmp_path / "metrics.csv", "12345")
    assert done == [5, "replace", "folder"]


def test_a_link_in_the_way_is_not_followed(tmp_path, monkeypatch):
    outside, path = tmp_path / "outside", tmp_path / "in" / "net.safetensors"
    path.parent.mkdir()
    outside.write_text("theirs")
    monkeypatch.setattr("foveal.files.temporary_path", lambda path: path.with_name("guessed.part"))
    path.with_name("guessed.part").symlink_to(outside)
    with pytest.raises(FileExistsError):
        write_text(path, "ours")
    assert outside.read_text() == "theirs"


def test_a_file_whose_name_is_no_utf8_has_one_that_is(latin_folder):
    path = latin_folder / "a.bin"
    write_bytes(path, b"kept")
    with utf8_path(path) as name:
        assert Path(name.encode().decode()).read_bytes() == b"kept"
    with pytest.raises(FileNotFoundError), utf8_path(latin_folder / "nothing"):
        pass
    with utf8_path(Path("net.safetensors")) as name:
        assert name == "net.safetensors"
