"""A file is there whole or as it was before, whatever happens while it is written."""

import errno
import os
from pathlib import Path

import pytest

from foveal.bench import attention, bench_ops, gate
from foveal.writing import part_of, write_bytes, write_json, write_text, write_whole


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "metrics.csv"
    write_text(path, "old")

    def fail(part: Path):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITERS = [(write_text, "new" * 1000), (write_bytes, b"new" * 1000), (write_json, ["new"] * 1000)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
@pytest.mark.parametrize(("write", "content"), WRITERS)
def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path, write, content):
    path = tmp_path / "metrics.csv"
    write_text(path, "old")
    part_of(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write(path, content)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_write_the_same_file_do_not_share_its_part(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"

    def write(part: Path):
        part.write_text("ours")
        monkeypatch.setattr(os, "getpid", lambda: 0)
        write_text(path, "theirs")
        assert (path.read_text(), part.read_text()) == ("theirs", "ours")

    write_whole(path, write)
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_the_figures_of_bench_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    for module, name in ((attention, "CASES"), (attention, "GROWTHS"), (gate, "CASES")):
        monkeypatch.setattr(module, name, [])
    for module in (attention, gate):
        monkeypatch.setattr(module, "WHOLES", {})
    path = tmp_path / "ops.json"
    assert bench_ops(out=str(path))
    old = path.read_text()
    part_of(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        bench_ops(out=str(path))
    assert path.read_text() == old
