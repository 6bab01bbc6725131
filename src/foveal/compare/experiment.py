"""The whole comparison: what is to be run, what of it is finished, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import foveal
from foveal.compare import BLOCKS
from foveal.compare.arrays import PARTS, save_arrays
from foveal.compare.costs import measure_costs
from foveal.compare.job import Job
from foveal.compare.page import write_report
from foveal.compare.progress import Progress
from foveal.compare.runner import Runner, weights_path
from foveal.compare.summary import Row, summarise
from foveal.compare.tuning import BLOCK_FACTORS, Tuning, tune, with_factor
from foveal.compare.variants import (
    NONE,
    Variant,
    awake_norms,
    build,
    control_of,
    own_sources,
    parse_models,
    parse_variants,
)
from foveal.data import JointTransform
from foveal.data.joint import Rescale
from foveal.errors import FovealError
from foveal.folders import file_name, locked
from foveal.image_files import fingerprint
from foveal.insertion import block_name
from foveal.tasks import task_named
from foveal.train.config import TrainConfig
from foveal.train.network import add_blocks, build_network, describe_network
from foveal.train.parts import open_parts
from foveal.train.run import Interrupted
from foveal.train.start import with_start

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
    "logger",
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
        trials: rates that are tried for each variant before the seeds are run; 0 takes the default rates.
        tuning: what they found, once they are done.
    """

    variants: list[Variant]
    seeds: int
    data: dict[str, Any]
    job: Job
    trials: int = 0
    tuning: Tuning | None = None

    @property
    def jobs(self) -> list[Job]:
        """All runs, seed by seed."""
        return [self._job(variant, seed) for seed in range(self.seeds) for variant in self.variants]

    def _job(self, variant: Variant, seed: int) -> Job:
        settings = {**self.job.settings, "variant": asdict(variant), "seed": seed}
        config = replace(self.job.config, seed=seed)
        if self.tuning is not None:
            factor = self.tuning.chosen[variant.name]
            config, settings = with_factor(config, variant, factor), {**settings, "factor": factor}
        return replace(self.job, variant=variant, config=config, keep_weights=seed == 0, settings=settings)


def plan_comparison(
    insertions: Sequence[str] | None,
    *,
    models: Sequence[str] = (),
    seeds: int,
    control: bool,
    split: str = "val",
    trials: int = 0,
    training: Mapping[str, Any],
) -> Plan:
    """Settle what is to be compared.

    Args:
        models: networks to compare by name instead of ``insertions``.
        split: the part of the data that is measured on.
        trials: rates to try for each variant.

    Raises:
        FovealError: an option is wrong, the data cannot be opened, or a block cannot go where it was asked for.
    """
    if seeds < 1:
        raise FovealError(f"seeds must be at least 1, got {seeds}")
    if not 0 <= trials <= len(BLOCK_FACTORS) or trials == 1:
        raise FovealError(
            f"tune must be 0, or 2 to {len(BLOCK_FACTORS)} rates for each variant, got {trials}"
        )
    blocks: Sequence[str] = recipe_of(training).get("insert", BLOCKS) if insertions is None else insertions
    variants = parse_models(models) if models else [NONE, *parse_variants(blocks)]
    config = _config(training)
    if models:
        config = replace(config, model=variants[0].model or "")
        if config.from_weights is not None:
            raise FovealError(f"from_weights must be left out with models, got {config.from_weights}")
    data = open_parts(config, val=split)
    net = build_network(config, list(data["train"].classes))
    info = describe_network(config, net, data)
    add_blocks(net, replace(config, insert=[]), info.image_size)
    if models:
        # every network that cannot be made is found before any time is spent on training
        norms: list[str] = []
        for variant in variants:
            build(variant, config, info.classes, info.image_size)
    else:
        costliest = control_of(variants[1:], config, classes=info.classes, image_size=info.image_size)
        norms = awake_norms(variants[1:], config, classes=info.classes, image_size=info.image_size)
        variants = [NONE, *([costliest] if control else []), *variants[1:]]
    settings = {
        "foveal": foveal.__version__,
        "torch": torch.__version__,
        "images": {part: len(images) for part, images in data.items()},
        "fingerprints": {part: getattr(images, "fingerprint", None) for part, images in data.items()},
        "info": info.to_dict(),
        "split": split,
        "norms": norms,
        "from_weights": None if config.from_weights is None else fingerprint([config.from_weights]),
        "sources": own_sources(variants),
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
    return Plan(variants, seeds, data, job, trials)


def _config(training: Mapping[str, Any]) -> TrainConfig:
    """The options of training, for the bundled data those of the task's quick recipe unless given."""
    refused = sorted({"insert", "out", "seed", "devices", "nodes", "strategy", "workers"} & set(training))
    if refused:
        raise FovealError(
            f"the options of training that a comparison takes do not include {', '.join(refused)}"
        )
    options = dict(training)
    recipe = {name: value for name, value in recipe_of(training).items() if name != "insert"}
    if options.get("model", recipe.get("model")) != recipe.get("model"):
        recipe.pop("model_options", None)
    size = options.get("image_size") or recipe.get("image_size")
    if recipe and size:
        options["data_options"] = {"size": size, **options.get("data_options", {})}
    options = {**recipe, **options}
    options["accelerator"] = _device(options.get("accelerator", "auto"))
    return with_start(TrainConfig.from_dict(options))


def recipe_of(training: Mapping[str, Any]) -> dict[str, Any]:
    """The task's recipe for the bundled data that are asked for; empty for a person's own."""
    task = task_named(training.get("task", "classify"))
    return dict(getattr(task, "bundled_recipes", {}).get(training.get("data", "scenes"), {}))


def _device(accelerator: str) -> str:
    if accelerator not in ("auto", "cpu", "cuda"):
        raise FovealError(f"accelerator must be auto, cpu or cuda, got {accelerator!r}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise FovealError("accelerator cuda needs a CUDA GPU, got none here; cpu runs anywhere")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def run(
    insertions: Sequence[str] | None,
    *,
    models: Sequence[str],
    seeds: int,
    control: bool,
    split: str,
    trials: int,
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
        insertions, models=models, seeds=seeds, control=control, split=split, trials=trials, training=training
    )
    folder = _folder(out, plan)
    with locked(folder, "a comparison"):
        return _run_locked(plan, folder, engine, jobs, quiet)


def _run_locked(plan: Plan, folder: Path, engine: str, jobs: int | None, quiet: bool) -> ComparisonResult:
    progress = Progress(plan, quiet=quiet)
    try:
        with Runner(plan, folder, engine, jobs, progress) as runner:
            if plan.trials:
                plan = replace(plan, tuning=tune(plan.variants, plan.job, plan.trials, runner.do))
            planned = plan.jobs
            results = runner.do(planned)
        progress.say("measuring time and memory, drawing the report")
        costs = measure_costs(plan, folder)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; {progress.done} of {progress.total} runs are finished and kept in {folder}; "
            "the same command continues with the rest"
        ) from None
    finally:
        progress.stop()
    runs = [results[job.key] for job in planned]
    rows, conclusion = summarise(plan, runs, costs, data=data_name(plan.job.config))
    result = ComparisonResult(conclusion, rows, folder)
    weights = {job.variant.name: weights_path(folder, job) for job in planned if job.keep_weights}
    kept = {name: path for name, path in weights.items() if path.exists()}
    write_report(folder, plan=plan, conclusion=conclusion, rows=rows, runs=runs, weights=kept)
    progress.show(conclusion, rows, result.report)
    return result


def data_name(config: TrainConfig) -> str:
    """What to call the data: their name, or that of their folder."""
    return config.data if not Path(config.data).exists() else Path(config.data).resolve().name


def _folder(out: str | None, plan: Plan) -> Path:
    config = plan.job.config
    others = [block_name(v.insert) if v.insert else v.name for v in plan.variants if v.attends]
    name = file_name(f"{data_name(config)}-{config.model}-{'-'.join(dict.fromkeys(others))}")
    folder = Path(out) if out is not None else Path("runs/compare") / name
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FovealError(f"out must be a folder, got {folder}, where a file stands in the way") from None
    return folder


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
