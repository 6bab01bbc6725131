"""What `insert` proves of a new block before it stays."""

import pytest
import torch
import torchvision
from tests.insertion.unchanged import assert_unchanged, fingerprint
from torch import nn

import foveal
from foveal.errors import FovealError


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return foveal.create_model("cifar_resnet8", num_classes=10).eval()


def test_a_block_that_breaks_the_promise_of_identity_is_refused_and_taken_back():
    net = small()
    before = fingerprint(net)
    with pytest.raises(
        ValueError,
        match=r"must change no value at layer1.0.bn2 with start='identity', got a change of .*start='paper'",
    ):
        foveal.insert(net, lambda channels: nn.Conv2d(channels, channels, 1))
    assert_unchanged(net, before)
    foveal.insert(net, lambda channels: nn.Conv2d(channels, channels, 1), start="paper")
    assert len(foveal.inserted(net)) == 3


class SquashedGate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return x * torch.sigmoid(self.gate)


def test_a_branch_of_zeros_does_not_hide_a_block_that_is_no_identity():
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=4)
    for module in net.modules():
        if isinstance(module, torchvision.models.resnet.BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    before = fingerprint(net)
    with pytest.raises(FovealError, match=r"must change no value at layer1.0.bn2"):
        foveal.insert(net, SquashedGate, example=torch.randn(1, 3, 32, 32))
    assert_unchanged(net, before)


def test_a_block_that_is_identity_on_what_its_site_returns_is_let_in():
    x = torch.randn(1, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    foveal.insert(net, lambda channels: nn.ReLU(), at="1", example=x)
    assert len(foveal.inserted(net)) == 1


class Ignoring(nn.Module):
    """Calls its branch, and adds something else that the branch also computed."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.branch(x)
        if hasattr(self.branch, "se"):
            y = nn.functional.conv2d(x, self.branch.weight, self.branch.bias)
        return x + y


def test_a_block_whose_output_does_not_reach_the_addition_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Ignoring())
    before = fingerprint(net)
    with pytest.raises(
        FovealError, match=r"what the block at 1.branch returns must flow on as at='residual' says"
    ):
        foveal.insert(net, "se", example=torch.randn(1, 3, 8, 8), hidden=2)
    assert_unchanged(net, before)
