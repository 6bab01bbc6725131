"""Commands and code in real processes that a process forks which has imported everything: see `tests/zygote.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LONG = 900.0
"""Seconds after which what has not ended is taken to never end; nothing quicker than that is judged by them."""


class Trial:
    """A command that runs in a process of its own, in a session of its own."""

    def __init__(self, zygote, pid, folder, number):
        self.zygote, self.pid, self.files = zygote, pid, (folder / f"out{number}", folder / f"err{number}")
        self.status = None

    def wait(self, seconds=LONG):
        """The exit status, negative for a signal; None where it still runs."""
        if self.status is None:
            self.status = self.zygote.ask({"wait": self.pid, "seconds": seconds})
        return self.status

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    @property
    def out(self):
        return self.files[0].read_text(errors="surrogateescape")

    @property
    def err(self):
        return self.files[1].read_text(errors="surrogateescape")

    def left_processes(self, seconds=LONG):
        """Processes of the session that still live after the command ended and this time."""
        end = time.monotonic() + seconds
        while True:
            alive = [pid for pid in _session(self.pid) if pid != self.pid]
            if not alive or time.monotonic() > end:
                return alive
            time.sleep(0.1)


def _session(number):
    """Living processes of a session, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(rest[2]) == number and state != "Z":
                found.append(int(entry.name))
    return found


class Zygote:
    def __init__(self, folder):
        self.folder, self.count = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        assert json.loads(self.process.stdout.readline()) == "ready"

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, cwd, *words, code=None):
        self.count += 1
        files = {"out": str(self.folder / f"out{self.count}"), "err": str(self.folder / f"err{self.count}")}
        what = {"words": [str(word) for word in words]} if code is None else {"code": code}
        pid = self.ask({**what, **files, "cwd": str(cwd)})
        return Trial(self, pid, self.folder, self.count)

    def run(self, cwd, *words, code=None, seconds=LONG):
        """The command to its end."""
        trial = self.start(cwd, *words, code=code)
        if trial.wait(seconds) is None:
            os.killpg(trial.pid, signal.SIGKILL)
            trial.wait()
            pytest.fail(f"{words or 'the code'} did not end in {seconds:g} s: {trial.err[-400:]}")
        return trial

    def close(self):
        # not by the end of its input: a process that a test forked and left may hold the other end open
        self.process.kill()
        self.process.communicate()
