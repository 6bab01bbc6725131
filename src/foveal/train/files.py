"""The run folder: its files, and what they say of the machine."""

from __future__ import annotations

import csv
import io
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from foveal.errors import FovealError
from foveal.files import atomic_write, write_json, write_text
from foveal.train.config import TrainConfig

PACKAGES = ("foveal", "torch", "torchvision", "timm", "lightning", "numpy", "safetensors")


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header line; figures to 6 significant digits.

    Example:
        >>> print(table_text([{"epoch": 1, "loss": 0.12345678}]))
        epoch,loss
        1,0.123457
        <BLANKLINE>
    """
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n", restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def new_folder(config: TrainConfig) -> Path:
    """Make the run folder and write config.yaml and environment.json.

    Raises:
        ValueError: ``config.out`` holds something already, or its path leads through a file.
        OSError: it cannot be written.
    """
    if config.out is not None:
        folder = Path(config.out)
        if folder.is_dir() and any(folder.iterdir()):
            advice = f"; continue it with --resume {folder}" if (folder / "config.yaml").exists() else ""
            raise FovealError(f"out must be a new or empty folder, got {folder}, which is not empty{advice}")
    else:
        blocks = [text.split("@")[0].split("(")[0] for text in config.insert]
        folder = free_folder("runs/train", "-".join([config.model, *blocks]))
    try:
        (folder / "weights").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FovealError(f"out must be a folder, got {folder}, where a file stands in the way") from error
    config.out = str(folder)
    write_config(folder, config)
    write_json(folder / "environment.json", environment(config.seed))
    return folder


def free_folder(parent: str, name: str) -> Path:
    """The first of parent/NAME, parent/NAME-2, ... that does not exist."""
    name = name.replace("/", "_").replace(":", "_")
    taken = {p.name for p in Path(parent).glob("*")}
    number = next(n for n in range(1, len(taken) + 2) if _numbered(name, n) not in taken)
    return Path(parent) / _numbered(name, number)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write config.yaml, which ``foveal train --config`` and ``--resume`` read."""
    write_text(folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True))


def read_config(folder: Path) -> TrainConfig:
    """The config of a run folder.

    Raises:
        ValueError: the folder is no run folder, or its config.yaml is not one of ours.
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


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine and command of this process: what one needs to run it again."""
    import torch

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "versions": versions,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_devices": cuda,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_curves(path: Path, rows: Sequence[dict[str, Any]], metric: str) -> None:
    """Draw training and validation loss, and the metric, against epochs."""
    from matplotlib.figure import Figure

    from foveal.train.progress import metric_name

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss_axes, metric_axes = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name, label in (("train_loss", "training"), ("val_loss", "validation")):
        loss_axes.plot(epochs, [row[name] for row in rows], marker=".", label=label)
    loss_axes.set(xlabel="epoch", ylabel="loss")
    loss_axes.legend()
    metric_axes.plot(epochs, [row[metric] for row in rows], marker=".", color="C2")
    metric_axes.set(xlabel="epoch", ylabel=f"validation {metric_name(metric)}")
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    atomic_write(path, lambda part: figure.savefig(part, format="png", dpi=120))
