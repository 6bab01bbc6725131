"""See what a network attends to: record it, draw it, score it, show it in a page.

Everything is imported on first use: the verbs are read for ``--help`` without torch, and drawing, scoring and
serving bring matplotlib, scipy and a web server with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.look.cam import grad_cam
    from foveal.look.draw import (
        draw_atlas,
        draw_channels,
        draw_clip_rows,
        draw_gate_profile,
        draw_gates,
        draw_grad_cam,
        draw_mask,
        draw_rows,
        draw_segmentation,
    )
    from foveal.look.profile import gate_profile
    from foveal.look.record import Record, Seen, on_pixels, watch
    from foveal.look.score import attention_map, score_sites, share_on_object

__all__ = [
    "Record",
    "Seen",
    "attention_map",
    "draw_atlas",
    "draw_channels",
    "draw_clip_rows",
    "draw_gate_profile",
    "draw_gates",
    "draw_grad_cam",
    "draw_mask",
    "draw_rows",
    "draw_segmentation",
    "gate_profile",
    "grad_cam",
    "on_pixels",
    "score_sites",
    "share_on_object",
    "watch",
]

_OTHERS = {"gate_profile": "profile", "grad_cam": "cam"}
_OTHERS |= dict.fromkeys(("Record", "Seen", "on_pixels", "watch"), "record")
_OTHERS |= dict.fromkeys(("attention_map", "score_sites", "share_on_object"), "score")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'foveal.look' has no attribute {name!r}")
    return getattr(import_module(f"foveal.look.{_OTHERS.get(name, 'draw')}"), name)
