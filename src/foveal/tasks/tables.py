"""Evaluations as tables for a terminal. Names from the world are shown as they are, never read as markup."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from foveal.terminal import plain


def figures_table(evaluation: Any) -> Table:
    """An empty table under the data's name, for figures and their values."""
    title = f"{evaluation.data}, split {evaluation.split}, {evaluation.images:,} {evaluation.items}"
    table = Table(title=plain(title), title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    return table


def with_notes(table: Table, notes: list[str], evaluation: Any) -> RenderableType:
    """A table with remarks below it, what a person should know of the data and the unreadable files among them."""
    notes, skipped = [*notes, *evaluation.notes], evaluation.skipped
    if skipped:
        shown = "; ".join(list(skipped)[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        notes = [*notes, f"{len(skipped)} files could not be read and were left out: {shown}{more}"]
    return Group(table, *(plain(note) for note in notes)) if notes else table


def plain_table(evaluation: Any) -> RenderableType:
    """Every figure of an evaluation on a line of its own: what a task shows that has nothing to add."""
    table = figures_table(evaluation)
    for name, value in evaluation.figures.items():
        table.add_row(plain(name.replace("_", " ")), f"{value:.4g}")
    return with_notes(table, [], evaluation)
