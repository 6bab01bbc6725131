"""What a finished training run looks like in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from foveal.terminal import plain
from foveal.train.progress import metric_name, metric_text
from foveal.train.run import RunResult
from foveal.train.run_folder import blocks_option

SHOWN_FILES = 5


def run_summary(result: RunResult) -> RenderableType:
    """The outcome of a run, what its blocks do, where the files are, and what to type next."""
    best, seconds = result.best, sum(row["seconds"] for row in result.rows)
    value = metric_text(result.config.the_task, best[result.metric])
    parts: list[RenderableType] = [
        plain(
            f"\n{result.config.model} on {result.config.data}: {metric_name(result.metric)} {value} "
            f"in epoch {best['epoch']} of {len(result.rows)}, {seconds:.0f} s"
        )
    ]
    if result.skipped:
        shown = "; ".join(list(result.skipped)[:SHOWN_FILES])
        more = f"; and {len(result.skipped) - SHOWN_FILES} more" if len(result.skipped) > SHOWN_FILES else ""
        parts.append(plain(f"{len(result.skipped)} files could not be read and were left out: {shown}{more}"))
    if result.blocks:
        parts.append(blocks_table(result.blocks))
    weights = f"{result.weights}{blocks_option(result.config)}"
    # a task whose networks make images shows those of each epoch
    makes = hasattr(result.config.the_task, "sample")
    takes = "VIDEO" if hasattr(result.config.the_task, "example_size") else "PHOTO"
    parts += [
        plain(f"best weights  {result.weights}"),
        plain(f"curves        {result.folder / 'curves.png'}"),
        plain(
            f"{'samples ' if makes else 'examples'}      {result.folder / ('samples' if makes else 'examples.png')}"
        ),
        plain(f"figures       {result.folder / 'metrics.csv'}"),
        plain(f"next          foveal eval --weights {weights}"),
        plain(f"              foveal predict {'--count 64' if makes else takes} --weights {weights}"),
    ]
    return Group(*parts)


def blocks_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row for each attention block; see `foveal.train.block_report.block_report` for the columns."""
    table = Table(title="attention blocks", title_justify="left")
    numbers = ("changes its input by", "scale", "gate mean", "spread", "between images")
    for column in ("site", "block", *numbers, ""):
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        figures = [row[k] for k in ("scale", "gate_mean", "gate_spread", "gate_image_spread")]
        table.add_row(
            plain(row["site"]),
            plain(row["block"]),
            f"{100 * row['contribution']:.1f} %",
            *("" if figure is None else f"{figure:.3f}" for figure in figures),
            row["verdict"],
        )
    return table
