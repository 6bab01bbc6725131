"""What is to be compared: settled in seconds, with every mistake of the user's, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import foveal
from foveal.compare import BLOCKS
from foveal.compare.job import Job
from foveal.compare.sequential import LOOKS
from foveal.compare.tuning import BLOCK_FACTORS, Tuning, with_factor
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
from foveal.errors import FovealError
from foveal.hub import weights_file
from foveal.image_files import fingerprint
from foveal.statistics import FEWEST_SEEDS
from foveal.tasks import task_named
from foveal.train.config import NOT_OF_COMPARISONS, TrainConfig
from foveal.train.network import add_blocks, build_network, describe_network
from foveal.train.parts import open_parts
from foveal.train.start import with_start

# options of training that are no setting of a comparison: they vary in it, or change no result
NOT_SETTINGS = (*NOT_OF_COMPARISONS, "accelerator")


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before anything is trained: found in seconds, and with every mistake of the user's.

    Attributes:
        variants: ``none``, the control if any, then the blocks.
        seeds: runs of each; of a comparison that stops by itself the most.
        data: the parts ``train`` and ``val``.
        job: any job, for what all have in common.
        trials: rates that are tried for each variant before the seeds are run; 0 takes the default rates.
        tuning: what they found, once they are done.
        detect: the difference that matters, as a share of the metric; None where none was named.
        looks: numbers of seeds after which a comparison looks whether it may stop; empty where their number is fixed.
    """

    variants: list[Variant]
    seeds: int
    data: dict[str, Any]
    job: Job
    trials: int = 0
    tuning: Tuning | None = None
    detect: float | None = None
    looks: tuple[int, ...] = ()

    @property
    def jobs(self) -> list[Job]:
        """All runs, seed by seed."""
        return self.jobs_of(range(self.seeds))

    def jobs_of(self, seeds: Iterable[int]) -> list[Job]:
        """The runs of these seeds, seed by seed."""
        return [self._job(variant, seed) for seed in seeds for variant in self.variants]

    @property
    def comparisons(self) -> int:
        """Variants that are compared with the baseline."""
        return len(self.variants) - 1

    @property
    def of_networks(self) -> bool:
        """Whether networks are compared by name, not blocks that are inserted into one."""
        return self.variants[0].model is not None

    def _job(self, variant: Variant, seed: int) -> Job:
        settings = {**self.job.settings, "variant": asdict(variant), "seed": seed}
        config = replace(self.job.config, seed=seed)
        if self.tuning is not None:
            factor = self.tuning.chosen[variant.name]
            config, settings = with_factor(config, variant, factor), {**settings, "factor": factor}
        return replace(self.job, variant=variant, config=config, keep_weights=seed == 0, settings=settings)


TRIALS = 2
"""Rates that are tried for each variant on a person's own data: about a third of a comparison with 8 seeds on top."""
WHAT = ("insert", "models", "tune")
"""What a recipe may say of the comparison; the rest of it are options of training."""


def plan_comparison(
    insertions: Sequence[str] | None,
    *,
    models: Sequence[str] = (),
    seeds: int | str,
    control: bool | str,
    split: str = "val",
    trials: int | None = 0,
    detect: float | None = None,
    training: Mapping[str, Any],
) -> Plan:
    """Settle what is to be compared.

    Args:
        models: networks to compare by name instead of ``insertions``; where neither is given, those of the task's
            recipe.
        seeds: runs of each variant, or "auto".
        control: whether there is one; "time" has its width chosen later, in the comparison's folder.
        detect: the difference that matters, in points, or for a metric that is no share in its own unit.
        split: the part of the data that is measured on.
        trials: rates to try for each variant; None: what `default_trials` says.

    Raises:
        FovealError: an option is wrong, the data cannot be opened, or a block cannot go where it was asked for.
    """
    if trials is None:
        trials = default_trials(seeds, training)
    _check_options(seeds, control, trials, detect)
    if insertions is not None and models:
        raise FovealError(
            f"insert must be left out with models, which compares networks as they are, got {', '.join(insertions)}"
        )
    if insertions is None:
        models = models or recipe_of(training).get("models", ())
    blocks: Sequence[str] = recipe_of(training).get("insert", BLOCKS) if insertions is None else insertions
    variants = parse_models(models) if models else [NONE, *parse_variants(blocks)]
    config = _config(training)
    if models:
        variants = [with_own_options(variant, training) for variant in variants]
        config = replace(config, model=variants[0].model or "", model_options=variants[0].model_options)
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
        "from_weights": None
        if config.from_weights is None
        else fingerprint([weights_file(config.from_weights)]),
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
    looks = LOOKS if seeds == "auto" else ()
    most = LOOKS[-1] if isinstance(seeds, str) else seeds
    if detect is not None and config.the_task.is_share:
        detect /= 100
    return Plan(variants, most, data, job, trials, detect=detect, looks=looks)


def _check_options(seeds: int | str, control: bool | str, trials: int, detect: float | None) -> None:
    """Raise where an option of the comparison is outside what `plan_comparison` says."""
    if seeds == "auto" and detect is None:
        raise FovealError("seeds auto needs detect, the difference that matters, in points, got none")
    if isinstance(seeds, str) and seeds != "auto":
        raise FovealError(f"seeds must be a number or auto, got {seeds!r}")
    if isinstance(seeds, int) and seeds < 1:
        raise FovealError(f"seeds must be at least 1, got {seeds}")
    if detect is not None and not detect > 0:
        raise FovealError(f"detect must be above 0, got {detect}")
    if not 0 <= trials <= len(BLOCK_FACTORS) or trials == 1:
        raise FovealError(
            f"tune must be 0, or 2 to {len(BLOCK_FACTORS)} rates for each variant, got {trials}"
        )
    if control not in (True, False, "time"):
        raise FovealError(f"control must be true, false or time, got {control!r}")


def default_trials(seeds: int | str, training: Mapping[str, Any]) -> int:
    """Rates to try for each variant where nobody says: on bundled data those of their recipe, which has none where the
    rates were found by experiment; and none where there are too few seeds for a verdict.

    Example:
        >>> [default_trials(8, {"data": data}) for data in ("photos", "scenes", "scenes:cue")]
        [2, 2, 0]
        >>> default_trials(2, {"data": "photos"}), default_trials(8, {"data": "films", "task": "clips"})
        (0, 2)
    """
    if not isinstance(seeds, str) and seeds < FEWEST_SEEDS:
        return 0
    recipe = bundled_recipe(training)
    return recipe.get("tune", 0) if recipe else TRIALS


def with_own_options(variant: Variant, training: Mapping[str, Any]) -> Variant:
    """A network to compare with all its options: those of the person, and what its task settles for this network."""
    given = {**training.get("model_options", {}), **variant.model_options}
    own = _config({**training, "model": variant.model, "model_options": given}, without=("model_options",))
    return replace(variant, model_options=own.model_options)


def _config(training: Mapping[str, Any], without: Sequence[str] = ()) -> TrainConfig:
    """The options of training, those of the task's recipe unless given, ``without`` some of it."""
    refused = sorted({"insert", "out", "seed", "devices", "nodes", "strategy", "workers"} & set(training))
    if refused:
        raise FovealError(
            f"the options of training that a comparison takes do not include {', '.join(refused)}"
        )
    options = dict(training)
    recipe = {name: value for name, value in recipe_of(training).items() if name not in (*WHAT, *without)}
    if "model" in recipe and options.get("model", recipe["model"]) != recipe["model"]:
        recipe.pop("model_options", None)
    size = options.get("image_size") or recipe.get("image_size")
    if size and bundled_recipe(training):
        options["data_options"] = {"size": size, **options.get("data_options", {})}
    network = {**recipe.get("model_options", {}), **options.get("model_options", {})}
    options = {**recipe, **options, **({"model_options": network} if network else {})}
    options["accelerator"] = _device(options.get("accelerator", "auto"))
    return with_start(TrainConfig.from_dict(options))


def recipe_of(training: Mapping[str, Any]) -> dict[str, Any]:
    """What the task compares where the person says nothing else, and on bundled data its quick recipe."""
    compared = getattr(task_named(training.get("task", "classify")), "compared", None)
    return {**(compared(training.get("model")) if compared else {}), **bundled_recipe(training)}


def bundled_recipe(training: Mapping[str, Any]) -> dict[str, Any]:
    """The task's recipe for the bundled data that are asked for; empty for a person's own."""
    task = task_named(training.get("task", "classify"))
    return dict(getattr(task, "bundled_recipes", {}).get(training.get("data", "scenes"), {}))


def _device(accelerator: str) -> str:
    if accelerator not in ("auto", "cpu", "cuda"):
        raise FovealError(f"accelerator must be auto, cpu or cuda, got {accelerator!r}")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise FovealError("accelerator cuda needs a CUDA GPU, got none here; cpu runs anywhere")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def data_name(config: TrainConfig) -> str:
    """What to call the data: their name, or that of their folder."""
    return config.data if not Path(config.data).exists() else Path(config.data).resolve().name
