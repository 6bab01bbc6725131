"""The process that does one run after the other: ``python -m foveal.compare.engines.local_worker``.

It reads jobs from its standard input and answers on its standard output. It ends when its input ends, in the middle of
a run too: a worker never outlives the process that asked. (Not ``multiprocessing``: that would import the caller's
script again in every worker.)
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from foveal.compare.engines.local import read_message, write_message
from foveal.compare.job import Job
from foveal.compare.worker import run_job
from foveal.errors import FovealError

STEP_SECONDS = 0.25
"""Time between two messages that a run makes progress."""


def main() -> None:
    """Do jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    # whatever else prints does not disturb the answers
    os.dup2(2, 1)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        while (message := read_message(sys.stdin.buffer)) is not None:
            jobs.put(message[0])
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    last = 0.0

    def on_step(step: int) -> None:
        nonlocal last
        if time.monotonic() - last > STEP_SECONDS:
            last = time.monotonic()
            write_message(answers, {"step": step})

    while True:
        message = jobs.get()
        try:
            result, weights = run_job(Job.from_dict(message["job"]), Path(message["images"]), on_step)
            write_message(answers, {"result": result}, weights or b"")
        except FovealError as error:
            write_message(answers, {"error": str(error), "kind": "mistake"})
        except OSError as error:
            write_message(answers, {"error": str(error), "kind": "system"})
        except Exception as error:
            traceback.print_exc()
            write_message(answers, {"error": f"{type(error).__name__}: {error}", "kind": "crash"})


if __name__ == "__main__":
    main()
