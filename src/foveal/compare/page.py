"""results.json, results.csv, runs.csv and report.html: all written whole, the page in one file without requests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from foveal.compare.conclusion import MetricText, p_text
from foveal.compare.details import classes_html, reading_html, run_html, time_to_html, tuning_html
from foveal.compare.figures import (
    RANGE,
    attention_pictures,
    curves_svg,
    differences_svg,
    latency_svg,
)
from foveal.compare.language import Language
from foveal.compare.markup import name_html, table_html
from foveal.compare.runner import unreadable_files
from foveal.compare.summary import Row
from foveal.files import csv_text, write_json, write_text
from foveal.machine import environment
from foveal.statistics import FEWEST_SEEDS, Difference, Estimate
from foveal.terminal import escape

if TYPE_CHECKING:
    from foveal.compare.experiment import ComparisonResult
    from foveal.compare.job import Job
    from foveal.compare.plan import Plan

RESULTS_FORMAT = 1
"""Of results.json; its schema is results.schema.json beside this file."""


def write_report(
    result: ComparisonResult,
    *,
    plan: Plan,
    runs: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Path],
    lang: str = "en",
) -> None:
    """Write everything a comparison leaves into its folder; files of the same names are replaced.

    Args:
        result: what was found.
        plan: what was compared.
        runs: results of all runs.
        weights: variant name -> trained weights, to draw attention with.
        lang: of the page.
    """
    job, rows, folder, machine = plan.job, result.rows, result.folder, environment()
    text, language = MetricText.of(job.config.the_task), Language(lang)
    write_json(folder / "results.json", results_document(result, plan, runs, machine))
    write_text(folder / "results.csv", csv_text([_flat(row) for row in rows]))
    write_text(folder / "runs.csv", csv_text([_flat_run(run) for run in runs]))
    labels, photographs, maps = attention_pictures(plan, weights)
    say, metric = language.say, f"{text.name}{text.value_unit}"
    part = say(f"part_{job.settings['split']}")
    headings = ("results", "costs", "tuning", "pictures", "scientist", "classes", "curves", "reading", "run")
    of = "_networks" if plan.of_networks else ""
    titles = {f"h_{name}": say(f"h_{name}") for name in headings} | {"h_results": say(f"h_results{of}")}
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).substitute(
        lang=lang,
        title=escape(say(f"title{of}", model=job.config.model, data=job.config.data)),
        conclusion=_conclusion_html(result.conclusion, language),
        self_check=_self_check_html(result, lang),
        subtitle=escape(_subtitle(f"subtitle{of}", rows, job, plan.seeds, language)),
        results=_results_html(rows, text, language),
        f_differences=escape(say("f_differences", baseline=rows[0].name)),
        differences=differences_svg(rows, runs, text, language),
        f_latency=escape(say("f_latency", metric=metric)),
        latency=latency_svg(rows, text, language),
        costs=_costs_html(rows, language),
        tuning=tuning_html(plan, text, language),
        pictures=_pictures_html(rows, labels, photographs, maps, part, language),
        f_curves=escape(say("f_curves", metric=metric, part=part)),
        curves=curves_svg(rows, runs, text, language),
        time_to=time_to_html(rows, runs, text, language),
        classes=classes_html(rows, runs, text, language),
        reading=reading_html(rows, plan, language),
        run=run_html(rows, job, machine, runs, plan.seeds, unreadable_files(folder), language),
        **{name: escape(title) for name, title in titles.items()},
    )
    write_text(folder / "report.html", page)


def results_document(
    result: ComparisonResult, plan: Plan, runs: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """What results.json holds, as results.schema.json says."""
    return {
        "format": RESULTS_FORMAT,
        "conclusion": result.conclusion,
        "metric": MetricText.of(plan.job.config.the_task).name,
        "variants": [asdict(row) for row in result.rows],
        "seeds": plan.seeds,
        "looks": list(plan.looks),
        "detectable_difference": plan.detect,
        "self_check": None if result.self_check is None else result.self_check.to_dict(),
        "tuning": plan.tuning.to_dict() if plan.tuning else None,
        "settings": plan.job.settings,
        "unreadable": unreadable_files(result.folder),
        "environment": dict(machine),
        "runs": [{name: value for name, value in run.items() if name != "settings"} for run in runs],
    }


# --------------------------------------------------------------------------------------------------- parts of the page


def _conclusion_html(conclusion: str, language: Language) -> str:
    stop = ". " if language.code == "en" else "。"
    first, dot, rest = conclusion.partition(stop)
    rest_html = f"<p>{escape(rest)}</p>" if rest else ""
    return f'<p class="conclusion">{escape(first + dot.strip())}</p>{rest_html}'


def _self_check_html(result: ComparisonResult, lang: str) -> str:
    check = result.self_check
    if check is None:
        return ""
    kind = "passed" if check.passed else "failed"
    return f'<p class="check {kind}">{escape(check.sentence(lang))}</p>'


def _subtitle(sentence: str, rows: Sequence[Row], job: Job, seeds: int, language: Language) -> str:
    images = job.settings["images"]
    return language.say(
        sentence,
        model=job.config.model,
        data=job.config.data,
        variants=len(rows),
        seeds=seeds,
        runs=sum(row.seeds + len(row.failed) for row in rows),
        epochs=language.counted("epochs", job.config.epochs),
        train=f"{images['train']:,}",
        val=f"{images['val']:,}",
        part=language.say(f"part_{job.settings['split']}"),
        classes=len(job.info.classes),
        size=job.info.image_size,
    )


def _results_html(rows: Sequence[Row], text: MetricText, language: Language) -> str:
    control = any(row.kind == "control" for row in rows)
    say, unit = language.say, text.unit_in(language)
    p = say("corrected_p")
    head = [say("variant"), f"{text.name}{text.value_unit}", say("against", name=rows[0].name, unit=unit), p]
    head += [say("against", name="control", unit=unit), p] if control else []
    body = []
    for row in rows:
        cells = [name_html(row), _estimate_html(row.metric, text)]
        cells += _difference_html(row.to_none, text, language)
        cells += _difference_html(row.to_control, text, language) if control else []
        body.append(cells)
    return table_html(head, body)


def _difference_html(d: Difference | None, text: MetricText, language: Language) -> list[str]:
    if d is None:
        return ["", ""]
    finding = language.say(f"finding_{d.finding}")
    if d.seeds < FEWEST_SEEDS:
        # an interval of so few values is wider than the scale, and says nothing
        return [text.difference(d.mean), f"<small>{finding}</small>"]
    interval = f" <small>{text.difference(d.low)} … {text.difference(d.high)}</small>"
    kind = d.finding.replace(" ", "-")
    return [
        f"{text.difference(d.mean)}{interval}",
        f'{p_text(d.p_corrected)} <b class="finding {kind}">{finding}</b>',
    ]


def _estimate_html(e: Estimate, text: MetricText) -> str:
    if e.count < FEWEST_SEEDS:
        return text.value(e.mean)
    return f"{text.value(e.mean)} <small>{text.value(e.low)} … {text.value(e.high)}</small>"


def _costs_html(rows: Sequence[Row], language: Language) -> str:
    base, say = rows[0].costs, language.say
    head = [say(key) for key in ("variant", "time_one", "parameters", "macs", "memory", "on_object")]
    body = []
    for row in rows:
        c, first = row.costs, row is rows[0]
        slower = "" if first else f" <small>×{c.time_ms / base.time_ms:.2f}</small>"
        more = "" if first else f" <small>{100 * (c.parameters / base.parameters - 1):+.1f} %</small>"
        body.append(
            [
                name_html(row),
                f"{c.time_ms:.2f} <small>{c.time_low_ms:.2f} … {c.time_high_ms:.2f}</small>{slower}",
                f"{c.parameters:,}{more}",
                f"{c.macs / 1e6:.2f}",
                f"{c.peak_bytes / 1e6:.1f}",
                _share_html(row, language),
            ]
        )
    return table_html(head, body)


def _share_html(row: Row, language: Language) -> str:
    if row.share is None or not row.chance:
        return f"<small>{language.say('no_object')}</small>" if row.kind == "attention" else ""
    against = language.say(
        "share_against", share=f"{100 * row.share.mean:.1f}", chance=f"{100 * row.chance:.1f}"
    )
    return f"{row.share.mean / row.chance:.2f} {language.say('chance')} <small>{against}</small>"


def _pictures_html(
    rows: Sequence[Row],
    labels: Sequence[str],
    photographs: Sequence[str],
    maps: Mapping[str, Sequence[str]],
    part: str,
    language: Language,
) -> str:
    say = language.say
    if not maps:
        return f"<p>{escape(say('no_pictures'))}</p>"
    without = [row.name for row in rows if row.kind == "attention" and row.name not in maps]
    blind = say("no_map", names=language.listed(without)) if without else ""
    lines = [(say("image"), photographs), *maps.items()]
    body = "".join(
        f'<span class="side">{escape(name)}</span>'
        + "".join(
            f'<img src="{url}" alt="{escape(f"{name}: {label}")}">'
            for url, label in zip(urls, labels, strict=True)
        )
        for name, urls in lines
    )
    captions = "<span></span>" + "".join(f'<span class="label">{escape(label)}</span>' for label in labels)
    quarter, four = say("quarter"), say("times", factor=f"{RANGE:g}")
    return (
        f'<div class="scroll"><div class="pictures" style="--n:{len(labels)}">{body}{captions}</div></div>'
        f'<p class="key"><span>{quarter}</span><i class="ramp"></i><span>{four}</span></p>'
        f"<p><small>{escape(say('pictures_note', part=part) + blind)}</small></p>"
    )


# ----------------------------------------------------------------------------------------------------------- tables


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "variant": row.name,
        "kind": row.kind,
        "described": row.described,
        "seeds": row.seeds,
    }
    flat |= {f"metric_{name}": value for name, value in asdict(row.metric).items()}
    for baseline, d in (("none", row.to_none), ("control", row.to_control)):
        for name in ("mean", "low", "high", "p", "p_corrected", "finding"):
            flat[f"to_{baseline}_{name}"] = getattr(d, name) if d is not None else ""
    flat |= asdict(row.costs)
    flat |= {
        f"share_{name}": getattr(row.share, name) if row.share else "" for name in ("mean", "low", "high")
    }
    return flat | {"share_chance": "" if row.chance is None else row.chance, "failed": len(row.failed)}


def _flat_run(run: Mapping[str, Any]) -> dict[str, Any]:
    names = ("variant", "seed", "seconds", "failed")
    curve = {"curve": json.dumps(run.get("curve", []))}
    return {**{name: run.get(name, "") for name in names}, **run.get("figures", {}), **curve}
