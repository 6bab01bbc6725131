"""Weights that others published, in and out: key maps that hold exactly or refuse.

``convert`` reads a state dict of a known format into one of foveal's networks (or one block), ``export`` writes it
back bit by bit, ``read`` opens a file without running anything in it. Imported on first use, so that the verb's
``--help`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.published.conversion import FORMATS, convert, export
    from foveal.published.reading import read

__all__ = ["FORMATS", "convert", "export", "read"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'foveal.published' has no attribute {name!r}")
    return getattr(import_module(f"foveal.published.{'reading' if name == 'read' else 'conversion'}"), name)
