"""Does attention help segmentation? DANet and its parts against equal heads without, on CamVid.

    python benchmarks/camvid.py --data path/to/camvid --runs runs/camvid --out benchmarks/results/camvid.json

One backbone from random weights, one schedule and, in one seed, one initial backbone and one order of the images for
all. Each run is one of ``foveal train`` with its own folder: a study that was stopped goes on where it was. The last
epoch counts, never the best one: mIoU from one confusion matrix over the test part, whole images, at the masks' own
size. `COMMAND` is printed for each run.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foveal import load
from foveal.bench import describe_machine
from foveal.compare.statistics import differences_to, estimate
from foveal.measure import count_macs, count_parameters, measure_time, peak_bytes
from foveal.train import TrainConfig, evaluate_masks, fit
from foveal.train.files import write_json

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "FCN": ("fcn", {}),
    "FCN + Non-local": ("fcn_nonlocal", {}),
    "DANet, position only": ("danet_position", {}),
    "DANet, channel only": ("danet_channel", {}),
    "DANet": ("danet", {}),
    "DANet, channel softmax of the paper": ("danet", {"channel_form": "paper"}),
}
IGNORED = 11


def train(name: str, seed: int, options: argparse.Namespace) -> Path:
    """The run folder of one variant and seed, trained as far as it is not."""
    head, model_options = VARIANTS[name]
    folder = options.runs / f"{head}{'-paper' if model_options else ''}-{seed}"
    config = TrainConfig(
        task="segment",
        data=str(options.data),
        data_options={"ignore_index": IGNORED},
        model=f"{head}_{options.backbone}",
        model_options=model_options,
        epochs=options.epochs,
        batch_size=16,
        lr=0.05,
        schedule="poly",
        warmup_epochs=1,
        image_size=options.image_size,
        crop_size=options.crop_size,
        scale_range=[0.75, 1.5],
        precision="bfloat16",
        channels_last=True,
        workers=0,
        seed=seed,
        out=str(folder),
    )
    done = epochs_done(folder)
    if options.report or done >= options.epochs:
        return folder
    fit(resume=folder, quiet=True) if done else fit(config, quiet=True)
    return folder


def epochs_done(folder: Path) -> int:
    metrics = folder / "metrics.csv"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0


def cost(folders: dict[str, Path], image_size: int) -> dict[str, dict[str, Any]]:
    """Parameters, multiply-accumulates, and time and memory of one image, measured in turn."""
    nets = {name: load(folder / "weights" / "last.safetensors").eval() for name, folder in folders.items()}
    x = torch.randn(1, 3, image_size, image_size * 4 // 3).contiguous(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], Any]] = {
        name: torch.no_grad()(lambda net=net: net(x)) for name, net in nets.items()
    }
    times = measure_time(calls, repeats=30)
    return {
        name: {
            "parameters": count_parameters(net),
            "macs": count_macs(net, x),
            "latency_ms": round(times[name].time_ms, 3),
            "peak_bytes": peak_bytes(calls[name]),
        }
        for name, net in nets.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid"), help="folder of the run folders")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=120)
    parser.add_argument("--crop-size", type=int, default=96)
    parser.add_argument(
        "--report", action="store_true", help="train nothing; take the runs that are finished"
    )
    options = parser.parse_args()
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in VARIANTS}
    folders: dict[str, Path] = {}
    for seed in range(options.seeds):
        for name in VARIANTS:
            start = time.perf_counter()
            folder = train(name, seed, options)
            if epochs_done(folder) < options.epochs:
                continue
            folders[name] = folder
            weights = folder / "weights" / "last.safetensors"
            found = evaluate_masks(weights, str(options.data), split="test", workers=0)
            runs[name][seed] = {"miou": found.miou, "iou": found.iou, "run": folder.name}
            took = time.perf_counter() - start
            print(f"seed {seed}  {name:36}  test mIoU {100 * found.miou:5.2f} %  {took:4.0f} s", flush=True)
    report({name: rows for name, rows in runs.items() if rows}, folders, options)


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Without the NaN that an interval over one seed is, which JSON has no word for."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


def report(runs: dict[str, dict[int, dict[str, Any]]], folders: dict[str, Path], options: Any) -> None:
    scores = {name: {seed: row["miou"] for seed, row in rows.items()} for name, rows in runs.items()}
    baseline = next(iter(scores))
    differences = differences_to(scores[baseline], {n: s for n, s in scores.items() if n != baseline})
    costs = cost(folders, options.image_size)
    variants = {}
    for name, values in scores.items():
        mean = estimate(list(values.values()))
        variants[name] = {
            "miou": finite(mean.__dict__),
            "difference": finite(differences[name].__dict__) if name in differences else None,
            **costs[name],
            "runs": runs[name],
        }
        d = differences.get(name)
        against = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]" if d else ""
        print(
            f"{name:36} {100 * mean.mean:.2f} [{100 * mean.low:.2f}, {100 * mean.high:.2f}]  {against:24} "
            f"{costs[name]['macs'] / 1e6:.0f} MMACs {costs[name]['latency_ms']:.1f} ms"
        )
    if options.out:
        settings = {
            key: str(value)
            for key, value in vars(options).items()
            if key not in ("data", "out", "runs", "report")
        }
        machine = {**describe_machine(), "python": platform.python_version()}
        write_json(options.out, {"machine": machine, "settings": settings, "variants": variants})


if __name__ == "__main__":
    main()
