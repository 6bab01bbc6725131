"""AOTInductor: PyTorch's compiler ahead of time; the file holds machine code for this kind of processor."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from foveal.errors import FovealError
from foveal.export.program import Program, quiet

FILE = "model.pt2"
NEEDS: tuple[str, ...] = ()


def write(program: Program, path: Path, about: str) -> None:
    """Compile the graph with its weights folded in.

    Raises:
        FovealError: there is no C++ compiler.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    if not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        raise FovealError("aotinductor needs a C++ compiler, got none; install g++ or clang++")
    options = {"freezing": True, "aot_inductor.metadata": {"foveal": about}}
    # not to the disk: where that is full, PyTorch's writer ends the process
    file = io.BytesIO()
    with torch.no_grad(), quiet("torch.utils.cpp_extension"):
        aoti_compile_and_package(program.exported, package_path=file, inductor_configs=options)
    path.write_bytes(file.getbuffer())


def load(path):
    """A function from the input of the file to its outputs."""
    import torch
    import torchvision  # noqa: F401 - its operators may be in the graph

    net = torch._inductor.aoti_load_package(path)
    return lambda images: [output.numpy(force=True) for output in net(torch.from_numpy(images))]
