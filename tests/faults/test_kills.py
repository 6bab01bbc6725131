"""Runs that are killed or told to stop at random moments lose nothing, and end with the same bits."""

import csv
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from .conftest import trials

SMALL = ["--data_options.length", "96", "--batch_size", "16", "--epochs", "3", "--checkpoint_steps", "2"]
SMALL += ["--accelerator", "cpu"]
CLASSIFY = ["train", *SMALL, "--data_options.size", "24"]
SETTINGS = {
    "plain": [*CLASSIFY, "--workers", "0"],
    "blocks, EMA, accumulation": [
        *CLASSIFY, "--workers", "0", "--insert", "cbam(reduction=4)@residual:3", "--ema", "0.9", "--accumulate", "4",
    ],
    "workers, mixup, frozen epoch": [
        *CLASSIFY, "--workers", "2", "--insert", "se(reduction=4)@residual:3", "--mixup", "0.3", "--freeze_epochs", "1",
    ],
    "segment": [
        "train", "--task", "segment", "--model", "fcn_test_resnet", *SMALL, "--data_options.size", "32",
        "--data_options.digit_size", "[10,14]", "--ema", "0.9", "--workers", "0",
    ],
    "detect": [
        "train", "--task", "detect", "--model", "sparse_rcnn_test_resnet", *SMALL, "--data_options.size", "40",
        "--data_options.digit_size", "[10,16]", "--insert", "cbam(reduction=4)@residual:3", "--workers", "0",
    ],
}  # fmt: skip


def result(folder: Path):
    """What a run leaves, without times: bytes of the weights and the rows of its figures."""
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    weights = {
        name: (folder / "weights" / name).read_bytes() for name in ("best.safetensors", "last.safetensors")
    }
    return weights, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def left_over(folder: Path):
    """Temporary files that nobody will put in their place."""
    return [path.name for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture(scope="module")
def references(zygote, tmp_path_factory):
    """Results and seconds of runs that nothing disturbed, by setting, as they are first asked for."""
    known = {}

    def reference(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            start = time.monotonic()
            trial = zygote.run(folder, *SETTINGS[name], "--out", "run")
            assert trial.status == 0, trial.err
            # the folder's name is part of no weights
            known[name] = result(folder / "run"), time.monotonic() - start
        return known[name]

    return reference


def finished(zygote, folder, words):
    """The same command again and again until it ends by itself."""
    trial = zygote.run(folder, *words, "--out", "run", "--resume", "auto")
    assert trial.status == 0, trial.err
    return trial


@trials(3, 100)
def test_a_run_killed_at_any_moment_continues_to_the_same_bits(zygote, references, tmp_path, trials):
    draw = random.Random(20261129)
    failures = []
    for number in range(trials):
        name = list(SETTINGS)[number % len(SETTINGS)]
        whole, seconds = references(name)
        folder = tmp_path / str(number)
        folder.mkdir()
        kills = 1 + number % 2
        for _ in range(kills):
            trial = zygote.start(folder, *SETTINGS[name], "--out", "run", "--resume", "auto")
            if trial.wait(draw.uniform(0, seconds)) is None:
                trial.kill()
                trial.wait()
            if alive := trial.left_processes():
                failures.append(f"trial {number}, {name}: processes {alive} are left")
        finished(zygote, folder, SETTINGS[name])
        if result(folder / "run") != whole:
            failures.append(f"trial {number}, {name}: other weights or rows than without the kill")
        if left_over(folder):
            failures.append(f"trial {number}, {name}: {left_over(folder)} stay")
    assert not failures


@trials(2, 50)
def test_a_run_told_to_stop_says_one_line_and_continues_to_the_same_bits(
    zygote, references, tmp_path, trials
):
    draw = random.Random(1129)
    failures = []
    for number in range(trials):
        name = list(SETTINGS)[number % len(SETTINGS)]
        whole, seconds = references(name)
        folder = tmp_path / str(number)
        folder.mkdir()
        sign = signal.SIGINT if number % 2 else signal.SIGTERM
        trial = zygote.start(folder, *SETTINGS[name], "--out", "run", "--resume", "auto")
        if trial.wait(draw.uniform(0, seconds)) is None:
            trial.kill(sign)
            if number % 4 == 3 and trial.wait(0.05) is None:
                trial.kill(sign)
        status = trial.wait()
        said = [line for line in trial.err.splitlines() if line.startswith("train: ")]
        if status not in (0, 130) or "Traceback" in trial.err or len(said) != (status == 130):
            failures.append(f"trial {number}, {name}, {sign.name}: status {status}, {trial.err[-300:]!r}")
        if alive := trial.left_processes():
            failures.append(f"trial {number}, {name}: processes {alive} are left")
        finished(zygote, folder, SETTINGS[name])
        if result(folder / "run") != whole:
            failures.append(f"trial {number}, {name}: other weights or rows than without the signal")
        if left_over(folder):
            failures.append(f"trial {number}, {name}: {left_over(folder)} stay")
    assert not failures


COMPARE = [
    "compare", "--insert", "se(reduction=4)@residual:3", "--seeds", "2", "--epochs", "1", "--control", "false",
    "--self_check", "false",
    "--data_options.length", "256", "--out", "comparison", "--accelerator", "cpu",
]  # fmt: skip


def compared(folder: Path):
    """Figures of all runs, without times."""
    runs = json.loads((folder / "comparison" / "results.json").read_text())["runs"]
    return sorted((run["variant"], run["seed"], run["metric"]) for run in runs)


def workers_of(pid):
    """Children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(number) for number in text.read_text().split()] if text.exists() else []


@pytest.mark.parametrize("trials", [pytest.param(50, id="50 trials", marks=pytest.mark.faults)])
def test_a_comparison_killed_at_any_moment_keeps_its_finished_runs(zygote, tmp_path, trials):
    draw = random.Random(50)
    whole = tmp_path / "whole"
    whole.mkdir()
    start = time.monotonic()
    assert zygote.run(whole, *COMPARE).status == 0
    seconds, expected = time.monotonic() - start, compared(whole)
    failures = []
    for number in range(trials):
        folder = tmp_path / str(number)
        folder.mkdir()
        trial = zygote.start(folder, *COMPARE)
        if trial.wait(draw.uniform(0, seconds)) is None:
            workers = workers_of(trial.pid)
            if number % 2 and workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
            else:
                trial.kill()
        trial.wait()
        if alive := trial.left_processes():
            failures.append(f"trial {number}: processes {alive} are left")
        runs = folder / "comparison" / "runs"
        before = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")} if runs.exists() else {}
        again = zygote.run(folder, *COMPARE)
        if again.status != 0 or compared(folder) != expected:
            failures.append(f"trial {number}: status {again.status}, {again.err[-300:]!r}")
        changed = [name for name, when in before.items() if (runs / name).stat().st_mtime_ns != when]
        if changed:
            failures.append(f"trial {number}: {changed} were finished, and trained again")
        if left_over(folder):
            failures.append(f"trial {number}: {left_over(folder)} stay")
    assert not failures
