"""Does attention help segmentation? DANet and its parts against equal heads without, on CamVid.

    python benchmarks/camvid.py --data path/to/camvid --runs runs/camvid --out benchmarks/results/camvid.json

One backbone from random weights, one schedule and, in one seed, one initial backbone and one order of the images for
all. Each run is one of ``foveal train`` with its own folder, which also gets ``test.json``: a study that was stopped
goes on where it was. The last epoch counts, never the best one: mIoU from one confusion matrix over the test part,
whole images, at the masks' own size. Parameters, time and memory of one image are measured last, on the CPU, one
network after the other in turn.
"""

import argparse
import json
import multiprocessing
import platform
import time
from pathlib import Path
from typing import Any

import torch

from foveal import create_model
from foveal.bench import describe_machine
from foveal.files import finite, write_json
from foveal.measure import count_macs, count_parameters, measure_time, peak_bytes
from foveal.statistics import differences_to, estimate
from foveal.train import TrainConfig, evaluate_masks, fit

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "FCN": ("fcn", {}),
    "FCN + Non-local": ("fcn_nonlocal", {}),
    "DANet, position only": ("danet_position", {}),
    "DANet, channel only": ("danet_channel", {}),
    "DANet": ("danet", {}),
    "DANet, channel softmax of the paper": ("danet", {"channel_form": "paper"}),
}
IGNORED = 11


def run_folder(name: str, seed: int, options: argparse.Namespace) -> Path:
    head, model_options = VARIANTS[name]
    return options.runs / f"{head}{'-paper' if model_options else ''}-{seed}"


def train_and_test(job: tuple[str, int, argparse.Namespace]) -> str:
    """One variant and seed, trained and tested as far as it is not; what to print about it."""
    name, seed, options = job
    head, model_options = VARIANTS[name]
    folder = run_folder(name, seed, options)
    if (folder / "test.json").exists():
        return f"seed {seed}  {name:36}  was done"
    start = time.perf_counter()
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
        scale_range=options.scale_range,
        precision="bfloat16",
        channels_last=True,
        workers=0,
        seed=seed,
        out=str(folder),
    )
    fit(resume=folder, quiet=True) if (folder / "checkpoint.ckpt").exists() else fit(config, quiet=True)
    found = evaluate_masks(
        folder / "weights" / "last.safetensors", str(options.data), split="test", workers=0
    )
    seconds = time.perf_counter() - start
    row = {"miou": found.miou, "iou": found.iou, "run": folder.name, "seconds": round(seconds)}
    row["trained_on"] = f"{device_name()}, torch {torch.__version__}"
    write_json(folder / "test.json", row)
    return f"seed {seed}  {name:36}  test mIoU {100 * found.miou:5.2f} %  {seconds:4.0f} s"


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"


def cost(image_size: int, backbone: str) -> dict[str, dict[str, Any]]:
    """Parameters, multiply-accumulates, and time and memory of one image, measured in turn."""
    x = torch.randn(1, 3, image_size, image_size * 4 // 3).contiguous(memory_format=torch.channels_last)
    nets, calls = {}, {}
    for name, (head, model_options) in VARIANTS.items():
        net = create_model(f"{head}_{backbone}", num_classes=IGNORED, **model_options).eval()
        nets[name] = net.to(memory_format=torch.channels_last)
        calls[name] = torch.no_grad()(lambda net=nets[name]: net(x))
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
    parser.add_argument("--scale-range", type=float, nargs=2, default=[0.75, 1.5], metavar="FACTOR")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument(
        "--report", action="store_true", help="train nothing; take the runs that are finished"
    )
    options = parser.parse_args()
    if not options.report:
        jobs = [(name, seed, options) for seed in range(options.seeds) for name in VARIANTS]
        # processes of their own: CUDA cannot be used in a fork of a process that has used it
        with multiprocessing.get_context("spawn").Pool(options.jobs, torch.set_num_threads, (1,)) as pool:
            for line in pool.imap_unordered(train_and_test, jobs, chunksize=1):
                print(line, flush=True)
    report(options)


def finished(options: argparse.Namespace) -> dict[str, dict[int, dict[str, Any]]]:
    """``test.json`` of each variant and seed that has one."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for name in VARIANTS:
        for seed in range(options.seeds):
            file = run_folder(name, seed, options) / "test.json"
            if file.exists():
                runs.setdefault(name, {})[seed] = json.loads(file.read_text())
    return runs


def report(options: argparse.Namespace) -> None:
    runs = finished(options)
    scores = {name: {seed: row["miou"] for seed, row in rows.items()} for name, rows in runs.items()}
    baseline = next(iter(scores))
    differences = differences_to(scores[baseline], {n: s for n, s in scores.items() if n != baseline})
    costs = cost(options.image_size, options.backbone)
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
        against = (
            f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}] p {d.p_corrected:.3f}"
            if d
            else ""
        )
        print(
            f"{name:36} {100 * mean.mean:.2f} [{100 * mean.low:.2f}, {100 * mean.high:.2f}]  {against:32} "
            f"{costs[name]['macs'] / 1e6:.0f} MMACs {costs[name]['latency_ms']:.1f} ms"
        )
    if options.out:
        settings = {
            key: str(value)
            for key, value in vars(options).items()
            if key not in ("data", "out", "runs", "report", "jobs")
        }
        machine = {**describe_machine(), "python": platform.python_version()}
        write_json(options.out, {"machine": machine, "settings": settings, "variants": variants})


if __name__ == "__main__":
    main()
