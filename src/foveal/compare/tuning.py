"""The same tuning for every variant, on a part of the training images, before the seeds are run.

What is tuned is one number, the learning rate: for a variant with an attention block that of the block, for the network
as it is and for the control that of the network. Every variant gets the same number of trials, of the same length, half
that of a run, on the same images; the validation images of the comparison are never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from foveal.compare.job import Job
from foveal.compare.variants import Variant
from foveal.tasks import Task
from foveal.train.config import TrainConfig

if TYPE_CHECKING:
    from foveal.compare.plan import Plan

SHARE = 0.25
"""Share of the training images on which trials are measured; the rest trains them."""
SEEDS = 2
"""Runs of each rate that is still in the race in the second round."""
FIRST_SEED = 1000
"""Seeds of trials are none of the comparison's."""
DEFAULT = 1.0
BLOCK_FACTORS = (1.0, 0.1, 3.0, 0.3, 10.0, 0.03)
"""Factors on the learning rate of inserted blocks, in the order in which they are tried; 1 is the default rate, which
under AdamW is a tenth of the network's, so that the best may lie on either side."""
NETWORK_FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0, 0.125)
"""Factors on the learning rate of the network, where it is that which is tuned."""


@dataclass(frozen=True)
class Tuning:
    """What the trials found.

    Attributes:
        chosen: variant name -> factor on its rate.
        values: variant name -> factor -> the metric of each trial.
        rates: variant name -> factor -> the learning rate it stands for.
    """

    chosen: dict[str, float]
    values: dict[str, dict[float, list[float]]]
    rates: dict[str, dict[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


def tunes_block(variant: Variant) -> bool:
    """Whether it is the rate of an inserted block that is tuned."""
    return variant.attends and variant.insert is not None


def factors_of(variant: Variant, trials: int) -> Sequence[float]:
    """The factors that are tried."""
    return (BLOCK_FACTORS if tunes_block(variant) else NETWORK_FACTORS)[:trials]


def with_factor(config: TrainConfig, variant: Variant, factor: float) -> TrainConfig:
    """A config whose tuned rate is ``factor`` times its own."""
    if tunes_block(variant):
        return replace(config, inserted_lr=config.block_lr * factor)
    assert config.lr is not None
    return replace(config, lr=config.lr * factor, inserted_lr=config.block_lr * factor)


def rate_of(config: TrainConfig, variant: Variant, factor: float) -> float:
    """The learning rate that a factor stands for."""
    tuned = with_factor(config, variant, factor)
    rate = tuned.inserted_lr if tunes_block(variant) else tuned.lr
    assert rate is not None
    return rate


def tune(
    variants: Sequence[Variant],
    job: Job,
    trials: int,
    do: Callable[[list[Job]], Mapping[str, Mapping[str, Any]]],
) -> Tuning:
    """Try ``trials`` rates for each variant once, then the better half of them again, and take the best mean.

    A rate whose loss became infinite is out. Where all are out, the default rate stays.

    Args:
        job: any job of the comparison, for what all have in common.
        do: does jobs; job key -> result.

    Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification (2016): successive halving, with two rounds.
    """
    task = job.config.the_task
    order: dict[str, list[float]] = {}
    values: dict[str, dict[float, list[float]]] = {
        v.name: {factor: [] for factor in factors_of(v, trials)} for v in variants
    }
    racing = {v.name: list(values[v.name]) for v in variants}
    for seeds in (range(1), range(1, 1 + SEEDS)):
        planned = {
            (v.name, factor, seed): trial_job(job, v, factor, FIRST_SEED + seed)
            for seed in seeds
            for v in variants
            for factor in racing[v.name]
        }
        results = do(list(planned.values()))
        for (name, factor, _), one in planned.items():
            result = results[one.key]
            if "metric" in result:
                values[name][factor].append(result["metric"])
            elif factor in racing[name]:
                racing[name].remove(factor)
        order = {name: ranked(task, values[name], left) for name, left in racing.items()}
        racing = {name: better_half(left) for name, left in order.items()}
    chosen = {name: left[0] if left else DEFAULT for name, left in order.items()}
    rates = {v.name: {f: rate_of(job.config, v, f) for f in values[v.name]} for v in variants}
    return Tuning(chosen, values, rates)


def trial_jobs_at_most(plan: Plan) -> list[Job]:
    """As many trials as `tune` does where no rate fails; which of them go into the second round is not known yet."""
    planned = []
    for variant in plan.variants:
        factors = list(factors_of(variant, plan.trials))
        rounds = [(factors, 1), (better_half(factors[::-1]), SEEDS)]
        planned += [
            trial_job(plan.job, variant, factor, FIRST_SEED + number)
            for raced, count in rounds
            for factor in raced
            for number in range(count)
        ]
    return planned


def better_half(order: Sequence[float]) -> list[float]:
    """The first half of a ranking; the default rate stays in the race, as one lucky run is no reason to leave it.

    Example:
        >>> better_half([0.1, 0.3, 1.0, 3.0]), better_half([0.1, 1.0, 0.3]), better_half([0.1, 1.0])
        ([0.1, 1.0], [0.1, 1.0], [0.1, 1.0])
    """
    half = list(order[: (len(order) + 1) // 2])
    if DEFAULT in order and DEFAULT not in half:
        # of two rates both go on
        half[max(len(half) - 1, 1) :] = [DEFAULT]
    return half


def ranked(task: Task, values: Mapping[float, Sequence[float]], left: Sequence[float]) -> list[float]:
    """The factors in the race from the best mean to the worst; the default goes first among equals."""
    sign = -1 if task.higher_is_better else 1
    return sorted(left, key=lambda factor: (sign * fmean(values[factor]), abs(factor - DEFAULT)))


def trial_epochs(config: TrainConfig) -> int:
    """Half as many as a run has, and one more than those in which most of the network is frozen.

    Example:
        >>> [trial_epochs(TrainConfig(epochs=epochs)) for epochs in (1, 2, 3, 20)]
        [1, 1, 2, 10]
        >>> trial_epochs(TrainConfig(epochs=4, freeze_epochs=3))
        4
    """
    return max((config.epochs + 1) // 2, min(config.freeze_epochs + 1, config.epochs))


def trial_job(job: Job, variant: Variant, factor: float, seed: int) -> Job:
    """One trial: half a run on a part of the training images, measured on the rest of them."""
    tuned = with_factor(job.config, variant, factor)
    config = replace(tuned, seed=seed, epochs=trial_epochs(tuned))
    settings = {
        **job.settings,
        "variant": asdict(variant),
        "seed": seed,
        "trial": {"factor": factor, "share": SHARE, "epochs": config.epochs},
    }
    return replace(
        job, variant=variant, config=config, keep_weights=False, trial_share=SHARE, settings=settings
    )
