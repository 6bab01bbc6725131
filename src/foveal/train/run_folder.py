"""The run folder: what is written into it, and how it is read again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from foveal.checkpoint import load, save
from foveal.errors import FovealError
from foveal.files import atomic_write, csv_text, utf8_path, write_bytes, write_json, write_text
from foveal.folders import new_folder, new_numbered_folder
from foveal.hub import weights_file
from foveal.insertion import block_name, parse_insertion
from foveal.insertion.own import source_hash, sources, split_own
from foveal.machine import environment
from foveal.model_info import ModelInfo
from foveal.tasks import Task
from foveal.tasks.picture import png_bytes
from foveal.train.block_report import block_report, report_batches
from foveal.train.config import TrainConfig
from foveal.train.examples import write_examples

CHECKPOINT = "checkpoint.ckpt"
START_WEIGHTS = "weights/start.safetensors"
CHECKPOINT_FORMAT = 2


def make_run_folder(config: TrainConfig) -> Path:
    """Make the run folder and write config.yaml and environment.json; ``config.out`` then names it.

    The weights that the run begins from are copied into it, so that it can be resumed when they are gone.

    Raises:
        FovealError: ``config.out`` holds something already, or its path leads through a file.
        OSError: it cannot be written.
    """
    if config.out is not None:
        hint = (
            f"; continue it with --resume {config.out}" if (Path(config.out) / "config.yaml").exists() else ""
        )
        folder = new_folder(config.out, hint=hint)
    else:
        blocks = [block_name(text) for text in config.insert]
        folder = new_numbered_folder("runs/train", "-".join([config.model, *blocks]))
    (folder / "weights").mkdir()
    config.out = str(folder)
    if config.from_weights is not None:
        source = weights_file(config.from_weights)
        atomic_write(folder / START_WEIGHTS, lambda temporary: shutil.copyfile(source, temporary))
    write_config(folder, config)
    for path in own_files(config):
        for source in sources(path):
            kept = _kept(folder, path, source)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, Path(source).read_bytes())
    write_json(folder / "environment.json", environment() | {"seed": config.seed})
    return folder


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml, which ``foveal train --config`` and ``--resume`` read."""
    write_text(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))


def read_config(folder: Path) -> TrainConfig:
    """The config of a run folder.

    Raises:
        FovealError: the folder is no run folder, or its config.yaml is not one of ours.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FovealError(f"resume must be the folder of a run, with its config.yaml, got {folder}")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FovealError(f"config.yaml must be YAML, got {path}: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise FovealError(f"config.yaml must map options to values, got {path}")
    return TrainConfig.from_dict({**options, "out": str(folder)})


def own_files(config: TrainConfig) -> list[Path]:
    """The Python files of the config's own blocks, once each."""
    owned = [split_own(parse_insertion(text)["block"]) for text in config.insert]
    return list(dict.fromkeys(one[0] for one in owned if one is not None))


def blocks_option(config: TrainConfig) -> str:
    """What the command that continues a run must say of the files of its own blocks."""
    return "".join(f" --blocks {path}" for path in dict.fromkeys([*own_files(config), *config.blocks]))


def with_blocks(folder: Path, insert: Sequence[str], blocks: Sequence[str]) -> list[str]:
    """The insertions of a run that is continued, with the files of own blocks that the person names.

    A run folder may come from anybody: no file is run because its config.yaml says so.

    Raises:
        FovealError: a file is not given, or is not what the run was started with.
    """
    given = {Path(path).name: Path(path) for path in blocks}
    settled = []
    for text in insert:
        own = split_own(parse_insertion(text)["block"])
        if own is not None:
            path, name = own
            if path.name not in given:
                raise FovealError(
                    f"the run in {folder} has a block of your own, {name} of {path}; name the file, which is run: "
                    f"--blocks {path}"
                )
            changed = _changed(folder, given[path.name])
            if changed is not None:
                raise FovealError(
                    f"{changed} must be as it was when the run in {folder} began, got another content; "
                    f"{_kept(folder, given[path.name], changed)} is a copy from then"
                )
            text = text.replace(str(path), str(given[path.name]), 1)
        settled.append(text)
    return settled


def _kept(folder: Path, block: Path, source: str) -> Path:
    """Where a run folder keeps a file: that of an own block, or one beside it that it imports."""
    return folder / Path(source).relative_to(block.parent)


def _changed(folder: Path, block: Path) -> str | None:
    """The first file of an own block that is not as the run folder keeps it; a block that differs itself is not run."""
    for files in (lambda: {str(block): source_hash(block)}, lambda: sources(block)):
        for source, digest in files().items():
            kept = _kept(folder, block, source)
            if kept.exists() and source_hash(kept) != digest:
                return source
    return None


def write_epoch(
    folder: Path,
    task: Task,
    net: nn.Module,
    info: ModelInfo,
    rows: Sequence[dict[str, Any]],
    *,
    better: bool,
) -> None:
    """Write what the epoch of the last row leaves: weights, metrics.csv and, where the task draws one, a sample.

    Args:
        better: the weights are also the best ones so far.
    """
    row = rows[-1]
    validated = {k: v for k, v in row.items() if k.startswith("val_")}
    described = replace(info, figures={"epoch": row["epoch"], **validated}).to_dict()
    for name in ("best", "last") if better else ("last",):
        save(net, folder / "weights" / f"{name}.safetensors", **described)
    write_text(folder / "metrics.csv", csv_text(rows))
    if (draw := getattr(task, "sample_picture", None)) is not None:
        (folder / "samples").mkdir(exist_ok=True)
        write_bytes(folder / "samples" / f"epoch-{row['epoch']:03}.png", png_bytes(draw(net, info)))


def write_end(
    folder: Path, task: Task, net: nn.Module, info: ModelInfo, rows: Sequence[dict[str, Any]], val: Any
) -> list[dict[str, Any]]:
    """Write what a run leaves at its end: blocks.json, the curves, and answers for validation images as a picture.

    Args:
        net: a network of the run, on its device, into which the best weights are loaded.
        val: the validation data.

    Returns:
        The rows of blocks.json, see `foveal.train.block_report.block_report`.
    """
    load(folder / "weights" / "best.safetensors", net)
    device = next(net.parameters()).device
    images = (batch.to(device) for batch in report_batches(task, val, task.eval_transform(info)))
    blocks = block_report(net, images, getattr(task, "report_pass", None))
    write_json(folder / "blocks.json", blocks)
    write_curves(folder / "curves.png", rows, task.metric, getattr(task, "curves_beside", ()))
    if not hasattr(task, "sample_picture"):
        write_examples(folder / "examples.png", net.eval(), task, info, val)
    return blocks


def write_curves(path: Path, rows: Sequence[dict[str, Any]], metric: str, beside: Sequence[str] = ()) -> None:
    """Draw the losses, each part of the training loss by itself, and the metric, against epochs.

    Args:
        beside: further figures of validation, in one field of their own; those that were not measured are left out.
    """
    from matplotlib.figure import Figure

    from foveal.train.progress import metric_name

    beside = [name for name in beside if f"val_{name}" in rows[0]]
    fields = 3 if beside else 2
    figure = Figure(figsize=(4 * fields, 3.2), layout="constrained")
    loss_axes, metric_axes, *more_axes = figure.subplots(1, fields)
    epochs = [row["epoch"] for row in rows]
    losses = {"train_loss": "training", "val_loss": "validation"}
    parts = [name for name in rows[0] if name.startswith("train_") and name != "train_loss"]
    for name, label in losses.items():
        if name in rows[0]:
            loss_axes.plot(epochs, [row[name] for row in rows], marker=".", label=label)
    for name in parts:
        label = name.removeprefix("train_").replace("_", " ")
        loss_axes.plot(epochs, [row[name] for row in rows], linewidth=0.8, linestyle="--", label=label)
    loss_axes.set(xlabel="epoch", ylabel="loss")
    loss_axes.legend(fontsize="small")
    metric_axes.plot(epochs, [row[f"val_{metric}"] for row in rows], marker=".", color="C2")
    metric_axes.set(xlabel="epoch", ylabel=f"validation {metric_name(metric)}")
    for name in beside:
        more_axes[0].plot(epochs, [row[f"val_{name}"] for row in rows], marker=".", label=name)
        more_axes[0].set(xlabel="epoch")
        more_axes[0].legend(fontsize="small")
    for axes in (loss_axes, metric_axes, *more_axes):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """`torch.save`, whose own error on a full disk says nothing of the disk.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError):
                raise cause from None
            cause = cause.__context__
        raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that `Run` wrote. Nothing in the file is run.

    Raises:
        FovealError: a foreign or damaged file.
    """
    try:
        with utf8_path(path) as name:
            state = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
        known = isinstance(state, dict) and state.get("foveal") == CHECKPOINT_FORMAT
    # a foreign or damaged file fails in many ways, none of them by running its code
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FovealError(f"resume needs a checkpoint this library wrote, got {path}: {reason}") from None
    if not known:
        raise FovealError(
            f"resume needs a checkpoint this library wrote (format {CHECKPOINT_FORMAT}), got {path}"
        )
    return state
