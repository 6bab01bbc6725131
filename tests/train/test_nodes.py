"""A run on two nodes: two launchers on one machine, and two network namespaces where that is permitted."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

WORDS = ["--accelerator", "cpu", "--nodes", "2", "--strategy", "ddp", "--batch_size", "16", "--epochs", "3"]
WORDS += ["--data_options.length", "193", "--data_options.size", "24", "--checkpoint_steps", "2"]
WAIT = 900
COMMAND = "import sys; from foveal.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
# the same, but for how long a process waits for the others
HASTY = f"import foveal.train.processes as p; p.WAIT_SECONDS = 8.0; {COMMAND}"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(
    rank, port, *words, launcher="lightning", code=COMMAND, cwd=None, address="127.0.0.1", prefix=(), **env
):
    """The process, or torchrun, that one types on one node."""
    places = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "NODE_RANK": str(rank)}
    command = [sys.executable, "-c", code]
    if launcher == "torchrun":
        places = {}
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)]
        command += ["--nproc-per-node", "1", "--master-addr", address, "--master-port", str(port)]
        command += ["--no-python", sys.executable, "-c", code]
    return subprocess.Popen(
        [*prefix, *command, *WORDS, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **places, **env},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(*processes):
    """Status and lines on the standard error output of each, without those of torchrun itself."""
    try:
        ended = [(process.communicate(timeout=WAIT)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return [
        (status, [line for line in said.splitlines() if line.startswith("train:")], said)
        for said, status in ended
    ]


def wait_for(path, *processes):
    until = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_two_nodes_start_stop_and_continue_to_the_same_weights(launcher, tmp_path):
    """Each in a folder of its own, as if they shared no disk; the same command begins the run and continues it."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()

    def both(out):
        port = free_port()
        words = ["--out", out, "--resume", "auto"]
        return [
            start(rank, port, *words, launcher=launcher, cwd=cwd) for rank, cwd in enumerate((here, there))
        ]

    for status, lines, said in finish(*both("whole")):
        assert (status, lines) == (0, []), said
    nodes = both("stopped")
    wait_for(here / "stopped/checkpoint.ckpt", *nodes)
    os.kill(nodes[1].pid, signal.SIGTERM)
    for status, lines, said in finish(*nodes):
        assert status != 0
        assert len(lines) == 1, said
        assert "stopped; kept: epoch" in lines[0]
        if launcher == "lightning":
            assert status == 130
            assert "Traceback" not in said
    for status, lines, said in finish(*both("stopped")):
        assert (status, lines) == (0, []), said
    a, b = (load_file(here / out / "weights/last.safetensors") for out in ("whole", "stopped"))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    assert list(there.iterdir()) == []


def test_what_is_refused_on_one_node_is_refused_on_both_in_one_line(coloured_folder, tmp_path):
    port = free_port()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    ended = finish(*(start(rank, port, "--out", tmp_path / "full") for rank in range(2)))
    for status, (line,), said in ended:
        assert (status, said.strip()) == (2, line)
        assert "out must be a new or empty folder, got" in line
    fewer = shutil.copytree(coloured_folder, tmp_path / "fewer")
    next(fewer.glob("train/*/00.png")).unlink()
    for option, values, what in (
        ("--data", (coloured_folder, fewer), "images for train, got 48 on"),
        ("--batch_size", (16, 8), "batch_size, got 16 on"),
        ("--data_options.split_seed", (0, 1), "data_options, got {"),
        ("--insert", ("se@residual", "cbam@residual"), "parameters, got "),
    ):
        port = free_port()
        words = ["--data", coloured_folder, "--data_options", "{}", "--out", tmp_path / "a"]
        ended = finish(*(start(r, port, *words, option, value) for r, value in enumerate(values)))
        for status, (line,), said in ended:
            assert (status, said.strip()) == (2, line)
            assert f"must have the same {what}" in line
    assert not (tmp_path / "a").exists()


def test_a_node_that_waits_alone_ends_by_one_signal_and_by_itself(tmp_path):
    port = free_port()
    process = start(0, port, "--out", tmp_path / "a")
    until = time.monotonic() + WAIT
    while not listens(port):
        assert time.monotonic() < until
        time.sleep(0.1)
    process.terminate()
    ((status, (line,), said),) = finish(process)
    assert (status, said.strip()) == (130, line)
    assert line == "train: stopped before the first step"

    port = free_port()
    for rank in range(2):
        ((status, (line,), said),) = finish(start(rank, port, "--out", tmp_path / "a", code=HASTY))
        assert status == 2
        assert line.startswith("train: all processes must join within 8 s, with the same address and port")
        assert "Traceback" not in said


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_node_is_killed_the_other_ends_in_one_line(rank, tmp_path):
    port = free_port()
    nodes = [start(r, port, "--epochs", "500", "--out", tmp_path / "a") for r in range(2)]
    wait_for(tmp_path / "a/checkpoint.ckpt", *nodes)
    nodes[rank].kill()
    status, (line,), said = finish(*nodes)[1 - rank]
    assert status == 2, said
    assert line.startswith("train: every process must go on to the end, got one that was lost: ")
    assert "Traceback" not in said


# ---------------------------------------------------------------------------------------- two network namespaces


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@contextmanager
def two_namespaces():
    """Two machines with a cable between them, as far as the network is concerned."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip")
    names, ends = [f"foveal{i}-{os.getpid()}" for i in range(2)], [f"fv{i}-{os.getpid()}" for i in range(2)]
    made = ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"network namespaces are not permitted: {made.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        cable = ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        if cable.returncode:
            pytest.skip(f"a veth pair is not permitted: {cable.stderr.strip()}")
        for number, (name, end) in enumerate(zip(names, ends, strict=True)):
            ip("link", "set", end, "netns", name)
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"10.99.0.{number + 1}/24", "dev", end)
            ip(*inside, "link", "set", end, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield names, ends
    finally:
        for name in names:
            ip("netns", "del", name)


def start_both(names, ends, out):
    return [
        start(
            rank,
            29511,
            *("--epochs", "500", "--out", out),
            code=HASTY,
            address="10.99.0.1",
            prefix=["ip", "netns", "exec", name],
            GLOO_SOCKET_IFNAME=end,
        )
        for rank, (name, end) in enumerate(zip(names, ends, strict=True))
    ]


@pytest.mark.parametrize("what", ["cable", "node"])
def test_between_two_machines_a_pulled_cable_and_a_killed_node_end_in_one_line(what, tmp_path):
    with two_namespaces() as (names, ends):
        nodes = start_both(names, ends, tmp_path / "a")
        try:
            wait_for(tmp_path / "a/checkpoint.ckpt", *nodes)
        except AssertionError:
            print([node.communicate() for node in nodes if node.poll() is not None])
            raise
        if what == "cable":
            ip("-n", names[1], "link", "set", ends[1], "down")
        else:
            nodes[1].kill()
        ended = finish(*nodes)
    for status, lines, said in ended if what == "cable" else ended[:1]:
        assert (status, len(lines)) == (2, 1), said
        line = lines[0]
        assert line.startswith("train: every process must go on to the end, got one that was lost: ")
        assert "continue with: foveal train --resume" in line
        assert "Traceback" not in said


def test_the_folder_of_a_node_is_where_the_first_process_is(tmp_path):
    """Without --out, too: one numbered folder, not one a node."""
    port = free_port()
    for status, lines, said in finish(*(start(r, port, "--epochs", 1, cwd=tmp_path) for r in range(2))):
        assert (status, lines) == (0, []), said
    assert [path.name for path in Path(tmp_path / "runs/train").iterdir()] == ["cifar_resnet8"]
