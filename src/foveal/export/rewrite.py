"""Gates in the form that ONNX Runtime computes quickly."""

from __future__ import annotations

from typing import Any

POOLS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}


def rewrite(model: Any) -> None:
    """Change an ``onnx.ModelProto`` in place: reductions over both spatial sizes become global pooling.

    ONNX Runtime keeps feature maps in blocks of channels, in which it can pool but not reduce: every reduction would
    bring the whole map into the usual order first.
    """
    from onnx import helper, numpy_helper

    constants: dict[str, Any] = {one.name: one for one in model.graph.initializer}
    known = [*model.graph.value_info, *model.graph.input]
    ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in known}
    nodes = []
    for node in model.graph.node:
        axes = constants.get(node.input[1]) if node.op_type in POOLS and len(node.input) == 2 else None
        # global pooling is over everything behind the channels, so the map must have these two sizes and no other
        if (
            axes is None
            or ranks.get(node.input[0]) != 4
            or sorted(numpy_helper.to_array(axes).ravel() % 4) != [2, 3]
        ):
            nodes.append(node)
            continue
        keep = next((one.i for one in node.attribute if one.name == "keepdims"), 1)
        pooled = node.output[0] if keep else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node(POOLS[node.op_type], [node.input[0]], [pooled]))
        if not keep:
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], axis=1))
        for new in nodes[-1 if keep else -2 :]:
            new.metadata_props.extend(node.metadata_props)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    unused = [one for one in model.graph.initializer if one.name not in used]
    for one in unused:
        model.graph.initializer.remove(one)
