"""Small pieces of HTML that several parts of the report use."""

from __future__ import annotations

from collections.abc import Sequence

from foveal.compare.summary import Row
from foveal.terminal import escape


def name_html(row: Row) -> str:
    """A variant's name with the dot of its kind."""
    return f'<i class="dot {row.kind}"></i>{escape(row.name)}'


def table_html(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide; the cells are HTML, the titles text."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in body)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
