import pytest
import torch
from torch import nn

import foveal
from foveal.train.block_report import block_report


class Times(nn.Module):
    def __init__(self, channels, factor=1.0):
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor([factor]))

    def forward(self, x):
        return self.gamma * x


def network(block, **options):
    torch.manual_seed(0)
    return foveal.insert(foveal.create_model("cifar_resnet8", num_classes=2), block, stages=(3,), **options)


IMAGES = [torch.randn(4, 3, 32, 32), torch.randn(3, 3, 32, 32)]


@pytest.mark.parametrize("name", ["se", "cbam", "nonlocal", "selfattention", "dual"])
def test_an_untrained_identity_block_is_called_inert(name):
    options = {"reduction": 4} if name in ("se", "cbam") else {}
    [row] = block_report(network(name, **options), IMAGES)
    assert row["contribution"] == 0
    assert row["verdict"].startswith("inert")
    assert (row["gate_mean"] == 1.0) if name in ("se", "cbam") else (row["scale"] == 0)
    assert ("its gates are 1" if name in ("se", "cbam") else "its scale is 0") in row["verdict"]


def test_a_block_that_sees_only_zeros_is_said_to():
    net = foveal.create_model("resnet18", num_classes=2, zero_init_last=True)
    foveal.insert(net, "cbam", at="residual", stages=(4,))
    rows = block_report(net, IMAGES)
    assert all("its input is 0, a norm or scale before it" in row["verdict"] for row in rows), rows


def test_the_contribution_is_the_relative_change():
    [row] = block_report(network(Times, start="paper", factor=3.0), IMAGES)
    assert row["contribution"] == pytest.approx(2.0, rel=1e-6)
    assert row["scale"] == 3.0
    assert row["verdict"] == "works"


def test_a_gate_that_ignores_the_image_is_called_constant():
    net = network("se", reduction=4)
    block = foveal.inserted(net)[0].module
    with torch.no_grad():
        block.fc2.bias.copy_(torch.linspace(-1, 1, 64))
    [row] = block_report(net, IMAGES)
    gates = 2 * torch.linspace(-1, 1, 64).sigmoid()
    assert row["gate_mean"] == pytest.approx(gates.mean().item(), rel=1e-5)
    assert row["gate_spread"] == pytest.approx(gates.std(correction=0).item(), rel=1e-5)
    assert row["verdict"] == "constant gate: the same for every image"
    with torch.no_grad():
        block.fc2.weight.normal_()
    assert block_report(net, IMAGES)[0]["verdict"] == "works"


def test_looking_changes_nothing():
    net = network("cbam", reduction=4, variant="timm").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    block_report(net, IMAGES)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not foveal.inserted(net)[0].module._forward_hooks
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.05, "closed: it lets 5.0 % of its input through"), (0.2, "works")]
)
def test_a_block_that_switches_its_branch_off_is_called_closed(factor, verdict):
    [row] = block_report(network(Times, start="paper", factor=factor), IMAGES)
    assert row["verdict"].startswith(verdict)


@pytest.mark.parametrize("name", ["cbam", "nonlocal"])
def test_a_device_without_float64_is_enough(name, without_float64):
    net = network(name, start="paper", **({"reduction": 4} if name == "cbam" else {}))
    assert block_report(net, [without_float64(images) for images in IMAGES]) == block_report(net, IMAGES)
