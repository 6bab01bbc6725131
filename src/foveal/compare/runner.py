"""Does the runs of a comparison that are not finished yet, and keeps each result as it comes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.compare.arrays import store_images
from foveal.compare.engines import Engine, Event, RunDied, make_engine
from foveal.compare.job import Job
from foveal.compare.progress import Progress
from foveal.files import write_bytes, write_json, write_text
from foveal.train.progress import NAMED, notes_on, unreadable_in

if TYPE_CHECKING:
    from foveal.compare.plan import Plan


def result_path(folder: Path, job: Job) -> Path:
    """Where the result of a run is."""
    return folder / ("runs" if job.trial_share is None else "trials") / f"{job.key}.json"


def weights_path(folder: Path, job: Job) -> Path:
    """Where the weights of a run are, if they are kept."""
    return folder / "runs" / f"{job.key}.safetensors"


def unreadable_path(folder: Path) -> Path:
    """Where the files that no run could read are listed, with the reason."""
    return folder / "unreadable.json"


def unreadable_files(folder: Path) -> dict[str, str]:
    """The files that no run could read, name -> reason; of runs that are finished too."""
    path = unreadable_path(folder)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def finished_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """The result of an earlier run with these very settings on these very data."""
    try:
        result = json.loads(result_path(folder, job).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = isinstance(result, dict) and result.get("settings") == json.loads(json.dumps(job.settings))
    return result if same else None


class Runner:
    """Does jobs of one plan after the other on one engine, which is started when the first job is not finished yet.

    A plan's images are stored when its first job is done. Everything that was started or stored for the runs is gone
    when the ``with`` block ends.

    Args:
        folder: of the comparison; images are stored below it meanwhile.
        engine, jobs, engine_options: as `foveal.compare.compare` takes them.
        device: "cpu" or "cuda".
        progress: is told what happens.
    """

    def __init__(
        self,
        folder: Path,
        engine: str,
        jobs: int | None,
        device: str,
        progress: Progress,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.engine, self.jobs, self.device = folder, engine, jobs, device
        self.engine_options = engine_options
        self.progress = progress
        self.stack = ExitStack()
        self.workers: Engine | None = None
        self.images: dict[Path, Path] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def pending(self, jobs: Sequence[Job], folder: Path) -> list[Job]:
        """The jobs whose results are not there yet."""
        return [job for job in jobs if finished_result(folder, job) is None]

    def do(self, plan: Plan, jobs: Sequence[Job], folder: Path) -> dict[str, dict[str, Any]]:
        """Results by job key; those of earlier runs are taken as they are, others are written as they come.

        Args:
            plan: what the jobs belong to.
            folder: where its results are kept.
        """
        found = {job.key: one for job in jobs if (one := finished_result(folder, job)) is not None}
        pending = [job for job in jobs if job.key not in found]
        self.progress.begin(plan, jobs, found.values())
        if not pending:
            return found
        for event in self._events(plan, pending, folder):
            if event.step is not None:
                self.progress.stepped(event.job, event.step)
            if event.result is None:
                continue
            path = result_path(folder, event.job)
            path.parent.mkdir(parents=True, exist_ok=True)
            if event.weights is not None:
                write_bytes(weights_path(folder, event.job), event.weights)
            write_json(path, {**event.result, "settings": event.job.settings})
            found[event.job.key] = event.result
            self.progress.finished(event.job, event.result)
        return found

    def time(self, plan: Plan, jobs: Sequence[Job], folder: Path) -> list[dict[str, Any]]:
        """What a few steps of each job take, side by side as the runs will be; nothing is kept."""
        timed = [job.timed() for job in jobs]
        events = self._events(plan, timed, folder)
        return [event.result for event in events if event.result is not None]

    def _events(self, plan: Plan, jobs: Sequence[Job], folder: Path) -> Iterator[Event]:
        """What happens to the jobs. Of one that was given up, the log is kept where its result would be."""
        try:
            engine = self._started(max(len(jobs), len(plan.jobs)))
            for event in engine.run(jobs, self._stored(plan, folder)):
                if event.note is not None:
                    self.progress.say(event.note)
                yield event
        except RunDied as died:
            log = result_path(folder, died.job).with_suffix(".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            write_text(log, died.log + "\n")
            raise ChildProcessError(f"{died}; what it printed: {log}") from None

    @property
    def can_time(self) -> bool:
        """Whether a few steps are timed before the runs: not where each job waits in the queue of a batch system."""
        return self.engine != "slurm"

    @property
    def at_once(self) -> int:
        """Runs at a time."""
        return self._started(1).workers

    def _started(self, runs: int) -> Engine:
        """The engine, started when it is first needed."""
        if self.workers is None:
            # of a comparison that was killed; the folder is locked, so nobody uses them
            for left in self.folder.glob(".images-*"):
                shutil.rmtree(left, ignore_errors=True)
            name = self.stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder, prefix=".images-"))
            self.place = Path(name)
            log = self.place / "log.txt"
            engine = make_engine(
                self.engine,
                device=self.device,
                jobs=self.jobs,
                runs=runs,
                log=log,
                options=self.engine_options,
            )
            self.workers = self.stack.enter_context(engine)
            self.progress.say(f"{engine.description}; Ctrl-C keeps what is finished")
        return self.workers

    def _stored(self, plan: Plan, folder: Path) -> Path:
        """Where the plan's images are, for all workers to find."""
        if folder not in self.images:
            place = self.place / str(len(self.images))
            place.mkdir()
            for note in notes_on(plan.data):
                self.progress.say(note)
            store_images(plan.data, plan.job, place)
            unreadable = unreadable_in(plan.data)
            # of these images, not of those before they were mended
            unreadable_path(folder).unlink(missing_ok=True)
            if unreadable:
                write_json(unreadable_path(folder), unreadable)
                self.progress.say(f"unreadable and left out of all runs: {len(unreadable)}")
            for reason in list(unreadable.values())[:NAMED]:
                self.progress.say(f"left out: {' '.join(reason.split())}")
            self.images[folder] = place
        return self.images[folder]
