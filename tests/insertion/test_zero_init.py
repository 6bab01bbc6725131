"""A block behind a norm that starts at zero is found and woken; nothing else is touched."""

import pytest
import timm
import torch
from torch import nn

import foveal

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def gradient_of_blocks(net: nn.Module) -> list[float]:
    """The sum of |gradient| of each inserted block in one step."""
    net.train()
    torch.nn.functional.cross_entropy(net(IMAGE), torch.tensor([0, 1])).backward()
    return [
        sum(float(p.grad.abs().sum()) for p in one.module.parameters() if p.grad is not None)
        for one in foveal.inserted(net)
    ]


def build(at: str = "residual", name: str = "resnet18", **options) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=2, **options)
    return foveal.insert(net, "cbam", at=at, stages=(3, 4), example=IMAGE, reduction=4)


def test_blocks_without_any_gradient_get_one():
    assert gradient_of_blocks(build()) == [0.0] * 4
    net = build()
    changed = foveal.undo_zero_init(net, IMAGE)
    assert changed == ["layer3.0.bn2", "layer3.1.bn2", "layer4.0.bn2", "layer4.1.bn2"]
    assert all(gradient > 0 for gradient in gradient_of_blocks(net))


def test_only_the_scales_of_the_named_norms_change():
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [m.training for m in net.modules()]
    changed = foveal.undo_zero_init(net, IMAGE)
    different = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert different == [f"{name}.weight" for name in changed]
    assert all((net.get_submodule(name).weight == 1).all() for name in changed)  # type: ignore[union-attr, attr-defined]
    assert [m.training for m in net.modules()] == flags
    assert foveal.undo_zero_init(net, IMAGE) == []


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(lambda: build("block"), id="blocks that see the shortcut too"),
        pytest.param(lambda: build(zero_init_last=False), id="no norm at zero"),
        pytest.param(lambda: timm.create_model("resnet18"), id="no blocks"),
    ],
)
def test_blocks_that_see_something_are_left_alone(net):
    made = net()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert foveal.undo_zero_init(made, IMAGE) == []
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


class Dead(nn.Module):
    """A branch that is constant for another reason than the zero norm that runs before it."""

    def __init__(self):
        super().__init__()
        self.side = nn.BatchNorm2d(4)
        nn.init.zeros_(self.side.weight)
        self.branch = nn.Conv2d(4, 4, 1)
        nn.init.zeros_(self.branch.weight)

    def forward(self, x):
        self.side(x)
        return x + self.branch(x)


def test_a_norm_that_is_not_the_cause_stays_at_zero():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Dead())
    foveal.insert(net, "se", example=IMAGE, hidden=2)
    assert foveal.undo_zero_init(net, IMAGE) == []
    assert not net[1].side.weight.any()
