"""A recorded graph that the ONNX exporter takes as it is, instead of running through all of it a second time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

aten = torch.ops.aten
FRESH = {aten.conv1d, aten.conv2d, aten.conv3d, aten.linear, aten.max_pool2d}
"""Composite operators that the exporter translates as they are, and that return memory of their own."""
VIEWS = {aten.reshape, aten.flatten, aten.unflatten, aten.sym_size}
"""Others that it translates as they are."""


class FunctionalProgram(torch.export.ExportedProgram):
    """A recorded program whose graph overwrites nothing, as far as that is plain to see.

    Decomposing a program computes all sizes of the graph anew, which takes longer than recording it did, and changes
    a few kinds of nodes in a convolutional network. These are replaced here, one by one. A graph that holds anything
    else to decompose is decomposed as ever.

    Args:
        exported: the program, which stays as it is.
    """

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        graph = fx.Graph()
        copied: Any = graph.graph_copy(exported.graph, {}, return_output_node=True)
        graph.output(copied[0]).meta = dict(copied[1].meta)
        for node in graph.nodes:
            if isinstance(node.target, OpOverload):
                _replace(node, node.target)
        super().__init__(
            exported.graph_module,
            graph,
            exported.graph_signature,
            exported.state_dict,
            exported.range_constraints,
            exported.module_call_graph,
            exported.example_inputs,
            exported.constants,
            verifiers=exported.verifiers,
        )

    def run_decompositions(
        self, decomp_table: Any = None, decompose_custom_triton_ops: bool = False
    ) -> torch.export.ExportedProgram:
        """The program itself, if by ``decomp_table`` nothing in it is left to decompose."""
        if decomp_table is not None and all(_stays(node.target, decomp_table) for node in self.graph.nodes):
            return self
        return super().run_decompositions(decomp_table, decompose_custom_triton_ops)


def _stays(target: Any, table: Mapping[Any, Any]) -> bool:
    """Whether nodes with this target need no decomposition."""
    if not isinstance(target, OpOverload):
        return not isinstance(target, HigherOrderOperator)
    known = not target._can_decompose() or target.overloadpacket in FRESH | VIEWS
    return known and target not in table and not target._schema.is_mutable


def _aliases(target: OpOverload) -> bool:
    """Whether an operator's schema says that it overwrites an input or may return a view of it."""
    return any(one.alias_info for one in (*target._schema.arguments, *target._schema.returns))


def _replace(node: fx.Node, target: OpOverload) -> None:
    """Replace a call by what it is decomposed into, where that is one call or none."""
    made: Any = node.args[0] if node.args else None
    if target is aten.to.dtype and len(node.args) == 2 and made.meta["val"].dtype == node.args[1]:
        node.replace_all_uses_with(made)
        node.graph.erase_node(node)
    elif target is aten.adaptive_avg_pool2d.default and node.args[1] == [1, 1]:
        node.target, node.args = aten.mean.dim, (made, [-1, -2], True)
    elif target._schema.is_mutable and torch.Tag.pointwise in target.tags and _is_unseen(node, made):
        functional = getattr(aten, target.overloadpacket.__name__.removesuffix("_"))
        node.target = getattr(functional, target._overloadname)


def _is_unseen(node: fx.Node, overwritten: fx.Node) -> bool:
    """Whether a tensor that a node overwrites is memory of its own that no other node reads."""
    producer = overwritten.target
    if list(overwritten.users) != [node] or not isinstance(producer, OpOverload):
        return False
    dtypes = {
        one.meta["val"].dtype for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor)
    }
    fresh = not (_aliases(producer) or producer._can_decompose())
    return (fresh or producer.overloadpacket in FRESH) and len(dtypes) == 1
