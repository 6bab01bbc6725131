"""What a network with attention costs after training, and whether it still answers: accuracy and processor time.

    python benchmarks/evidence.py arrangements --data path/to/data
    python benchmarks/accuracy_and_time.py --study arrangements --out benchmarks/results/accuracy_and_time.json

takes the networks of seed 0 of a study of `evidence.py` and its validation images, and runs each network as it is,
under bfloat16 autocast, after ``foveal.fuse``, and as a file in ONNX Runtime and OpenVINO (in float32, and as OpenVINO
is set: bfloat16 where the processor has it). Times are processor time of one thread, all calls in turn, so that a
machine that does much else slows all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import foveal
from foveal.bench import describe_machine
from foveal.data import open_dataset
from foveal.export.bench import runner, write_files
from foveal.export.proof import Run
from foveal.files import write_json
from foveal.inference import Predictor

RUNTIMES = ("eager", "fuse", "onnx", "openvino", "openvino default")
AUTOCAST = "eager, bfloat16"
BATCHES = (1, 32)
ROUNDS = 31


def trained(folder: Path) -> dict[str, Predictor]:
    """Variant -> its network of seed 0."""
    found = {}
    for path in sorted((folder / "runs").glob("*-seed0-*.safetensors")):
        run = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        predictor = foveal.predictor(path, "cpu")
        found[run["variant"]] = Predictor(predictor.net.requires_grad_(False), predictor.info, path.stem)
    return found


def autocast(predictor: Predictor) -> Run:
    """The network as it is, under bfloat16 autocast."""

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return [predictor.net(torch.from_numpy(images)).float().numpy()]

    return run


def main() -> None:
    """Measure, print a row a call, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="arrangements")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    # OpenVINO and ONNX Runtime take as many threads as cores are left to them
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    predictors = trained(given.folder / given.study)
    first = next(iter(predictors.values()))
    data = open_dataset(first.info.data, "val")
    transform = first.task.eval_transform(first.info)
    items = [transform(data[i]) for i in range(len(data))]
    images = torch.stack([item["image"] for item in items]).numpy()
    labels = np.array([int(item["label"]) for item in items])
    size = (images.shape[2], images.shape[3])
    calls: dict[tuple[str, str], Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, predictor in predictors.items():
            write_files(predictor, RUNTIMES, Path(folder), size)
            for runtime in RUNTIMES:
                calls[runtime, name] = runner(predictor, runtime, Path(folder), size)
            calls[AUTOCAST, name] = autocast(predictor)
        right = {
            key: float(
                np.mean(
                    np.concatenate(
                        [run(images[i : i + 100])[0].argmax(1) for i in range(0, len(images), 100)]
                    )
                    == labels
                )
            )
            for key, run in calls.items()
        }
        samples = {(key, batch): [] for key in calls for batch in BATCHES}
        for _ in range(ROUNDS):
            for (key, batch), times in samples.items():
                began = time.process_time()
                calls[key](images[:batch])
                times.append(1e3 * (time.process_time() - began))
    rows = []
    for (runtime, name), accuracy in right.items():
        times = {batch: statistics.median(samples[(runtime, name), batch]) for batch in BATCHES}
        rows.append({"network": name, "runtime": runtime, "accuracy": accuracy, "cpu_ms": times})
        print(
            f"{runtime:17} {name:60} {100 * accuracy:.2f} %",
            *(f"batch {b}: {t:.2f} ms" for b, t in times.items()),
        )
    if given.out is not None:
        write_json(
            given.out, {"images": len(labels), "size": size, "machine": describe_machine(), "rows": rows}
        )


if __name__ == "__main__":
    main()
