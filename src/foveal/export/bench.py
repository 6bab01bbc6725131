"""What attention costs in each runtime: networks with it beside the same network without, in one interleaved run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import foveal
from foveal.bench import describe_machine
from foveal.errors import FovealError
from foveal.export import RUN_BY_PYTORCH, format_named
from foveal.export.program import Program, record, shipment_of
from foveal.export.proof import Run, largest_difference
from foveal.files import write_json
from foveal.folders import file_name
from foveal.inference import Predictor
from foveal.measure import measure_time
from foveal.model_info import ModelInfo

DEFAULT, STATIC = "default", "static"
"""Behind the name of a runtime: in the precision that it prefers, and with a file of one image of one size."""
RUNTIMES = (
    "eager",
    "fuse",
    "onnx",
    "onnx static",
    "openvino",
    "openvino static",
    "openvino default",
    "aotinductor",
)


class Network(NamedTuple):
    """What is timed.

    Attributes:
        model: a network by name.
        insertion: what is inserted into it.
        over: the name of the same network without attention; None for one of these.
        size: (height, width) of its images.
        task: what it answers.
        classes: into how many classes.
    """

    model: str
    insertion: str = ""
    over: str | None = None
    size: tuple[int, int] = (224, 224)
    task: str = "classify"
    classes: int = 1000


STREET = {"size": (512, 1024), "task": "segment", "classes": 19}
NETWORKS = {
    "resnet50": Network("resnet50"),
    "seresnet50": Network("seresnet50", over="resnet50"),
    "cbam_resnet50": Network("cbam_resnet50", over="resnet50"),
    "resnet50 + Non-local": Network("resnet50", "nonlocal@block:4", over="resnet50"),
    "fcn_resnet18": Network("fcn_resnet18", **STREET),
    "danet_resnet18": Network("danet_resnet18", over="fcn_resnet18", **STREET),
}
SAMPLE_MS, REST_S = 100.0, 0.2
"""Calls in a row, so that what the others left in the caches counts little; and a rest before, for their threads."""
BARS = {"onnx": 1.08, "openvino": 1.05}
BARRED = ("seresnet50", "cbam_resnet50")
"""What gates may cost over the plain network in a runtime with float32, one image at a time."""
SAME, SAME_AS_SET = 1e-3, 0.1
"""Largest difference from the network, as a share of the largest output: in float32, and as the runtime is set."""


def bench_export(
    only: str | None = None,
    out: str | None = None,
    repeats: int = 9,
    threads: int | None = None,
    batches: Sequence[int] = (1, 8),
    runtimes: Sequence[str] = RUNTIMES,
) -> bool:
    """Time networks in every runtime and print the cost of attention in each.

    Networks of one runtime and batch are timed in turn, so that a busy machine slows all alike, with a rest between:
    threads that a runtime leaves waiting in a loop would take the cores of the next network, as they do in a product
    that runs several. Classifiers see 224 x 224 pixels, segmentation networks 512 x 1024. Weights are random, with
    gates and scales that are not the identity's; nothing is timed whose outputs differ from the network's.

    Args:
        only: networks whose name contains this, and those they are compared with.
        out: also write the figures, with machine and versions, to this JSON file.
        repeats: rounds; figures are medians, of ratios within rounds.
        threads: of every runtime, default as PyTorch starts.
        batches: how many images at a time.
        runtimes: which.

    Returns:
        Whether every bar was met that this run can tell of: batch 1.

    Raises:
        FovealError: ``only`` matches no network.
    """
    if threads:
        torch.set_num_threads(threads)
    wanted = [name for name in NETWORKS if not only or only in name]
    if not wanted:
        raise FovealError(f"only must be part of a name, got {only!r}; names: {', '.join(NETWORKS)}")
    wanted = [n for n in NETWORKS if n in wanted or n in {NETWORKS[one].over for one in wanted}]
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sorted({NETWORKS[name].size for name in wanted}):
            names = [name for name in wanted if NETWORKS[name].size == size]
            predictors = {name: live_predictor(name, NETWORKS[name]) for name in names}
            for name in names:
                write_files(predictors[name], runtimes, Path(folder), size)
                print(f"{name}: written", flush=True)
            for runtime in runtimes:
                calls = {name: runner(predictors[name], runtime, Path(folder), size) for name in names}
                for batch in [1] if runtime.endswith(STATIC) else batches:
                    rows += timed(calls, runtime, batch, size, repeats)
    if out:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"machine": machine, "rows": rows})
    return all(row["met"] for row in rows if "met" in row)


def live_predictor(name: str, network: Network) -> Predictor:
    """A network with random weights in which nothing is the identity or zero."""
    torch.manual_seed(0)
    net = foveal.create_model(network.model, num_classes=network.classes)
    if network.insertion:
        foveal.insert(net, **foveal.parse_insertion(network.insertion))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)  # pyright: ignore[reportArgumentType]
        for parameter in (getattr(module, "gamma", None),):
            if isinstance(parameter, Tensor):
                nn.init.constant_(parameter, 0.1)
    classes = [str(i) for i in range(network.classes)]
    info = ModelInfo(network.task, classes, network.size[0], model=name)
    return Predictor(net.eval().requires_grad_(False), info, name)


def write_files(predictor: Predictor, runtimes: Sequence[str], folder: Path, size: tuple[int, int]) -> None:
    """Write a network for each runtime that loads a file."""
    programs: dict[tuple[bool, bool], Program] = {}
    for runtime in runtimes:
        place = file_of(predictor, runtime, folder)
        if place is None or place.exists():
            continue
        to, _, how = runtime.partition(" ")
        by_pytorch, static = to in RUN_BY_PYTORCH, how == STATIC
        if (by_pytorch, static) not in programs:
            example = torch.randn(1 if static else 2, 3, *size)
            options = {"static": static, "half": False, "normalise": False}
            programs[by_pytorch, static] = record(predictor, example, **options, for_pytorch=by_pytorch)
        place.parent.mkdir()
        format_named(to).write(programs[by_pytorch, static], place, "{}")


def file_of(predictor: Predictor, runtime: str, folder: Path) -> Path | None:
    """Where the file of a network for a runtime lies; None where it needs none."""
    to, _, how = runtime.partition(" ")
    if to in ("eager", "fuse"):
        return None
    parts = (predictor.name, to, STATIC) if how == STATIC else (predictor.name, to)
    return folder / file_name("-".join(parts)) / format_named(to).FILE


def runner(predictor: Predictor, runtime: str, folder: Path, size: tuple[int, int]) -> Run:
    """A function of images that runs a network in a runtime.

    Raises:
        RuntimeError: it computes something else than the network.
    """
    to, _, how = runtime.partition(" ")
    shipment, example = shipment_of(predictor), torch.randn(1 if how == STATIC else 2, 3, *size)
    net = foveal.fuse(predictor.net, example[:1]) if runtime == "fuse" else predictor.net
    file = file_of(predictor, runtime, folder)
    if file is None:

        def run(images: np.ndarray) -> list[np.ndarray]:
            with torch.no_grad():
                return [output.numpy() for output in shipment.call(net, torch.from_numpy(images))]

    else:
        kind = format_named(to)
        run = (kind.load_as_set if how == DEFAULT else kind.load)(str(file))
    with torch.no_grad():
        wanted = shipment.call(predictor.net, example)
    difference = largest_difference(wanted, [torch.from_numpy(np.array(one)) for one in run(example.numpy())])
    if difference > (SAME_AS_SET if how == DEFAULT else SAME):
        raise RuntimeError(f"{predictor.name} in {runtime} differs from the network by {difference:.2g}")
    return run


def timed(
    calls: dict[str, Run], runtime: str, batch: int, size: tuple[int, int], repeats: int
) -> list[dict[str, Any]]:
    """Time the networks of one runtime in turn, print a line for each and return them as rows."""
    images = torch.randn(batch, 3, *size).numpy()
    times = measure_time(
        {name: partial(run, images) for name, run in calls.items()},
        repeats=repeats,
        warmup=1,
        minimum_ms=SAMPLE_MS,
        rest_s=REST_S,
    )
    rows = []
    for name, time in times.items():
        row: dict[str, Any] = {
            "network": name,
            "runtime": runtime,
            "batch": batch,
            "time_ms": round(time.time_ms, 2),
        }
        plain = NETWORKS[name].over
        barred = batch == 1 and name in BARRED and not runtime.endswith(DEFAULT)
        bar = BARS.get(runtime.partition(" ")[0]) if barred else None
        line = f"{runtime:17} batch {batch}  {name:21} {time.time_ms:9.1f} ms"
        if plain in times:
            row["over"] = plain
            row["ratio"] = round(time.over(times[plain]), 3)
            line += f"  {100 * (row['ratio'] - 1):+6.1f} % over {plain}"
        if bar is not None and "ratio" in row:
            row["bar"], row["met"] = bar, row["ratio"] <= bar
            line += f", {'meets' if row['met'] else 'misses'} the bar of {100 * (bar - 1):.0f} %"
        print(line, flush=True)
        rows.append(row)
    return rows
