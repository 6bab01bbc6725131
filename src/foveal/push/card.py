"""The card of a repository: what the network is, what it was trained on, how it was measured, and how it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import yaml

from foveal.insertion.own import split_own
from foveal.nn import RECORDED_BLOCKS
from foveal.push.record import Figures, Record
from foveal.tasks import task_named

SHOWN_CLASSES = 40


def card(
    repository: str, license: str, description: dict[str, Any], record: Record, *, for_timm: bool
) -> str:
    """README.md of a repository, in the hub's form: YAML that it reads, then Markdown for people.

    Args:
        repository: ``user/name``.
        license: the hub's word for it.
        description: the metadata of the weights file.
        record: what is known beside it.
        for_timm: whether timm opens the repository, too.
    """
    parts = [
        f"# {repository.partition('/')[2]}",
        "![](picture.png)" if record.picture is not None else "",
        _summary(description, record),
        _use(repository, description, record, for_timm),
        _blocks(description["plan"]),
        _figures(record),
        _comparison(record),
        _preprocessing(record),
        _training(record),
    ]
    text = "\n\n".join(part for part in parts if part)
    return f"---\n{_front(repository, license, record, for_timm)}---\n\n{text}\n"


def _front(repository: str, license: str, record: Record, for_timm: bool) -> str:
    """What the hub's search reads."""
    info, task = record.info, task_named(record.info.task)
    tag = getattr(task, "pipeline_tag", None)
    metrics = [
        {
            "task": {"type": tag or info.task},
            "dataset": {"name": f"{one.data}, {one.split}, {one.views}", "type": "other"},
            "metrics": [{"type": task.metric, "value": one.values[task.metric]}],
        }
        for one in record.figures
        if math.isfinite(one.values.get(task.metric, math.nan))
    ]
    front: dict[str, Any] = {"license": license, "library_name": "timm" if for_timm else "foveal"}
    front |= {"tags": ["foveal", "timm" if for_timm else "attention"]}
    front |= {"pipeline_tag": tag} if tag else {}
    front |= {"base_model": record.base} if record.base else {}
    if metrics:
        front["model-index"] = [{"name": repository.partition("/")[2], "results": metrics}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _summary(description: dict[str, Any], record: Record) -> str:
    info = record.info
    names = [_plain(name) for name in info.classes[:SHOWN_CLASSES]]
    more = f" and {len(info.classes) - SHOWN_CLASSES} more" if len(info.classes) > SHOWN_CLASSES else ""
    began = f"the weights of [{record.base}](https://huggingface.co/{record.base})" if record.base else ""
    began = began or record.began
    return (
        f"`{info.model or 'A network'}` of task `{info.task}`, {len(info.classes)} classes, trained on "
        f"{_plain(info.data or 'data that the file does not name')}{f' from {began}' if began else ''}, written by "
        f"foveal {description['version']}.\n\nClasses: {', '.join(names)}{more}."
    )


def _use(repository: str, description: dict[str, Any], record: Record, for_timm: bool) -> str:
    own = sorted({one["block"] for one in description["plan"] if one["block"] not in RECORDED_BLOCKS})
    name = f"hf-hub:{repository}"
    lines = ["## Use", "", "```bash", "pip install foveal"]
    lines += [f"foveal predict photo.jpg --weights {name}{' --blocks FILE.py' if own else ''}", "```", ""]
    if own:
        shown = ", ".join(_plain(_own_name(one)) for one in own)
        lines += [
            f"It holds blocks that are not foveal's: {shown}. FILE.py is the Python file that defines them.",
            "",
        ]
    if for_timm:
        lines += [
            "```python",
            "import timm",
            "",
            f'net = timm.create_model("{name}", pretrained=True)',
            "```",
        ]
    elif description["plan"]:
        lines += ["timm does not know the inserted blocks and cannot open these weights."]
    return "\n".join(lines).rstrip()


def _own_name(block: str) -> str:
    own = split_own(block)
    return block if own is None else own[1]


def _blocks(plan: Sequence[dict[str, Any]]) -> str:
    if not plan:
        return ""
    rows = [
        (
            f"`{one['site']}`",
            f"`{_own_name(one['block'])}`",
            ", ".join(f"{key} {value}" for key, value in one["options"].items()),
            str(one["channels"]),
        )
        for one in plan
    ]
    return "## Attention blocks\n\n" + _table(("site", "block", "options", "channels"), rows)


def _figures(record: Record) -> str:
    rows = [
        (name.replace("_", " "), _number(value), one.data, one.split, one.views)
        for one in record.figures
        for name, value in _finite(one)
    ]
    if not rows:
        return ""
    note = (
        ""
        if len(record.figures) > 1 or not record.info.figures
        else "\n\nThe weights were chosen by these validation figures; no test set was measured."
    )
    return "## Figures\n\n" + _table(("figure", "value", "data", "split", "views"), rows) + note


def _finite(one: Figures) -> list[tuple[str, float]]:
    return [(name, value) for name, value in one.values.items() if math.isfinite(value)]


def _comparison(record: Record) -> str:
    if record.comparison is None:
        return ""
    share = 100 if task_named(record.info.task).is_share else 1
    unit = " %" if share == 100 else ""
    rows = []
    for row in record.comparison["variants"]:
        mean, difference = row["metric"]["mean"], row["to_none"]
        rows.append(
            (
                f"`{row['name']}`",
                "" if mean is None else f"{share * mean:.4g}{unit}",
                "" if difference is None else _difference(difference, share),
                f"{row['costs']['parameters']:,.0f}",
                f"{row['costs']['time_ms']:.3g} ms",
            )
        )
    metric = str(record.comparison.get("metric", "metric")).replace("_", " ")
    head = ("variant", metric, "against none, 95 % interval, corrected p", "parameters", "one image")
    return f"## Comparison\n\n{_plain(record.comparison['conclusion'])}\n\n" + _table(head, rows)


def _difference(difference: dict[str, Any], share: int) -> str:
    ends = [difference["low"], difference["high"]]
    interval = "" if None in ends else f" ({share * ends[0]:+.1f} to {share * ends[1]:+.1f})"
    return f"{share * difference['mean']:+.1f}{interval}, p = {difference['p_corrected']:.2g}"


def _preprocessing(record: Record) -> str:
    info = record.info
    crop = "the task's own" if info.crop_share is None else f"{info.crop_share:g} of the shorter side"
    rows = [
        ("image size", str(info.image_size)),
        ("mean", ", ".join(f"{value:g}" for value in info.mean)),
        ("std", ", ".join(f"{value:g}" for value in info.std)),
        ("interpolation", info.interpolation),
        ("crop", crop),
    ]
    return "## Preprocessing\n\n" + _table(("", ""), rows)


def _training(record: Record) -> str:
    if not record.training:
        return ""
    return "## Training\n\n" + _table(
        ("option", "value"), [(f"`{k}`", str(v)) for k, v in record.training.items()]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [list(head), ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _plain(text: str) -> str:
    """Words from the world, in one line and without the marks of a table or of HTML."""
    line = " ".join(str(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def _number(value: float) -> str:
    return f"{value:.4g}"
