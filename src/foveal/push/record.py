"""What is known of a run beside its weights: how it was trained, what was measured on which data, and a picture."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from foveal.errors import FovealError
from foveal.hub import is_repository
from foveal.model_info import ModelInfo
from foveal.push.paths import without_paths
from foveal.tasks import task_named
from foveal.tasks.options import make_options

PNG = b"\x89PNG\r\n\x1a\n"
TRAINING = (
    "epochs", "batch_size", "accumulate", "optimizer", "lr", "inserted_lr", "momentum", "weight_decay", "schedule",
    "warmup_epochs", "clip_norm", "freeze_epochs", "ema", "precision", "augment", "start", "seed",
)  # fmt: skip
"""Options that say how a network came to be; the others say where."""


@dataclass(frozen=True)
class Figures:
    """What was measured on one part of one data set.

    Attributes:
        values: by name, such as ``accuracy``.
        data, split: on what.
        views: how each item went through the network, in words.
    """

    values: Mapping[str, float]
    data: str
    split: str
    views: str


@dataclass(frozen=True)
class Record:
    """All that a card says beyond the weights' own description.

    Attributes:
        info: classes, preprocessing and data.
        training: options of the run; empty where no run folder is beside the weights.
        base: a repository whose weights these began from, as the hub writes it.
        began: from what they began, in words, where it is no repository that is known.
        figures: of the training's validation, then of an evaluation.
        comparison: ``results.json`` of a comparison.
        picture, picture_of: a PNG file, and what it shows.
    """

    info: ModelInfo
    training: dict[str, Any]
    base: str | None
    began: str
    figures: list[Figures]
    comparison: dict[str, Any] | None
    picture: Path | None
    picture_of: str

    def without_paths(self, removed: list[str]) -> Record:
        """The same without names of folders of this machine, which are added to ``removed``."""
        info = replace(self.info, data=without_paths(self.info.data, removed))
        figures = [replace(one, data=without_paths(one.data, removed)) for one in self.figures]
        return replace(self, info=info, figures=figures)


def read_record(
    info: ModelInfo,
    run: Path | None,
    *,
    weights: Path | None = None,
    figures: str | os.PathLike[str] | None,
    comparison: str | os.PathLike[str] | None,
    picture: str | os.PathLike[str] | None,
) -> Record:
    """Gather what is known.

    Args:
        info: as the weights say.
        run: what may be the run's folder.
        weights: the file that they lie in; figures of other weights are refused.
        figures, comparison, picture: as `foveal.push.push` takes them.

    Raises:
        FovealError: a file is not what it must be.
    """
    config = _config(run)
    measured = [_of_training(info)] if info.figures else []
    if figures is not None:
        read = _json(Path(figures), "figures", "foveal eval --out")
        _refuse_another(read, info, weights, Path(figures))
        measured.append(_of_evaluation(read, info))
    shown, what = _picture(run, picture, info)
    return Record(
        info=info,
        training={name: config[name] for name in TRAINING if config.get(name) is not None},
        base=_base(config),
        began=_began(config),
        figures=measured,
        comparison=None if comparison is None else _comparison(Path(comparison)),
        picture=shown,
        picture_of=what,
    )


def _config(run: Path | None) -> dict[str, Any]:
    """The run's config.yaml; empty where there is none."""
    if run is None or not (run / "config.yaml").is_file():
        return {}
    try:
        read = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FovealError(
            f"{run / 'config.yaml'} must be YAML, got: {' '.join(str(error).split())}"
        ) from error
    return read if isinstance(read, dict) else {}


def _base(config: Mapping[str, Any]) -> str | None:
    """The repository of the published weights that a run began from, or of the weights that it was told."""
    start = config.get("from_weights")
    if isinstance(start, str) and start.startswith("hf-hub:"):
        return start.removeprefix("hf-hub:").partition("@")[0]
    if not config.get("pretrained"):
        return None
    import timm

    name = str(config.get("model", ""))
    # a head for another task is named after its backbone
    for part in (name, *(name.split("_", count)[-1] for count in (1, 2))):
        published = timm.get_pretrained_cfg(part) if timm.is_model(part) else None
        if published is not None and published.hf_hub_id:
            where = str(published.hf_hub_id)
            tag = f".{published.tag}" if published.tag and published.tag not in part else ""
            return f"{where}{part}{tag}" if where.endswith("/") else where
    return None


def _began(config: Mapping[str, Any]) -> str:
    if config.get("from_weights"):
        return "weights that were trained before"
    return "published weights" if config.get("pretrained") else "random weights" if config else ""


def _of_training(info: ModelInfo) -> Figures:
    values = {
        name.removeprefix("val_"): value for name, value in info.figures.items() if name.startswith("val_")
    }
    return Figures(values, info.data or "unknown data", "val", _views(info, {}))


def _refuse_another(read: dict[str, Any], info: ModelInfo, weights: Path | None, where: Path) -> None:
    """Refuse figures of another task, or of a file that is there and holds other weights."""
    metric = task_named(info.task).metric
    if read.get("metric", metric) != metric:
        raise FovealError(
            f"figures must be those of task {info.task}, {metric}, got {read['metric']} in {where}"
        )
    other = read.get("weights")
    if weights is None or not isinstance(other, str) or is_repository(other) or not Path(other).is_file():
        return
    if not filecmp.cmp(other, weights, shallow=False):
        raise FovealError(f"figures must be those of {weights}, got those of {other} in {where}")


def _of_evaluation(read: dict[str, Any], info: ModelInfo) -> Figures:
    """The figures of ``foveal eval --out``."""
    if not {"data", "split", "metric", "inference"} <= set(read) or read["metric"] not in read:
        raise FovealError("figures must be a file that foveal eval --out wrote, got another JSON file")
    # counts and settings are numbers, too, and no figures
    known = {name.removeprefix("val_") for name in info.figures} | {"loss", read["metric"]}
    values = {name: value for name, value in read.items() if name in known and isinstance(value, int | float)}
    return Figures(values, str(read["data"]), str(read["split"]), _views(info, read["inference"]))


def _views(info: ModelInfo, inference: Mapping[str, Any]) -> str:
    """How an item went through the network: clips and crops, windows and scales, or once."""
    kind = task_named(info.task).InferenceOptions
    default = make_options(kind, {}, info.task)
    if hasattr(default, "views"):
        return make_options(kind, inference, info.task).views
    other = [f"{name} {value}" for name, value in inference.items() if value != getattr(default, name, None)]
    return ", ".join(other) or "one view"


def _comparison(folder: Path) -> dict[str, Any]:
    read = _json(folder / "results.json", "comparison", "foveal compare")
    if not isinstance(read.get("variants"), list) or "conclusion" not in read:
        raise FovealError(
            f"comparison must be a folder of foveal compare, got another results.json in {folder}"
        )
    # the sentence names the data as they were typed, and the settings say how that was
    paths: list[str] = []
    without_paths(read.get("settings", {}), paths)
    for path in sorted(paths, key=len, reverse=True):
        read["conclusion"] = read["conclusion"].replace(path, without_paths(path, []))
    return read


def _json(path: Path, option: str, made_by: str) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FovealError(f"{option} must be what {made_by} wrote, got no file {path}") from None
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise FovealError(f"{option} must be what {made_by} wrote, got another content in {path}")
    return read


def _picture(
    run: Path | None, picture: str | os.PathLike[str] | None, info: ModelInfo
) -> tuple[Path | None, str]:
    if picture is not None:
        path = Path(picture)
        if not path.is_file() or path.open("rb").read(len(PNG)) != PNG:
            raise FovealError(f"picture must be a PNG file, got {path}")
        return path, "picture.png is the one you named"
    found = [] if run is None else [run / "examples.png", *sorted((run / "samples").glob("*.png"))[-1:]]
    for path in found:
        if path.is_file():
            return (
                path,
                f"picture.png is {path.name} of the run: images of {Path(info.data or 'the data').name}",
            )
    return None, ""
