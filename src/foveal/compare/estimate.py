"""How long a comparison will take, from a few real steps of every variant, measured side by side as runs will be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.compare.job import Job
from foveal.compare.tuning import trial_jobs_at_most
from foveal.data.loader import EpochBatchSampler

if TYPE_CHECKING:
    from foveal.compare.plan import Plan
    from foveal.compare.runner import Runner

FEWEST_RUNS = 4
"""Fewer are over before their duration is measured."""


def estimate_seconds(runner: Runner, parts: Mapping[str, tuple[Plan, Path]]) -> dict[str, float]:
    """Seconds of each part of a comparison that is not finished yet; empty where there is nearly nothing to do.

    Args:
        runner: measures on its workers.
        parts: name -> plan and the folder of its results.
    """
    seconds = {}
    for name, (plan, folder) in parts.items():
        # where the seeds are open, up to the first look
        jobs = runner.pending(plan.jobs_of(range(plan.looks[0])) if plan.looks else plan.jobs, folder)
        if len(jobs) < FEWEST_RUNS or not runner.can_time:
            continue
        firsts = {job.variant.name: job for job in reversed(jobs)}
        timed = {one["variant"]: one for one in runner.time(plan, list(firsts.values()), folder)}
        total = sum(run_seconds(job, timed[job.variant.name]) for job in jobs)
        trials = runner.pending(trial_jobs_at_most(plan), folder) if plan.tuning is None else []
        total += sum(
            run_seconds(job, timed.get(job.variant.name, next(iter(timed.values())))) for job in trials
        )
        seconds[name] = total / min(runner.at_once, len(jobs))
    return seconds


def run_seconds(job: Job, timed: Mapping[str, Any]) -> float:
    """One run: it is built, trained and validated epoch by epoch, and at its end its blocks are measured.

    Args:
        timed: ``build``, ``step``, ``validate`` and ``report`` in seconds, from `foveal.compare.worker.time_job`.
    """
    share = 1.0 if job.trial_share is None else 1 - job.trial_share
    images = int(job.settings["images"]["train"] * share)
    steps = len(EpochBatchSampler(images, job.config.batch_size, seed=0))
    held = 1.0 if job.trial_share is None else job.trial_share
    epoch = steps * timed["step"] + held * timed["validate"]
    return timed["build"] + job.config.epochs * epoch + (timed["report"] if job.trial_share is None else 0.0)


def in_words(seconds: Mapping[str, float]) -> str:
    """Example:
    >>> in_words({"check cue": 40.0, "check local": 41.0, "all seeds": 200.0})
    'about 4 min 41 s: check cue 40 s, check local 41 s, all seeds 3 min 20 s (from a few steps of each variant)'
    >>> in_words({"the first 8 seeds": 61.0})
    'about 1 min 1 s for the first 8 seeds (from a few steps of each variant)'
    """
    parts = [f"{name} {duration(one)}" for name, one in seconds.items()]
    total = duration(sum(seconds.values()))
    shown = f"{total}: {', '.join(parts)}" if len(parts) > 1 else f"{total} for {next(iter(seconds))}"
    return f"about {shown} (from a few steps of each variant)"


def duration(seconds: float) -> str:
    """Example:
    >>> duration(41.2), duration(200), duration(8000)
    ('42 s', '3 min 20 s', '2 h 13 min')
    """
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
