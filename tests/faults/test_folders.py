"""Two commands in one folder, a run that was moved, data that changed meanwhile: refused, or right."""

import random
import shutil
import time

import numpy as np
from PIL import Image

from .conftest import trials
from .test_kills import left_over, result

WORDS = [
    "train", "--epochs", "3", "--batch_size", "8", "--checkpoint_steps", "1", "--image_size", "24", "--workers", "0",
    "--accelerator", "cpu", "--data_options.val_share", "0.25",
]  # fmt: skip


def make_data(folder, seed=0):
    """Two classes of sixteen small images."""
    draw = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
                folder / name / f"{i}.png"
            )


def added(data):
    shutil.copy(data / "cat" / "0.png", data / "cat" / "new.png")


def removed(data):
    (data / "dog" / "3.png").unlink()


def replaced(data):
    Image.new("RGB", (20, 20), "red").save(data / "dog" / "5.png")


def renamed(data):
    (data / "dog" / "5.png").rename(data / "dog" / "five.png")


def swapped(data):
    (data / "cat").rename(data / "x")
    (data / "dog").rename(data / "cat")
    (data / "x").rename(data / "dog")


def class_renamed(data):
    (data / "dog").rename(data / "wolf")


def class_added(data):
    shutil.copytree(data / "dog", data / "wolf")


CHANGES = (added, removed, replaced, renamed, swapped, class_renamed, class_added)


@trials(2, 30)
def test_a_run_whose_data_changed_is_refused_and_one_that_was_moved_goes_on(zygote, tmp_path, trials):
    draw = random.Random(30)
    make_data(tmp_path / "data")
    begun = time.monotonic()
    assert zygote.run(tmp_path, *WORDS, "--data", "data", "--out", "whole").status == 0
    seconds, expected = time.monotonic() - begun, result(tmp_path / "whole")
    failures = []
    for number in range(trials):
        folder = tmp_path / str(number)
        folder.mkdir()
        # the same files, whose times a copy keeps
        shutil.copytree(tmp_path / "data", folder / "data")
        trial = zygote.start(folder, *WORDS, "--data", "data", "--out", "run")
        # at the first checkpoint or some time later
        while trial.wait(0.05) is None and not (folder / "run" / "checkpoint.ckpt").exists():
            pass
        if trial.wait(draw.uniform(0, 0.6) * seconds) is None:
            trial.kill()
            trial.wait()
        if number % 2:
            (folder / "run").rename(folder / "moved")
            again = zygote.run(folder, "train", "--resume", "moved")
            if again.status != 0 or result(folder / "moved") != expected or left_over(folder):
                failures.append(f"trial {number}, moved: status {again.status}, {again.err[-300:]!r}")
            continue
        change = CHANGES[number // 2 % len(CHANGES)]
        change(folder / "data")
        again = zygote.run(folder, "train", "--resume", "run")
        if (
            again.status != 2
            or len([line for line in again.err.splitlines() if line.startswith("train: ")]) != 1
        ):
            failures.append(f"trial {number}, {change.__name__}: status {again.status}, {again.err[-300:]!r}")
    assert not failures


@trials(1, 10)
def test_of_two_runs_in_one_folder_one_is_refused_and_the_other_whole(zygote, tmp_path, trials):
    make_data(tmp_path / "data")
    assert zygote.run(tmp_path, *WORDS, "--data", "data", "--out", "whole").status == 0
    expected = result(tmp_path / "whole")
    for number in range(trials):
        pair = [zygote.start(tmp_path, *WORDS, "--data", "data", "--out", f"run{number}") for _ in range(2)]
        statuses = sorted(trial.wait() for trial in pair)
        assert statuses == [0, 2], [trial.err[-300:] for trial in pair]
        assert result(tmp_path / f"run{number}") == expected
        assert not any("Traceback" in trial.err for trial in pair)
