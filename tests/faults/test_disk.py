"""A disk that is full, may not be written or vanishes: one line, nothing half-written, and the run goes on later."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import trials
from .test_kills import CLASSIFY, left_over, result

WORDS = [*CLASSIFY, "--workers", "0", "--ema", "0.9", "--insert", "cbam(reduction=4)@residual:3"]


@pytest.fixture
def small_disk(tmp_path):
    """Makes and resizes a small file system in memory, where this process may."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk needs the right to mount one")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mounted], capture_output=True)
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")

    def resize(size: int) -> Path:
        for path in mounted.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        grow(size)
        return mounted

    def grow(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", mounted], check=True)

    yield resize, grow
    subprocess.run(["umount", mounted], check=True)


@trials(3, 30)
def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_when_there_is_room(
    zygote, small_disk, tmp_path, trials
):
    resize, grow = small_disk
    whole = tmp_path / "whole"
    whole.mkdir()
    assert zygote.run(whole, *WORDS, "--out", "run").status == 0
    expected = result(whole / "run")
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    failures = []
    for number in range(trials):
        size = 8 + number * (2 * needed) // trials
        disk = resize(size)
        trial = zygote.run(disk, *WORDS, "--out", "run")
        lines = [line for line in trial.err.splitlines() if line.startswith("train: ")]
        told = trial.status == 2 and len(lines) == 1 and "o space left" in lines[0]
        if "Traceback" in trial.err or not (trial.status == 0 or told):
            failures.append(f"{size} KB: status {trial.status}, {trial.err[-300:]!r}")
        if left_over(disk):
            failures.append(f"{size} KB: {left_over(disk)} stay")
        grow(100_000)
        again = zygote.run(disk, *WORDS, "--out", "run", "--resume", "auto")
        if again.status != 0 or result(disk / "run") != expected:
            failures.append(f"{size} KB: does not go on, status {again.status}, {again.err[-300:]!r}")
    assert not failures


PLACES = ("a file", "below a file", "a missing folder's name of 300 letters", "a full folder")


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_hold_a_run_is_said_in_one_line(zygote, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    out = dict(zip(PLACES, ("file", "file/run", "x" * 300, "full"), strict=True))[place]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    trial = zygote.run(tmp_path, *WORDS, "--out", out)
    assert trial.status == 2
    assert len(trial.err.splitlines()) == 1
    assert trial.err.startswith("train: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_a_run_folder_that_vanishes_is_said_in_one_line(zygote, tmp_path):
    code = f"""
import shutil, sys
from foveal.cli import main
from foveal.train import loop
step = loop.supervised_step
def vanishing(training, *rest):
    if training.epoch == 1 and training.batch == 3:
        shutil.rmtree("run")
    return step(training, *rest)
loop.supervised_step = vanishing
sys.exit(main({[*WORDS, "--out", "run"]!r}))
"""
    trial = zygote.run(tmp_path, code=code)
    assert trial.status == 2
    lines = [line for line in trial.err.splitlines() if line.startswith("train: ")]
    assert len(lines) == 1
    assert "No such file or directory" in lines[0]
