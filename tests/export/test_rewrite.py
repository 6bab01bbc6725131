"""The rewritten graph computes the same, and only what is a pooling becomes one."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveal.export.rewrite import rewrite


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


def run(model, x):
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
    rewrite(changed)
    onnx.checker.check_model(changed)
    assert any(node.op_type.startswith("Global") for node in changed.graph.node) == pools
    assert len(changed.graph.initializer) == (0 if pools else 1)
    assert np.allclose(run(changed, x), run(model, x), atol=1e-6)
