"""A network in shards over two processes: the results of one that is whole, and files that say nothing of shards."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from foveal.errors import FovealError
from foveal.train import TrainConfig

WORDS = ["--accelerator", "cpu", "--epochs", "2", "--data_options.length", "97", "--data_options.size", "32"]
WORDS += [
    "--insert",
    "se(reduction=4)@block:2",
    "--checkpoint_steps",
    "1",
    "--accumulate",
    "2",
    "--clip_norm",
    "1",
]


def start(out, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "foveal", "train", *map(str, words), "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, status=0):
    try:
        _, said = process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status, said


def weights(folder):
    return load_file(folder / "weights/last.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_find_what_one_finds(strategy, tmp_path):
    """A network without batch statistics, which are each process's own."""
    model = [*WORDS, "--model", "test_convnext", "--lr", "0.02"]
    finish(start(tmp_path / "one", *model, "--batch_size", 16))
    both = ["--batch_size", 8, "--devices", 2, "--strategy", strategy]
    finish(start(tmp_path / "two", *model, *both))
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (b[name] - value).abs().max() < 1e-5, name
    rows = [
        (tmp_path / name / "metrics.csv").read_text().splitlines()[-1].split(",") for name in ("one", "two")
    ]
    # all but the seconds
    assert [float(x) for x in rows[0][:-1]] == pytest.approx([float(x) for x in rows[1][:-1]], abs=1e-4)


@pytest.mark.slow
def test_shards_stop_and_continue_under_another_strategy_to_the_same_weights(tmp_path):
    two = [*WORDS, "--batch_size", 8, "--devices", 2]
    finish(start(tmp_path / "whole", *two, "--strategy", "ddp"))
    process = start(tmp_path / "run", *two, "--strategy", "fsdp2", "--resume", "auto")
    until = time.monotonic() + 200
    while not (tmp_path / "run/checkpoint.ckpt").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    finish(process, 130)
    finish(start(tmp_path / "run", *two, "--strategy", "ddp", "--resume", "auto"))
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (b[name].double() - value.double()).abs().max() < 1e-5, name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ema": 0.9}, "ema must be 0 with strategy fsdp2, got 0.9; take ddp"),
        ({"freeze_epochs": 1}, "freeze_epochs must be 0 with strategy fsdp2, got 1; take ddp"),
        ({"task": "generate", "ema": 0.0}, "for one network and one optimiser, got task generate; take ddp"),
    ],
)
def test_what_is_not_made_for_shards_is_refused(options, words):
    with pytest.raises(FovealError, match=words):
        TrainConfig(strategy="fsdp2", **options)
