"""Several processes through the real command: one run folder, one answer, stopped and continued together."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from foveal.train import TrainConfig

WORDS = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--batch_size", "16", "--epochs", "3"]
WORDS += ["--insert", "cbam(reduction=4)@residual:3", "--freeze_epochs", "1", "--checkpoint_steps", "2"]
WORDS += ["--data_options.length", "193", "--data_options.size", "24"]  # the last share is one image smaller


def start(*words):
    """The command in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "foveal.cli", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    try:
        return process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_two_processes_make_one_run_that_stops_and_continues_to_the_same_weights(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    process = start("train", *WORDS, "--out", whole)
    shown, said = finish(process)
    assert process.returncode == 0, said
    assert shown.count("best weights") == 1
    assert len(said.splitlines()) == 4, "what is trained, then one line an epoch"
    rows = (whole / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4

    # what the processes found together is what one process finds in the weights they kept
    answer = tmp_path / "answer.json"
    process = start(
        "eval", "--weights", whole / "weights/last.safetensors", "--device", "cpu", "--out", answer
    )
    _, said = finish(process)
    assert process.returncode == 0, said
    last, found = (
        dict(zip(rows[0].split(","), rows[-1].split(","), strict=True)),
        json.loads(answer.read_text()),
    )
    assert found["images"] == 193
    assert float(last["val_accuracy"]) == pytest.approx(found["accuracy"], abs=1e-5)
    assert float(last["val_loss"]) == pytest.approx(found["loss"], abs=1e-4)

    process = start("train", *WORDS, "--out", stopped)
    until = time.monotonic() + 200
    while not (stopped / "checkpoint.ckpt").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = finish(process)
    assert process.returncode == 130, said
    assert said.count("train: stopped") == 1
    assert "Traceback" not in said
    process = start("train", "--resume", stopped)
    _, said = finish(process)
    assert process.returncode == 0, said
    a, b = (load_file(folder / "weights/last.safetensors") for folder in (whole, stopped))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn"])
def test_a_strategy_that_is_not_held_here_is_refused_and_ddp_named(strategy):
    with pytest.raises(ValueError, match=f"strategy must be one of auto, ddp, .* got {strategy}: .*take ddp"):
        TrainConfig(strategy=strategy)
