"""One self-contained HTML file: the page with the maps inside. It opens from disk and asks no network."""

import json
from importlib import resources
from typing import Any, Literal

_SLOT = '<script type="application/json" id="foveal-data">null</script>'


def page(of: Literal["images", "videos", "seeds"] = "images") -> str:
    """The page as ``foveal serve`` sends it, with no images inside.

    Args:
        of: what the networks take: images, clips, or, where they make images, a seed.
    """
    text = (resources.files("foveal.look.page") / "page.html").read_text(encoding="utf-8")
    return text.replace("<body>", f'<body data-of="{of}">', 1)


def page_with(images: list[dict[str, Any]], note: str = "") -> str:
    """The page with images inside.

    Args:
        images: ``{"name": ..., "networks": [image_payload(..., rows=True), ...]}`` each.
        note: a sentence for the top of the page.

    Returns:
        HTML without a reference to anything outside it.
    """
    # "<" is escaped, so that no name of a file or a class can end the script element.
    text = json.dumps({"images": images, "note": note}, allow_nan=False).replace("<", "\\u003c")
    empty = page()
    filled = empty.replace(_SLOT, _SLOT.replace("null", text))
    if filled == empty:
        raise RuntimeError("page_with: the page has no place for its data")
    return filled
