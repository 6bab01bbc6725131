"""An engine of comparisons that does its runs in this process: tests of what comes of them need no other one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from foveal.compare.engines import Event
from foveal.compare.job import Job
from foveal.compare.worker import run_job


class InThisProcess:
    """One run after the other, here."""

    description = "one at a time, in this process"
    workers = 1

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, jobs: Iterable[Job], images: Path) -> Iterator[Event]:
        """See `foveal.compare.engines.Engine`."""
        for job in jobs:
            result, weights = run_job(job, images)
            yield Event(job, result=result, weights=weights)
