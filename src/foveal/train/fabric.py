"""Lightning Fabric, imported without torchmetrics.

Fabric wants to know torchmetrics' version and imports all of it, with scipy and transformers where they are: seconds
of every process's start, for what the package's metadata says as well.
"""

import sys
from importlib import metadata
from types import ModuleType


def _import_fabric() -> None:
    name, stand_in = "torchmetrics", ModuleType("torchmetrics")
    if name in sys.modules or "lightning_fabric" in sys.modules:
        return
    try:
        stand_in.__dict__["__version__"] = metadata.version(name)
    except metadata.PackageNotFoundError:
        return
    sys.modules[name] = stand_in
    try:
        import lightning_fabric  # noqa: F401
    finally:
        del sys.modules[name]


_import_fabric()

from lightning_fabric import Fabric  # noqa: E402
from lightning_fabric.strategies.ddp import DDPStrategy  # noqa: E402
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy  # noqa: E402
from lightning_fabric.strategies.strategy import Strategy  # noqa: E402

__all__ = ["DDPStrategy", "Fabric", "ModelParallelStrategy", "Strategy"]
