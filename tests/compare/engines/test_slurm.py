"""Arrays of SLURM: submitit's processes of this machine in their place; SLURM itself where it is installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.engine import killing_block

from foveal.compare.arrays import store_images
from foveal.compare.engines import RunDied, make_engine
from foveal.compare.engines import slurm as module
from foveal.compare.engines.slurm import SlurmEngine, do_element
from foveal.compare.plan import plan_comparison
from foveal.compare.worker import run_job
from foveal.errors import FovealError

pytest.importorskip("submitit")
# its processes of this machine are left to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TRAINING = {
    "data_options": {"length": 64, "size": 16, "digit_size": (8, 8)},
    "epochs": 1,
    "accelerator": "cpu",
}
OF_THE_MOMENT = ("seconds", "clock", "host")


@pytest.fixture(scope="module")
def plan():
    return plan_comparison(["se(reduction=4)@residual:3"], seeds=1, control=False, training=TRAINING)


@pytest.fixture
def images(plan, tmp_path):
    folder = tmp_path / ".images" / "0"
    folder.mkdir(parents=True)
    store_images(plan.data, plan.job, folder)
    return folder


def engine(images, **options):
    return SlurmEngine(device="cpu", jobs=2, log=images.parent / "log.txt", options=options, cluster="local")


def lasting(result):
    return {name: value for name, value in result.items() if name not in OF_THE_MOMENT}


def test_an_element_gives_what_a_run_here_gives_and_an_answer_that_is_there_is_taken(plan, images, tmp_path):
    here, other = plan.jobs
    result, weights = run_job(here, images)
    answers = tmp_path / "slurm"
    answers.mkdir()
    (answers / f"{other.key}.json").write_text(json.dumps({"result": {"kept": True}, "host": "node7"}))
    with engine(images) as workers:
        done = {event.job.key: event for event in workers.run(plan.jobs, images)}
        assert len(workers.submitted) == 1
    assert done[other.key].result == {"kept": True, "host": "node7"}
    assert lasting(done[here.key].result) == lasting(json.loads(json.dumps(result)))
    assert done[here.key].weights == weights
    assert not answers.exists()


def test_what_cannot_be_is_refused_in_one_line(images, monkeypatch):
    log = images.parent / "log.txt"
    with pytest.raises(FovealError, match=r"engine_options of slurm are num_cpus, .*, got nodes"):
        make_engine("slurm", device="cpu", jobs=1, runs=1, log=log, options={"nodes": 3})
    if shutil.which("srun") is None:
        with pytest.raises(FovealError, match=r"SLURM must take \{\}, got: .*srun"):
            make_engine("slurm", device="cpu", jobs=1, runs=1, log=log)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(FovealError, match=r'pip install "foveal\[slurm\]"'):
        engine(images)


def test_a_run_that_cannot_be_is_told_to_its_own_driver_alone(plan, images, tmp_path):
    answers = tmp_path / "slurm"
    answers.mkdir()
    job = plan.jobs[0]
    # one of a driver that is gone, whose images the next one has cleared away
    with pytest.raises(FileNotFoundError):
        do_element(job.to_dict(), str(tmp_path / ".images-gone/0"), str(answers / f"{job.key}.json"), 1)
    assert list(answers.iterdir()) == []
    (images / "train.json").unlink()
    with pytest.raises(OSError, match=f"{job.name}: .*train.json"), engine(images) as workers:
        list(workers.run([job], images))


@pytest.mark.slow
def test_an_element_that_ends_without_an_answer_is_reported_with_its_log_and_the_others_are_done(
    tmp_path, monkeypatch
):
    (tmp_path / "killer.py").write_text(killing_block("submitit"))
    monkeypatch.setattr(module, "LATE_SECONDS", 1.0)
    own = plan_comparison(
        [f"{tmp_path}/killer.py:Killer@residual:3"], seeds=1, control=False, training=TRAINING
    )
    images = tmp_path / ".images/0"
    images.mkdir(parents=True)
    store_images(own.data, own.job, images)
    events = []
    with (
        pytest.raises(RunDied, match=r"Killer, seed 0, element .* ended without an answer") as died,
        engine(images) as workers,
    ):
        events.extend(iter(workers.run(own.jobs, images)))
    assert "about to end" in died.value.log
    assert [event.job.variant.name for event in events if event.result] == ["none"]


# --------------------------------------------------------------------------------------------------- SLURM itself

WORDS = [
    "--insert",
    "se(reduction=4)@residual:3",
    "--control",
    "false",
    "--self_check",
    "false",
    "--seeds",
    "4",
]
WORDS += [
    "--data_options.length",
    "256",
    "--data_options.size",
    "24",
    "--accelerator",
    "cpu",
    "--epochs",
    "4",
]


def compare(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "foveal", "compare", *WORDS, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no SLURM here")
def test_slurm_does_what_processes_here_do_also_where_the_driver_is_killed(tmp_path):
    out, here = tmp_path / "slurm", tmp_path / "local"
    process = compare("--engine", "slurm", "--out", out)
    until = time.monotonic() + 300
    while not list((out / "runs").glob("*.json")):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = len(list((out / "runs").glob("*.json")))
    assert kept < 8
    for words in (["--engine", "slurm", "--out", out], ["--out", here]):
        process = compare(*words)
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    found, wanted = (
        {path.name: lasting(json.loads(path.read_text())) for path in (folder / "runs").glob("*.json")}
        for folder in (out, here)
    )
    assert len(found) == 8
    assert found == wanted
    for path in (here / "runs").glob("*.safetensors"):
        assert path.read_bytes() == (out / "runs" / path.name).read_bytes()
    left = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    assert "foveal" not in left
