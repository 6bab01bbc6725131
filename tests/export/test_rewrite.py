"""The rewritten graph computes the same; only what is a pooling becomes one, only joined statistics groups."""

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveal.export.rewrite import (
    gate_by_convolution,
    join_attention,
    multiply_matrices,
    pool_globally,
    reduce_in_groups,
)


def model_of(operator, shape, axes, keepdims):
    node = helper.make_node(operator, ["x", "axes"], ["y"], keepdims=keepdims)
    rank = len(shape) if keepdims else len(shape) - len(axes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.array(axes), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, x) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    ("shape", "axes", "pools"),
    [
        ((2, 3, 5, 4), (2, 3), True),
        ((2, 3, 5, 4), (-1, -2), True),
        ((2, 3, 5, 4), (1,), False),
        ((2, 3, 5, 4), (1, 2), False),
        ((2, 3, 5, 4, 2), (2, 3), False),
        ((2, 3, 5), (-1,), False),
    ],
)
def test_reductions_over_both_spatial_sizes_become_pooling_and_no_other(
    operator, keepdims, shape, axes, pools
):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = model_of(operator, shape, axes, keepdims)
    changed = copy.deepcopy(model)
    pool_globally(changed)
    onnx.checker.check_model(changed)
    assert any(node.op_type.startswith("Global") for node in changed.graph.node) == pools
    assert len(changed.graph.initializer) == (0 if pools else 1)
    assert np.allclose(run(changed, x), run(model, x), atol=1e-6)


def inferred(nodes, shapes, constants) -> Any:
    """A model of these nodes with its shapes: inputs by shape, constants by values, and the output ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def statistics_of(
    shape, operators=("ReduceMean", "ReduceMax"), keepdims=1, axis=1, joined=1, read_twice=False
):
    """Reductions of a map over one axis, joined."""
    names = [f"s{i}" for i in range(len(operators))]
    nodes = [helper.make_node("Relu", ["x"], ["r"])]
    nodes += [
        helper.make_node(operator, ["r", "axes"], [name], keepdims=keepdims)
        for operator, name in zip(operators, names, strict=True)
    ]
    nodes.append(helper.make_node("Concat", names, ["joined"], axis=joined))
    nodes.append(helper.make_node("Add", ["joined", names[0]] if read_twice else ["joined", "joined"], ["y"]))
    return inferred(nodes, {"x": shape}, {"axes": [axis]})


def in_groups(model) -> Any:
    changed = copy.deepcopy(model)
    reduce_in_groups(changed)
    onnx.checker.check_model(changed, full_check=True)
    return changed


@pytest.mark.parametrize(
    "operators", [("ReduceMean", "ReduceMax"), ("ReduceMax", "ReduceMean"), ("ReduceMax",)]
)
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((2, 32, 5, 4), "none"), (("b", 32, "h", "w"), "named"), ((None, 16, None, None), "free")],
)
def test_joined_statistics_over_channels_are_taken_in_groups(operators, shape, sizes):
    model = statistics_of(shape, operators)
    changed = in_groups(model)
    reductions = [node for node in changed.graph.node if node.op_type in ("ReduceMean", "ReduceMax")]
    assert len(reductions) == 2 * len(operators)
    assert any(node.op_type == "Shape" for node in changed.graph.node) == (sizes != "none")
    for batch, height, width in [(2, 5, 4)] if sizes == "none" else [(2, 5, 4), (1, 1, 1), (3, 2, 7)]:
        x = np.random.default_rng(0).standard_normal((batch, shape[1], height, width)).astype(np.float32)
        assert np.allclose(run(changed, x), run(model, x), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (2, 12, 5, 4)},
        {"shape": (2, None, 5, 4)},
        {"shape": (2, 32, 5)},
        {"shape": (2, 32, 8, 8), "axis": 2},
        {"shape": (2, 32, 5, 4), "keepdims": 0},
        {"shape": (2, 32, 5, 4), "joined": 2},
        {"shape": (2, 32, 5, 4), "read_twice": True},
        {"shape": (2, 32, 5, 4), "operators": ("ReduceMean", "ReduceSum")},
    ],
    ids=str,
)
def test_other_reductions_stay_as_they_are(options):
    model: Any = statistics_of(**options)
    assert [node.op_type for node in in_groups(model).graph.node] == [
        node.op_type for node in model.graph.node
    ]


def test_maps_whose_sizes_have_one_name_share_them():
    model = statistics_of(("b", 32, "h", "w"))
    second = copy.deepcopy(model.graph.node[1:4])
    for node in second:
        for names in (node.input, node.output):
            names[:] = [name if name in ("r", "axes") else f"{name}_2" for name in names]
    model.graph.node.extend(second)
    changed = in_groups(onnx.shape_inference.infer_shapes(model))
    assert [node.op_type for node in changed.graph.node].count("Shape") == 1


def attention_of(query, key, value, *, axis=-1, read_twice=False, scaled=False):
    """Two products with a softmax between them."""
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Relu", ["s"], ["scores"])
        if scaled
        else helper.make_node("Identity", ["q"], ["unused"]),
        helper.make_node("Softmax", ["scores" if scaled else "s"], ["w"], axis=axis),
        helper.make_node("MatMul", ["w", "v"], ["a"]),
        helper.make_node("ReduceSum", ["w" if read_twice else "a", "axes"], ["total"]),
        helper.make_node("Add", ["a", "total"], ["y"]),
    ]
    return inferred(nodes, {"q": query, "k": key, "v": value}, {"axes": [-1]})


def joined(model) -> Any:
    changed = copy.deepcopy(model)
    join_attention(changed)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def operators(model) -> list[str]:
    return [node.op_type for node in model.graph.node]


FREE = ("b", "n", 8), ("b", "m", 8), ("b", "m", 5)


@pytest.mark.parametrize("shapes", [FREE, ((2, 30, 8), (2, 20, 8), (2, 20, 5))], ids=["free", "static"])
def test_a_softmax_between_two_products_is_one_node_that_keeps_no_weights(shapes):
    model = attention_of(*shapes)
    changed = joined(model)
    assert "MultiHeadAttention" in operators(changed)
    assert not {"MatMul", "Softmax"} & set(operators(changed))
    random = np.random.default_rng(0)
    given = {
        name: 2 * random.standard_normal(shape).astype(np.float32)
        for name, shape in (("q", (2, 30, 8)), ("k", (2, 20, 8)), ("v", (2, 20, 5)))
    }
    found = [
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, given
        )[0]
        for one in (model, changed)
    ]
    assert np.allclose(*found, atol=1e-5)


def test_the_function_in_the_model_is_what_the_node_of_the_runtime_computes():
    changed = joined(attention_of(*FREE))
    # under another name no runtime has a node of its own for it
    for one in (
        changed.functions[0],
        next(n for n in changed.graph.node if n.op_type == "MultiHeadAttention"),
    ):
        one.domain = "elsewhere"
    changed.functions[0].name = next(n for n in changed.graph.node if n.domain).op_type = "Attention"
    changed.opset_import.append(helper.make_opsetid("elsewhere", 1))
    random = np.random.default_rng(1)
    given = {name: random.standard_normal((3, 9, 8)).astype(np.float32) for name in "qk"}
    given["v"] = random.standard_normal((3, 9, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    weights = np.exp(given["q"] @ given["k"].transpose(0, 2, 1))
    wanted = weights / weights.sum(-1, keepdims=True) @ given["v"]
    assert np.allclose(session.run(None, given)[0], wanted + wanted.sum(-1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        attention_of(*FREE, axis=1),
        attention_of(*FREE, read_twice=True),
        attention_of(*FREE, scaled=True),
        # among channels: few, each of many positions
        attention_of((2, 8, 30), (2, 8, 30), (2, 8, 30)),
        attention_of(("b", 8, "n"), ("b", 8, "n"), ("b", 8, "n")),
    ],
    ids=["another axis", "weights read twice", "not of a product", "of channels", "of channels, free"],
)
def test_other_softmaxes_stay_as_they_are(model):
    assert operators(joined(model)) == operators(model)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 3)], ids=str)
def test_a_product_with_a_vector_is_right_behind_a_transposition(shape):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = inferred(nodes, {"x": ("b", 8, "n")}, {"w": weight})
    multiply_matrices(model)
    onnx.checker.check_model(model)
    x = np.random.default_rng(1).standard_normal((2, 8, 30)).astype(np.float32)
    assert np.allclose(run(model, x), x.transpose(0, 2, 1) @ weight, atol=1e-5)
    assert ("Squeeze" in operators(model)) == (len(shape) == 1)


def gated(shape=(1, 16, 5, 4), gate=(1, 16, 1, 1), *, relu="Relu", read_twice=False, swapped=False):
    """A gate, the addition of a residual and a ReLU."""
    nodes = [
        helper.make_node("Sigmoid", ["g"], ["gate"]),
        helper.make_node("Abs", ["x"], ["map"]),
        helper.make_node("Mul", ["gate", "map"] if swapped else ["map", "gate"], ["gated"]),
        helper.make_node("Add", ["gated", "s"], ["added"]),
        helper.make_node(relu, ["added"], ["out"]),
        helper.make_node("Add", ["out", "gated" if read_twice else "out"], ["y"]),
    ]
    return inferred(nodes, {"x": shape, "g": gate, "s": shape}, {})


def by_convolution(model) -> Any:
    changed = copy.deepcopy(model)
    gate_by_convolution(changed)
    onnx.checker.check_model(changed, full_check=True)
    return changed


@pytest.mark.parametrize("swapped", [False, True])
def test_a_gate_of_one_image_is_the_weights_of_a_convolution_that_takes_what_follows(swapped, tmp_path):
    model = gated(swapped=swapped)
    changed = by_convolution(model)
    random = np.random.default_rng(0)
    given = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in (("x", (1, 16, 5, 4)), ("g", (1, 16, 1, 1)), ("s", (1, 16, 5, 4)))
    }
    found = []
    for one in (model, changed):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3  # it warns of files for one processor
        session = onnxruntime.InferenceSession(
            one.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found.append(session.run(None, given)[0])
    assert np.allclose(*found, atol=1e-6)
    assert operators(onnx.load(tmp_path / "optimised.onnx")) == [
        "Sigmoid",
        "Reshape",
        "Abs",
        "FusedConv",
        "Add",
    ]


@pytest.mark.parametrize(
    "model",
    [
        gated((2, 16, 5, 4), (2, 16, 1, 1)),
        gated((2, 16, 5, 4), (1, 16, 1, 1)),
        gated(("b", 16, 5, 4), ("b", 16, 1, 1)),
        gated((1, 16, "h", "w")),
        gated(gate=(1, 1, 5, 4)),
        gated(gate=(1, 1, 1, 1)),
        gated((1, 16, 1, 1)),
        gated((1, 16, 5), (1, 16, 1)),
        gated(relu="Elu"),
        gated(read_twice=True),
    ],
    ids=[
        "batch",
        "one_gate",
        "free_batch",
        "free_sizes",
        "mask",
        "number",
        "vector",
        "sequence",
        "no_relu",
        "read_twice",
    ],
)
def test_other_products_stay_as_they_are(model):
    assert operators(by_convolution(model)) == operators(model)


def test_products_in_float16_stay_as_they_are():
    model = gated()
    for one in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        one.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert operators(by_convolution(model)) == operators(model)
