"""Identity insertion and removal over network families of timm and torchvision."""

import copy

import pytest
import timm
import torch
import torchvision
from tests.marks import slow

import foveal

# one row a family: where it comes from, the smallest member that builds quickly, image size, sites of each kind
FAMILIES = [
    ("timm", "resnet10t", 64, {"residual": 4, "block": 4, "stage": 4}),
    ("timm", "regnety_002", 64, {"residual": 13, "block": 13, "stage": 4}),
    ("timm", "convnext_atto", 64, {"residual": 12, "block": 12, "stage": 4}),
    ("timm", "efficientnet_b0", 64, {"residual": 9, "block": 15, "stage": 6}),
    ("torchvision", "resnet18", 64, {"residual": 8, "block": 8, "stage": 4}),
    ("torchvision", "mobilenet_v3_small", 64, {"residual": 6, "block": 11, "stage": 4}),
    ("torchvision", "shufflenet_v2_x0_5", 64, {"block": 16, "stage": 3}),
    ("torchvision", "googlenet", 64, {"block": 9, "stage": 3}),
]
FURTHER = [
    ("timm", "nf_resnet26", 64, {"residual": 8, "block": 8, "stage": 4}),
    ("timm", "densenet121", 64, {"block": 58, "stage": 4}),
    ("torchvision", "vgg11_bn", 64, {"block": 8, "stage": 5}),
    ("timm", "resnext26ts", 64, {"residual": 8, "block": 8, "stage": 4}),
    ("timm", "seresnet18", 64, {"residual": 8, "block": 8, "stage": 4}),
    ("timm", "res2net50_14w_8s", 64, {"residual": 16, "block": 16, "stage": 4}),
    ("timm", "convnextv2_atto", 64, {"residual": 12, "block": 12, "stage": 4}),
    ("timm", "mobilenetv3_small_050", 64, {"residual": 7, "block": 10, "stage": 4}),
    ("timm", "ghostnet_050", 64, {"residual": 16, "block": 16, "stage": 9}),
    ("timm", "repvgg_a0", 64, {"residual": 17, "block": 22, "stage": 5}),
    ("torchvision", "resnext50_32x4d", 64, {"residual": 16, "block": 16, "stage": 4}),
    ("torchvision", "regnet_y_400mf", 64, {"residual": 16, "block": 16, "stage": 4}),
    ("torchvision", "convnext_tiny", 64, {"residual": 18, "block": 18, "stage": 4}),
    ("torchvision", "efficientnet_b0", 64, {"residual": 9, "block": 16, "stage": 7}),
    ("torchvision", "mobilenet_v2", 64, {"residual": 10, "block": 17, "stage": 5}),
    ("torchvision", "densenet121", 64, {"block": 58, "stage": 4}),
    ("torchvision", "squeezenet1_1", 64, {"block": 8, "stage": 3}),
]
BLOCKS = {
    "residual": ("cbam", {"reduction": 4}),
    "block": ("se", {"reduction": 4}),
    "stage": ("dual", {}),
}


def build(source: str, name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if source == "timm":
        return timm.create_model(name, num_classes=10)
    options = {"init_weights": False} if name in ("googlenet", "vgg11_bn") else {}
    if name == "googlenet":
        options["aux_logits"] = False
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


def outputs(net: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In eval mode, and in train mode of a copy, dropout drawn alike."""
    with torch.no_grad():
        evaluated = net.eval()(x)
        torch.manual_seed(1)
        trained = copy.deepcopy(net).train()(x)
    return evaluated, trained


@pytest.mark.parametrize(
    ("source", "name", "size", "expected"),
    [*FAMILIES, *slow(FURTHER)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_insertion_changes_no_bit_and_removal_restores(source, name, size, expected):
    net = build(source, name)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(2, 3, size, size)
    before = outputs(net, x)
    for at, count in expected.items():
        block, options = BLOCKS[at]
        foveal.insert(net, block, at=at, example=x[:1], **options)
        new = foveal.inserted(net)
        assert len(new) == count
        for a, b in zip(outputs(net, x), before, strict=True):
            assert torch.equal(a, b)
        names = {key for key in net.state_dict() if not key.startswith(tuple(one.path + "." for one in new))}
        assert names == set(state)
        foveal.remove(net)
        for a, b in zip(outputs(net, x), before, strict=True):
            assert torch.equal(a, b)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_network_without_additions_says_what_to_use_instead():
    with pytest.raises(ValueError, match="at='residual' needs a network that adds feature maps, got VGG"):
        foveal.insert(build("torchvision", "vgg11_bn"), "se", example=torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_transformer_is_refused_for_its_channels_are_last(name):
    net = timm.create_model(name)
    with pytest.raises(ValueError, match="channels last"):
        foveal.insert(net, "se", at="block")
    assert foveal.inserted(net) == []
