"""Where the runs of a comparison are done. An engine is one more file here.

An engine takes jobs and yields what happens to them. A worker returns its result, and the weights as bytes; only the
driver writes files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        note: what a person should know of it.
    """

    job: Job
    step: int | None = None
    result: dict[str, Any] | None = None
    weights: bytes | None = None
    note: str | None = None


class RunDied(ChildProcessError):
    """A run ended its process again and again; ``log`` is what it printed last."""

    def __init__(self, line: str, job: Job, log: str) -> None:
        super().__init__(line)
        self.job, self.log = job, log


class Engine(Protocol):
    """Does jobs. All its processes are gone when the ``with`` block ends, however it ends."""

    description: str
    """How many runs at a time, and with what, for people."""
    workers: int
    """Runs at a time; 0 where nobody knows before they run."""

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


ENGINES: Mapping[str, Sequence[str]] = {
    "local": (),
    "ray": ("num_cpus", "num_gpus"),
    "slurm": ("num_cpus", "num_gpus", "mem_gb", "minutes", "partition", "account", "qos", "constraint"),
}
"""Name -> the options that it takes."""


def make_engine(
    name: str,
    *,
    device: str,
    jobs: int | None,
    runs: int,
    log: Path,
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine of that name.

    Args:
        name: "local", "slurm", "ray", or "ray://HOST:PORT" of a cluster that is there.
        device: "cpu" or "cuda".
        jobs: runs at a time; None lets the engine decide.
        runs: how many there are to do.
        log: file that collects what the workers print.
        options: more of what only this engine takes.

    Raises:
        FovealError: there is no such engine, or it takes no such option.
    """
    kind, address = name.partition("://")[0], name if "://" in name else None
    if kind not in ENGINES or (address is not None and kind != "ray"):
        raise FovealError(f"engine must be one of {', '.join(ENGINES)} or ray://HOST:PORT, got {name}")
    options = options or {}
    unknown = sorted(set(options) - set(ENGINES[kind]))
    if unknown:
        known = ", ".join(ENGINES[kind]) or "none"
        raise FovealError(f"engine_options of {kind} are {known}, got {', '.join(unknown)}")
    if kind == "ray":
        from foveal.compare.engines.ray import RayEngine

        return RayEngine(address, device=device, jobs=jobs, log=log, options=options)
    if kind == "slurm":
        from foveal.compare.engines.slurm import SlurmEngine

        return SlurmEngine(device=device, jobs=jobs, log=log, options=options)
    from foveal.compare.engines.local import LocalEngine

    return LocalEngine(device=device, jobs=jobs, runs=runs, log=log)
