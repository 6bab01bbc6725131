"""The networks by name have the sizes their papers and peers print, and the blocks where the papers put them."""

import pytest
import torch

import foveal
from foveal.models.named import NAMED
from foveal.models.video import nonlocal_sites


def parameters(net) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("se_resnet18", "seresnet18"),
        ("se_resnet34", "seresnet34"),
        ("se_resnet50", "seresnet50"),
        ("se_resnet101", "seresnet101"),
        ("se_resnext50_32x4d", "seresnext50_32x4d"),
    ],
)
def test_se_networks_have_timms_size(name, peer):
    """timm rounds the hidden width to multiples of 8, so only its 64-channel sites differ (8 for 4)."""
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(peer)
    ours = NAMED[name]()
    narrow = [one for one in foveal.inserted(ours) if one.channels == 64]
    assert parameters(ours) + len(narrow) * (8 - 4) * (2 * 64 + 1) == parameters(theirs)


def test_nonlocal_blocks_sit_where_the_paper_puts_them():
    assert nonlocal_sites(50, 1) == ["layer3.4"]  # right before the last residual block of res4
    assert nonlocal_sites(50, 5) == ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]
    assert len(nonlocal_sites(50, 10)) == len(set(nonlocal_sites(50, 10))) == 10
    assert nonlocal_sites(101, 5)[2:] == ["layer3.6", "layer3.13", "layer3.20"]
    assert len(set(nonlocal_sites(101, 10))) == 10
    with pytest.raises(ValueError, match="blocks 1, 5 or 10, got depth=50, blocks=3"):
        nonlocal_sites(50, 3)
    net = NAMED["nonlocal_resnet50"](num_classes=5, blocks=1)
    assert [one.site for one in foveal.inserted(net)] == ["layer3.4"]


def test_classifiers_give_timms_features():
    net = NAMED["cbam_resnet18"](features_only=True, out_indices=(1, 4)).eval()
    assert [tuple(f.shape) for f in net(torch.randn(1, 3, 64, 96))] == [(1, 64, 16, 24), (1, 512, 2, 3)]
    assert len(foveal.inserted(net)) == 8


@pytest.mark.parametrize("name", ["cifar_se_resnet20", "cifar_cbam_resnet20"])
def test_cifar_networks_run(name):
    net = NAMED[name](num_classes=7).eval()
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert len(foveal.inserted(net)) == 9
