"""The whole comparison: what is to be run, what of it is finished, and what comes out."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import foveal
from foveal.compare.arrays import PARTS, save_arrays
from foveal.compare.costs import measure_costs
from foveal.compare.engines import make_engine
from foveal.compare.job import Job
from foveal.compare.page import write_report
from foveal.compare.progress import Progress
from foveal.compare.summary import Row, summarise
from foveal.compare.variants import (
    NONE,
    Variant,
    awake_norms,
    build,
    control_of,
    parse_models,
    parse_variants,
)
from foveal.data import JointTransform
from foveal.data.joint import Rescale
from foveal.errors import FovealError
from foveal.files import file_name, locked, write_bytes, write_json
from foveal.tasks import task_named
from foveal.train.config import TrainConfig
from foveal.train.network import add_blocks, build_network, describe_network
from foveal.train.run import Interrupted, open_parts

# options of training that are no setting of a comparison: they vary in it, or change no result
NOT_SETTINGS = (
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
LARGEST_STORED = 2
"""Images for random crops are stored with a shorter side of at most so many times the network's size."""


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison found.

    Attributes:
        conclusion: a sentence or two.
        rows: one for each variant: ``none``, ``control`` (if any), then the blocks in the order given.
        folder: the output folder, with ``report.html``, ``results.json``, ``results.csv`` and ``runs.csv``.
    """

    conclusion: str
    rows: list[Row]
    folder: Path

    @property
    def report(self) -> Path:
        """The page with everything."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before anything is trained: found in seconds, and with every mistake of the user's.

    Attributes:
        variants: ``none``, the control if any, then the blocks.
        seeds: runs of each.
        data: the parts ``train`` and ``val``.
        job: any job, for what all have in common.
    """

    variants: list[Variant]
    seeds: int
    data: dict[str, Any]
    job: Job

    @property
    def jobs(self) -> list[Job]:
        """All runs, seed by seed."""
        return [self._job(variant, seed) for seed in range(self.seeds) for variant in self.variants]

    def _job(self, variant: Variant, seed: int) -> Job:
        settings = {**self.job.settings, "variant": asdict(variant), "seed": seed}
        config = replace(self.job.config, seed=seed)
        return replace(self.job, variant=variant, config=config, keep_weights=seed == 0, settings=settings)


def plan_comparison(
    insertions: Sequence[str],
    *,
    models: Sequence[str] = (),
    seeds: int,
    control: bool,
    split: str = "val",
    training: Mapping[str, Any],
) -> Plan:
    """Settle what is to be compared.

    Args:
        models: networks to compare by name instead of ``insertions``.
        split: the part of the data that is measured on.

    Raises:
        FovealError: an option is wrong, the data cannot be opened, or a block cannot go where it was asked for.
    """
    if seeds < 1:
        raise FovealError(f"seeds must be at least 1, got {seeds}")
    variants = parse_models(models) if models else [NONE, *parse_variants(insertions)]
    config = _config(training)
    if models:
        config = replace(config, model=variants[0].model or "")
    data = open_parts(config, val=split)
    net = build_network(config, classes=len(data["train"].classes))
    info = describe_network(config, net, data)
    add_blocks(net, replace(config, insert=[]), info.image_size)
    if models:
        # every network that cannot be made is found before any time is spent on training
        norms: list[str] = []
        for variant in variants:
            build(variant, config, len(info.classes), info.image_size)
    else:
        costliest = control_of(variants[1:], config, classes=len(info.classes), image_size=info.image_size)
        norms = awake_norms(variants[1:], config, classes=len(info.classes), image_size=info.image_size)
        variants = [NONE, *([costliest] if control else []), *variants[1:]]
    settings = {
        "foveal": foveal.__version__,
        "torch": torch.__version__,
        "images": {part: len(images) for part, images in data.items()},
        "fingerprints": {part: getattr(images, "fingerprint", None) for part, images in data.items()},
        "info": info.to_dict(),
        "split": split,
        "norms": norms,
        "device": config.accelerator,
        "training": {name: value for name, value in config.to_dict().items() if name not in NOT_SETTINGS},
    }
    job = Job(
        variants[0],
        config,
        info,
        config.accelerator,
        norms,
        keep_weights=False,
        settings=json.loads(json.dumps(settings)),
    )
    return Plan(variants, seeds, data, job)


def _config(training: Mapping[str, Any]) -> TrainConfig:
    """The options of training, for the bundled data those of the task's quick recipe unless given."""
    refused = sorted({"insert", "out", "seed", "devices", "nodes", "strategy", "workers"} & set(training))
    if refused:
        raise FovealError(
            f"the options of training that a comparison takes do not include {', '.join(refused)}"
        )
    options = dict(training)
    task = task_named(options.get("task", "classify"))
    if options.get("data", "scenes") == "scenes":
        recipe = dict(getattr(task, "bundled_recipe", {}))
        size = options.get("image_size") or recipe.get("image_size")
        if size:
            options["data_options"] = {"size": size, **options.get("data_options", {})}
        options = {**recipe, **options}
    options["accelerator"] = _device(options.get("accelerator", "auto"))
    return TrainConfig.from_dict(options)


def _device(accelerator: str) -> str:
    if accelerator not in ("auto", "cpu", "cuda"):
        raise FovealError(f"accelerator must be auto, cpu or cuda, got {accelerator!r}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise FovealError("accelerator cuda needs a CUDA GPU, got none here; cpu runs anywhere")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def run(
    insertions: Sequence[str],
    *,
    models: Sequence[str],
    seeds: int,
    control: bool,
    split: str,
    training: Mapping[str, Any],
    engine: str,
    jobs: int | None,
    out: str | None,
    quiet: bool,
) -> ComparisonResult:
    """Do what `foveal.compare.compare` describes."""
    if jobs is not None and jobs < 1:
        raise FovealError(f"jobs must be at least 1, got {jobs}")
    plan = plan_comparison(
        insertions, models=models, seeds=seeds, control=control, split=split, training=training
    )
    folder = _folder(out, plan)
    with locked(folder, "a comparison"):
        return _run_locked(plan, folder, engine, jobs, quiet)


def _run_locked(plan: Plan, folder: Path, engine: str, jobs: int | None, quiet: bool) -> ComparisonResult:
    planned = plan.jobs
    results = {job.key: found for job in planned if (found := finished_result(folder, job)) is not None}
    progress = Progress(plan, quiet=quiet)
    for result in results.values():
        progress.finished(result)
    pending = [job for job in planned if job.key not in results]
    try:
        if pending:
            results |= _train(plan, pending, folder, progress, engine, jobs)
        progress.say("measuring time and memory, drawing the report")
        costs = measure_costs(plan, folder)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {progress.done} of {len(planned)} runs are finished and kept in {folder}; "
            "the same command continues with the rest"
        ) from None
    finally:
        progress.stop()
    runs = [results[job.key] for job in planned]
    task = plan.job.config.the_task
    rows, conclusion = summarise(plan.variants, runs, costs, data=data_name(plan.job.config), task=task)
    result = ComparisonResult(conclusion, rows, folder)
    weights = {job.variant.name: weights_path(folder, job) for job in planned if job.keep_weights}
    kept = {name: path for name, path in weights.items() if path.exists()}
    write_report(folder, plan=plan, conclusion=conclusion, rows=rows, runs=runs, weights=kept)
    progress.show(conclusion, rows, result.report)
    return result


def data_name(config: TrainConfig) -> str:
    """What to call the data: their name, or that of their folder."""
    return config.data if config.data == "scenes" or ":" in config.data else Path(config.data).resolve().name


def _folder(out: str | None, plan: Plan) -> Path:
    config = plan.job.config
    others = [v.name.partition("@")[0].partition("(")[0] for v in plan.variants if v.attends]
    name = file_name(f"{data_name(config)}-{config.model}-{'-'.join(dict.fromkeys(others))}")
    folder = Path(out) if out is not None else Path("runs/compare") / name
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FovealError(f"out must be a folder, got {folder}, where a file stands in the way") from None
    return folder


def result_path(folder: Path, job: Job) -> Path:
    """Where the result of a run is."""
    return folder / "runs" / f"{job.key}.json"


def weights_path(folder: Path, job: Job) -> Path:
    """Where the weights of a run are, if they are kept."""
    return folder / "runs" / f"{job.key}.safetensors"


def finished_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """The result of an earlier run with these very settings on these very data."""
    try:
        result = json.loads(result_path(folder, job).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = isinstance(result, dict) and result.get("settings") == json.loads(json.dumps(job.settings))
    return result if same else None


def _train(
    plan: Plan, pending: Sequence[Job], folder: Path, progress: Progress, engine: str, jobs: int | None
) -> dict[str, dict[str, Any]]:
    """Do the runs that are left, and write each result as it comes; key -> result."""
    found: dict[str, dict[str, Any]] = {}
    # of a comparison that was killed; the folder is locked, so nobody uses them
    for left in folder.glob(".images-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".images-") as name:
        images = Path(name)
        log = images / "log.txt"
        maker = make_engine(engine, device=plan.job.device, jobs=jobs, runs=len(pending), log=log)
        progress.start(pending, maker.description)
        store_images(plan, images)
        with maker as workers:
            for event in workers.run(pending, images):
                if event.step is not None:
                    progress.stepped(event.job, event.step)
                if event.result is not None:
                    if event.weights is not None:
                        write_bytes(weights_path(folder, event.job), event.weights)
                    write_json(
                        result_path(folder, event.job), {**event.result, "settings": event.job.settings}
                    )
                    found[event.job.key] = event.result
                    progress.finished(event.result)
    return found


def store_images(plan: Plan, folder: Path) -> None:
    """Decode the images once, at the size at which they are needed.

    Where a split's transform draws no random numbers, what it makes of an image is stored. Otherwise the image itself
    is, or where it is much larger than the network sees it, a smaller copy.
    """
    config, info = plan.job.config, plan.job.info
    task = config.the_task
    for part in PARTS:
        data = plan.data[part]
        transform = task.eval_transform(info)
        if part == "train":
            transform = task.train_transform(data, info, config.options, config.augment)
        resize = transform.without_normalization()
        save_arrays(
            data, folder, part, shrunk(LARGEST_STORED * info.image_size) if transform.random else resize
        )


def shrunk(most: int) -> Any:
    """A transform that brings an image to a shorter side of ``most`` pixels if it is larger."""
    smaller = JointTransform([Rescale(shorter=most)], normalise=False)
    return lambda sample: smaller(sample) if min(sample["image"].shape[-2:]) > most else sample
