"""Does the runs of a comparison that are not finished yet, and keeps each result as it comes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.compare.engines import Engine, make_engine
from foveal.compare.job import Job
from foveal.compare.progress import Progress
from foveal.files import write_bytes, write_json

if TYPE_CHECKING:
    from foveal.compare.experiment import Plan


def result_path(folder: Path, job: Job) -> Path:
    """Where the result of a run is."""
    return folder / ("runs" if job.trial_share is None else "trials") / f"{job.key}.json"


def weights_path(folder: Path, job: Job) -> Path:
    """Where the weights of a run are, if they are kept."""
    return folder / "runs" / f"{job.key}.safetensors"


def finished_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """The result of an earlier run with these very settings on these very data."""
    try:
        result = json.loads(result_path(folder, job).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = isinstance(result, dict) and result.get("settings") == json.loads(json.dumps(job.settings))
    return result if same else None


class Runner:
    """Does jobs on an engine, which is started, and the images stored, when the first job is not finished yet.

    Everything it started is gone when the ``with`` block ends.
    """

    def __init__(self, plan: Plan, folder: Path, engine: str, jobs: int | None, progress: Progress) -> None:
        self.plan, self.folder, self.engine, self.jobs, self.progress = plan, folder, engine, jobs, progress
        self.stack = ExitStack()
        self.workers: Engine | None = None
        self.images = Path()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def do(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Results by job key; those of earlier runs are taken as they are, others are written as they come."""
        found = {job.key: one for job in jobs if (one := finished_result(self.folder, job)) is not None}
        pending = [job for job in jobs if job.key not in found]
        self.progress.begin(jobs, found.values())
        if pending:
            self._start(len(pending))
        if self.workers is None:
            return found
        for event in self.workers.run(pending, self.images) if pending else ():
            if event.step is not None:
                self.progress.stepped(event.job, event.step)
            if event.result is None:
                continue
            if event.weights is not None:
                write_bytes(weights_path(self.folder, event.job), event.weights)
            path = result_path(self.folder, event.job)
            path.parent.mkdir(exist_ok=True)
            write_json(path, {**event.result, "settings": event.job.settings})
            found[event.job.key] = event.result
            self.progress.finished(event.job, event.result)
        return found

    def _start(self, runs: int) -> None:
        """Start the engine, and store the images where all workers find them."""
        from foveal.compare.experiment import store_images

        if self.workers is not None:
            return
        # of a comparison that was killed; the folder is locked, so nobody uses them
        for left in self.folder.glob(".images-*"):
            shutil.rmtree(left, ignore_errors=True)
        name = self.stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder, prefix=".images-"))
        self.images = Path(name)
        log = self.images / "log.txt"
        engine = make_engine(self.engine, device=self.plan.job.device, jobs=self.jobs, runs=runs, log=log)
        self.progress.say(f"{engine.description}; Ctrl-C keeps what is finished")
        store_images(self.plan, self.images)
        self.workers = self.stack.enter_context(engine)
