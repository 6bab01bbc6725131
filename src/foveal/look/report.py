"""Scores as a person reads them, and as files."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from foveal.files import write_json, write_text
from foveal.look.score import MEASURES, SiteScore


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
        {"site": site.site, "block": site.block, "measure": key, **asdict(value), "verdict": site.verdict}
        for site in scores
        for key, value in site.values.items()
    ]
    text = io.StringIO()
    columns = ["site", "block", "measure", "mean", "low", "high", "images", "verdict"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "scores.csv", text.getvalue())
    document = {"measures": MEASURES, "sites": [asdict(site) for site in scores]}
    write_json(folder / "scores.json", document)
    return [folder / "scores.csv", folder / "scores.json"]
