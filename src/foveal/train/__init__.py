"""Train networks. Names are imported when first asked for: reading options needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.train.config import TrainConfig as TrainConfig
    from foveal.train.run import Interrupted as Interrupted
    from foveal.train.run import RunResult as RunResult
    from foveal.train.run import fit as fit

# public name -> module of this package that defines it
_HOMES = {"Interrupted": "run", "RunResult": "run", "TrainConfig": "config", "fit": "run"}

__all__ = ["Interrupted", "RunResult", "TrainConfig", "fit"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
