"""Runs on the nodes of a Ray cluster: one that is there, or one that is started on this machine for the comparison.

A run is a task of Ray. Images travel once to each node, through Ray's object store; results and weights come back as
bytes. No disk is shared. Ray repeats what a lost node was doing; what ends its own process is repeated here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from foveal.compare.engines import Event, RunDied
from foveal.compare.engines.local import refusal
from foveal.errors import FovealError
from foveal.machine import versions
from foveal.signals import kept_signals

if TYPE_CHECKING:
    from foveal.compare.job import Job

EQUAL_VERSIONS = ("foveal", "torch")
"""Packages whose versions on a node must be those of the driver."""
RETRIES = 3
"""How often Ray repeats a run whose node or worker was lost."""
DEATHS = 3
"""A run that ended its process so often is given up."""
CHUNK_BYTES = 2**26
"""Of a file, in one object of the store."""
POLL_SECONDS = 1.0
CONNECT_SECONDS = 10.0
CLEAN_SECONDS = 20.0


class RayEngine:
    """Tasks of Ray, spread over its nodes; when the ``with`` block ends, Ray ends those that still run.

    Args:
        address: of a cluster, "ray://HOST:PORT" or "HOST:PORT"; None takes that in RAY_ADDRESS, or starts a cluster of
            this machine alone, which listens on the loopback interface only.
        device: "cpu", or "cuda": then a run takes ``num_gpus``.
        jobs: runs at a time; by default as many as the nodes have room for, those that join later too.
        log: file that collects what Ray says.
        options: ``num_cpus`` of a run, also its threads (1), and ``num_gpus`` (1 with cuda), which may be a fraction.

    Raises:
        FovealError: Ray is not installed, or an option is wrong.
    """

    def __init__(
        self, address: str | None, *, device: str, jobs: int | None, log: Path, options: Mapping[str, Any]
    ) -> None:
        if find_spec("ray") is None:
            raise FovealError(
                'engine ray needs the package ray, which is not installed: pip install "foveal[ray]"'
            )
        self.cpus = options.get("num_cpus", 1)
        self.gpus = options.get("num_gpus", 1) if device == "cuda" else 0
        if not isinstance(self.cpus, int) or self.cpus < 1:
            raise FovealError(f"num_cpus must be a whole number of at least 1, got {self.cpus}")
        if device == "cuda" and not (isinstance(self.gpus, int | float) and self.gpus > 0):
            raise FovealError(f"num_gpus must be above 0, got {self.gpus}")
        self.address, self.jobs, self.log = address or os.environ.get("RAY_ADDRESS"), jobs, log
        self.refused: dict[str, str] = {}
        self.stored: dict[tuple[Path | str, ...], tuple[str, Any, dict[str, str]]] = {}
        self.stack = ExitStack()
        self.seen = 0.0
        self.workers, self.description = 0, ""

    def __enter__(self) -> RayEngine:
        if self.address is None:
            # Ray's name for "this machine alone": what it starts then listens on the loopback interface
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        else:
            require_listener(self.address)
        import ray
        from ray.exceptions import RayError

        logging.getLogger("ray").setLevel(logging.ERROR)
        with ExitStack() as stack:
            if not ray.is_initialized():
                own: dict[str, Any] = {"include_dashboard": False} if self.address is None else {}
                try:
                    with kept_signals():  # Ray's own answer to SIGTERM is an abort
                        ray.init(
                            address=self.address or "local",
                            log_to_driver=False,
                            logging_level=logging.ERROR,
                            **own,
                        )
                except (ConnectionError, RuntimeError, ValueError, RayError) as error:
                    reason = " ".join(str(error).split())[:200]
                    raise FovealError(
                        f"Ray must answer at {self.address or 'this machine'}, got: {reason}"
                    ) from None
                stack.callback(ray.shutdown)
            # what Ray says of lost nodes would go to the standard output
            stack.enter_context(patch("ray._private.worker.print_to_stdstream", self._keep))
            self.task: Any = ray.remote(task_function())
            self.workers = self._count_room()
            if not self.workers:
                raise FovealError(
                    f"a node must have room for a run, with num_cpus={self.cpus} and num_gpus={self.gpus}, got none "
                    f"in the cluster at {self.address or 'this machine'}"
                )
            stack.callback(self._clean_nodes)
            self.stack = stack.pop_all()
        where = f"the cluster at {self.address}" if self.address else "a Ray of this machine alone"
        plural = "s" if self.cpus > 1 else ""
        self.description = f"{self.workers} at a time with {self.cpus} thread{plural} each, on {where}"
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _keep(self, data: Mapping[str, Any], **_: Any) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.writelines(f"{line}\n" for line in data["lines"])

    # ---------------------------------------------------------------------------------------------------------- runs

    def run(self, jobs: Iterable[Job], images: Path) -> Iterator[Event]:
        """See `foveal.compare.engines.Engine`. A run that is given up ends the others not, but is raised at the end."""
        import ray

        waiting, running = deque(jobs), {}
        files = sorted({path for job in waiting for path in needed_files(job)})
        stored = self._stored(images, files)
        deaths: Counter[str] = Counter()
        given_up: list[RunDied] = []
        while waiting or running:
            while waiting and len(running) < self._room():
                job = waiting.popleft()
                running[self._submit(job, *stored)] = job
            done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in done:
                job = running.pop(reference)
                answer = answer_of(reference)
                if "refused" in answer:
                    waiting.appendleft(job)
                    yield from self._refuse(job, answer)
                elif "died" in answer:
                    deaths[job.key] += 1
                    how = f"{answer['died']} on {answer['host']}"
                    if deaths[job.key] < DEATHS:
                        waiting.append(job)
                        yield Event(job, note=f"{job.name}: its process {how}; once more")
                        continue
                    line = f"{job.name} ended its process {DEATHS} times; the last one {how}"
                    given_up.append(RunDied(line, job, answer["log"]))
                    yield Event(job, note=f"{line}; going on with the others")
                elif "lost" in answer:
                    line = f"{job.name} was lost {RETRIES + 1} times: {answer['lost']}"
                    given_up.append(RunDied(line, job, ""))
                elif "error" in answer:
                    raise refusal(job, answer)
                else:
                    result = {**answer["result"], "host": answer["host"]}
                    yield Event(job, result=result, weights=answer["weights"])
        if given_up:
            raise given_up[0]

    def _submit(self, job: Job, key: str, stored: Any, places: Mapping[str, str]) -> Any:
        where = {"ray.io/node-id": f"!in({','.join(self.refused)})"} if self.refused else None
        task = self.task.options(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
            label_selector=where,
        )
        wanted = {name: versions()[name] for name in EQUAL_VERSIONS}
        moved = {path: places[path] for path in needed_files(job)}
        # in a list, so that a node fetches what is stored only if it lacks it
        return task.remote(wanted, job.to_dict(), moved, key, [stored], self.cpus)

    def _stored(self, images: Path, files: Sequence[str]) -> tuple[str, Any, dict[str, str]]:
        """The images and these files, put into Ray's store once: their name on a node, the reference to them, and
        file -> where a node has it."""
        if (images, *files) not in self.stored:
            import numpy as np
            import ray

            # the folder of the comparison is locked: nobody else uses what is stored in its name
            owner = f"{socket.gethostname()}{self.log.parent.parent.resolve()}"
            digest = hashlib.blake2b(owner.encode(), digest_size=16)
            places = {path: f"files/{number}-{Path(path).name}" for number, path in enumerate(files)}
            paths = {f"images/{path.name}": path for path in sorted(images.iterdir())}
            contents: dict[str, list[Any]] = {}
            for name, path in {**paths, **{place: Path(path) for path, place in places.items()}}.items():
                digest.update(name.encode())
                contents[name] = []
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
                        contents[name].append(ray.put(np.frombuffer(chunk, np.uint8)))
            self.stored[images, *files] = (digest.hexdigest(), ray.put(contents), places)
        return self.stored[images, *files]

    # --------------------------------------------------------------------------------------------------------- nodes

    def _nodes(self) -> list[dict[str, Any]]:
        """Those that are there and not refused."""
        import ray

        return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in self.refused]

    def _count_room(self) -> int:
        """Runs that the nodes have room for at a time, up to ``jobs``."""
        self.seen = time.monotonic()
        room = 0
        for node in self._nodes():
            resources = node["Resources"]
            here = int(resources.get("CPU", 0) // self.cpus)
            if self.gpus:
                # a run has its share of one GPU, or several whole ones
                share = int(1 / self.gpus) if self.gpus < 1 else 1 / self.gpus
                here = min(here, int(resources.get("GPU", 0) * share))
            room += here
        return min(room, self.jobs or room)

    def _room(self) -> int:
        """Tasks that are given to Ray at a time: so many wait there that no node is without one between two runs."""
        if time.monotonic() - self.seen > POLL_SECONDS:
            self.workers = self._count_room()
        return self.jobs or max(1, 2 * self.workers)

    def _refuse(self, job: Job, answer: Mapping[str, Any]) -> Iterator[Event]:
        node, found = answer["node"], answer["refused"]
        if node in self.refused:
            return
        self.refused[node] = answer["host"]
        here = ", ".join(f"{name} {versions()[name]}" for name in EQUAL_VERSIONS)
        there = ", ".join(f"{name} {found[name] or 'not installed'}" for name in EQUAL_VERSIONS)
        line = f"every node must have {here}, as this process has, got {there} on {answer['host']}"
        if not self._count_room():
            raise FovealError(f"{line}; no other node has room for a run")
        yield Event(job, note=f"{line}; that node is left out")

    def _clean_nodes(self) -> None:
        """Remove what was stored on the nodes, as far as they still answer."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        keys = [key for key, _, _ in self.stored.values()]
        clean: Any = ray.remote(clean_function())
        asked = []
        for node in self._nodes() if keys else []:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(clean.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(keys))
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=CLEAN_SECONDS)


def answer_of(reference: Any) -> dict[str, Any]:
    """What a task returned; "lost" and the reason where Ray gave it up."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError:
        # a bug of ours
        raise
    except RayError as error:
        return {"lost": " ".join(str(error).split())[:200]}


def task_function() -> Callable[..., dict[str, Any]]:
    """What Ray runs. A function inside a function travels by value: a node without this library can say so."""

    def run_on_node(
        wanted: dict[str, str],
        job: dict[str, Any],
        moved: dict[str, str],
        key: str,
        stored: list[Any],
        threads: int,
    ) -> dict[str, Any]:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        import ray

        found: dict[str, str | None] = {}
        for name in wanted:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        where = {"node": ray.get_runtime_context().get_node_id(), "host": platform.node()}
        if found != wanted:
            return {**where, "refused": found}
        from foveal.compare.engines.ray_node import do

        return {**where, **do(job, moved, key, stored[0], threads)}

    return run_on_node


def clean_function() -> Callable[[list[str]], None]:
    """What removes stored images from a node; by value, as `task_function`."""

    def clean(keys: list[str]) -> None:
        from foveal.compare.engines.ray_node import remove

        remove(keys)

    return clean


def needed_files(job: Job) -> list[str]:
    """Files beside the images that a job reads: weights to begin from, and the code of a person's own blocks."""
    from foveal.insertion import parse_insertion
    from foveal.insertion.own import split_own

    weights, insert = job.config.from_weights, job.variant.insert
    own = split_own(parse_insertion(insert)["block"]) if insert else None
    return [*job.config.blocks, *([weights] if weights else []), *([str(own[0])] if own else [])]


def require_listener(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for minutes.

    Raises:
        FovealError: nobody listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise FovealError(f"the address of a Ray cluster must be ray://HOST:PORT or HOST:PORT, got {address}")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise FovealError(f"a Ray cluster must listen at {address}, got: {error.strerror or error}") from None
