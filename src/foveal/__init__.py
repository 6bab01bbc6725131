"""Attention for convolutional networks, from paper to product."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foveal.checkpoint import load, read_info, save
    from foveal.errors import FovealError
    from foveal.fusion import fuse
    from foveal.inference import predictor
    from foveal.insertion import (
        Insertion,
        Plan,
        Site,
        freeze_backbone,
        insert,
        inserted,
        parameter_groups,
        parse_insertion,
        plan,
        remove,
        sites,
        undo_zero_init,
    )
    from foveal.look import watch
    from foveal.models import create_model, list_models

# public name -> module that defines it
_HOMES = {
    "FovealError": "foveal.errors",
    "Insertion": "foveal.insertion",
    "Plan": "foveal.insertion",
    "Site": "foveal.insertion",
    "create_model": "foveal.models",
    "freeze_backbone": "foveal.insertion",
    "fuse": "foveal.fusion",
    "insert": "foveal.insertion",
    "inserted": "foveal.insertion",
    "list_models": "foveal.models",
    "load": "foveal.checkpoint",
    "parameter_groups": "foveal.insertion",
    "parse_insertion": "foveal.insertion",
    "plan": "foveal.insertion",
    "predictor": "foveal.inference",
    "read_info": "foveal.checkpoint",
    "remove": "foveal.insertion",
    "save": "foveal.checkpoint",
    "sites": "foveal.insertion",
    "undo_zero_init": "foveal.insertion",
    "watch": "foveal.look",
}
_SUBPACKAGES = (
    "bench",
    "checkpoint",
    "compare",
    "data",
    "deprecation",
    "errors",
    "evaluate",
    "check",
    "evaluation_page",
    "export",
    "figure",
    "files",
    "folders",
    "fusion",
    "hub",
    "image_files",
    "inference",
    "insertion",
    "look",
    "machine",
    "measure",
    "model_info",
    "models",
    "nn",
    "ops",
    "packing",
    "palette",
    "predict",
    "published",
    "push",
    "signals",
    "sources",
    "statistics",
    "tasks",
    "terminal",
    "train",
)

__all__ = [
    "FovealError",
    "Insertion",
    "Plan",
    "Site",
    "create_model",
    "freeze_backbone",
    "fuse",
    "insert",
    "inserted",
    "list_models",
    "load",
    "parameter_groups",
    "parse_insertion",
    "plan",
    "predictor",
    "read_info",
    "remove",
    "save",
    "sites",
    "undo_zero_init",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Import a public name or a sub-package when it is first asked for, so that `foveal --help` need not wait."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _SUBPACKAGES:
        value = import_module(f"foveal.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
