"""Runs as the elements of job arrays of SLURM: element i does run i, and leaves its answer beside the results.

Every node must see the folder of the comparison. SLURM itself does again what a lost or preempted node was doing.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import subprocess
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.compare.engines import Event, RunDied
from foveal.compare.engines.local import refusal
from foveal.errors import FovealError
from foveal.files import write_bytes, write_json

if TYPE_CHECKING:
    from foveal.compare.job import Job

OPTIONS = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
    "minutes": "timeout_min",
    "mem_gb": "mem_gb",
    "num_cpus": "cpus_per_task",
    "num_gpus": "gpus_per_node",
}
"""What a person may say of an element -> submitit's name for it."""
LARGEST_ARRAY = 1000
"""Elements of one array: SLURM takes 1001 unless told otherwise."""
POLL_SECONDS = 2.0
# a shared disk may show an answer later than SLURM says that its element is gone
LATE_SECONDS = 30.0
LOG_LINES = 40


class SlurmEngine:
    """Arrays of SLURM, submitted by submitit; when the ``with`` block ends, what still waits or runs is cancelled.

    Args:
        device: "cpu", or "cuda": then an element has ``num_gpus``.
        jobs: runs at a time; by default as many as SLURM lets run.
        log: a file in a folder that all nodes see; answers are left two folders above it, in ``slurm``.
        options: of `OPTIONS`.
        cluster: "slurm"; "local" of submitit does the same in processes of this machine, for tests.

    Raises:
        FovealError: submitit is not installed, or there is no SLURM here.
    """

    def __init__(
        self, *, device: str, jobs: int | None, log: Path, options: Mapping[str, Any], cluster: str = "slurm"
    ) -> None:
        if find_spec("submitit") is None:
            raise FovealError(
                'engine slurm needs the package submitit, which is not installed: pip install "foveal[slurm]"'
            )
        import submitit

        self.cluster, self.threads = cluster, options.get("num_cpus", 1)
        self.answers = log.parent.parent / "slurm"
        owner = hashlib.blake2b(str(self.answers.resolve()).encode(), digest_size=6).hexdigest()
        self.name = f"foveal-{owner}"
        self.workers, self.log = 0, log
        self.description = f"arrays of SLURM named {self.name}" + (f", {jobs} at a time" if jobs else "")
        wanted = {OPTIONS[name]: value for name, value in {"num_cpus": 1, "minutes": 60, **options}.items()}
        if device == "cuda":
            wanted.setdefault("gpus_per_node", 1)
        try:
            self.executor = submitit.AutoExecutor(log.parent / "submitit", cluster=cluster)
            if cluster != "slurm":
                wanted = {name: value for name, value in wanted.items() if not name.startswith("slurm_")}
            self.executor.update_parameters(
                name=self.name, slurm_array_parallelism=jobs or LARGEST_ARRAY, **wanted
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise FovealError(
                f"SLURM must take {dict(options)}, got: {' '.join(str(error).split())}"
            ) from None
        self.submitted: list[Any] = []

    def __enter__(self) -> SlurmEngine:
        self.answers.mkdir(exist_ok=True)
        if self.cluster == "slurm":
            # of a driver that was killed: the folder is locked, so nobody waits for them
            subprocess.run(["scancel", "--user", getpass.getuser(), "--name", self.name], check=False)
        return self

    def __exit__(self, *error: object) -> None:
        for element in self._alive(self.submitted):
            element.cancel(check=False)
        if self.answers.is_dir() and not any(self.answers.iterdir()):
            self.answers.rmdir()

    def run(self, jobs: Iterable[Job], images: Path) -> Iterator[Event]:
        """See `foveal.compare.engines.Engine`; answers of an earlier driver are taken, and what died is raised last."""
        waiting = {self.answers / f"{job.key}{'-timed' * job.only_time}.json": job for job in jobs}
        missing = [path for path in waiting if not path.exists()]
        elements: dict[Path, Any] = {}
        for start in range(0, len(missing), LARGEST_ARRAY):
            part = missing[start : start + LARGEST_ARRAY]
            asked = [(waiting[path].to_dict(), str(images), str(path), self.threads) for path in part]
            made = self.executor.map_array(do_element, *zip(*asked, strict=True))
            self.submitted += made
            elements |= dict(zip(part, made, strict=True))
        gone_since: dict[Path, float] = {}
        given_up: list[RunDied] = []
        while waiting:
            for path in [path for path in waiting if path.exists()]:
                job, answer = waiting.pop(path), json.loads(path.read_text(encoding="utf-8"))
                weights = path.with_suffix(".safetensors")
                kept = weights.read_bytes() if weights.exists() else None
                yield Event(job, result={**answer["result"], "host": answer["host"]}, weights=kept)
                # the driver has written the result now
                path.unlink()
                weights.unlink(missing_ok=True)
            for path, job in waiting.items():
                if (refused := _refusal_path(images, path)).exists():
                    raise refusal(job, json.loads(refused.read_text(encoding="utf-8")))
            alive = {id(one) for one in self._alive([elements[path] for path in waiting])}
            for path in [path for path in waiting if id(elements[path]) not in alive]:
                since = gone_since.setdefault(path, time.monotonic())
                if time.monotonic() - since > LATE_SECONDS and not path.exists():
                    job, element = waiting.pop(path), elements[path]
                    line = f"{job.name}, element {element.job_id} of SLURM, ended without an answer"
                    said = "\n".join((element.stderr() or "").splitlines()[-LOG_LINES:])
                    given_up.append(RunDied(line, job, said))
                    yield Event(job, note=f"{line}; going on with the others")
            if waiting:
                time.sleep(POLL_SECONDS)
        if given_up:
            raise given_up[0]

    def _alive(self, elements: Sequence[Any]) -> list[Any]:
        """Those that wait or run. SLURM's accounting, which submitit asks, is not kept everywhere; its queue is."""
        if self.cluster != "slurm":
            return [element for element in elements if not element.done()]
        if not elements:
            return []
        asked = [
            "squeue",
            "--noheader",
            "--array",
            "--format=%i",
            "--user",
            getpass.getuser(),
            "--name",
            self.name,
        ]
        listed = subprocess.run(asked, capture_output=True, text=True, check=False)
        if listed.returncode:
            # its controller is away for a moment
            return list(elements)
        queued = set(listed.stdout.split())
        return [element for element in elements if element.job_id in queued]


def _refusal_path(images: Path, answer: Path) -> Path:
    """Where an element says why it has no answer: in the driver's own folder, which goes with the driver.

    An element that SLURM has not ended yet when the next driver clears its images away would else fail in that driver's
    name.
    """
    return images / f"{answer.stem}.refused.json"


def do_element(job: Mapping[str, Any], images: str, answer: str, threads: int) -> None:
    """What an element does: one run, whose answer it leaves in a file; nothing where that is there already."""
    import platform

    import torch

    from foveal.compare.job import Job
    from foveal.compare.worker import run_job

    path, refused = Path(answer), _refusal_path(Path(images), Path(answer))
    if path.exists():
        return
    torch.set_num_threads(threads)
    try:
        result, weights = run_job(Job.from_dict(dict(job)), Path(images))
    except FovealError as error:
        write_json(refused, {"error": str(error), "kind": "mistake"})
    except OSError as error:
        write_json(refused, {"error": str(error), "kind": "system"})
    except Exception as error:
        traceback.print_exc()
        write_json(refused, {"error": f"{type(error).__name__}: {error}", "kind": "crash"})
    else:
        if weights is not None:
            write_bytes(path.with_suffix(".safetensors"), weights)
        write_json(path, {"result": result, "host": platform.node()})
