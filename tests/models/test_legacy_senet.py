"""The released SE networks: where they differ from ours, and that a file rebuilds the difference."""

import pytest
import torch

import foveal
from foveal.models.legacy_senet import stride_in_first


def test_the_stride_moves_and_no_weight_changes():
    net, moved = (foveal.create_model("se_resnet50", num_classes=3, stride_first=on) for on in (False, True))
    assert (net.layer2[0].conv1.stride, net.layer2[0].conv2.stride) == ((1, 1), (2, 2))
    assert (moved.layer2[0].conv1.stride, moved.layer2[0].conv2.stride) == ((2, 2), (1, 1))
    assert moved.layer1[0].conv2.stride == moved.layer2[1].conv1.stride == (1, 1)
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in moved.state_dict().items()
    }
    assert len(foveal.inserted(moved)) == 16


def test_a_network_without_such_a_stride_is_refused():
    with pytest.raises(ValueError, match="bottlenecks with a stride of their own, got none in ResNet"):
        stride_in_first(foveal.create_model("resnet18"))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "net154"])
def test_released_networks_have_timms_size_and_no_block_of_timms(name):
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(f"legacy_se{name}", num_classes=5)
        ours = foveal.create_model(f"legacy_se_{name}", num_classes=5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert len(foveal.inserted(ours)) == sum(hasattr(m, "se_module") for m in theirs.modules())
    assert not [m for m in ours.modules() if type(m).__name__ == "SEModule"]


def test_a_file_rebuilds_where_the_stride_was(tmp_path):
    for name, options in (("se_resnet50", {"stride_first": True}), ("legacy_se_resnet18", {})):
        net = foveal.create_model(name, num_classes=3, **options).eval()
        foveal.save(net, tmp_path / "net.safetensors")
        x = torch.randn(1, 3, 65, 64)
        assert torch.equal(foveal.load(tmp_path / "net.safetensors").eval()(x), net(x))


def test_weights_of_released_networks_are_not_fetched():
    with pytest.raises(ValueError, match="pretrained must be False"):
        foveal.create_model("legacy_se_resnet50", pretrained=True)
