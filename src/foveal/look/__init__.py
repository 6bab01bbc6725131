"""See what a network attends to: record it, draw it, score it, show it in a page.

``watch`` is here at once; what draws, scores and serves is imported on first use, for it brings matplotlib, scipy
or a web server with it.
"""

from importlib import import_module
from typing import Any

from foveal.look.record import Record, Seen, on_pixels, watch

_LATER = {
    "draw": ("draw_atlas", "draw_channels", "draw_clip_rows", "draw_gate_profile", "draw_gates", "draw_grad_cam",
             "draw_mask", "draw_rows"),
    "cam": ("grad_cam",),
    "score": ("attention_map", "gate_profile", "score_sites", "share_on_object"),
}  # fmt: skip
_MODULE = {name: module for module, names in _LATER.items() for name in names}

__all__ = ["Record", "Seen", "on_pixels", "watch", *sorted(_MODULE)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'foveal.look' has no attribute {name!r}")
    return getattr(import_module(f"foveal.look.{_MODULE[name]}"), name)
