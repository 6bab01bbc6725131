"""Ray's own clusters of several nodes on this machine: every run comes back, equal to the local engine's."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec

import psutil
import pytest
from safetensors.torch import load_file
from tests.engine import killing_block

from foveal.compare.arrays import store_images
from foveal.compare.engines import RunDied, make_engine
from foveal.compare.engines.ray_node import node_folder
from foveal.compare.plan import plan_comparison
from foveal.compare.worker import run_job
from foveal.errors import FovealError

TRAINING = {
    "data_options": {"length": 64, "size": 16, "digit_size": (8, 8)},
    "epochs": 1,
    "accelerator": "cpu",
}
STORE = 80_000_000
WAIT = 1200
# what differs between two machines, or two moments
OF_THE_MOMENT = ("seconds", "clock", "host")


@pytest.fixture(scope="module", autouse=True)
def quiet_ray():
    """Ray keeps to the loopback interface, a small store and a folder of its own, and asks nobody outside."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    folder = tempfile.mkdtemp(prefix="ray-")  # a short name: sockets are in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's name for the loopback interface
        patch.setenv("RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES", str(STORE))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    left = processes_of(folder)
    for process in left:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def processes_of(folder):
    """What was started with that folder for its files and still runs."""
    found = []
    for process in psutil.process_iter():
        if process.pid != os.getpid() and process.ppid() != os.getpid():
            try:
                if any(folder in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
    _, alive = psutil.wait_procs(found, timeout=30)
    return alive


@pytest.fixture(scope="module")
def plan():
    return plan_comparison(["se(reduction=4)@residual:3"], seeds=1, control=False, training=TRAINING)


@pytest.fixture
def images(plan, tmp_path):
    """The folder of images in the folder of the comparison, as the runner lays them."""
    folder = tmp_path / ".images" / "0"
    folder.mkdir(parents=True)
    store_images(plan.data, plan.job, folder)
    return folder


def engine(images, name="ray", **options):
    return make_engine(name, device="cpu", jobs=None, runs=2, log=images.parent / "log.txt", options=options)


def lasting(result):
    return {name: value for name, value in result.items() if name not in OF_THE_MOMENT}


def test_a_ray_of_this_machine_gives_what_a_run_here_gives_and_listens_to_nobody_else(plan, images):
    import ray

    with engine(images) as workers:
        done = {event.job.key: event for event in workers.run(plan.jobs, images) if event.result}
        kept = list(node_folder().iterdir())
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
    assert listening == {"127.0.0.1"}
    assert not ray.is_initialized()
    assert set(done) == {job.key for job in plan.jobs}
    for job in plan.jobs:
        result, weights = run_job(job, images)
        assert lasting(done[job.key].result) == lasting(json.loads(json.dumps(result)))
        assert done[job.key].weights == weights
    assert len(kept) == 1, "two runs, one copy of the images"
    assert list(node_folder().iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ray", {"num_cpus": 0}, "num_cpus must be a whole number of at least 1, got 0"),
        ("ray", {"cpus": 2}, "engine_options of ray are num_cpus, num_gpus, got cpus"),
        ("local", {"num_cpus": 2}, "engine_options of local are none, got num_cpus"),
        ("rays://a:1", {}, "engine must be one of local, ray.*, got rays://a:1"),
        (
            "ray://nobody",
            {},
            "address of a Ray cluster must be ray://HOST:PORT or HOST:PORT, got ray://nobody",
        ),
        ("ray://127.0.0.1:9", {}, "must listen at ray://127.0.0.1:9, got: Connection refused"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, options, words, images):
    with pytest.raises(FovealError, match=words), engine(images, name, **options):
        pass


def test_without_ray_one_line_says_how_to_get_it(monkeypatch, images):
    monkeypatch.setattr("foveal.compare.engines.ray.find_spec", lambda _: None)
    with pytest.raises(FovealError, match=r'which is not installed: pip install "foveal\[ray\]"'):
        engine(images)


# --------------------------------------------------------------------------------------- clusters of several nodes


@contextmanager
def cluster(nodes=2, **head):
    """A head that computes nothing, and nodes of one core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE, **head},
    )
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=1, **NODE)
        yield made
    finally:
        made.shutdown()


NODE = {"object_store_memory": STORE, "node_ip_address": "127.0.0.1"}
WORDS = ["--insert", "se(reduction=4)@residual:3", "--control", "false", "--self_check", "false"]
WORDS += ["--data_options.length", "256", "--data_options.size", "24", "--accelerator", "cpu", "--tune", "0"]


def compare(*words, address=None, **options):
    """The command, as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"RAY_ADDRESS": address} if address else {})}
    return subprocess.Popen(
        [sys.executable, "-m", "foveal", "compare", *WORDS, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process):
    try:
        return process.communicate(timeout=WAIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def results(out):
    return {path.name: json.loads(path.read_text()) for path in (out / "runs").glob("*.json")}


def wait_for_results(out, count, process):
    until = time.monotonic() + WAIT
    while len(results(out)) < count:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


@pytest.mark.slow
def test_nodes_that_are_lost_and_nodes_that_join_change_no_bit_of_24_runs(tmp_path):
    out, here = tmp_path / "ray", tmp_path / "local"
    words = ["--seeds", 12, "--epochs", 4]
    with cluster(nodes=2) as nodes:
        lost = next(iter(nodes.worker_nodes))
        process = compare(*words, "--engine", "ray", "--out", out, address=nodes.address)
        wait_for_results(out, 3, process)
        nodes.remove_node(lost, allow_graceful=False)
        at_loss = len(results(out))
        nodes.add_node(num_cpus=1, **NODE)
        shown, said = finish(process)
        assert process.returncode == 0, said
    assert at_loss < 20
    assert "24/24" in said
    # what Ray says of the lost node is not for the standard output
    assert "raylet" not in shown
    _, said = finish(process := compare(*words, "--out", here))
    assert process.returncode == 0, said
    found, wanted = results(out), results(here)
    assert found.keys() == wanted.keys()
    assert len(found) == 24
    for name, result in found.items():
        assert lasting(result) == lasting(wanted[name])
    for path in (here / "runs").glob("*.safetensors"):
        a, b = load_file(path), load_file(out / "runs" / path.name)
        assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.slow
def test_a_driver_that_is_killed_continues_with_what_is_missing(tmp_path):
    out = tmp_path / "out"
    words = ["--seeds", 4, "--epochs", 6, "--engine", "ray", "--out", out]
    with cluster(nodes=2) as nodes:
        process = compare(*words, address=nodes.address)
        wait_for_results(out, 2, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        before = {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
        assert len(before) < 8
        _, said = finish(process := compare(*words, address=nodes.address))
        assert process.returncode == 0, said
    assert f"{len(before)} finished before" in said
    after = {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    assert list(node_folder().iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_keeps_what_is_finished_and_leaves_nothing_on_the_nodes(send, number, tmp_path):
    out = tmp_path / "out"
    words = ["--seeds", 4, "--epochs", 6, "--engine", "ray", "--out", out]
    with cluster(nodes=1) as nodes:
        process = compare(*words, address=nodes.address)
        wait_for_results(out, 1, process)
        send(process.pid, number)
        _, said = finish(process)
        assert process.returncode == 130, said
        assert "the same command continues with the rest" in said
        assert "Traceback" not in said
        assert "SIGTERM received" not in said  # Ray's own answer
        assert list(node_folder().iterdir()) == []


@pytest.mark.slow
def test_a_node_of_another_version_is_left_out(plan, images, tmp_path, monkeypatch):
    (tmp_path / "foveal-9.9.dist-info").mkdir()
    (tmp_path / "foveal-9.9.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: foveal\nVersion: 9.9\n"
    )
    with cluster(nodes=0) as nodes:
        with monkeypatch.context() as other:
            other.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
            nodes.add_node(num_cpus=2, **NODE)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with (
            pytest.raises(FovealError, match=r"got foveal 9\.9, .*; no other node has room for a run"),
            engine(images) as workers,
        ):
            list(workers.run(plan.jobs, images))
        nodes.add_node(num_cpus=1, **NODE)
        with engine(images) as workers:
            events = list(workers.run(plan.jobs, images))
    assert len([event for event in events if event.result]) == len(plan.jobs)
    (note,) = [event.note for event in events if event.note]
    assert "got foveal 9.9" in note
    assert note.endswith("that node is left out")


@pytest.mark.slow
def test_a_run_that_kills_its_process_is_given_up_with_its_log_and_the_others_are_done(tmp_path, monkeypatch):
    """The file of its block is on the driver's disk alone, by a path that means nothing elsewhere."""
    (tmp_path / "killer.py").write_text(killing_block("local_worker"))
    monkeypatch.chdir(tmp_path)
    own = plan_comparison(["killer.py:Killer@residual:3"], seeds=1, control=False, training=TRAINING)
    images = tmp_path / ".images/0"
    images.mkdir(parents=True)
    store_images(own.data, own.job, images)
    with cluster(nodes=1) as nodes:
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        events = []
        with (
            pytest.raises(RunDied, match=r"Killer, seed 0 ended its process 3 times; .*code -9") as died,
            engine(images) as workers,
        ):
            events.extend(iter(workers.run([own.jobs[1], own.jobs[0]], images)))
    assert "about to end" in died.value.log
    assert [event.job.variant.name for event in events if event.result] == ["none"]
    assert len([event for event in events if event.note]) == 3


# Ray leaves the log files of its client server open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_cluster_is_joined_through_its_client_server(plan, images):
    with cluster(nodes=1, ray_client_server_port=10099) as nodes:
        assert nodes
        with engine(images, "ray://127.0.0.1:10099") as workers:
            events = list(workers.run(plan.jobs, images))
    done = {event.job.key: event for event in events if event.result}
    result, weights = run_job(plan.jobs[0], images)
    assert lasting(done[plan.jobs[0].key].result) == lasting(json.loads(json.dumps(result)))
    assert done[plan.jobs[0].key].weights == weights
