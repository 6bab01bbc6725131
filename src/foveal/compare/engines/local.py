"""Runs in processes of this machine."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from foveal.compare.engines import Event
from foveal.errors import FovealError
from foveal.machine import usable_cores

if TYPE_CHECKING:
    from foveal.compare.job import Job

RETURN_CODE_KILLED = -9
Message = tuple[dict[str, Any], bytes]


class WorkerProcess:
    """One process that does one run after the other, see `foveal.compare.engines.local_worker`.

    Args:
        threads: of PyTorch, there.
        log: file that collects what it prints.
        environment: variables that are set for it.
    """

    def __init__(self, threads: int, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        numbers = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "foveal.compare.engines.local_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **numbers, **(environment or {})},
                # Ctrl-C is answered by the process that asks, not by each of them
                start_new_session=True,
            )

    def ask(self, job: Mapping[str, Any], images: Path) -> None:
        """Give it a job as plain values; its answers come by `answer`."""
        assert self.process.stdin is not None
        # if it ended already, its last answer says so
        with suppress(BrokenPipeError):
            write_message(self.process.stdin, {"job": job, "images": str(images)})

    def answer(self) -> Message | None:
        """Wait for the next message; None where the process has ended."""
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):
            return read_message(self.process.stdout)
        return None

    def last_words(self, lines: int = 1) -> str:
        """What it printed last."""
        said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(said[-lines:]) or "it left no message"

    def how_it_ended(self) -> str:
        """With which code, in words."""
        code = self.process.wait()
        memory = " (out of memory? try fewer jobs)" if code == RETURN_CODE_KILLED else ""
        return f"ended with code {code}{memory}"

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError, ValueError):
                pipe.close()


class LocalEngine:
    """So many worker processes with so many threads each; none outlives the ``with`` block, or this process.

    Small networks are bound by overhead: two runs with one thread each are quicker than one with two.

    Args:
        device: "cpu", or "cuda": then one worker a GPU, in turn.
        jobs: workers; by default one for each usable core, or for each GPU. Each has as many threads as
            ``OMP_NUM_THREADS`` says where it is set, else its share of the cores.
        runs: how many there are to do.
        log: file that collects what the processes print.
    """

    def __init__(self, *, device: str, jobs: int | None, runs: int, log: Path) -> None:
        gpus = visible_gpus() if device == "cuda" else []
        cores = usable_cores()
        self.workers = max(1, min(jobs or (len(gpus) if gpus else cores), runs))
        asked = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(asked) if asked.isdigit() and int(asked) else max(1, cores // self.workers)
        self.gpus, self.log = gpus, log
        plural = "s" if self.threads > 1 else ""
        self.description = f"{self.workers} at a time with {self.threads} thread{plural} each"
        self.messages: queue.Queue[tuple[int, dict[str, Any] | None, bytes]] = queue.Queue()
        self.processes: list[WorkerProcess] = []

    def __enter__(self) -> LocalEngine:
        for number in range(self.workers):
            own = {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {}
            process = WorkerProcess(self.threads, self.log, own)
            self.processes.append(process)
            threading.Thread(target=self._read, args=(number, process), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.process.kill()
        for process in self.processes:
            process.stop()

    def _read(self, number: int, process: WorkerProcess) -> None:
        while (message := process.answer()) is not None:
            self.messages.put((number, *message))
        self.messages.put((number, None, b""))

    def run(self, jobs: Iterable[Job], images: Path) -> Iterator[Event]:
        """See `foveal.compare.engines.Engine`."""
        waiting = iter(jobs)
        current: dict[int, Job] = {}
        for number in range(len(self.processes)):
            self._give(number, waiting, current, images)
        while current:
            number, message, payload = self.messages.get()
            job = current.get(number)
            if job is None:
                continue
            if message is None:
                raise ChildProcessError(self._broken(number, job))
            if "step" in message:
                yield Event(job, step=message["step"])
            elif "result" in message:
                self._give(number, waiting, current, images)
                yield Event(job, result=message["result"], weights=payload or None)
            else:
                raise refusal(job, message)

    def _give(self, number: int, waiting: Iterator[Job], current: dict[int, Job], images: Path) -> None:
        current.pop(number, None)
        job = next(waiting, None)
        if job is not None:
            current[number] = job
            self.processes[number].ask(job.to_dict(), images)

    def _broken(self, number: int, job: Job) -> str:
        process = self.processes[number]
        return f"the process of {job.name} {process.how_it_ended()}: {process.last_words()}"


def refusal(job: Job, message: Mapping[str, Any]) -> Exception:
    """What to raise for a run that a worker could not do, from what it answered."""
    kinds = {"crash": ChildProcessError, "mistake": FovealError, "system": OSError}
    return kinds[message["kind"]](f"{job.name}: {message['error']}")


def visible_gpus() -> list[str]:
    """The values of CUDA_VISIBLE_DEVICES that stand for one GPU each."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def write_message(pipe: IO[bytes], message: dict[str, Any], payload: bytes = b"") -> None:
    """One line of JSON, with the number of bytes that follow it, and these."""
    line = json.dumps({**message, "bytes": len(payload)}).encode() + b"\n"
    pipe.write(line + payload)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """What `write_message` wrote, or None where the pipe has ended."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    size = message.pop("bytes")
    payload = pipe.read(size) if size else b""
    return (message, payload) if len(payload) == size else None
