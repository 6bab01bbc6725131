"""The whole comparison: what is to be run, what of it is finished, and what comes out."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import foveal
from foveal.compare.costs import measure_costs
from foveal.compare.images import save_images
from foveal.compare.pool import Pool
from foveal.compare.progress import Progress
from foveal.compare.report import write_report
from foveal.compare.summary import Row, summarise
from foveal.compare.variants import NONE, Variant, control_of, parse_variants
from foveal.compare.worker import Job
from foveal.data import open_dataset
from foveal.errors import FovealError
from foveal.train.batches import class_names, colours_of
from foveal.train.classify import augmentation, natural_size
from foveal.train.config import TrainConfig
from foveal.train.run import Interrupted, make_network

SCENES = {
    "epochs": 2,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.01,
    "augment": False,
}
"""The recipe of the bundled scenes; other data take the defaults of `foveal train`."""
SCENES_SIZE = 24

ELSEWHERE = (
    "insert",
    "out",
    "seed",
    "accelerator",
    "devices",
    "nodes",
    "strategy",
    "workers",
    "checkpoint_steps",
)
"""Options of training that are no setting of the comparison: they vary in it, or change no result."""


@dataclass(frozen=True)
class Outcome:
    """What a comparison found.

    Attributes:
        verdict: a sentence or two.
        rows: one for each variant: ``none``, ``control`` (if any), then the blocks in the order given.
        folder: the output folder, with ``report.html``, ``results.json``, ``results.csv`` and ``runs.csv``.
    """

    verdict: str
    rows: list[Row]
    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def run(
    insertions: Sequence[str],
    *,
    seeds: int,
    control: bool,
    options: dict[str, Any],
    accelerator: str,
    jobs: int | None,
    out: str | None,
    quiet: bool,
) -> Outcome:
    """Do what `foveal.compare.compare` describes."""
    if seeds < 1:
        raise FovealError(f"seeds must be at least 1, got {seeds}")
    if jobs is not None and jobs < 1:
        raise FovealError(f"jobs must be at least 1, got {jobs}")
    variants = parse_variants(insertions)
    config = _config(options)
    data = {split: open_dataset(config.data, split, **config.data_options) for split in ("train", "val")}
    classes = class_names(config, data)
    size = config.image_size or natural_size(data["train"])
    device = _device(accelerator)
    costliest = control_of(variants, config, classes=len(classes), image_size=size)
    variants = [NONE, *([costliest] if control else []), *variants]

    crop, flip = augmentation(config, data["train"])
    template = Job(
        variant=NONE,
        config=config,
        images="",
        classes=classes,
        image_size=size,
        augmentation={"crop": crop, "flip": flip} if config.augment else {},
        colours=colours_of(
            make_network(config, classes=len(classes), image_size=size), pretrained=config.pretrained
        ),
        device=device,
        result="",
        weights=None,
        settings={
            "foveal": foveal.__version__,
            "torch": torch.__version__,
            "images": {split: len(part) for split, part in data.items()},
            "classes": classes,
            "image_size": size,
            "device": device,
            "training": {name: value for name, value in asdict(config).items() if name not in ELSEWHERE},
        },
    )
    folder = _folder(out, config)
    planned = [_job(template, variant, seed, folder) for seed in range(seeds) for variant in variants]
    results = {job.result: found for job in planned if (found := finished_result(job)) is not None}

    progress = Progress([v.name for v in variants], seeds, quiet=quiet)
    for result in results.values():
        progress.finished(result)
    pending = [job for job in planned if job.result not in results]
    try:
        if pending:
            results |= _train(pending, data, folder, progress, jobs)
        progress.say("measuring time and memory, drawing the report")
        costs = measure_costs(variants, template, folder)
    except KeyboardInterrupt:
        raise Interrupted(
            f"compare: stopped; {progress.done} of {len(planned)} runs are finished and kept in {folder}; "
            "the same command continues with the rest"
        ) from None
    finally:
        progress.stop()

    runs = [results[job.result] for job in planned]
    rows, verdict = summarise(variants, runs, costs, data=_data_name(config))
    kept = {job.variant: Path(job.weights) for job in planned if job.weights and job.variant.attends}
    outcome = Outcome(verdict, rows, folder)
    write_report(
        folder,
        verdict=verdict,
        rows=rows,
        runs=runs,
        template=template,
        seeds=seeds,
        pictures={variant: path for variant, path in kept.items() if path.exists()},
        images=data["val"],
    )
    progress.show(outcome.verdict, rows, outcome.report)
    return outcome


def _config(options: dict[str, Any]) -> TrainConfig:
    if options["data"] == "scenes":
        drawn = {"size": options["image_size"] or SCENES_SIZE, **options["data_options"]}
        options = {**SCENES, **options, "data_options": drawn}
    return TrainConfig.from_dict(options)


def _device(accelerator: str) -> str:
    if accelerator not in ("auto", "cpu", "cuda"):
        raise FovealError(f"accelerator must be auto, cpu or cuda, got {accelerator!r}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise FovealError("accelerator cuda needs a CUDA GPU, got none here; cpu runs anywhere")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def _data_name(config: TrainConfig) -> str:
    return config.data if config.data == "scenes" or ":" in config.data else Path(config.data).resolve().name


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")


def _folder(out: str | None, config: TrainConfig) -> Path:
    name = _file_name(f"{_data_name(config)}-{config.model}")
    folder = Path(out) if out is not None else Path("runs/compare") / name
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FovealError(f"out must be a folder, got {folder}, where a file stands in the way") from error
    return folder


def _job(template: Job, variant: Variant, seed: int, folder: Path) -> Job:
    settings = {**template.settings, "variant": asdict(variant), "seed": seed}
    key = hashlib.blake2b(
        json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=5
    ).hexdigest()
    stem = folder / "runs" / f"{_file_name(variant.name)}-seed{seed}-{key}"
    return replace(
        template,
        variant=variant,
        config=replace(template.config, seed=seed),
        result=f"{stem}.json",
        weights=f"{stem}.safetensors" if seed == 0 else None,
        settings=settings,
    )


def finished_result(job: Job) -> dict[str, Any] | None:
    """The result of an earlier run with these very settings."""
    try:
        result = json.loads(Path(job.result).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = result.get("settings") == json.loads(json.dumps(job.settings))
    return result if same else None


def _train(
    pending: Sequence[Job], data: dict[str, Any], folder: Path, progress: Progress, jobs: int | None
) -> dict[str, dict[str, Any]]:
    """Do the runs that are left; result file -> result."""
    first = pending[0]
    workers, threads, gpus = _share_machine(first.device, jobs, len(pending))
    progress.start(pending, workers, threads)
    found: dict[str, dict[str, Any]] = {}

    def on_result(job: Job, result: dict[str, Any]) -> None:
        found[job.result] = result
        progress.finished(result)

    for left in folder.glob(".images-*"):  # of a comparison that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".images-") as images:
        for split, part in data.items():
            for_crops = split == "train" and bool(first.augmentation)
            save_images(part, Path(images), split, first.image_size, for_crops=for_crops)
        with Pool(workers, threads, Path(images) / "log.txt", gpus) as pool:
            pool.do([replace(job, images=images) for job in pending], progress.stepped, on_result)
    return found


def _share_machine(device: str, jobs: int | None, runs: int) -> tuple[int, int, list[str]]:
    """Processes, threads for each, and the GPUs they take in turn.

    Small networks are bound by overhead: two runs with one thread each are quicker than one with two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus: list[str] = []
    if device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    workers = min(jobs or (len(gpus) if gpus else cores), runs)
    return workers, max(1, cores // workers), gpus
