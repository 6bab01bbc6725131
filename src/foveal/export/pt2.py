"""torch.export's own format: PyTorch without the network's Python."""

from __future__ import annotations

import io
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveal.export.program import Program, quiet

FILE = "model.pt2"
NEEDS: tuple[str, ...] = ()


def write(program: Program, path: Path, about: str) -> None:
    """Write the graph and its weights, with ``about`` as an extra file in it."""
    import torch

    divide_whole(program.exported.graph)
    # not to the disk: where that is full, PyTorch's writer ends the process
    file = io.BytesIO()
    # weights in another memory format are complete all the same
    with quiet():
        torch.export.save(program.exported, file, extra_files={"foveal.json": about})
    path.write_bytes(file.getbuffer())


def divide_whole(graph: Any) -> None:
    """Write quotients of sizes that are rounded, ceil(a / b) and floor(a / b), in whole numbers: -(-a // b) and a // b.

    PyTorch saves no other; paddings of "same" convolutions and pools are made of them.
    """
    for node in list(graph.nodes):
        if node.target not in (math.ceil, math.floor) or node.args[0].target is not operator.truediv:
            continue
        above, below = node.args[0].args
        up = node.target is math.ceil
        with graph.inserting_before(node):
            made = _size(graph, operator.neg, above) if up else above
            made = _size(graph, operator.floordiv, made, below)
            made = _size(graph, operator.neg, made) if up else made
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _size(graph: Any, function: Callable[..., Any], *of: Any) -> Any:
    """A node that computes a size, with the size's formula as PyTorch notes it."""
    node = graph.call_function(function, of)
    node.meta["val"] = function(*(one.meta["val"] if hasattr(one, "meta") else one for one in of))
    return node


def load(path):
    """A function from the input of the file to its outputs."""
    import torch
    import torchvision  # noqa: F401 - its operators may be in the graph

    net = torch.export.load(path).module()
    return lambda images: [output.numpy(force=True) for output in net(torch.from_numpy(images))]


def values(path: Path, names: Sequence[str]) -> tuple[list[tuple[str, str]], Callable[..., list[Any]]]:
    """As of `foveal.export.onnx.values`."""
    import torch

    from foveal.export.fault import Recorder

    module: Any = torch.export.load(path).module()
    asked = set(names)

    def run(images: Any, wanted: Sequence[str]) -> list[Any]:
        recorder = Recorder(module, set(wanted))
        with torch.no_grad():
            recorder.run(torch.from_numpy(images))
        return [recorder.seen[name].numpy() for name in wanted]

    return [(node.name, node.name) for node in module.graph.nodes if node.name in asked], run
