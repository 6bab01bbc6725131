"""Where the runs of a comparison are done. An engine is one more file here.

An engine takes jobs and yields what happens to them. A worker returns its result, and the weights as bytes; only the
driver writes files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.compare.job import Job


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    Attributes:
        job: which one.
        step: optimiser steps done, if it is still running.
        result: what `foveal.compare.worker.run_job` returned, if it is finished.
        weights: the trained weights as the bytes of a file, if the job keeps them.
    """

    job: Job
    step: int | None = None
    result: dict[str, Any] | None = None
    weights: bytes | None = None


class Engine(Protocol):
    """Does jobs. All its processes are gone when the ``with`` block ends, however it ends."""

    description: str
    """How many runs at a time, and with what, for people."""
    workers: int
    """Runs at a time."""

    def run(self, jobs: Iterable[Job], images: Path) -> Iterator[Event]:
        """Do all jobs, in their order as far as several workers allow, and yield what happens.

        Args:
            images: folder of `foveal.compare.arrays.save_arrays`.

        Raises:
            FovealError, OSError: what a worker raised.
            ChildProcessError: a worker broke down.
        """
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(self, *error: object) -> None: ...


ENGINES: Sequence[str] = ("local",)


def make_engine(name: str, *, device: str, jobs: int | None, runs: int, log: Path) -> Engine:
    """The engine of that name.

    Args:
        device: "cpu" or "cuda".
        jobs: runs at a time; None lets the engine decide.
        runs: how many there are to do.
        log: file that collects what the workers print.

    Raises:
        FovealError: there is no such engine.
    """
    if name == "local":
        from foveal.compare.engines.local import LocalEngine

        return LocalEngine(device=device, jobs=jobs, runs=runs, log=log)
    raise FovealError(f"engine must be one of {', '.join(ENGINES)}, got {name}")
