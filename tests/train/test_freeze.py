import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import foveal
from foveal.tasks.classify.loss import classification_loss
from foveal.train.freeze import Freezer
from foveal.train.optim import make_optimizer


def test_a_frozen_backbone_keeps_its_weights_while_blocks_and_classifier_learn():
    torch.manual_seed(0)
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=3), "se", reduction=4, stages=(2,))
    optimizer = make_optimizer(net, lr=0.1, weight_decay=0.1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    freezer = Freezer(net, epochs=1)

    def step():
        optimizer.zero_grad()
        classification_loss(net, torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        return {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}

    assert freezer.start_epoch(0)
    changed = step()
    assert all(".se." in k or k.startswith("fc.") for k in changed)
    assert {"fc.weight", "fc.bias"} <= changed
    assert net.layer1[0].conv1.weight.grad is None
    assert freezer.start_epoch(1)
    assert not freezer.start_epoch(2)
    assert set(net.state_dict()) - step() <= {"layer2.0.bn2.se.fc1.weight", "layer2.0.bn2.se.fc1.bias"}


def test_a_frozen_backbones_backward_ends_at_the_first_block_and_computes_no_gradient_of_its_weights():
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=3), "se", reduction=4, stages=(3,))
    Freezer(net, epochs=1).start_epoch(0)
    with FlopCounterMode(display=False) as frozen:
        net(torch.randn(2, 3, 16, 16)).sum().backward()
    assert "aten.convolution_backward" not in {str(op) for op in frozen.get_flop_counts()["Global"]}


def test_the_network_of_segmentation_keeps_its_head_in_training():
    net = foveal.create_model("fcn_resnet18", num_classes=3)
    Freezer(net, epochs=1).start_epoch(0)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert all(p.requires_grad for name, p in net.named_parameters() if not name.startswith("backbone."))


def test_freezing_all_there_is_is_refused():
    with pytest.raises(ValueError, match="something must be left to train"):
        Freezer(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), epochs=1)
