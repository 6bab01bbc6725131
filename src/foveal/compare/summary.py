"""From finished runs to one row a variant and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from foveal.compare.conclusion import MetricText, conclude
from foveal.compare.language import Language
from foveal.compare.sequential import sequential_differences
from foveal.compare.tuning import rate_of
from foveal.statistics import Difference, Estimate, differences_to, estimate
from foveal.train.block_report import INACTIVE_BELOW

if TYPE_CHECKING:
    from foveal.compare.experiment import Plan


@dataclass(frozen=True)
class Costs:
    """What one variant costs, on the machine that compared.

    Attributes:
        parameters: number of them.
        macs: multiply-accumulates for one image.
        time_ms, time_low_ms, time_high_ms: one image forward, median and quartiles.
        batch_ms: one training batch forward, in evaluation.
        peak_bytes: most memory a training step holds beyond the network and its gradients.
    """

    parameters: int
    macs: int
    time_ms: float
    time_low_ms: float
    time_high_ms: float
    batch_ms: float
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        name, described: what it is; ``described`` as a person would type it.
        kind: "none", "control" or "attention".
        metric: the task's metric over seeds, on the validation images after the last epoch.
        to_none, to_control: paired differences; None for the baseline itself.
        costs: on this machine.
        share: attention on the object, over seeds; None without a map or without known objects.
        chance: what a uniform map would have.
        seeds: finished runs.
        failed: seed -> reason of runs whose loss became infinite.
        change: how much the block that did most changed its input, ||block(x) - x|| / ||x||, in the run where it was
            most; None without an inserted block.
        rate: the learning rate of the inserted block, or where that was not tuned of the network.
    """

    name: str
    described: str
    kind: str
    metric: Estimate
    to_none: Difference | None
    to_control: Difference | None
    costs: Costs
    share: Estimate | None
    chance: float | None
    seeds: int
    failed: dict[int, str]
    change: float | None = None
    rate: float | None = None


@dataclass
class Gathered:
    """What the runs of one variant found."""

    values: dict[int, float] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)

    def add(self, run: Mapping[str, Any]) -> None:
        """One run; of several sites the mean share, and the largest change."""
        if "failed" in run:
            self.failed[run["seed"]] = run["failed"]
            return
        self.values[run["seed"]] = run["metric"]
        if run.get("change"):
            self.changes.append(max(run["change"].values()))
        if run.get("share"):
            sites = run["share"].values()
            self.shares.append(fmean(share for share, _ in sites))
            self.chances.append(fmean(chance for _, chance in sites))


def paired_values(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Variant -> seed -> the metric of the runs whose loss stayed finite, in the order of the variants."""
    found: dict[str, dict[int, float]] = {variant.name: {} for variant in plan.variants}
    for run in runs:
        if "metric" in run:
            found[run["variant"]][run["seed"]] = run["metric"]
    return found


def compared(
    plan: Plan, baseline: Mapping[int, float], variants: Mapping[str, Mapping[int, float]]
) -> dict[str, Difference]:
    """The test that belongs to the plan: of a fixed number of seeds, or of one that was added to."""
    better = {"higher_is_better": plan.job.config.the_task.higher_is_better}
    if plan.looks and plan.detect is not None:
        return sequential_differences(baseline, variants, detect=plan.detect, looks=plan.looks, **better)
    return differences_to(baseline, variants, **better)


def summarise(
    plan: Plan,
    runs: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Costs],
    *,
    data: str,
    lang: str = "en",
) -> tuple[list[Row], str]:
    """Rows in the order of the variants, and the conclusion.

    Args:
        plan: what was compared; its first variant is what the others are compared with.
        runs: results of `foveal.compare.worker.run_job`.
        costs: by variant name.
        data: what the data is called.
        lang: "en" or "zh".
    """
    variants, config = plan.variants, plan.job.config
    task = config.the_task
    gathered = {v.name: Gathered() for v in variants}
    for run in runs:
        gathered[run["variant"]].add(run)
    values = {name: found.values for name, found in gathered.items()}
    text = MetricText.of(task)
    baseline = variants[0].name
    language = Language(lang)
    control = next((v.name for v in variants if v.control), None)
    attention = [v.name for v in variants if v.attends]
    to_none = compared(plan, values[baseline], {v.name: values[v.name] for v in variants[1:]})
    to_control: dict[str, Difference] = {}
    if control is not None:
        to_control = compared(plan, values[control], {name: values[name] for name in attention})
    rows = [
        Row(
            name=v.name,
            described=v.described,
            kind="control" if v.control else "attention" if v.attends else "none",
            metric=estimate(list(values[v.name].values())),
            to_none=to_none.get(v.name),
            to_control=to_control.get(v.name),
            costs=costs[v.name],
            share=estimate(gathered[v.name].shares) if gathered[v.name].shares else None,
            chance=fmean(gathered[v.name].chances) if gathered[v.name].chances else None,
            seeds=len(values[v.name]),
            failed=gathered[v.name].failed,
            change=max(gathered[v.name].changes, default=None),
            rate=rate_of(config, v, plan.tuning.chosen[v.name] if plan.tuning else 1.0),
        )
        for v in variants
    ]
    idle = [row.name for row in rows if row.change is not None and row.change < INACTIVE_BELOW]
    sentence = conclude(
        to_none,
        to_control,
        attention=attention,
        data=data,
        text=text,
        budget=language.counted("epochs", config.epochs),
        tuned=plan.tuning is not None,
        idle=idle,
        detect=plan.detect if plan.looks else None,
        lang=lang,
        network=baseline if variants[0].model is not None else None,
    )
    broken = [
        language.say("lost", name=row.name, failed=len(row.failed), all=len(row.failed) + row.seeds)
        for row in rows
        if row.failed
    ]
    if broken:
        sentence = language.joined(
            [sentence, language.say("do_not_trust", runs=language.say("comma").join(broken))]
        )
    return rows, sentence
