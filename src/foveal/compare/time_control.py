"""The control of equal time: plain convolutions at the sites of the slowest variant, as wide as its time allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveal.compare.variants import Variant
from foveal.files import write_json
from foveal.measure import measure_time
from foveal.train.memory_format import channels_last
from foveal.train.network import example_input

if TYPE_CHECKING:
    from foveal.compare.plan import Plan

WIDEST = 256.0
"""Times as wide as the control of equal parameters, at most."""
ROUNDS = 15


def with_time_control(plan: Plan, folder: Path) -> Plan:
    """The plan with the control's width chosen by time instead of parameters.

    The time is that of one batch forward, in eval mode. Widths are doubled until the control is as slow as the slowest
    variant, and the last two are interpolated. What was chosen is kept in the folder, and the same comparison takes it
    again.
    """
    variants = {v.name: v for v in plan.variants if v.attends}
    settings = json.loads(
        json.dumps([plan.job.settings, [asdict(v) for v in variants.values()]], default=str)
    )
    path = folder / "time_control.json"
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["settings"] == settings:
        control = Variant("control", variants[kept["slowest"]].insert, control=True, width=kept["width"])
    else:
        times = _times(plan, list(variants.values()))
        slowest = max(times, key=lambda name: times[name])
        like = Variant("control", variants[slowest].insert, control=True)
        width = width_of_time(lambda w: _times(plan, [replace(like, width=w)])["control"], times[slowest])
        control = replace(like, width=width)
        write_json(path, {"settings": settings, "slowest": slowest, "width": width, "batch_ms": times})
    return replace(plan, variants=[control if v.control else v for v in plan.variants])


def width_of_time(time_of: Callable[[float], float], wanted: float) -> float:
    """The width whose time is ``wanted``; 1 where that is slower already.

    Example:
        >>> width_of_time(lambda width: 10 + width, 16.0), width_of_time(lambda width: 10 + width, 5.0)
        (6.0, 1.0)
    """
    before, slow = 1.0, time_of(1.0)
    if slow >= wanted:
        return 1.0
    while before < WIDEST:
        after, slower = 2 * before, time_of(2 * before)
        if slower >= wanted:
            return round(before + (after - before) * (wanted - slow) / (slower - slow), 2)
        before, slow = after, slower
    return WIDEST


def _times(plan: Plan, variants: list[Variant]) -> dict[str, float]:
    """Milliseconds of one batch forward."""
    job, info = plan.job, plan.job.info
    sides = example_input(job.config, info.image_size).shape[1:]
    x = torch.rand((job.config.batch_size, *sides), generator=torch.Generator().manual_seed(0)).to(job.device)
    if job.config.channels_last:
        x = x.contiguous(memory_format=channels_last(x))
    nets: dict[str, Any] = {v.name: replace(job, variant=v).build().to(job.device).eval() for v in variants}
    with torch.no_grad():
        timed = measure_time({name: lambda net=net: net(x) for name, net in nets.items()}, repeats=ROUNDS)
    return {name: one.time_ms for name, one in timed.items()}
