"""Gates in the form that ONNX Runtime computes quickly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

POOLS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
ORT_DOMAIN, ATTENTION = "com.microsoft", "MultiHeadAttention"
GROUPS = 8
"""Parts of the channels that are reduced one by one: their number is above what ONNX Runtime takes for too few."""


def pool_globally(model: Any) -> None:
    """Change an ``onnx.ModelProto`` in place: reductions over both spatial sizes become global pooling.

    ONNX Runtime keeps feature maps in blocks of channels, in which it can pool but not reduce: every reduction would
    bring the whole map into the usual order first.
    """
    from onnx import helper

    ranks = {name: len(shape) for name, shape in _shapes(model).items()}
    nodes = []
    for node in model.graph.node:
        # global pooling is over everything behind the channels, so the map must have these two sizes and no other
        if node.op_type not in POOLS or ranks.get(node.input[0]) != 4 or _axes(model, node) != [2, 3]:
            nodes.append(node)
            continue
        pooled = node.output[0] if _keeps(node) else f"{node.output[0]}_pooled"
        made = [helper.make_node(POOLS[node.op_type], [node.input[0]], [pooled])]
        if not _keeps(node):
            made.append(helper.make_node("Flatten", [pooled], [node.output[0]], axis=1))
        nodes += _of_module(node, made)
    _replace_nodes(model, nodes)


def reduce_in_groups(model: Any) -> None:
    """Change an ``onnx.ModelProto`` in place: mean and maximum over channels that are joined are taken in two steps.

    Over the channels of one image ONNX Runtime reduces value by value, and over the channels of several maps in one
    pass with vectors, six times as fast. So a map is seen as GROUPS maps with as many fewer channels.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    shapes, sizes = _shapes(model), _Sizes(model)
    nodes: list[Any] = []
    replaced: set[str] = set()
    for node in model.graph.node:
        parts = [made_by[name] for name in node.input if name in made_by]
        if not _joins_statistics(model, node, parts, shapes, readers):
            nodes.append(node)
            continue
        x, name = parts[0].input[0], node.output[0]
        replaced.update(node.input)
        nodes += _of_module(node, _in_groups(x, shapes[x], [part.op_type for part in parts], name, sizes))
    _replace_nodes(model, [node for node in nodes if not replaced.intersection(node.output)])


def _joins_statistics(
    model: Any, node: Any, parts: Sequence[Any], shapes: dict[str, tuple[Any, ...]], readers: Counter[str]
) -> bool:
    """Whether a node joins reductions over the channels of one map, which nothing else reads."""
    if node.op_type != "Concat" or _attribute(node, "axis") != 1 or len(parts) != len(node.input):
        return False
    shape = shapes.get(parts[0].input[0], ()) if parts[0].input else ()
    return (
        len(shape) == 4
        and isinstance(shape[1], int)
        and shape[1] % GROUPS == 0
        and all(
            part.op_type in POOLS
            and part.input[0] == parts[0].input[0]
            and _axes(model, part) == [1]
            and _keeps(part)
            and readers[part.output[0]] == 1
            for part in parts
        )
    )


def _in_groups(
    x: str, shape: tuple[Any, ...], operators: Sequence[str], name: str, sizes: _Sizes
) -> list[Any]:
    """Nodes that make ``name``, the reductions of ``x`` over its channels, one beside the other."""
    from onnx import helper

    groups, rows = f"{name}_groups", [f"{name}_row_{i}" for i in range(len(operators))]
    size = sizes.constant(0, GROUPS, shape[1] // GROUPS, -1)
    made = [helper.make_node("Reshape", [x, size], [groups])]
    for operator, row in zip(operators, rows, strict=True):
        made += [
            helper.make_node(operator, [groups, sizes.constant(2)], [f"{row}_groups"], keepdims=0),
            helper.make_node(operator, [f"{row}_groups", sizes.constant(1)], [row], keepdims=1),
        ]
    made.append(helper.make_node("Concat", rows, [f"{name}_rows"], axis=1))
    size, before = sizes.of(x, shape, len(operators))
    return [*made, *before, helper.make_node("Reshape", [f"{name}_rows", size], [name])]


def gate_by_convolution(model: Any) -> None:
    """Change an ``onnx.ModelProto`` in place: in one image a gate of channels is the weights of a convolution.

    ONNX Runtime takes the addition and the ReLU behind a gate into such a convolution, which has one weight for each
    channel, and so goes over the map once instead of three times. In a batch every image has another gate, and products
    stay as they are.
    """
    from onnx import TensorProto, helper

    shapes, sizes, nodes = _shapes(model), _Sizes(model), []
    floats = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    for node in model.graph.node:
        x = _gated_image(node, shapes)
        if x not in floats or _operators_after(model, node, 2) != ["Add", "Relu"]:
            nodes.append(node)
            continue
        channels = shapes[x][1]
        (gate,) = (name for name in node.input if name != x)
        weights = f"{node.output[0]}_weights"
        made = [
            helper.make_node("Reshape", [gate, sizes.constant(channels, 1, 1, 1)], [weights]),
            # without a bias ONNX Runtime would leave the addition outside
            helper.make_node("Conv", [x, weights, sizes.zeros(channels)], list(node.output), group=channels),
        ]
        nodes += _of_module(node, made)
    _replace_nodes(model, nodes)


def _gated_image(node: Any, shapes: dict[str, tuple[Any, ...]]) -> str:
    """The map that a product multiplies by a gate of its channels, both of one image of known size; empty if none."""
    for x, gate in (node.input, node.input[::-1]) if node.op_type == "Mul" else ():
        shape = shapes.get(x, ())
        known = len(shape) == 4 and all(isinstance(size, int) for size in shape)
        if known and shape[0] == 1 and shape[2:] != (1, 1) and shapes.get(gate) == (1, shape[1], 1, 1):
            return x
    return ""


def _operators_after(model: Any, node: Any, count: int) -> list[str]:
    """The operators that follow a node one after the other, as long as nothing else reads what is between them."""
    found: list[str] = []
    while len(found) < count:
        readers = [one for one in model.graph.node for name in one.input if name == node.output[0]]
        if len(readers) != 1:
            break
        (node,) = readers
        found.append(node.op_type)
    return found


def multiply_matrices(model: Any) -> None:
    """Change an ``onnx.ModelProto`` in place: a product with a vector becomes one with a matrix of one column.

    ONNX Runtime 1.32 takes a transposition before a product into it, and then computes something else for a vector.
    """
    from onnx import helper

    shapes, sizes, nodes = _shapes(model), _Sizes(model), []
    ranks = {name: len(shape) for name, shape in shapes.items()}
    ranks |= {one.name: len(one.dims) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMul" or ranks.get(node.input[1]) != 1:
            nodes.append(node)
            continue
        column, product = f"{node.output[0]}_column", f"{node.output[0]}_product"
        made = [
            helper.make_node("Unsqueeze", [node.input[1], sizes.constant(1)], [column]),
            helper.make_node("MatMul", [node.input[0], column], [product]),
            helper.make_node("Squeeze", [product, sizes.constant(-1)], list(node.output)),
        ]
        nodes += _of_module(node, made)
    _replace_nodes(model, nodes)


def join_attention(model: Any) -> None:
    """Change an ``onnx.ModelProto`` in place: two products with a softmax between them become one node.

    It is one of ONNX Runtime's own, whose kernel goes through the keys in tiles and keeps no weights of n x n. What it
    means is in the model as a function of plain operators, for runtimes that have no such node.
    """
    from onnx import helper

    made_by = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    shapes = _shapes(model)
    nodes: list[Any] = []
    replaced: set[str] = set()
    for node in model.graph.node:
        found = _attention(node, made_by, readers, shapes)
        if found is None:
            nodes.append(node)
            continue
        query, transposed = found.input
        weights, value = node.input
        replaced |= {found.output[0], weights}
        key = f"{node.output[0]}_key"
        made = [
            helper.make_node("Transpose", [transposed], [key], perm=[0, 2, 1]),
            helper.make_node(
                ATTENTION, [query, key, value], list(node.output), domain=ORT_DOMAIN, num_heads=1, scale=1.0
            ),
        ]
        nodes += _of_module(node, made)
    if replaced:
        _replace_nodes(model, [node for node in nodes if not replaced.intersection(node.output)])
        model.opset_import.append(helper.make_opsetid(ORT_DOMAIN, 1))
        model.functions.append(_attention_function(model))


def _attention(
    node: Any, made_by: dict[str, Any], readers: Counter[str], shapes: dict[str, tuple[Any, ...]]
) -> Any:
    """The product of queries and keys, where ``node`` is that of their softmax and values of several positions."""
    if node.op_type != "MatMul":
        return None
    softmax = made_by.get(node.input[0])
    if softmax is None or softmax.op_type != "Softmax" or _attribute(softmax, "axis", -1) not in (-1, 2):
        return None
    scores = made_by.get(softmax.input[0])
    if (
        scores is None
        or scores.op_type != "MatMul"
        or readers[softmax.output[0]] + readers[scores.output[0]] > 2
    ):
        return None
    query = shapes.get(scores.input[0], ())
    if not all(len(shapes.get(name, ())) == 3 for name in (*scores.input, node.input[1])):
        return None
    # attention among channels is over few, of many positions: its weights are small
    positions, width = query[1:]
    few = isinstance(positions, int) and (not isinstance(width, int) or positions <= width)
    return None if few else scores


def _attention_function(model: Any) -> Any:
    """The meaning of the node that `join_attention` makes, with a scale of one and a single head."""
    from onnx import helper

    body = [
        helper.make_node("Transpose", ["key"], ["transposed"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["query", "transposed"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "value"], ["output"]),
    ]
    plain = [one for one in model.opset_import if one.domain == ""]
    arguments = ["query", "key", "value"], ["output"]
    return helper.make_function(
        ORT_DOMAIN, ATTENTION, *arguments, body, plain, attributes=["num_heads", "scale"]
    )


class _Sizes:
    """Names of tensors with sizes, and of such sizes, each made once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.known: dict[tuple[Any, ...], str] = {}

    def constant(self, *values: int) -> str:
        """The name of these numbers."""
        import numpy as np

        return self._made(values, "sizes_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def zeros(self, count: int) -> str:
        """The name of as many zeros in float32."""
        import numpy as np

        return self._made(("zeros", count), f"zeros_{count}", np.zeros(count, dtype=np.float32))

    def _made(self, key: tuple[Any, ...], name: str, array: Any) -> str:
        from onnx import numpy_helper

        if key not in self.known:
            self.known[key] = name
            self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return self.known[key]

    def of(self, x: str, shape: tuple[Any, ...], channels: int) -> tuple[str, list[Any]]:
        """The name of the sizes of ``x`` but for its channels, and nodes that make it.

        Free sizes with one name are the same, and so maps that have them share what is made for the first.
        """
        from onnx import helper

        height, width = shape[2:]
        if isinstance(height, int) and isinstance(width, int):
            return self.constant(0, channels, height, width), []
        key = (channels, height, width) if height and width else (channels, x)
        if key in self.known:
            return self.known[key], []
        name = self.known[key] = f"{x}_sizes_{channels}"
        return name, [
            helper.make_node("Shape", [x], [f"{name}_end"], start=2, end=4),
            helper.make_node("Concat", [self.constant(0, channels), f"{name}_end"], [name], axis=0),
        ]


def _shapes(model: Any) -> dict[str, tuple[Any, ...]]:
    """Tensor -> its sizes: a number, a name, or None."""
    return {
        one.name: tuple(
            size.dim_value if size.HasField("dim_value") else size.dim_param or None
            for size in one.type.tensor_type.shape.dim
        )
        for one in [*model.graph.value_info, *model.graph.input]
    }


def _attribute(node: Any, name: str, default: int = 0) -> int:
    return next((one.i for one in node.attribute if one.name == name), default)


def _keeps(node: Any) -> bool:
    return _attribute(node, "keepdims", 1) == 1


def _axes(model: Any, node: Any) -> list[int]:
    """The axes of a reduction of a map with four sizes, where they are constant; else none."""
    from onnx import numpy_helper

    if len(node.input) != 2:
        return []
    found = next((one for one in model.graph.initializer if one.name == node.input[1]), None)
    return [] if found is None else sorted(int(axis) % 4 for axis in numpy_helper.to_array(found).ravel())


def _of_module(origin: Any, made: list[Any]) -> list[Any]:
    """Nodes that stand for another keep what is known of it."""
    for node in made:
        node.metadata_props.extend(origin.metadata_props)
    return made


def _replace_nodes(model: Any, nodes: list[Any]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for one in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(one)
