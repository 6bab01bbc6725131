"""Where a file begins to differ from its network: the first node, found by halving."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.export.program import Program
from foveal.export.proof import largest_difference

Values = Callable[[Path, Sequence[str]], tuple[list[tuple[str, str]], Callable[..., list[Any]]]]


def first_fault(program: Program, path: Path, values: Values, images: np.ndarray, tolerance: float) -> str:
    """Say which node is the first whose value differs from the network's.

    Every module's output is compared with the tensor that has its place in the file, by halving; then, within the
    module found, node by node with the recorded graph.

    Args:
        values: of the format, see `foveal.export.onnx.values`.
        images: input for which the file is wrong.
        tolerance: as a share of the largest value of a tensor.

    Returns:
        A sentence without its dot.
    """
    wanted, last_nodes = _module_outputs(program, torch.from_numpy(images)), _last_nodes(program)
    modules = {last_nodes[module]: module for module in wanted if module in last_nodes}
    there, run = named_values(program, path, values, list(modules))
    nodes = dict(there)
    names = [name for name in modules if name in nodes]

    def differs(name: str) -> bool:
        (found,) = run(images, [name])
        return largest_difference([wanted[modules[name]]], [torch.from_numpy(found).float()]) > tolerance

    place = bisect_left(names, True, key=differs)
    if place == len(names):
        told = "no node inside differs, only the outputs"
        chosen = ", as where float16 turns a choice among nearly equal scores; export it without half"
        return told + (chosen if program.net.half_type else "")
    module, before = modules[names[place]], names[place - 1] if place else None
    where = program.readable(module) or "the network itself"
    node = _first_node(program, path, values, images, tolerance, before, names[place]) or nodes[names[place]]
    return f"the first node that differs is {node}, seen in the output of {where}"


def named_values(
    program: Program, path: Path, values: Values, names: Sequence[str]
) -> tuple[list[tuple[str, str]], Callable[..., list[Any]]]:
    """``values`` by the names of the recorded graph, whose outputs have names of their own in the file."""
    (output,) = (node for node in program.exported.graph.nodes if node.op == "output")
    own = {node.name: name for node, name in zip(output.args[0], program.names, strict=True)}
    back = {name: node for node, name in own.items()}
    there, run = values(path, [*names, *(own[name] for name in names if name in own)])
    return (
        [(back.get(name, name), node) for name, node in there],
        lambda images, wanted: run(images, [own[w] if own.get(w) in dict(there) else w for w in wanted]),
    )


def _module_outputs(program: Program, images: Tensor) -> dict[str, Tensor]:
    """The output of each module that runs once and gives one tensor, in the order in which they end."""
    seen: dict[str, list[Any]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _i, output, path=path: seen.setdefault(path, []).append(
                output.detach().float().clone() if isinstance(output, Tensor) else None
            )
        )
        for path, module in program.net.named_modules()
    ]
    try:
        with torch.no_grad():
            program.net(images)
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: outputs[0] for path, outputs in seen.items() if len(outputs) == 1 and outputs[0] is not None
    }


def _last_nodes(program: Program) -> dict[str, str]:
    """Path of a module -> the name of the last tensor computed in it."""
    last = {}
    for node in program.exported.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            for path, _ in node.meta.get("nn_module_stack", {}).values():
                last[path] = node.name
    return last


def _first_node(
    program: Program,
    path: Path,
    values: Values,
    images: np.ndarray,
    tolerance: float,
    after: str | None,
    until: str,
) -> str | None:
    """The first node between two tensors whose value is not that of the recorded graph; None if there is none."""
    order = [node.name for node in program.exported.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    between = order[order.index(after) + 1 if after else 0 : order.index(until) + 1]
    there, run = named_values(program, path, values, between)
    recorder = Recorder(program.exported.module(), {name for name, _ in there})
    with torch.no_grad():
        recorder.run(torch.from_numpy(images))
    for name, node in there:
        (found,) = run(images, [name])
        # the exporter may have moved a transposition: what has another shape is another tensor
        if name in recorder.seen and recorder.seen[name].shape == found.shape:
            difference = largest_difference([recorder.seen[name]], [torch.from_numpy(found).float()])
            if difference > tolerance:
                return node
    return None


class Recorder(torch.fx.Interpreter):
    """Runs a recorded graph and keeps the tensors that are wanted, in float32."""

    def __init__(self, module: Any, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted, self.seen = wanted, {}

    def run_node(self, n: Any) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted and isinstance(value, Tensor):
            self.seen[n.name] = value.float().clone()
        return value
