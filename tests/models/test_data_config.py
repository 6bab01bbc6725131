"""The preprocessing of a network is that of its published weights, wherever they are."""

import pytest
import timm
import torch
from torch import nn

import foveal
from foveal.errors import FovealError
from foveal.models import data_config

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "size", "mean", "interpolation", "crop_pct"),
    [
        ("resnet50.a1_in1k", (3, 224, 224), IMAGENET[0], "bicubic", 0.95),
        ("vit_tiny_patch16_224", (3, 224, 224), (0.5, 0.5, 0.5), "bicubic", 0.9),
        ("inception_v3", (3, 299, 299), (0.485, 0.456, 0.406), "bicubic", 0.875),
        ("se_resnet18", (3, 224, 224), IMAGENET[0], "bilinear", 0.875),
        ("legacy_se_resnet50", (3, 224, 224), IMAGENET[0], "bilinear", 0.875),
        ("danet_resnet18", (3, 224, 224), IMAGENET[0], "bilinear", 0.875),
        ("cifar_resnet20", (3, 32, 32), IMAGENET[0], "bicubic", 0.875),
        ("nonlocal_c2d_resnet50", (3, 32, 224, 224), IMAGENET[0], "bilinear", 0.875),
    ],
)
def test_by_name(name, size, mean, interpolation, crop_pct):
    config = data_config(name)
    plain = timm.get_pretrained_cfg("resnet18")
    if name in ("se_resnet18", "danet_resnet18"):  # whatever weights timm takes for its backbone
        interpolation, crop_pct = plain.interpolation, plain.crop_pct
    elif timm.is_model(name):
        known = timm.get_pretrained_cfg(name)
        mean, interpolation, crop_pct = known.mean, known.interpolation, known.crop_pct
    assert config["input_size"] == size
    assert config["mean"] == mean
    assert (config["interpolation"], config["crop_pct"]) == (interpolation, crop_pct)
    assert set(config) == {"input_size", "mean", "std", "interpolation", "crop_pct"}


def test_by_network_and_by_name_agree():
    for name in ("resnet10t", "fcn_resnet18", "cifar_se_resnet20"):
        assert data_config(foveal.create_model(name)) == data_config(name)


def test_a_backbone_of_feature_maps_keeps_its_own():
    net = foveal.create_model("resnet10t", features_only=True)
    assert data_config(net) == data_config("resnet10t")


def test_grey_images_have_one_mean():
    config = data_config(foveal.create_model("resnet18", in_chans=1))
    assert config["input_size"] == (1, 224, 224)
    assert config["mean"] == pytest.approx((sum(IMAGENET[0]) / 3,))
    assert len(config["std"]) == 1


def test_a_network_of_ones_own_has_timms_defaults():
    config = data_config(nn.Conv2d(3, 4, 1))
    assert config["input_size"] == (3, 224, 224)
    assert (config["mean"], config["std"]) == IMAGENET


def test_an_unknown_name_is_refused_and_no_random_number_drawn():
    with pytest.raises(FovealError, match="did you mean resnet18"):
        data_config("resnet_18")
    state = torch.get_rng_state()
    data_config("cifar_resnet8")
    assert torch.equal(torch.get_rng_state(), state)
