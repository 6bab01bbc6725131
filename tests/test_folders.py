"""Folders for output are never shared, and never hold something of somebody else's."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from foveal.errors import FovealError
from foveal.folders import locked, new_file, new_folder, new_numbered_folder


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


def test_a_folder_is_locked_until_the_process_ends(tmp_path):
    """A second process is refused with the number of the first; once that one is killed, the folder is free."""
    code = (
        "import sys, time; from pathlib import Path; from foveal.folders import locked\n"
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


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path):
    from foveal.files import temporary_path

    (tmp_path / "weights").mkdir()
    left = [
        temporary_path(tmp_path / "curves.png"),
        temporary_path(tmp_path / "weights" / "best.safetensors"),
    ]
    mine = [tmp_path / ".notes.part", tmp_path / "film.0123456789ab.part", tmp_path / "metrics.csv"]
    for path in (*left, *mine):
        path.write_bytes(b"x")
    with locked(tmp_path, "a test"):
        assert not any(path.exists() for path in left)
    assert all(path.exists() for path in mine)


def test_a_file_to_come_has_a_folder_and_is_never_written_over(tmp_path):
    place = new_file(tmp_path / "new" / "a.json")
    place.write_text("")
    with pytest.raises(FovealError, match="results must not exist yet"):
        new_file(place, "results")
    with pytest.raises(FovealError, match="a file stands in the way"):
        new_file(place / "b.json")
