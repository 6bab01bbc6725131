"""The report's figures: two drawings as SVG text, and pictures of attention as inline PNG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from foveal.checkpoint import load
from foveal.compare.arrays import spread
from foveal.compare.conclusion import MetricText
from foveal.compare.language import Language
from foveal.compare.summary import Row
from foveal.look.geometry import on_pixels
from foveal.look.measures import attention_map, has_map
from foveal.look.watching import watch
from foveal.statistics import FEWEST_SEEDS
from foveal.terminal import escape

if TYPE_CHECKING:
    from foveal.compare.experiment import Plan

PICTURES = 6
SIDE = 168
"""Pixels of a picture in the report."""
LABEL = 32
"""Letters of a chart's longest label; names longer than that are cut in the middle."""
LETTER = 7.6
"""Width of a letter in a chart."""
RANGE = 4.0
"""Pictures show attention from a quarter of uniform to four times uniform."""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between ``low`` and ``high``.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def differences_svg(
    rows: Sequence[Row], runs: Sequence[Mapping[str, Any]], text: MetricText, language: Language
) -> str:
    """Each variant's difference to the network without attention: a dot a seed, the mean and its interval."""
    baseline = {
        run["seed"]: run["metric"] for run in runs if run["variant"] == rows[0].name and "metric" in run
    }
    shown = [row for row in rows[1:] if row.to_none is not None]
    dots = {
        row.name: [
            run["metric"] - baseline[run["seed"]]
            for run in runs
            if run["variant"] == row.name and "metric" in run and run["seed"] in baseline
        ]
        for row in shown
    }
    enough = [d for row in shown if (d := row.to_none) and d.seeds >= FEWEST_SEEDS]
    ends = [end for d in enough for end in (d.low, d.high)]
    factor = text.factor
    values = [
        factor * v for v in [0.0, *ends, *(v for found in dots.values() for v in found)] if not math.isnan(v)
    ]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    names = labels_of([row.name for row in shown])
    left, line = 20 + LETTER * max(map(len, names), default=0), 34
    right = left + 380
    height = 30 + line * len(shown) + 44

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [
        f'<svg viewBox="0 0 {right + 16:g} {height}" role="img" aria-label="difference to the baseline">'
    ]
    bottom = 24 + line * len(shown)
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="12" y2="{bottom}"/>')
        parts.append(_text(x(tick), bottom + 16, f"{tick:+g}".replace("-", "−") if tick else "0", "middle"))
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="12" y2="{bottom}"/>')
    for i, row in enumerate(shown):
        d, y = row.to_none, 24 + line * i + line / 2 - 6
        assert d is not None
        parts.append(_text(left - 10, y + 4, names[i], "end", "name"))
        for value in dots[row.name]:
            parts.append(f'<circle class="seed" cx="{x(factor * value):.1f}" cy="{y:.1f}" r="3.5"/>')
        if d.seeds >= FEWEST_SEEDS:
            ends_x = f'x1="{x(factor * d.low):.1f}" x2="{x(factor * d.high):.1f}"'
            parts.append(f'<line class="interval {row.kind}" {ends_x} y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="mean {row.kind}" cx="{x(factor * d.mean):.1f}" cy="{y:.1f}" r="5"/>')
    parts.append(
        _text(
            (left + right) / 2,
            bottom + 36,
            language.say("x_more", unit=text.unit_in(language), baseline=rows[0].name),
            "middle",
        )
    )
    return "".join([*parts, "</svg>"])


def latency_svg(rows: Sequence[Row], text: MetricText, language: Language) -> str:
    """The metric with its interval against the time of one image; empty where no run was finished."""
    shown = [row for row in rows if not math.isnan(row.metric.mean)]
    if not shown:
        return ""
    metrics = {row.name: row.metric for row in shown}
    factor = text.factor
    low = min(factor * (e.low if e.count >= FEWEST_SEEDS else e.mean) for e in metrics.values())
    high = max(factor * (e.high if e.count >= FEWEST_SEEDS else e.mean) for e in metrics.values())
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, min(high + margin, 101) if text.is_share else high + margin
    slowest = 1.12 * max(row.costs.time_ms for row in shown)
    names = labels_of([row.name for row in shown])
    left, right, top, bottom = 40, 392, 14, 292
    width = right + 20 + LETTER * max(map(len, names))

    def x(value: float) -> float:
        return left + value / slowest * (right - left)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [f'<svg viewBox="0 0 {width:g} 340" role="img" aria-label="metric against time of one image">']
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", "end"))
    for tick in ticks(0, slowest):
        parts.append(_text(x(tick), bottom + 18, f"{tick:g}", "middle"))
    parts.append(f'<line class="zero" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    places = _apart([y(factor * row.metric.mean) for row in shown], 15, top + 4, bottom - 4)
    for row, place, name in zip(shown, places, names, strict=True):
        e, px, py = row.metric, x(row.costs.time_ms), y(factor * row.metric.mean)
        if e.count >= FEWEST_SEEDS:
            ends = f'y1="{y(factor * e.low):.1f}" y2="{y(factor * e.high):.1f}"'
            parts.append(f'<line class="interval {row.kind}" x1="{px:.1f}" x2="{px:.1f}" {ends}/>')
        parts.append(f'<line class="leader" x1="{px:.1f}" x2="{right + 6}" y1="{py:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<circle class="mean {row.kind}" cx="{px:.1f}" cy="{py:.1f}" r="5"/>')
        parts.append(_text(right + 9, place + 4, name, "start", "name"))
    parts.append(_text((left + right) / 2, bottom + 38, language.say("x_time"), "middle"))
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def labels_of(names: Sequence[str]) -> list[str]:
    """Names short enough for a chart: cut in the middle, where so many letters are too many, and still different.

    Example:
        >>> labels_of(["cbam(reduction=4)@residual:3", "cbam(reduction=8)@residual:3", "se"])
        ['cbam(reduction=4)@residual:3', 'cbam(reduction=8)@residual:3', 'se']
        >>> labels_of(["a" * 50])
        ['aaaaaaaaaaaaaaaaaa…aaaaaaaaaaaaa']
    """
    short = [name if len(name) <= LABEL else f"{name[:18]}…{name[-(LABEL - 19) :]}" for name in names]
    return [name if short.count(label) > 1 else label for name, label in zip(names, short, strict=True)]


def curves_svg(
    rows: Sequence[Row], runs: Sequence[Mapping[str, Any]], text: MetricText, language: Language
) -> str:
    """The metric after each epoch, a panel a variant: thin lines are seeds, the thick one their mean."""
    factor = text.factor
    curves = {
        row.name: [
            [factor * v for v in run["curve"]]
            for run in runs
            if run["variant"] == row.name and "metric" in run
        ]
        for row in rows
    }
    values = [v for found in curves.values() for curve in found for v in curve if not math.isnan(v)]
    if not values:
        return ""
    epochs = max(len(curve) for found in curves.values() for curve in found)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    wide, tall, across = 200, 130, 4
    lines = -(-len(rows) // across)
    parts = [f'<svg viewBox="0 0 {across * wide + 40} {lines * (tall + 34) + 18}" role="img" class="curves">']
    for number, (row, name) in enumerate(zip(rows, labels_of([row.name for row in rows]), strict=True)):
        left, top = 36 + number % across * wide, 16 + number // across * (tall + 34)
        bottom, right = top + tall - 16, left + wide - 26

        def point(epoch: int, value: float, left: float = left, right: float = right, bottom: float = bottom,
                  top: float = top) -> str:  # fmt: skip
            x = left + (right - left) * (epoch / max(epochs - 1, 1) if epochs > 1 else 0.5)
            return f"{x:.1f},{bottom - (value - low) / (high - low) * (bottom - top):.1f}"

        parts.append(_text(left, top - 4, name, "start", "name"))
        for tick in ticks(low, high, 4):
            y = bottom - (tick - low) / (high - low) * (bottom - top)
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(left - 4, y + 4, f"{tick:g}", "end") if number % across == 0 else "")
        mean = [sum(at) / len(at) for at in zip(*curves[row.name], strict=False)]
        drawn = [(curve, "one") for curve in curves[row.name]] + [(mean, f"middle {row.kind}")] * bool(mean)
        for curve, kind in drawn:
            # of one epoch twice the same point, whose round ends make a dot
            points = [point(e, v) for e, v in enumerate(curve)] * (2 if epochs == 1 else 1)
            parts.append(f'<polyline class="{kind}" stroke-linecap="round" points="{" ".join(points)}"/>')
        last = f"1 … {epochs} {language.say('x_epochs')}" if epochs > 1 else language.counted("epochs", 1)
        parts.append(_text((left + right) / 2, bottom + 14, last, "middle"))
    return "".join([*parts, "</svg>"])


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights for labels near ``places``, ``gap`` apart, in the same order from top to bottom."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, i in zip([None, *order], order, strict=False):
        moved[i] = max(places[i], low if before is None else moved[before] + gap)
    limit = high
    for i in reversed(order):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


# ---------------------------------------------------------------------------------------------- attention pictures


def attention_pictures(
    plan: Plan, weights: Mapping[str, Path]
) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """The same images, evenly spread over the validation split, as each variant with a map attends to them.

    A map is the mean over the variant's sites of the attention each position gets (from 16 query positions where
    positions attend to positions), relative to uniform attention.

    Args:
        weights: variant name -> trained weights.

    Returns:
        A word for each image; the images, of a clip its frames; variant name -> its maps over them, as data URLs.
    """
    job, images = plan.job, plan.data["val"]
    task = job.config.the_task
    view = task.eval_transform(job.info).without_normalization()
    samples = [view(images[i]) for i in spread(len(images), PICTURES)]
    size = samples[0]["image"].shape
    samples = [sample for sample in samples if sample["image"].shape == size]
    pixels = torch.stack([sample["image"] for sample in samples])
    objects = None
    if hasattr(task, "object_mask"):
        (batch,) = task.collate(samples)
        objects = task.object_mask(batch)  # pyright: ignore[reportAttributeAccessIssue]
    prepared = job.config.the_task.eval_transform(job.info).normalize(pixels).to(job.device)
    flat: Callable[[Tensor], Tensor] = _in_two_lines if pixels.ndim == 5 else lambda values: values

    maps: dict[str, list[str]] = {}
    for variant in plan.variants:
        if variant.name not in weights or variant.control:
            continue
        net = load(weights[variant.name], replace(job, variant=variant).build()).to(job.device).eval()
        if not recordable(net):
            continue
        with torch.no_grad(), watch(net) as seen:
            net(prepared)
        found = [on_pixels(attention_map(r), r.spatial, tuple(size[1:])) for r in seen.values() if has_map(r)]
        if found:
            whole = tuple(range(1, found[0].ndim))
            relative = torch.stack([m / m.mean(whole, keepdim=True) for m in found]).mean(0).cpu()
            maps[variant.name] = [
                _picture(flat(p), objects, i, flat(relative[i])) for i, p in enumerate(pixels)
            ]
    labels = [task.caption(sample, job.info.classes) for sample in samples]
    return labels, [_picture(flat(p), objects, i, None) for i, p in enumerate(pixels)], maps


def _in_two_lines(values: Shaped[Tensor, "*c t h w"]) -> Tensor:
    """The frames of a clip, or of a map over it, side by side in two lines (*c, 2 h, t / 2 w).

    A missing one at the end is the last one once more.
    """
    frames = values.shape[-3]
    columns = math.ceil(frames / 2)
    chosen = torch.arange(2 * columns).clamp_max(frames - 1)
    lines = values.index_select(-3, chosen).unflatten(-3, (2, columns))
    return lines.movedim(-3, -2).flatten(-2).flatten(-3, -2)


def recordable(net: nn.Module) -> bool:
    """Whether the network has an attention site at all."""
    from foveal.look.readers import reader_of

    return any(reader_of(module) is not None for module in net.modules())


def _picture(
    image: UInt8[Tensor, "3 h w"], objects: Tensor | None, index: int, relative: Float[Tensor, "h w"] | None
) -> str:
    from PIL import Image

    rgb = image.permute(1, 2, 0).numpy().astype(np.float32) / 255
    if relative is not None:
        grey = (rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
        heat = _colours(relative)
        rgb = 0.3 * grey + 0.7 * heat
    factor = max(1, round(SIDE / rgb.shape[0]))
    rgb = rgb.repeat(factor, axis=0).repeat(factor, axis=1)
    if objects is not None:
        edge = _outline(objects[index].numpy().repeat(factor, axis=0).repeat(factor, axis=1))
        rgb[edge] = (0.0, 0.0, 0.0) if relative is not None else (1.0, 0.85, 0.2)
    file = io.BytesIO()
    Image.fromarray((rgb * 255 + 0.5).clip(0, 255).astype(np.uint8)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _colours(relative: Float[Tensor, "h w"]) -> np.ndarray:
    """Blue below uniform, white at it, red above, on a logarithmic scale."""
    from matplotlib import colormaps

    share = relative.clamp(1 / RANGE, RANGE).log() / math.log(RANGE) / 2 + 0.5
    return np.asarray(colormaps["RdBu_r"](share.numpy()))[..., :3].astype(np.float32)


def _outline(inside: np.ndarray) -> np.ndarray:
    """True on the pixels just inside the edge of a region."""
    padded = np.pad(inside, 1)
    kept = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~kept
