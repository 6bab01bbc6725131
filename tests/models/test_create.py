"""Networks by name, and clear words where there is none of that name."""

import json

import pytest
import torch

import foveal
from foveal.models.cifar_resnet import CifarResNet


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_se_resnet20", "resnet10t"])
def test_a_network_carries_what_rebuilds_it(name):
    net = foveal.create_model(name, num_classes=7, in_chans=1).eval()
    description = json.loads(json.dumps(net.foveal_model))
    assert description == {"name": name, "kwargs": {"num_classes": 7, "in_chans": 1}}
    again = foveal.create_model(description["name"], **description["kwargs"]).eval()
    again.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 32, 32)
    assert net(x).shape == (2, 7)
    assert torch.equal(net(x), again(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_resnet9", {}, r"got 'cifar_resnet9'; did you mean .*cifar_resnet"),
        ("resnet5O", {}, r"got 'resnet5O'; did you mean .*resnet50"),
        (
            "hf-hub:some/model",
            {},
            r"name must be a model's, got 'hf-hub:some/model', which has weights: foveal.load",
        ),
        ("cifar_resnet8", {"depht": 3}, r"'cifar_resnet8' could not be built: .*depht"),
        ("resnet10t", {"surprise": 1}, r"'resnet10t' could not be built: .*surprise"),
        ("resnet10t.nothing", {}, r"'resnet10t.nothing' could not be built: .*"),
        ("cifar_resnet8", {"in_chans": 0}, r"in_chans at least 1, got num_classes=None, in_chans=0"),
        (
            "resnet10t",
            {"num_classes": -1},
            r"num_classes must be at least 0 .*, got num_classes=-1, in_chans=3",
        ),
        (
            "danet_resnet18",
            {"features_only": True},
            r"got features_only for 'danet_resnet18'; take its `backbone`",
        ),
        (
            "fcn_test_resnet",
            {"out_indices": (1,)},
            r"got out_indices for 'fcn_test_resnet'; take its `backbone`",
        ),
        (
            "nonlocal_i3d_resnet50",
            {"features_only": True},
            r"'nonlocal_i3d_resnet50'; hook the layers of its `net`",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(name, options, message):
    with pytest.raises(ValueError, match=".*" + message) as caught:
        foveal.create_model(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["cifar_resnet8", "cifar_se_resnet20", "cifar_cbam_resnet20", "se_net154", "legacy_se_resnet18"]
)
def test_networks_without_published_weights_say_so(name):
    with pytest.raises(ValueError, match=r"^pretrained must be False[^\n]*, got True$"):
        foveal.create_model(name, pretrained=True)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("cifar_resnet8", 10),
        ("cifar_se_resnet20", 10),
        ("cbam_resnet18", 1000),
        ("resnet10t", 1000),
        ("vit_tiny_patch16_224.augreg_in21k", 21843),
        ("nonlocal_c2d_resnet50", 400),
        ("danet_resnet18", 19),
    ],
)
def test_without_a_number_the_classes_are_the_networks_own(name, classes):
    net = foveal.create_model(name)
    assert net.foveal_model == {"name": name, "kwargs": {"num_classes": classes, "in_chans": 3}}
    assert net.num_classes == classes


def test_names_are_listed_by_pattern_ours_first():
    assert foveal.list_models("cifar_resnet*") == [f"cifar_resnet{d}" for d in (8, 20, 32, 56, 110)]
    assert "resnet50" in foveal.list_models("resnet5?")
    assert foveal.list_models("no such model") == []


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (56, 855_770)])
def test_depths_have_the_papers_size(depth, parameters):
    # He et al., table 6: 0.27 M and 0.85 M; the two projections add 2,752 with their normalisation
    counted = sum(p.numel() for p in CifarResNet(depth, num_classes=10).parameters())
    assert counted == parameters
    assert len([m for m in CifarResNet(depth).modules() if isinstance(m, torch.nn.Conv2d)]) == depth - 1 + 2


@pytest.mark.parametrize("depth", [2, 9, 0, -4])
def test_a_depth_that_no_number_of_blocks_gives_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth must be 6 n . 2 with n >= 1, got {depth}"):
        CifarResNet(depth)


def test_any_image_from_8_by_8_up():
    net = CifarResNet(8)
    for size in ((8, 8), (33, 17)):
        assert net(torch.randn(1, 3, *size)).shape == (1, 10)
