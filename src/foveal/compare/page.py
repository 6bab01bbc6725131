"""results.json, results.csv, runs.csv and report.html: all written whole, the page in one file without requests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from foveal.compare.conclusion import MetricText, p_text
from foveal.compare.figures import RANGE, attention_pictures, differences_svg, latency_svg
from foveal.compare.job import Job
from foveal.compare.summary import Row
from foveal.compare.tuning import tunes_block
from foveal.files import csv_text, write_json, write_text
from foveal.machine import environment
from foveal.statistics import FEWEST_SEEDS, Difference, Estimate, seeds_needed

if TYPE_CHECKING:
    from foveal.compare.experiment import Plan


def write_report(
    folder: Path,
    *,
    plan: Plan,
    conclusion: str,
    rows: Sequence[Row],
    runs: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Path],
) -> None:
    """Write everything a comparison leaves.

    Args:
        folder: where to; files of the same names are replaced.
        plan: what was compared.
        conclusion, rows: from `foveal.compare.summary.summarise`.
        runs: results of all runs.
        weights: variant name -> trained weights, to draw attention with.
    """
    job, seeds, machine = plan.job, plan.seeds, environment()
    text = MetricText.of(job.config.the_task)
    document = {
        "conclusion": conclusion,
        "metric": text.name,
        "variants": [asdict(row) for row in rows],
        "seeds": seeds,
        "tuning": plan.tuning.to_dict() if plan.tuning else None,
        "settings": job.settings,
        "environment": machine,
        "runs": [{name: value for name, value in run.items() if name != "settings"} for run in runs],
    }
    write_json(folder / "results.json", document)
    write_text(folder / "results.csv", csv_text([_flat(row) for row in rows]))
    write_text(folder / "runs.csv", csv_text([_flat_run(run) for run in runs]))
    labels, photographs, maps = attention_pictures(plan, weights)
    baseline = rows[0].name
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Does attention help? {job.config.model} on {job.config.data}"),
        conclusion=_conclusion_html(conclusion),
        subtitle=escape(_subtitle(rows, job, seeds)),
        results=_results_html(rows, text),
        baseline=escape(baseline),
        differences=differences_svg(rows, runs, text),
        metric=escape(f"{text.name}{text.value_unit}"),
        latency=latency_svg(rows, text),
        costs=_costs_html(rows, text),
        tuning=_tuning_html(plan, text),
        pictures=_pictures_html(rows, labels, photographs, maps),
        reading=_reading_html(rows, seeds, text),
        run=_run_html(rows, job, machine, runs, seeds),
    )
    write_text(folder / "report.html", page)


# --------------------------------------------------------------------------------------------------- parts of the page


def _conclusion_html(conclusion: str) -> str:
    first, dot, rest = conclusion.partition(". ")
    rest_html = f"<p>{escape(rest)}</p>" if rest else ""
    return f'<p class="conclusion">{escape(first + dot.strip())}</p>{rest_html}'


def _subtitle(rows: Sequence[Row], job: Job, seeds: int) -> str:
    runs = sum(row.seeds + len(row.failed) for row in rows)
    images = job.settings["images"]
    epochs = f"{job.config.epochs} epoch{'s' * (job.config.epochs != 1)}"
    return (
        f"{job.config.model} on {job.config.data}: {len(rows)} variants × {seeds} seed{'s' * (seeds != 1)} = "
        f"{runs} runs of {epochs}; {images['train']:,} training and {images['val']:,} validation images of "
        f"{len(job.info.classes)} classes, {job.info.image_size} pixels."
    )


def _results_html(rows: Sequence[Row], text: MetricText) -> str:
    control = any(row.kind == "control" for row in rows)
    head = ["variant", f"{text.name}{text.value_unit}", f"against {rows[0].name}, {text.unit}", "corrected p"]
    head += [f"against control, {text.unit}", "corrected p"] if control else []
    body = []
    for row in rows:
        cells = [_name_html(row), _estimate_html(row.metric, text)]
        cells += _difference_html(row.to_none, text)
        cells += _difference_html(row.to_control, text) if control else []
        body.append(cells)
    return _table_html(head, body)


def _difference_html(d: Difference | None, text: MetricText) -> list[str]:
    if d is None:
        return ["", ""]
    if d.seeds < FEWEST_SEEDS:
        # an interval of so few values is wider than the scale, and says nothing
        return [text.difference(d.mean), "<small>too few seeds</small>"]
    interval = f" <small>{text.difference(d.low)} to {text.difference(d.high)}</small>"
    difference = f"{text.difference(d.mean)}{interval}"
    kind = d.finding.replace(" ", "-")
    return [difference, f'{p_text(d.p_corrected)} <b class="finding {kind}">{d.finding}</b>']


def _estimate_html(e: Estimate, text: MetricText) -> str:
    if e.count < FEWEST_SEEDS:
        return text.value(e.mean)
    return f"{text.value(e.mean)} <small>{text.value(e.low)} to {text.value(e.high)}</small>"


def _costs_html(rows: Sequence[Row], text: MetricText) -> str:
    base = rows[0].costs
    head = [
        "variant",
        "time of one image, ms",
        "parameters",
        "million MACs",
        "training memory, MB",
        "attention on the object",
    ]
    body = []
    for row in rows:
        c = row.costs
        slower = "" if row is rows[0] else f" <small>×{c.time_ms / base.time_ms:.2f}</small>"
        more = (
            "" if row is rows[0] else f" <small>{100 * (c.parameters / base.parameters - 1):+.1f} %</small>"
        )
        body.append(
            [
                _name_html(row),
                f"{c.time_ms:.2f} <small>{c.time_low_ms:.2f} to {c.time_high_ms:.2f}</small>{slower}",
                f"{c.parameters:,}{more}",
                f"{c.macs / 1e6:.2f}",
                f"{c.peak_bytes / 1e6:.1f}",
                _share_html(row),
            ]
        )
    return _table_html(head, body)


def _share_html(row: Row) -> str:
    if row.share is None or not row.chance:
        return "<small>no map</small>" if row.kind == "attention" else ""
    share, area = f"{100 * row.share.mean:.1f}", f"{100 * row.chance:.1f}"
    return f"{row.share.mean / row.chance:.2f} × chance <small>{share} % against {area} %</small>"


def _name_html(row: Row) -> str:
    return f'<i class="dot {row.kind}"></i>{escape(row.name)}'


def _table_html(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in body)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _tuning_html(plan: Plan, text: MetricText) -> str:
    """The metric over the rates that were tried, a line a variant; the chosen one is marked."""
    tuning, config = plan.tuning, plan.job.config
    if tuning is None:
        return (
            f"<p>No rate was tuned: the network's is {config.lr:g}, that of inserted blocks {config.block_lr:g}. "
            "A block that comes out worse may only want another rate: <code>--tune 3</code> gives every variant "
            "three.</p>"
        )
    head = ["variant", "tuned", *[f"trial {n + 1}" for n in range(plan.trials)]]
    body = []
    for variant in plan.variants:
        values, rates = tuning.values[variant.name], tuning.rates[variant.name]
        cells = [escape(variant.name), "block" if tunes_block(variant) else "network"]
        for factor, found in values.items():
            value = text.value(sum(found) / len(found)) if found else "failed"
            shown = f"{value} <small>at {rates[factor]:g}</small>"
            cells.append(f"<b>{shown}</b>" if factor == tuning.chosen[variant.name] else shown)
        body.append(cells)
    return _table_html(head, body) + (
        f"<p><small>{escape(text.name)}{text.value_unit} on a quarter of the training images, which the trials are not "
        "trained on; each rate once, the better half of them three times. The validation images were not used. Bold: "
        "the rate that was taken.</small></p>"
    )


def _pictures_html(
    rows: Sequence[Row], labels: Sequence[str], photographs: Sequence[str], maps: Mapping[str, Sequence[str]]
) -> str:
    if not maps:
        return "<p>None of these blocks has a map over the image: there is nothing to draw.</p>"
    without = [row.name for row in rows if row.kind == "attention" and row.name not in maps]
    blind = f" No map over the image: {escape(', '.join(without))}." if without else ""
    lines = [("image", photographs), *maps.items()]
    body = "".join(
        f'<span class="side">{escape(name)}</span>'
        + "".join(
            f'<img src="{url}" alt="{escape(f"{name}, image of class {label}")}">'
            for url, label in zip(urls, labels, strict=True)
        )
        for name, urls in lines
    )
    captions = "<span></span>" + "".join(f'<span class="label">{escape(label)}</span>' for label in labels)
    quarter, four = "¼ of uniform", f"{RANGE:g} × uniform"
    return (
        f'<div class="scroll"><div class="pictures" style="--n:{len(labels)}">{body}{captions}</div></div>'
        f'<p class="key"><span>{quarter}</span><i class="ramp"></i><span>{four}</span></p>'
        f"<p><small>Networks of seed 0; validation images evenly spread over the split, not chosen by eye. White is "
        f"uniform attention. The line is the object's edge, where it is known. Where positions attend to positions, "
        f"the mean over 16 query positions; over several sites, their mean.{blind}</small></p>"
    )


def _reading_html(rows: Sequence[Row], seeds: int, text: MetricText) -> str:
    comparisons = sum(row.to_none is not None for row in rows)
    smallest = min(1.0, comparisons * 2.0 ** (1 - seeds))
    control = next((row for row in rows if row.kind == "control"), None)
    items = [
        "All variants of one seed start from the same backbone weights and see the images in the same order, so "
        "differences are taken seed by seed. What counts is the last epoch; no epoch is chosen.",
        "Intervals are 95 % t intervals over seeds, not corrected for the number of variants. They speak of training "
        "again, not of other images.",
        "p is that of the exact sign-flip test on the paired differences, corrected by Holm over the variants "
        f"compared with the same baseline. With {seeds} seeds and {comparisons} comparisons it cannot go below "
        f"{p_text(smallest)}; {seeds_needed(comparisons)} seeds are the fewest that can show anything.",
    ]
    if control is not None:
        items.append(
            "The control puts a plain block, x + conv1x1(relu(norm(conv3x3(x)))), which starts as the identity, at the "
            f"sites of {control.described}, the variant with the most parameters, and has as many or a few more: "
            f"what beats it does so not by its number of parameters."
        )
    items += [
        "Time: median and quartiles of interleaved rounds, one image, float32, after all training. "
        "Multiply-accumulates: convolutions, matrix and elementwise products. Memory: what PyTorch "
        "holds at most in one training step beyond weights and gradients.",
        "Attention on the object: the share of the map's weight that falls on the object. A uniform map reaches the "
        "share of the image that the object takes (1 × chance).",
    ]
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _run_html(
    rows: Sequence[Row], job: Job, machine: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], seeds: int
) -> str:
    training = {
        name: value for name, value in job.settings["training"].items() if name not in ("data", "model")
    }
    minutes = sum(run["seconds"] for run in runs) / 60
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    devices = ", ".join(machine["cuda_devices"]) if job.device == "cuda" else machine["processor"]
    facts = {
        "command": " ".join(machine["command"]),
        "finished": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "seeds": f"0 to {seeds - 1}",
        "variants": "; ".join(f"{row.name}: {row.described}" for row in rows if row.kind == "attention"),
        "training": ", ".join(f"{name}={_plain(value)}" for name, value in training.items()),
        "machine": f"{devices}, {machine['cores']} cores, {machine['system']}; times with {machine['threads']} threads",
        "training time": f"{minutes:.1f} minutes summed over all runs",
        "versions": versions,
    }
    failed = [f"{row.name}, seed {s}: {reason}" for row in rows for s, reason in row.failed.items()]
    if failed:
        facts["failed"] = "; ".join(failed)
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


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
    return {**{name: run.get(name, "") for name in names}, **run.get("figures", {})}
