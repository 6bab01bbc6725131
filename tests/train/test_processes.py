"""Several processes through the real command: one run folder, one answer, stopped and continued together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from foveal.errors import FovealError
from foveal.evaluate import evaluate
from foveal.inference import predictor
from foveal.train import TrainConfig
from foveal.train.lost_process import ProcessWatch
from foveal.train.processes import processes_of_a_run, require_world
from foveal.train.run import Run

WORDS = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--batch_size", "16", "--epochs", "3"]
WORDS += ["--insert", "cbam(reduction=4)@residual:3", "--freeze_epochs", "1", "--checkpoint_steps", "2"]
WORDS += ["--data_options.length", "193", "--data_options.size", "24"]  # the last share is one image smaller


def start(*words):
    """The command in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "foveal", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    try:
        return process.communicate(timeout=900)
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
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    found = evaluate(predictor(str(whole / "weights/last.safetensors"), "cpu")).to_dict()
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


TINY = ["--model_options.width", "16", "--model_options.heads", "2", "--model_options.ffn_width", "16"]
DETECTORS = {
    "detr_test_resnet": ["--model_options.encoder_layers", "1", *TINY],
    "sparse_rcnn_test_resnet": ["--model_options.stages", "2", "--model_options.dynamic_width", "8", *TINY],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_two_processes_train_a_detector_and_find_what_one_finds_in_its_weights(name, tmp_path):
    """Images in odd number, so that one process has an image less; boxes are counted over both."""
    run, answer = tmp_path / "run", tmp_path / "answer.json"
    words = ["--task", "detect", "--model", name, "--data_options.length", "41", "--epochs", "2"]
    words += ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--batch_size", "4"]
    process = start("train", *words, *DETECTORS[name], "--out", run)
    _, said = finish(process)
    assert process.returncode == 0, said
    names, *_, last = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    row = dict(zip(names, last, strict=True))
    weights = run / "weights/last.safetensors"
    process = start("eval", "--weights", weights, "--device", "cpu", "--out", answer)
    _, said = finish(process)
    assert process.returncode == 0, said
    found = json.loads(answer.read_text())
    assert found["images"] == 41
    assert float(row["val_loss"]) == pytest.approx(found["loss"], rel=1e-4)
    assert float(row["val_ap"]) == pytest.approx(found["ap"], abs=1e-6)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn"])
def test_a_strategy_that_is_not_held_here_is_refused_and_ddp_named(strategy):
    with pytest.raises(ValueError, match=f"strategy must be one of auto, ddp, .* got {strategy}: take ddp"):
        TrainConfig(strategy=strategy)


@pytest.mark.parametrize(
    ("announced", "words"),
    [
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2"}, None),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4"}, "number of processes of torchrun, 4, got 2 x 1"),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, "number of processes of SLURM, 1, got 2 x 1"),
        ({"SLURM_NTASKS": "2"}, "srun must start each of 2 processes, got one without it"),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}, None),
    ],
)
def test_the_number_of_processes_is_that_of_the_launcher(announced, words, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in announced.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if words is None else pytest.raises(FovealError, match=words):
        require_world(TrainConfig(nodes=2))


def test_where_a_process_is_lost_the_others_end_with_one_line(tmp_path):
    """Whatever they are doing: here the other process computes on, and asks for nothing."""
    code = (
        "import subprocess, sys, time; from foveal.train.lost_process import ProcessWatch; "
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.exit(7)']); "
        "ProcessWatch([child], lambda why: f'one was lost: {why}; kept: epoch 3', grace=0.1).start(); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 2
    assert re.fullmatch(r"train: one was lost: process \d+ ended with status 7; kept: epoch 3\n", done.stderr)


def test_processes_that_end_well_are_not_missed():
    watch = ProcessWatch([subprocess.Popen([sys.executable, "-c", ""])], str, grace=0)
    watch.start()
    watch.join(timeout=30)
    assert not watch.is_alive()


@pytest.mark.parametrize("grace", [0, 100])
def test_a_watch_ends_when_it_is_told_to(grace):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watch = ProcessWatch([child], str, grace=grace)
        watch.start()
        if grace:  # the child is lost, and the watch waits for this process to notice
            child.kill()
            child.wait()
        watch.stop()
        assert not watch.is_alive()
        child.kill()


def test_processes_talk_to_each_other_for_as_long_as_the_run_lasts(tmp_path):
    def join():
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
        )

    with processes_of_a_run():
        join()
    assert not torch.distributed.is_initialized()
    (tmp_path / "store").unlink(missing_ok=True)
    join()
    try:
        with processes_of_a_run():
            pass
        assert torch.distributed.is_initialized(), "a group that was there before is another's"
    finally:
        torch.distributed.destroy_process_group()


def test_what_a_lost_process_leaves_the_others_with_is_one_error():
    """PyTorch's own error, where it comes first."""
    run = object.__new__(Run)
    run.config, run.folder, run.last_saved = TrainConfig(), Path("runs/a"), "epoch 3"
    run.fabric = SimpleNamespace(world_size=2, is_global_zero=True)
    run.progress, run.logger = SimpleNamespace(stop=lambda: None), None

    def lose():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")

    run._train = lose
    with pytest.raises(
        ConnectionError, match=r"lost: .*; kept: epoch 3; continue with: foveal train --resume runs/a$"
    ):
        run.train()


def second_of(process):
    """The number of the process that a run started to compute with; None before."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(OSError):
            if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_process_that_is_killed_ends_the_run_in_one_line(tmp_path, when):
    process = start("train", *WORDS, "--epochs", "500", "--out", tmp_path / "run")
    until = time.monotonic() + 200
    while not (second := second_of(process)) or not (
        when == "at once" or (tmp_path / "run/checkpoint.ckpt").exists()
    ):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(second, signal.SIGKILL)
    shown, said = finish(process)
    assert (process.returncode, shown) == (2, "")
    last = said.splitlines()[-1]
    assert last.startswith("train: every process must go on to the end, got one that was lost: ")
    assert ("kept: nothing yet" in last) == (when == "at once")
    assert "Traceback" not in said
