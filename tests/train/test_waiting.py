"""A process that waits where no handler of Python's runs: it ends by a signal all the same."""

import os
import signal
import subprocess
import sys
import weakref

import pytest

from foveal.train.waiting import ended_by_signals

# the signal goes to another thread, so that nothing interrupts the main one, as in a wait of PyTorch's
CODE = """
import ctypes, signal, threading, time
from foveal.train.waiting import ended_by_signals

signal.signal(signal.SIGTERM, lambda *_: None)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
with ended_by_signals(lambda: "stopped; kept: epoch 3", signals={signals}, grace={grace}):
    print("ready", flush=True)
    if {waits}:
        ctypes.CDLL(None).sleep(60)
print("left", flush=True)
time.sleep({after})
"""


def start(**options):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE.format(**{"grace": 0.1, "waits": True, "after": 0, **options})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signals", [1, 2])
def test_so_many_signals_end_it_with_one_line(signals):
    process = start(signals=signals)
    for _ in range(signals):
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        signal.sigtimedwait([], 0.5)
    shown, said = process.communicate(timeout=60)
    assert (process.returncode, shown, said) == (130, "", "train: stopped; kept: epoch 3\n")


def test_a_process_that_has_left_the_wait_is_let_alone():
    process = start(signals=1, waits=False, after=1)
    assert process.stdout.readline() == "left\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_nothing_is_kept_by_a_thread_once_the_wait_is_over():
    """What a thread frees while Python ends aborts the process where it is a process group."""

    class Run:
        def line(self):
            return "stopped"

    run = Run()
    with ended_by_signals(run.line):
        kept = weakref.ref(run)
    del run
    assert kept() is None


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_does_not_keep_the_wait():
    """Workers that load data are forked meanwhile and have all that is open."""
    reading, writing = os.pipe()
    with ended_by_signals(str):
        if (child := os.fork()) == 0:
            os.read(reading, 1)
            os._exit(0)
    os.write(writing, b"x")
    assert os.waitpid(child, 0)[1] == 0
    os.close(reading)
    os.close(writing)
