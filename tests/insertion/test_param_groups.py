"""Optimiser groups, and a backbone that freezes and thaws."""

import pytest
import torch
from torch import nn

import foveal


def with_blocks() -> nn.Module:
    torch.manual_seed(0)
    net = foveal.create_model("cifar_resnet8", num_classes=4)
    foveal.insert(net, "se", reduction=4)
    return foveal.insert(net, "dual", at="stage")


def test_every_parameter_is_in_exactly_one_group():
    net = with_blocks()
    grouped = [id(p) for group in foveal.parameter_groups(net, lr=0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())


def test_inserted_parameters_have_their_rate_and_scales_and_biases_no_decay():
    net = with_blocks()
    groups = foveal.parameter_groups(net, lr=0.1, inserted_lr=0.5, weight_decay=0.01)
    setting = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    new = {one.path + "." + name for one in foveal.inserted(net) for name, _ in one.module.named_parameters()}
    for name, parameter in net.named_parameters():
        lr, decay = setting[id(parameter)]
        assert lr == (0.5 if name in new else 0.1)
        assert decay == (0.01 if parameter.ndim > 1 else 0.0), name
        if name.endswith("bias") or "scale" in name:
            assert decay == 0.0
    torch.optim.AdamW(groups)


def test_a_frozen_backbone_learns_nothing_and_thaws_to_what_it_was():
    net = with_blocks().train()
    net.bn1.weight.requires_grad_(False)  # frozen by its user, and to stay so
    before = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    momenta = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    thaw = foveal.freeze_backbone(net, keep=["fc"])
    optimiser = torch.optim.SGD(foveal.parameter_groups(net, lr=0.1, weight_decay=0.1))
    for _ in range(2):
        optimiser.zero_grad()
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimiser.step()
    free = (*(one.path + "." for one in foveal.inserted(net)), "fc.")
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in changed if not key.startswith(free)} <= {
        key for key in before if key.endswith("num_batches_tracked")
    }
    assert {"fc.weight", "layer1.0.bn2.se.reduce.weight"} & changed
    thaw()
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    thaw()


def test_freezing_everything_is_refused():
    net = foveal.create_model("cifar_resnet8", num_classes=4)
    with pytest.raises(ValueError, match="something must be left to train"):
        foveal.freeze_backbone(net)
    with pytest.raises(ValueError, match="keep must match modules of CifarResNet, got 'head'"):
        foveal.freeze_backbone(with_blocks(), keep=["head"])
    assert all(p.requires_grad for p in net.parameters())
