"""The rewritten graph computes the same; only what is a pooling becomes one, only statistics that are joined groups."""

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveal.export.rewrite import pool_globally, reduce_in_groups


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
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([axis]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


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
