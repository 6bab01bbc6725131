"""Pages of evaluations and of checked data, and their parts. What comes from the world is escaped here."""

from __future__ import annotations

import base64
from pathlib import Path
from string import Template

import numpy as np

from foveal.tasks.picture import png_bytes
from foveal.terminal import escape


def page(title: str, headline: str, body: str) -> str:
    """The whole page, which opens from the disk and asks no network; ``body`` is HTML already."""
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), headline=escape(headline), body=body)


def table(head: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """An HTML table; every cell is escaped.

    Args:
        numbers: all columns but the first hold numbers, and stand at the right.

    Example:
        >>> table(["class"], [["<b>"]], numbers=False)
        '<div class="scroll"><table class="plain"><tr><th>class</th></tr><tr><td>&lt;b&gt;</td></tr></table></div>'
    """
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = "numbers" if numbers else "plain"
    return f'<div class="scroll"><table class="{kind}"><tr>{first}</tr>{rest}</table></div>'


def picture(image: np.ndarray, caption: str) -> str:
    """A figure with an image, uint8 (h, w, 3), inside the page; the caption is escaped."""
    data = base64.b64encode(png_bytes(image)).decode()
    return f'<figure><img alt="" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
