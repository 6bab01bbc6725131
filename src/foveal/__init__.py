"""Attention for convolutional networks, from paper to product."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foveal.checkpoint import load, read_info, save
    from foveal.fuse import fuse
    from foveal.insert import (
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
    )
    from foveal.look import watch
    from foveal.models import create_model, list_models

__all__ = [
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
    "read_info",
    "remove",
    "save",
    "sites",
    "watch",
]

_HOME = {
    **dict.fromkeys(("load", "read_info", "save"), "foveal.checkpoint"),
    **dict.fromkeys(("create_model", "list_models"), "foveal.models"),
    "fuse": "foveal.fuse",
    "watch": "foveal.look",
}


class _Package(ModuleType):
    """Imports a public name when it is first asked for, so that `foveal --help` need not wait for torch."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME.get(name, "foveal.insert")), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module `foveal.insert` sets this attribute to it: people mean the function of that name.
        if name in ("fuse", "insert") and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *__all__})


sys.modules[__name__].__class__ = _Package
