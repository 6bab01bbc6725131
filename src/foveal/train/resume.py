"""Which options a run trains with: those that were given, or those of the run that it continues."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

from foveal.errors import FovealError
from foveal.train import run_folder
from foveal.train.config import RESUMABLE_OPTIONS, TrainConfig


def settled(
    config: TrainConfig | None, resume: str | os.PathLike[str] | None
) -> tuple[TrainConfig, Path | None]:
    """The config to run with (the caller's own is left alone), and its folder if it exists already.

    Args:
        config: what the caller asked for; None is the defaults.
        resume: as `foveal.train.fit` takes it.

    Raises:
        FovealError: there is nothing to continue, or an option would change what the run trains.
    """
    given, default = config or TrainConfig(), TrainConfig()
    if resume == "auto":
        if given.out is None:
            raise FovealError(
                "resume auto needs out, the folder of the run to begin or to continue, got none"
            )
        if not (Path(given.out) / "config.yaml").exists():
            return replace(given), None
        stored = run_folder.read_config(Path(given.out))
        differing = [
            f.name
            for f in fields(given)
            if f.name not in RESUMABLE_OPTIONS and getattr(given, f.name) != getattr(stored, f.name)
        ]
        if differing:
            raise FovealError(
                f"resume auto must be given the options of the run in {given.out}, got other values of "
                f"{', '.join(differing)}"
            )
        return replace(stored, **{name: getattr(given, name) for name in RESUMABLE_OPTIONS}), Path(given.out)
    if resume is None:
        return replace(given), None
    folder = Path(resume)
    stored = run_folder.read_config(folder)
    changed = {f.name for f in fields(given) if getattr(given, f.name) != getattr(default, f.name)}
    if changed - set(RESUMABLE_OPTIONS):
        raise FovealError(
            f"a resumed run takes its options from {folder / 'config.yaml'}; only {', '.join(RESUMABLE_OPTIONS)} may "
            f"be given, got {', '.join(sorted(changed - set(RESUMABLE_OPTIONS)))}"
        )
    return replace(stored, **{name: getattr(given, name) for name in changed}), folder
