"""Eight-bit files: calibrated on a person's images, gates and softmax in float where that is more accurate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from foveal.errors import FovealError
from foveal.evaluate import data_options_for
from foveal.export.program import quiet
from foveal.export.proof import Run, RuntimeNet
from foveal.export.rewrite import ATTENTION
from foveal.image_files import find_images
from foveal.inference import Predictor
from foveal.look.images import spread_indices
from foveal.measure import measure_time
from foveal.tasks import items_of
from foveal.tasks.shipping import Shipment

IMAGES = 128
"""So many calibration images are enough for the ranges of activations."""
VALIDATION = 512
"""So many validation images are looked at, spread over all."""
BATCH = 32
ROUNDS, SAMPLE_MS, REST_S = 7, 20.0, 0.2
"""Of timing the files in turn: the rest is for the threads of the one before."""


def calibration_inputs(
    predictor: Predictor,
    folder: str,
    say: Callable[[str], object],
    shape: tuple[int, ...] | None = None,
) -> list[np.ndarray]:
    """Inputs of one image each.

    Args:
        say: is called with a line for each file that cannot be read.
        shape: that alone the file takes; None where it takes any.

    Raises:
        FovealError: none can be read.
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"calibrate must be a folder of images, got {folder}")
    inputs: list[np.ndarray] = []
    reason = "it holds none"
    find = getattr(predictor.task, "find_files", find_images)
    for file in find(Path(folder)):
        try:
            view = predictor.view({"image": predictor.read(file)})["image"]
        except (FovealError, OSError) as error:
            reason = " ".join(str(error).split())
            say(f"skipped: {reason}")
            continue
        one = predictor.prepare(view)[None].numpy()
        if shape is not None and one.shape != shape:
            reason = f"{file} becomes {one.shape[2:]}, where a file of one shape takes {shape[2:]}"
            say(f"skipped: {reason}")
            continue
        inputs.append(one)
        if len(inputs) == IMAGES:
            break
    if not inputs:
        raise FovealError(f"calibrate must hold an image that can be read, got {folder}: {reason}")
    return inputs


def to_int8(
    predictor: Predictor,
    shipment: Shipment,
    kind: Any,
    path: Path,
    inputs: Sequence[np.ndarray],
    say: Callable[[str], object],
    batch: int = BATCH,
) -> dict[str, Any]:
    """Replace a float file by the better of two in eight bits: all of it, or all but gates and softmax.

    Better is what is more accurate on the validation images of the weights' own data, or, where these are not here,
    agrees more with the network on the calibration images; of equals all of it.

    Args:
        inputs: for calibration, of `calibration_inputs`.
        say: is called with the figures of each.
        batch: validation images that the file takes together.

    Returns:
        Figures of the three, for ``foveal.json``: accuracy or agreement, time of one image, and which was kept.
    """
    candidates: dict[str, list[str]] = {
        "all": [],
        "gates and softmax in float": float_nodes(predictor.net, kind.nodes(path)),
    }
    files = {"float": path}
    for name, left in candidates.items():
        if name == "all" or left:
            files[name] = path.with_name(f"{len(files)}-{path.name}")
            with quiet("root", "nncf", "openvino", "torch.utils.cpp_extension"):
                kind.quantize(path, files[name], inputs, left)
    runs = {name: kind.load(str(file)) for name, file in files.items()}
    what, figures = figures_of(predictor, shipment, runs, inputs, batch)
    timings = measure_time(
        {name: partial(run, inputs[0]) for name, run in runs.items()},
        repeats=ROUNDS,
        minimum_ms=SAMPLE_MS,
        rest_s=REST_S,
    )
    times = {name: timing.time_ms for name, timing in timings.items()}
    sign = 1 if predictor.task.higher_is_better else -1
    kept = max((name for name in runs if name != "float"), key=lambda name: sign * figures[name])
    for part in parts(files[kept]):
        part.replace(path.with_suffix(part.suffix))
    for name, file in files.items():
        for part in parts(file) if name not in ("float", kept) else []:
            part.unlink()
    for name, value in figures.items():
        say(f"{'int8, ' if name != 'float' else ''}{name}: {value:.2%} {what}, {times[name]:.2f} ms each")
    say(f"kept: int8, {kept}; calibrated on {len(inputs)} {items_of(predictor.task)}")
    return {
        "kept": kept,
        "left_in_float": len(candidates[kept]),
        "calibration_images": len(inputs),
        "figure": what,
        "values": figures,
        "time_ms": times,
    }


def parts(path: Path) -> Iterator[Path]:
    """A file and the weights beside it."""
    yield path
    if path.with_suffix(".bin").exists():
        yield path.with_suffix(".bin")


def float_nodes(net: nn.Module, names: Sequence[str]) -> list[str]:
    """The nodes of gates, and every softmax, that of attention in one node too."""
    gates = {"SqueezeExcite", "ChannelGate", "SpatialGate", "CBAM", "SEModule", "CbamModule", "EcaModule"}
    paths = [path for path, module in net.named_modules() if type(module).__name__ in gates]
    inside = tuple(f"{path}{mark}" for path in paths for mark in "./")
    operators = [name.rpartition("/")[2] for name in names]
    return [
        name
        for name, operator in zip(names, operators, strict=True)
        if name.startswith(inside) or "Softmax" in operator or operator.startswith(ATTENTION)
    ]


def figures_of(
    predictor: Predictor,
    shipment: Shipment,
    runs: dict[str, Run],
    inputs: Sequence[np.ndarray],
    together: int,
) -> tuple[str, dict[str, float]]:
    """What each file reaches, and what that figure is: accuracy, or else how far it agrees with the float file."""
    data = validation_data(predictor)
    if data is None:
        wanted = [[torch.from_numpy(np.array(one)) for one in runs["float"](images)] for images in inputs]
        shares = {
            name: statistics.fmean(
                shipment.agreement(one, [torch.from_numpy(np.array(two)) for two in run(images)])
                for one, images in zip(wanted, inputs, strict=True)
            )
            for name, run in runs.items()
        }
        return (
            f"{shipment.agreement_of} agreement on {len(inputs)} calibration {items_of(predictor.task)}",
            shares,
        )
    task, info = predictor.task, predictor.info
    nets = {name: RuntimeNet(run, shipment, predictor.net) for name, run in runs.items()}
    metrics = {name: task.new_metric(info, list(data.classes)) for name in runs}
    transform = task.eval_transform(info)
    taken = spread_indices(len(data), VALIDATION)
    for start in range(0, len(taken), together):
        for batch in task.collate([transform(data[i]) for i in taken[start : start + together]]):
            for name, metric in metrics.items():
                metric.update(nets[name], batch)
    found = {name: metric.compute()[task.metric] for name, metric in metrics.items()}
    return f"{task.metric} on {len(taken)} validation {items_of(task)}", found


def validation_data(predictor: Predictor) -> Any:
    """The validation images of the data that the weights were trained on; None where they are not on this machine."""
    info = predictor.info
    if info.data is None:
        return None
    try:
        return predictor.task.open(info.data, "val", data_options_for(info, None, {}, predictor.task))
    except (FovealError, OSError):
        return None
