"""Worker processes that do one run after the other, and the messages they send."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveal.compare.worker import Job


class Pool:
    """So many worker processes with so many threads each; all are gone when the ``with`` block ends.

    Args:
        workers: processes.
        threads: for each.
        log: file that collects what the processes print.
        gpus: values of CUDA_VISIBLE_DEVICES that the processes take in turn; none to leave it alone.
    """

    def __init__(self, workers: int, threads: int, log: Path, gpus: Sequence[str] = ()) -> None:
        self.log = log
        self.messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.processes: list[subprocess.Popen[str]] = []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with log.open("a") as errors:
            for number in range(workers):
                if gpus:
                    environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "foveal.compare.worker"],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        env=environment,
                        encoding="utf-8",
                        start_new_session=True,  # Ctrl-C is answered here, not by each of them
                    )
                )
        for number, process in enumerate(self.processes):
            threading.Thread(target=self._read, args=(number, process), daemon=True).start()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # results are written in one step: nothing can be left half done
        for process in self.processes:
            process.wait()
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.messages.put((number, json.loads(line)))
        self.messages.put((number, None))

    def do(
        self,
        jobs: Iterable[Job],
        on_step: Callable[[Job, int], None],
        on_result: Callable[[Job, dict[str, Any]], None],
    ) -> None:
        """Do all jobs, in their order as far as several processes allow.

        Raises:
            ValueError, OSError: what a worker raised.
            ChildProcessError: a worker broke down.
        """
        waiting = iter(jobs)
        current: dict[int, Job] = {}
        for number in range(len(self.processes)):
            self._give(number, waiting, current)
        while current:
            number, message = self.messages.get()
            job = current.get(number)
            if job is None:
                continue
            if message is None:
                code = self.processes[number].wait()
                raise ChildProcessError(
                    f"the process of {job.variant.name}, seed {job.config.seed}, ended with code {code}"
                    f"{' (out of memory? try fewer jobs)' if code == -9 else ''}: {self._last_line()}"
                )
            if "step" in message:
                on_step(job, message["step"])
            elif "result" in message:
                on_result(job, message["result"])
                self._give(number, waiting, current)
            else:
                kinds = {"ValueError": ValueError, "crash": ChildProcessError}
                where = f"{job.variant.name}, seed {job.config.seed}"
                raise kinds.get(message["kind"], OSError)(f"compare: {where}: {message['error']}")

    def _give(self, number: int, waiting: Iterator[Job], current: dict[int, Job]) -> None:
        current.pop(number, None)
        job = next(waiting, None)
        if job is not None:
            current[number] = job
            process = self.processes[number]
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it ended already: its last message says so
                process.stdin.write(json.dumps(asdict(job)) + "\n")
                process.stdin.flush()

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it left no message"
