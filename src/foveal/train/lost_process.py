"""Where a process of a run on several devices is lost, the one that started it ends with one line."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from subprocess import Popen

from foveal.terminal import write_error

GRACE = 10.0
"""Seconds for a process to notice by itself, as it does when it waits for the other's gradients."""
PERIOD = 0.2


class ProcessWatch(threading.Thread):
    """Watches processes that this one started, and ends this one with status 2 where one of them fails.

    Validation, or a wait that no signal interrupts, may last for minutes before anybody asks the lost process for
    anything. Lightning's own observer kills at once, and without a word.

    Args:
        children: the processes.
        message: from why, such as "process 7 ended with status -9", to the line for the person.
        grace: seconds for this process to end by itself before it is ended.
    """

    def __init__(
        self, children: Sequence[Popen[bytes]], message: Callable[[str], str], *, grace: float = GRACE
    ) -> None:
        super().__init__(daemon=True, name="process-watch")
        self.children, self.message, self.grace = children, message, grace
        self.stopped = threading.Event()

    def stop(self) -> None:
        """End the watch and wait until it has let go of all that its message needs."""
        self.stopped.set()
        self.join()

    def run(self) -> None:
        while (failed := self._failed()) is None:
            if all(child.poll() == 0 for child in self.children):
                return
            if self.stopped.wait(PERIOD):
                return
        if self.stopped.wait(self.grace):
            return
        line = self.message(f"process {failed.pid} ended with status {failed.returncode}")
        write_error(f"train: {line}")
        for child in self.children:
            child.kill()
        os._exit(2)

    def _failed(self) -> Popen[bytes] | None:
        return next((child for child in self.children if child.poll()), None)
