"""Which options a run trains with: those that were given, or those of the run that it continues."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

from foveal.errors import FovealError
from foveal.train import run_folder
from foveal.train.config import RESUMABLE_OPTIONS, TrainConfig
from foveal.train.run_folder import START_WEIGHTS
from foveal.train.start import with_start


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
    if resume is None or resume == "auto":
        given = with_start(given)
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
        chosen = {name: getattr(given, name) for name in RESUMABLE_OPTIONS}
        return _with_own_start(replace(stored, **chosen), Path(given.out)), Path(given.out)
    if resume is None:
        return replace(given), None
    folder = Path(resume)
    stored = run_folder.read_config(folder)
    # what is run is named by the person, not by the folder
    stored.insert, stored.blocks = run_folder.with_blocks(folder, stored.insert, given.blocks), []
    changed = {f.name for f in fields(given) if getattr(given, f.name) != getattr(default, f.name)}
    if changed - set(RESUMABLE_OPTIONS):
        raise FovealError(
            f"a resumed run takes its options from {folder / 'config.yaml'}; only {', '.join(RESUMABLE_OPTIONS)} may "
            f"be given, got {', '.join(sorted(changed - set(RESUMABLE_OPTIONS)))}"
        )
    return _with_own_start(
        replace(stored, **{name: getattr(given, name) for name in changed}), folder
    ), folder


def _with_own_start(config: TrainConfig, folder: Path) -> TrainConfig:
    """The config with the run's own copy of the weights that it began from, where it has one."""
    own = folder / START_WEIGHTS
    return replace(config, from_weights=str(own)) if config.from_weights and own.exists() else config
