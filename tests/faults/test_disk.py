"""A disk that is full, may not be written or vanishes: one line, nothing half-written, and the run goes on later."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from .conftest import trials
from .test_kills import CLASSIFY, COMPARE, left_over, result

WORDS = [*CLASSIFY, "--workers", "0", "--ema", "0.9", "--insert", "cbam(reduction=4)@residual:3"]


@pytest.fixture
def small_disk(tmp_path):
    """Empties, enlarges and locks a small file system in memory, where this process may make one."""
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

    def lock() -> None:
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)

    yield resize, grow, lock
    subprocess.run(["umount", mounted], check=True)


@trials(3, 30)
def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_when_there_is_room(
    zygote, small_disk, tmp_path, trials
):
    resize, grow, _ = small_disk
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


WRITERS = {
    "compare": [*COMPARE[:-4], "--accelerator", "cpu", "--out", "out"],
    "predict": ["predict", "READY/photos", "--weights", "READY/weights.safetensors", "--out", "out.csv"],
    "eval": [
        "eval", "--weights", "READY/weights.safetensors", "--workers", "0", "--html", "page.html", "--out", "out.json",
    ],
    "look": ["look", "READY/photos/a/0.png", "--weights", "READY/weights.safetensors", "--out", "out"],
    "check": ["check", "READY/photos", "--data_options.val_share", "0.5", "--out", "out"],
    "pack": ["pack", "READY/photos", "out", "--data_options.val_share", "0.5"],
    **{f"export to {to}": ["export", "READY/weights.safetensors", "--to", to, "--out", "out"]
       for to in ("onnx", "openvino", "pt2")},
}  # fmt: skip
"""Commands that write below the present folder."""
FULL = ("o space left", "ead-only", " are free: ")
SIZES = 7


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    text = {".json": json.loads, ".csv": lambda text: list(csv.reader(text.splitlines(), strict=True))}
    if path.suffix in text:
        return bool(text[path.suffix](path.read_text()))
    if path.suffix == ".html":
        return path.read_text().rstrip().endswith("</html>")
    if path.suffix == ".jsonl":
        # a journal grows line by line; going on cuts what was torn
        return True
    if path.suffix in (".png", ".webp"):
        Image.open(path).load()
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            list(map(file.get_tensor, file.keys()))
    return path.stat().st_size > 0


@pytest.fixture(scope="module")
def ready(zygote, tmp_path_factory):
    """A folder with weights and a few photographs."""
    folder = tmp_path_factory.mktemp("ready")
    assert zygote.run(folder, *WORDS, "--out", "run").status == 0
    shutil.copy(folder / "run" / "weights" / "best.safetensors", folder / "weights.safetensors")
    for number in range(8):
        place = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 48), 30 + number).convert("RGB").save(place)
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("name", WRITERS)
def test_whatever_is_written_to_a_full_or_unwritable_disk_is_whole_or_not_there(
    zygote, ready, small_disk, name
):
    resize, grow, lock = small_disk
    words = [word.replace("READY", str(ready)) for word in WRITERS[name]]
    disk = resize(100_000)
    whole = zygote.run(disk, *words)
    assert whole.status == 0, whole.err
    needed = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) // 1024 + 1
    failures = []
    for number in range(SIZES + 1):
        size = 4 + number * needed // SIZES
        resize(size)
        if number == SIZES:
            lock()
        trial = zygote.run(disk, *words)
        lines = [line for line in trial.err.splitlines() if line.startswith(f"{words[0]}: ")]
        told = trial.status == 2 and len(lines) == 1 and any(why in lines[0] for why in FULL)
        if "Traceback" in trial.err or not (trial.status == 0 or told):
            failures.append(f"{size} KB: status {trial.status}, {trial.err[-300:]!r}")
        halves = [path.name for path in disk.rglob("*") if path.is_file() and not is_whole(path)]
        if halves or left_over(disk):
            failures.append(f"{size} KB: {halves or left_over(disk)} stay")
        if name in ("compare", "pack") and trial.status and number < SIZES:
            grow(100_000)
            again = zygote.run(disk, *words)
            if again.status != 0:
                failures.append(f"{size} KB: does not go on, {again.err[-300:]!r}")
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
