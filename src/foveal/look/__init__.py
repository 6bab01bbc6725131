"""See what a network attends to: record it, draw it, score it, show it in a page.

Everything is imported on first use: the commands are read for ``--help`` without torch, and drawing, scoring and
serving bring matplotlib, scipy and a web server with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.look.cam import grad_cam
    from foveal.look.draw import (
        draw_channels,
        draw_clip_rows,
        draw_gate_profile,
        draw_gates,
        draw_grad_cam,
        draw_mask,
        draw_row_grid,
        draw_rows,
        draw_segmentation,
    )
    from foveal.look.geometry import on_pixels, query_grid
    from foveal.look.measures import attention_map, score_sites, share_on_object
    from foveal.look.profile import gate_profile
    from foveal.look.recording import Recordings, SiteRecording
    from foveal.look.watching import watch

# public name -> file that defines it
_HOMES = {
    "Recordings": "recording",
    "SiteRecording": "recording",
    "attention_map": "measures",
    "draw_channels": "draw",
    "draw_clip_rows": "draw",
    "draw_gate_profile": "draw",
    "draw_gates": "draw",
    "draw_grad_cam": "draw",
    "draw_mask": "draw",
    "draw_row_grid": "draw",
    "draw_rows": "draw",
    "draw_segmentation": "draw",
    "gate_profile": "profile",
    "grad_cam": "cam",
    "on_pixels": "geometry",
    "query_grid": "geometry",
    "score_sites": "measures",
    "share_on_object": "measures",
    "watch": "watching",
}

__all__ = [
    "Recordings",
    "SiteRecording",
    "attention_map",
    "draw_channels",
    "draw_clip_rows",
    "draw_gate_profile",
    "draw_gates",
    "draw_grad_cam",
    "draw_mask",
    "draw_row_grid",
    "draw_rows",
    "draw_segmentation",
    "gate_profile",
    "grad_cam",
    "on_pixels",
    "query_grid",
    "score_sites",
    "share_on_object",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"foveal.look.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
