"""Worker processes: what they return comes back whole, and none of them outlives the one that asked."""

import io
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from foveal.compare.arrays import store_images
from foveal.compare.engines import make_engine
from foveal.compare.engines.local import LocalEngine, read_message, write_message
from foveal.compare.plan import plan_comparison
from foveal.errors import FovealError

TRAINING = {
    "data_options": {"length": 64, "size": 16, "digit_size": (8, 8)},
    "epochs": 1,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def plan():
    return plan_comparison(["se(reduction=4)@residual:3"], seeds=2, control=False, training=TRAINING)


@pytest.fixture
def images(plan, tmp_path):
    store_images(plan.data, plan.job, tmp_path)
    return tmp_path


def test_a_run_has_the_threads_that_were_asked_for_else_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("foveal.compare.engines.local.usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert engine(tmp_path).threads == 3
    for unusable in ("", "0", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert engine(tmp_path, jobs=2).threads == 4


def engine(images: Path, jobs: int = 1) -> LocalEngine:
    return LocalEngine(device="cpu", jobs=jobs, runs=9, log=images / "log.txt")


def test_messages_come_through_a_pipe_as_they_were_sent():
    pipe = io.BytesIO()
    payload = bytes(range(256)) * 3 + b"\n{"
    write_message(pipe, {"result": {"a": "\n"}}, payload)
    write_message(pipe, {"step": 3})
    pipe.seek(0)
    assert read_message(pipe) == ({"result": {"a": "\n"}}, payload)
    assert read_message(pipe) == ({"step": 3}, b"")
    assert read_message(pipe) is None


def test_a_message_that_was_cut_off_is_none():
    pipe = io.BytesIO()
    write_message(pipe, {"result": 1}, b"12345")
    for length in (3, len(pipe.getvalue()) - 1):
        assert read_message(io.BytesIO(pipe.getvalue()[:length])) is None


def test_every_job_comes_back_once_with_its_weights_and_a_mistake_is_a_mistake_here(plan, images):
    with engine(images) as workers:
        events = list(workers.run(plan.jobs, images))
        variant = replace(plan.jobs[1].variant, insert="se@nowhere.*")
        with pytest.raises(FovealError, match=r"se, seed 0: .*nowhere"):
            list(workers.run([replace(plan.jobs[0], variant=variant)], images))
    done = {e.job.key: e for e in events if e.result is not None}
    assert set(done) == {job.key for job in plan.jobs}
    for job in plan.jobs:
        event = done[job.key]
        assert (event.result["variant"], event.result["seed"]) == (job.variant.name, job.config.seed)
        assert (event.weights is not None) == (job.config.seed == 0)
        assert len(event.result["curve"]) == 1


def test_a_worker_that_is_killed_ends_in_one_line_that_says_which_run(plan, images):
    with engine(images) as workers:
        events = workers.run(plan.jobs, images)
        while next(events).result is None:
            pass
        os.kill(workers.processes[0].process.pid, signal.SIGKILL)
        with pytest.raises(
            ChildProcessError, match=r"the process of .*, seed .* ended with code -9 .*fewer jobs"
        ):
            list(events)


DRIVER = """
import os, signal
from pathlib import Path
from foveal.compare.engines.local import LocalEngine
from foveal.compare.arrays import store_images
from foveal.compare.plan import plan_comparison

training = {training!r}
plan = plan_comparison(["se(reduction=4)@residual:3"], seeds=1, control=False, training=training)
images = Path({folder!r})
store_images(plan.data, plan.job, images)
with LocalEngine(device="cpu", jobs=2, runs=2, log=images / "log.txt") as workers:
    for event in workers.run(plan.jobs, images):
        print(*(one.process.pid for one in workers.processes), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_process_that_asked(tmp_path, zygote):
    """Killed in the middle of a run, so that it can tell nobody."""
    driver = zygote.run(
        tmp_path, code=DRIVER.format(folder=str(tmp_path), training={**TRAINING, "epochs": 10000})
    )
    assert driver.status == -signal.SIGKILL, driver.err
    processes = []
    for pid in map(int, driver.out.split()):
        if psutil.pid_exists(pid):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []


def test_an_unknown_engine_is_refused(tmp_path):
    with pytest.raises(
        FovealError, match="engine must be one of local, ray, slurm or ray://HOST:PORT, got steam"
    ):
        make_engine("steam", device="cpu", jobs=1, runs=1, log=tmp_path / "log")
