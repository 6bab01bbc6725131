"""Scores as a person reads them, and as files."""

from collections.abc import Sequence
from pathlib import Path

from foveal.files import csv_text, write_json, write_text
from foveal.look.measures import MEASURES, SiteScore
from foveal.statistics import Estimate


def table(scores: Sequence[SiteScore]) -> str:
    """The scores as text: a block of lines a site, each measure with its interval, and the verdict."""
    lines = []
    for site in scores:
        lines.append(f"{site.site} ({site.block})")
        lines += [f"  {key:<22}{value!s:<26}{MEASURES[key]}" for key, value in site.values.items()]
        lines.append(f"  -> {site.verdict}")
    return "\n".join(lines)


def write_scores(scores: Sequence[SiteScore], folder: Path) -> list[Path]:
    """Write ``scores.csv`` (one row a site and measure) and ``scores.json`` into ``folder``."""
    rows = [
        {"site": site.site, "block": site.block, "measure": key, **_figures(value), "verdict": site.verdict}
        for site in scores
        for key, value in site.values.items()
    ]
    write_text(folder / "scores.csv", csv_text(rows))
    sites = [
        {
            "site": site.site,
            "block": site.block,
            "values": {key: _figures(value) for key, value in site.values.items()},
            "verdict": site.verdict,
        }
        for site in scores
    ]
    write_json(folder / "scores.json", {"measures": MEASURES, "sites": sites})
    return [folder / "scores.csv", folder / "scores.json"]


def _figures(value: Estimate) -> dict[str, float]:
    return {"mean": value.mean, "low": value.low, "high": value.high, "images": value.count}
