"""What a node of a Ray cluster does for one run. Imports no torch: the process that computes is another one.

That process is the one of the local engine, with the same threads, so that results are the same to the last bit. It is
kept from run to run, and ends with the worker of Ray that started it.
"""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foveal.compare.engines.local import WorkerProcess
from foveal.errors import FovealError
from foveal.folders import locked

LOG_LINES = 40
"""Of what a process printed before it ended."""
WAIT_SECONDS = 0.2
_process: WorkerProcess | None = None


def do(
    job: Mapping[str, Any], moved: Mapping[str, str], key: str, stored: Any, threads: int
) -> dict[str, Any]:
    """Do one run.

    Args:
        job: `foveal.compare.job.Job.to_dict`.
        moved: paths of the driver's machine that the job names -> where these files are below `node_folder`.
        key: names what is stored.
        stored: Ray's reference to file -> references to its parts.
        threads: of PyTorch.

    Returns:
        ``result`` and ``weights`` (bytes or None), as `foveal.compare.worker.run_job` returns them; or ``error`` and
        its ``kind``, see `foveal.compare.engines.local.refusal`; or ``died``, how the process ended, and its ``log``.
    """
    global _process
    try:
        folder = fetched(key, stored)
    except OSError as error:
        return {"error": str(error), "kind": "system"}
    if _process is None:
        _process = WorkerProcess(threads, folder / f"log-{os.getpid()}.txt")
    _process.ask(with_paths(job, {old: str(folder / new) for old, new in moved.items()}), folder / "images")
    while (answer := _process.answer()) is not None and "step" in answer[0]:
        pass
    if answer is None:
        died = {"died": _process.how_it_ended(), "log": _process.last_words(LOG_LINES)}
        _process.stop()
        _process = None
        return died
    return {**answer[0], "weights": answer[1] or None}


def fetched(key: str, stored: Any) -> Path:
    """The folder with what is stored, fetched by the first run on this machine that needs it.

    Raises:
        OSError: the disk is full, or the folder is not ours.
    """
    import ray

    folder = node_folder() / key
    folder.mkdir(exist_ok=True)
    whole = folder / "whole"
    while not whole.exists():
        try:
            with locked(folder, "a run"):
                if whole.exists():
                    break
                contents: Any = ray.get(stored)
                for name, parts in contents.items():
                    path = folder / name
                    path.parent.mkdir(exist_ok=True)
                    with path.open("wb") as file:
                        for part in parts:
                            array: Any = ray.get(part)
                            file.write(array.data)
                whole.touch()
        except FovealError:
            # another run of this machine fetches it
            time.sleep(WAIT_SECONDS)
    return folder


def node_folder() -> Path:
    """Where this machine keeps what comparisons store on it: for this user alone.

    Raises:
        PermissionError: somebody else's folder has its name.
    """
    folder = Path(tempfile.gettempdir()) / f"foveal-compare-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
        raise PermissionError(f"{folder} must be a folder of this user, got one of another")
    return folder


def remove(keys: Iterable[str]) -> None:
    """Remove what was stored under these names."""
    for key in keys:
        shutil.rmtree(node_folder() / key, ignore_errors=True)


def with_paths(job: Mapping[str, Any], moved: Mapping[str, str]) -> dict[str, Any]:
    """The job with the paths of this machine.

    Example:
        >>> job = {"variant": {"insert": "a.py:B@stage:3"}, "config": {"blocks": [], "from_weights": None}}
        >>> with_paths(job, {"a.py": "/tmp/a.py"})["variant"]["insert"]
        '/tmp/a.py:B@stage:3'
    """
    config, variant = job["config"], job["variant"]
    insert, weights = variant["insert"], config["from_weights"]
    own = next((old for old in moved if insert and insert.startswith(f"{old}:")), None)
    return {
        **job,
        "variant": {**variant, "insert": insert.replace(own, moved[own], 1) if own else insert},
        "config": {
            **config,
            "blocks": [moved[path] for path in config["blocks"]],
            "from_weights": weights and moved[weights],
        },
    }
