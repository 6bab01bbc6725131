"""The report's second page, for those who want to check it: classes, times, rates, what was run, how to read it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from foveal.compare.conclusion import MetricText, p_text
from foveal.compare.language import Language
from foveal.compare.markup import name_html, table_html
from foveal.compare.summary import Row
from foveal.compare.tuning import tunes_block
from foveal.statistics import FEWEST_SEEDS, estimate, seeds_needed
from foveal.terminal import escape

if TYPE_CHECKING:
    from foveal.compare.job import Job
    from foveal.compare.plan import Plan

SHOWN_CLASSES = 12
"""Classes in the table: those in which variants and baseline differ most."""


def classes_html(
    rows: Sequence[Row], runs: Sequence[Mapping[str, Any]], text: MetricText, language: Language
) -> str:
    """The mean paired difference to the baseline, class by class, with its 95 % interval where there are 6 seeds."""
    by_run = {(run["variant"], run["seed"]): run.get("per_class") or {} for run in runs if "metric" in run}
    baseline = {seed: found for (name, seed), found in by_run.items() if name == rows[0].name}
    classes = list(dict.fromkeys(c for found in baseline.values() for c in found))
    paired: dict[str, dict[str, list[float]]] = {c: {} for c in classes}
    for (name, seed), found in by_run.items():
        for c in classes if name != rows[0].name and seed in baseline else ():
            one, other = found.get(c), baseline[seed].get(c)
            if one is not None and other is not None:
                paired[c].setdefault(name, []).append(one - other)
    if not any(paired.values()):
        return f"<p>{escape(language.say('no_classes'))}</p>"
    most = sorted(classes, key=lambda c: -max((abs(fmean(d)) for d in paired[c].values()), default=0.0))
    body = []
    for c in most[:SHOWN_CLASSES]:
        base = fmean(v for found in baseline.values() if (v := found.get(c)) is not None)
        cells = [escape(c), text.value(base)]
        for row in rows[1:]:
            d = estimate(paired[c].get(row.name, []))
            shown = text.difference(d.mean)
            if d.count >= FEWEST_SEEDS:
                shown += f" <small>{text.difference(d.low)} … {text.difference(d.high)}</small>"
            cells.append(shown)
        body.append(cells)
    head = [language.say("class"), f"{rows[0].name}{text.value_unit}", *[row.name for row in rows[1:]]]
    note = language.say("classes_note", shown=min(SHOWN_CLASSES, len(classes)), count=len(classes))
    return table_html(head, body) + f"<p><small>{escape(note)}</small></p>"


def time_to_html(
    rows: Sequence[Row], runs: Sequence[Mapping[str, Any]], text: MetricText, language: Language
) -> str:
    """Seconds of training until a run reaches nine tenths of the baseline's final mean: median over seeds.

    Nothing where runs were done on several machines, whose seconds cannot be compared.
    """
    several = len({run.get("host") for run in runs}) > 1
    if several or not text.is_share or not text.higher_is_better or rows[0].metric.count == 0:
        return ""
    goal = 0.9 * rows[0].metric.mean
    body = []
    for row in rows:
        mine = [run for run in runs if run["variant"] == row.name and run.get("clock")]
        times = [
            next((t for t, v in zip(run["clock"], run["curve"], strict=True) if v >= goal), None)
            for run in mine
        ]
        reached = [t for t in times if t is not None]
        # a run that did not get there took longer than any that did
        middle = median([math.inf if t is None else t for t in times]) if times else math.inf
        body.append(
            [name_html(row), f"{middle:.1f}" if middle < math.inf else "–", f"{len(reached)} / {len(times)}"]
        )
    head = [
        language.say("variant"),
        language.say("time_to", value=f"{text.value(goal)} %"),
        language.say("reached"),
    ]
    return table_html(head, body) + f"<p><small>{escape(language.say('time_to_note'))}</small></p>"


def tuning_html(plan: Plan, text: MetricText, language: Language) -> str:
    """The metric over the rates that were tried, a line a variant; the chosen one is marked."""
    tuning, config, say = plan.tuning, plan.job.config, language.say
    if tuning is None:
        of = "_networks" if plan.of_networks else ""
        said = say(f"not_tuned{of}", lr=f"{config.lr:g}", block_lr=f"{config.block_lr:g}")
        return f"<p>{escape(said)}</p>"
    head = [say("variant"), say("tuned"), *[say("trial", number=n + 1) for n in range(plan.trials)]]
    body = []
    for variant in plan.variants:
        values, rates = tuning.values[variant.name], tuning.rates[variant.name]
        cells = [escape(variant.name), say("of_block" if tunes_block(variant) else "of_network")]
        for factor, found in values.items():
            value = text.value(sum(found) / len(found)) if found else "–"
            shown = f"{value} <small>{rates[factor]:g}, {len(found)} ×</small>"
            cells.append(f"<b>{shown}</b>" if factor == tuning.chosen[variant.name] else shown)
        body.append(cells)
    part = say(f"part_{plan.job.settings['split']}")
    note = say("tuning_note", metric=f"{text.name}{text.value_unit}", part=part)
    return table_html(head, body) + f"<p><small>{escape(note)}</small></p>"


def reading_html(rows: Sequence[Row], plan: Plan, language: Language) -> str:
    """How the figures came about, and what they say and do not say."""
    comparisons, seeds = plan.comparisons, plan.seeds
    control = next((row for row in rows if row.kind == "control"), None)
    smallest = p_text(min(1.0, comparisons * 2.0 ** (1 - seeds)))
    items = [language.say("read_paired")]
    if plan.looks:
        looks = language.say("comma").join(map(str, plan.looks))
        items.append(language.say("read_sequential", looks=looks))
    else:
        needed = seeds_needed(comparisons)
        items.append(language.say("read_intervals"))
        items.append(
            language.say("read_p", seeds=seeds, comparisons=comparisons, smallest=smallest, needed=needed)
        )
    if control is not None:
        by_time = next(v for v in plan.variants if v.control).width != 1.0
        key = "read_control_time" if by_time else "read_control"
        items.append(language.say(key, described=control.described))
    items += [language.say("read_costs"), language.say("read_object")]
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def run_html(
    rows: Sequence[Row],
    job: Job,
    machine: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    seeds: int,
    unreadable: Mapping[str, str],
    language: Language,
) -> str:
    """Command, settings, machine and versions."""
    training = {
        name: value for name, value in job.settings["training"].items() if name not in ("data", "model")
    }
    minutes = sum(run["seconds"] for run in runs) / 60
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    devices = ", ".join(machine["cuda_devices"]) if job.device == "cuda" else machine["processor"]
    facts = {
        "command": " ".join(machine["command"]),
        "finished": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "seeds": f"0 – {seeds - 1}",
        "variants": "; ".join(f"{row.name}: {row.described}" for row in rows if row.kind == "attention"),
        "training": ", ".join(f"{name}={_plain(value)}" for name, value in training.items()),
        "machine": f"{devices}, {machine['cores']} cores, {machine['system']}; {machine['threads']} threads",
        "minutes": f"{minutes:.1f}",
        "versions": versions,
    }
    failed = [f"{row.name}, seed {s}: {reason}" for row in rows for s, reason in row.failed.items()]
    if failed:
        facts["failed"] = "; ".join(failed)
    if unreadable:
        facts["unreadable"] = f"{len(unreadable)}: {'; '.join(unreadable.values())}"
    return (
        "<dl>"
        + "".join(
            f"<dt>{escape(language.say(f'run_{k}'))}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()
        )
        + "</dl>"
    )


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
