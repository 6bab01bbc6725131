"""Ctrl-C and SIGTERM where a process waits for another one, in code of PyTorch that no signal handler interrupts."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

GRACE = 2.0
"""Seconds in which the main thread may answer the signal itself, as it does wherever it runs Python."""


@contextmanager
def ended_by_signals(line: Callable[[], str], *, signals: int = 1, grace: float = GRACE) -> Iterator[None]:
    """Within it, so many signals end this process and those that it started, with one line and status 130.

    Only where the main thread does not answer by itself: a handler of Python's runs once the wait is over, which for a
    process that was lost is never. The number of a signal is written into a pipe at once, and another thread reads it.

    Args:
        line: what to say then.
        signals: how many it takes.
        grace: seconds for the main thread to leave the ``with`` block.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    left = threading.Event()

    def watch() -> None:
        missing = signals
        while number := os.read(reading, 1)[0]:
            missing -= number in (signal.SIGINT, signal.SIGTERM)
            if missing <= 0 and not left.wait(grace):
                # of the processes of one machine the first says so
                if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
                    print(f"train: {line()}", file=sys.stderr, flush=True)
                for child in psutil.Process().children(recursive=True):
                    child.kill()
                os._exit(130)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watching = threading.Thread(target=watch, daemon=True, name="signals")
    watching.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.write(writing, b"\0")  # closing says nothing: workers that were forked meanwhile hold a copy
        # its last act is to let go of ``line`` and of all that hangs on it, which must be before Python's own end
        watching.join()
        os.close(writing)
        os.close(reading)
