"""A gate joined with its addition computes what the two did."""

import pytest
import torch
from torch import nn

import foveal
from foveal.fusion import GatedResidual
from foveal.ops import whole_gate


def test_a_strided_expansion_takes_its_squeeze_from_the_positions_it_reads():
    convolution = nn.Conv2d(4, 16, 1, stride=2)
    block = foveal.nn.SqueezeExcite(16, reduction=4)
    joined = GatedResidual(block, convolution, relu=True).requires_grad_(False)
    u, shortcut = torch.randn(2, 4, 7, 9), torch.randn(2, 16, 4, 5)
    assert joined.squeezes_early
    torch.testing.assert_close(joined(u, shortcut), torch.relu(block(convolution(u)) + shortcut))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("last", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("variant", ["paper", "timm", "official"])
def test_cbam_is_one_operator_with_the_addition_and_the_relu(variant, last, relu, monkeypatch):
    pytest.importorskip("numba", reason="numba, which compiles the kernels, is not installed")
    monkeypatch.setattr(whole_gate, "NATIVE_FROM", 0)
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 19, 1).to(memory_format=last)
    block = foveal.nn.CBAM(19, reduction=4, variant=variant).eval()
    joined = GatedResidual(block, convolution, relu=relu).requires_grad_(False)
    u, shortcut = (torch.randn(3, c, 9, 11).contiguous(memory_format=last) for c in (4, 19))
    kept, called = shortcut.clone(), []
    add = whole_gate.add_residual_
    monkeypatch.setattr(whole_gate, "add_residual_", lambda *given: called.append(1) or add(*given))
    wanted = block(convolution(u)) + shortcut
    found = joined(u, shortcut)
    assert called
    torch.testing.assert_close(found, torch.relu(wanted) if relu else wanted)
    assert torch.equal(shortcut, kept)
    for strange in (shortcut[..., :1, :1], shortcut.mT.contiguous().mT):
        wanted = block(convolution(u)) + strange
        torch.testing.assert_close(joined(u, strange), torch.relu(wanted) if relu else wanted)
    assert len(called) == 1
