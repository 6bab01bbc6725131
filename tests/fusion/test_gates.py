"""A gate joined with its addition computes what the two did."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import foveal
from foveal.errors import FovealError
from foveal.fusion import GatedResidual
from foveal.ops import gated_residual, whole_gate


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
    add = gated_residual.add_residual_
    monkeypatch.setattr(gated_residual, "add_residual_", lambda *given: called.append(1) or add(*given))
    wanted = block(convolution(u)) + shortcut
    found = joined(u, shortcut)
    assert called
    torch.testing.assert_close(found, torch.relu(wanted) if relu else wanted)
    assert torch.equal(shortcut, kept)
    for strange in (shortcut[..., :1, :1], shortcut.mT.contiguous().mT):
        wanted = block(convolution(u)) + strange
        torch.testing.assert_close(joined(u, strange), torch.relu(wanted) if relu else wanted)
    assert len(called) == 1


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("last", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inner", [5, 40], ids=["expansion", "reduction"])
def test_se_is_one_operator_with_the_addition_and_the_relu(inner, last, relu, monkeypatch):
    pytest.importorskip("numba", reason="numba, which compiles the kernels, is not installed")
    monkeypatch.setattr(whole_gate, "NATIVE_FROM", 0)
    torch.manual_seed(0)
    convolution = nn.Conv2d(inner, 19, 1).to(memory_format=last)
    u, shortcut = (torch.randn(1, c, 9, 11).contiguous(memory_format=last) for c in (inner, 19))
    blocks = [
        foveal.nn.SqueezeExcite(19, reduction=4),
        foveal.nn.SqueezeExcite(19, reduction=4, activation="hard_sigmoid", bias=False),
        timm.layers.SEModule(19, rd_ratio=0.25),
        timm.layers.SEModule(19, rd_ratio=0.25, gate_layer="hard_sigmoid"),
    ]
    called, add = [], gated_residual.add_residual_
    monkeypatch.setattr(gated_residual, "add_residual_", lambda *given: called.append(1) or add(*given))
    for number, block in enumerate(blocks):
        joined = GatedResidual(block.eval(), convolution, relu=relu).requires_grad_(False)
        assert joined.squeezes_early == (inner < 19)
        kept = u.clone(), shortcut.clone()
        found = joined(u, shortcut)
        assert len(called) == number + 1
        wanted = block(convolution(u)) + shortcut
        torch.testing.assert_close(found, torch.relu(wanted) if relu else wanted)
        assert torch.equal(u, kept[0])
        assert torch.equal(shortcut, kept[1])


@pytest.mark.parametrize("make", [foveal.nn.SqueezeExcite, foveal.nn.CBAM])
def test_what_is_prepared_once_follows_maps_weights_and_copies(make, monkeypatch):
    pytest.importorskip("numba", reason="numba, which compiles the kernels, is not installed")
    monkeypatch.setattr(whole_gate, "NATIVE_FROM", 0)
    torch.manual_seed(0)
    joined = GatedResidual(make(19, reduction=4).eval(), nn.Conv2d(5, 19, 1), relu=True).requires_grad_(False)
    prepared, add = [], gated_residual.add_residual_
    monkeypatch.setattr(gated_residual, "add_residual_", lambda *given: prepared.append(1) or add(*given))

    def check(number, net=joined, height=9):
        u, shortcut = torch.randn(1, 5, height, 11), torch.randn(1, 19, height, 11)
        found = net(u, shortcut)
        assert len(prepared) == number
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GatedResidual, "_at_once_", lambda *_: False)
            torch.testing.assert_close(found, net(u, shortcut))

    layer = joined.fc2 if joined.fc2 is not None else joined.block.channel.fc2
    check(1)
    check(1)
    layer.weight.mul_(-3.0)
    check(1)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight), requires_grad=False)
    check(2)
    check(3, height=8)
    check(3, height=8)
    check(4, copy.deepcopy(joined), height=8)
    check(5, pickle.loads(pickle.dumps(joined)), height=8)


@pytest.mark.parametrize("make", [foveal.nn.SqueezeExcite, foveal.nn.CBAM])
def test_without_a_convolution_the_map_stays_as_it_is(make, monkeypatch):
    monkeypatch.setattr(whole_gate, "NATIVE_FROM", 0)
    torch.manual_seed(0)
    joined = GatedResidual(make(19, reduction=4).eval(), None, relu=True).requires_grad_(False)
    u, shortcut = torch.randn(1, 19, 9, 11), torch.randn(1, 19, 9, 11)
    kept = u.clone()
    found = joined(u, shortcut)
    assert torch.equal(u, kept)
    torch.testing.assert_close(found, torch.relu(joined.block(u) + shortcut))


def test_timms_se_with_another_activation_is_joined_step_by_step(monkeypatch):
    monkeypatch.setattr(whole_gate, "NATIVE_FROM", 0)
    torch.manual_seed(0)
    convolution, block = nn.Conv2d(4, 16, 1), timm.layers.SEModule(16, act_layer=nn.SiLU).eval()
    joined = GatedResidual(block, convolution, relu=True).requires_grad_(False)
    u, shortcut = torch.randn(2, 4, 7, 9), torch.randn(2, 16, 7, 9)
    torch.testing.assert_close(joined(u, shortcut), torch.relu(block(convolution(u)) + shortcut))


@pytest.mark.parametrize("act", [foveal.inserted, foveal.remove, lambda net: foveal.watch(net).__enter__()])
def test_blocks_of_a_fused_network_are_looked_for_in_the_one_it_was_made_from(act):
    net = foveal.insert(foveal.create_model("cifar_resnet8"), "cbam", reduction=4)
    with pytest.raises(FovealError, match="rewritten since the insertion"):
        act(foveal.fuse(net.eval()))
