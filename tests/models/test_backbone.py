"""Every classifier of images gives what timm's give: feature maps, pooled features, another classifier."""

import pytest
import torch

import foveal

CIFAR = [(16, 64, 64), (16, 64, 64), (32, 32, 32), (64, 16, 16)]
RESNET18 = [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
NET154 = [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)]
NETWORKS = [
    ("cifar_resnet8", CIFAR),
    ("cifar_se_resnet20", CIFAR),
    ("cifar_cbam_resnet20", CIFAR),
    ("legacy_se_resnet18", RESNET18),
    ("nonlocal_resnet50", [(64, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)]),
    pytest.param("se_net154", NET154, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "shapes"), NETWORKS)
def test_feature_maps_are_those_on_the_way_to_the_classifier(name, shapes):
    whole = foveal.create_model(name, num_classes=0, in_chans=1).eval()
    maps = foveal.create_model(name, features_only=True, in_chans=1).eval()
    maps.load_state_dict({k: v for k, v in whole.state_dict().items() if k in maps.state_dict()})
    assert len(foveal.inserted(maps)) == len(foveal.inserted(whole))
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        got = maps(x)
        assert [tuple(y.shape[1:]) for y in got] == shapes
        assert torch.allclose(got[-1].mean((2, 3)), whole(x), atol=1e-5)
    assert maps.feature_info.channels() == [shape[0] for shape in shapes]


@pytest.mark.parametrize(("name", "shapes"), [n for n in NETWORKS if n[0] != "nonlocal_resnet50"])
def test_wanted_maps_alone_are_given_and_what_comes_after_is_left_out(name, shapes):
    maps = foveal.create_model(name, features_only=True, out_indices=(0, 1)).eval()
    assert [tuple(y.shape[1:]) for y in maps(torch.randn(1, 3, 64, 64))] == shapes[:2]
    assert all(one.site.startswith("layer1.") for one in foveal.inserted(maps))


@pytest.mark.parametrize(("name", "shapes"), NETWORKS)
def test_a_classifier_is_replaced_as_in_timm(name, shapes):
    net = foveal.create_model(name, num_classes=3)
    assert net.num_classes == net.get_classifier().out_features == 3
    net.reset_classifier(0)
    with torch.no_grad():
        assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, shapes[-1][0])
    net.double().reset_classifier(4)
    with torch.no_grad():
        assert net(torch.randn(1, 3, 64, 64).double()).shape == (1, net.num_classes) == (1, 4)


def test_a_map_that_there_is_not_is_one_clear_line():
    with pytest.raises(ValueError, match=r"^'cifar_se_resnet20' could not be built: .*range$"):
        foveal.create_model("cifar_se_resnet20", features_only=True, out_indices=(9,))
