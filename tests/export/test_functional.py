"""A graph that needs no decomposition is translated as it is, to the same nodes; any other is decomposed."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.export.predictors import with_blocks
from torch import nn

from foveal.export import functional
from foveal.export.functional import FunctionalProgram
from foveal.export.onnx import load, to_model
from foveal.export.program import quiet, record


class Residual(nn.Module):
    """What ends in place in most networks: an addition and a ReLU, and the pooling before a classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x):
        y = self.conv(x)
        y += x
        y = F.relu(y, inplace=True).to(torch.float32)
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


class ReadBefore(Residual):
    """Another node reads what is overwritten, before that or after it, as written in the code."""

    def forward(self, x):
        y = self.conv(x)
        doubled = 2 * y
        return doubled + y.relu_() + y


class ThroughView(Residual):
    """What is overwritten is a view of what is returned."""

    def forward(self, x):
        y = self.conv(x)
        y.flatten(1).relu_()
        return y


class OfInput(Residual):
    """What is overwritten is the input."""

    def forward(self, x):
        return x.relu_() + self.conv(x)


class OtherPooling(Residual):
    def forward(self, x):
        return F.adaptive_avg_pool2d(self.conv(x), (1, 2))


class OtherKind(Residual):
    """A cast that casts."""

    def forward(self, x):
        return (self.conv(x) * 4).to(torch.int32)


def exported(module):
    torch.manual_seed(0)
    module, x = module().eval(), torch.randn(2, 3, 6, 5)
    with torch.no_grad():
        return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), module


def written(program):
    with quiet("torch.onnx", "onnxscript", "onnx_ir"):
        return torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"])


@pytest.fixture
def decomposed(monkeypatch):
    """The programs that were decomposed."""
    seen, decompose = [], torch.export.ExportedProgram.run_decompositions

    def watched(self, *given):
        seen.append(self)
        return decompose(self, *given)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", watched)
    return seen


@pytest.mark.parametrize(
    ("module", "direct"),
    [(Residual, True), (ReadBefore, False), (ThroughView, False), (OfInput, False), (OtherPooling, False),
     (OtherKind, False)],
)  # fmt: skip
def test_the_file_computes_what_the_network_does_decomposed_or_not(module, direct, decomposed, tmp_path):
    program, net = exported(module)
    before = [(node.target, node.args) for node in program.graph.nodes]
    made = written(FunctionalProgram(program))
    assert bool(decomposed) != direct
    assert [(node.target, node.args) for node in program.graph.nodes] == before
    wanted = written(program).model_proto.graph.node
    assert [node.op_type for node in made.model_proto.graph.node] == [node.op_type for node in wanted]
    made.save(tmp_path / "model.onnx", external_data=False)
    x = torch.randn(3, 3, 6, 5)
    (found,) = load(str(tmp_path / "model.onnx"))(x.numpy())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(x.clone()), atol=1e-5, rtol=1e-5)


def test_a_residual_network_with_gates_is_not_decomposed_and_has_the_same_nodes(decomposed, monkeypatch):
    ready = with_blocks("cbam(reduction=4)@residual")
    program = record(ready, torch.randn(2, 3, 32, 32), static=False, half=False, normalise=False)
    made = to_model(program, for_onnxruntime=True)
    assert not decomposed
    monkeypatch.setattr(functional, "FunctionalProgram", lambda exported: exported)
    wanted = to_model(replace(program), for_onnxruntime=True)
    assert decomposed
    assert [(node.name, node.op_type) for node in made.graph.node] == [
        (node.name, node.op_type) for node in wanted.graph.node
    ]
