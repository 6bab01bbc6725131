"""What is said before anything is trained: what the planned seeds can decide, and how many a difference would take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from foveal.compare.conclusion import MetricText
from foveal.compare.language import Language
from foveal.statistics import FEWEST_SEEDS, seeds_needed, seeds_to_detect

if TYPE_CHECKING:
    from foveal.compare.plan import Plan

PILOT_SEEDS = 3
"""Fewer finished seeds say too little about how much differences spread."""


def before_start(plan: Plan, earlier: Mapping[str, Mapping[int, float]], lang: str = "en") -> list[str]:
    """What the seeds of a plan can decide.

    Args:
        earlier: variant -> seed -> metric, of runs that are finished already; a pilot.
    """
    say, text, count = Language(lang).say, MetricText.of(plan.job.config.the_task), plan.comparisons
    unit, needed = text.unit_in(Language(lang)), seeds_needed(plan.comparisons)
    detect = "" if plan.detect is None else text.difference(plan.detect).lstrip("+")
    values = {"seeds": plan.seeds, "count": count, "needed": needed, "fewest": FEWEST_SEEDS}
    if plan.looks:
        looks = ", ".join(map(str, plan.looks))
        sentences = [say("before_auto", looks=looks, detect=detect, unit=unit)]
    elif plan.seeds < FEWEST_SEEDS:
        sentences = [say("before_few", **values)]
    else:
        sentences = [say("before_not_enough" if plan.seeds < needed else "before_enough", **values)]
    images = plan.job.settings["images"]["val"]
    if plan.job.config.the_task.metric == "accuracy":
        # a share of images: nothing finer can be measured
        part = say(f"part_{plan.job.settings['split']}")
        points = f"{100 / images:.2g}"
        sentences.append(say("before_image", images=f"{images:,}", part=part, points=points, unit=unit))
    if plan.detect is None:
        return sentences
    spread, runs = spread_of(plan.variants[0].name, earlier)
    if runs < PILOT_SEEDS:
        return (
            sentences if plan.looks else [*sentences, say("before_detect_unknown", detect=detect, unit=unit)]
        )
    wanted = seeds_to_detect(plan.detect, spread, comparisons=count)
    shown = text.difference(spread).lstrip("+")
    said = say("before_detect", detect=detect, unit=unit, needed=wanted, runs=runs, spread=shown)
    return [*sentences, said]


def spread_of(baseline: str, values: Mapping[str, Mapping[int, float]]) -> tuple[float, int]:
    """Root mean square over variants of the standard deviation of their paired differences, and the fewest pairs.

    Example:
        >>> spread, pairs = spread_of("none", {"none": {0: 0.5, 1: 0.5}, "se": {0: 0.51, 1: 0.49}})
        >>> round(spread, 4), pairs
        (0.0141, 2)
    """
    none = values.get(baseline, {})
    paired = [
        [found[seed] - none[seed] for seed in found.keys() & none.keys()]
        for name, found in values.items()
        if name != baseline
    ]
    pairs = min((len(d) for d in paired), default=0)
    if pairs < 2:
        return float("nan"), pairs
    return float(np.sqrt(np.mean([np.var(d, ddof=1) for d in paired]))), pairs
